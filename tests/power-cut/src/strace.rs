//! Reads what `strace -f -xx -y -s …` writes: one call a line, calls of threads that overlap in two
//! halves. Knows the form of a line only; what a call means is in `record.rs`.

use std::collections::HashMap;

use anyhow::{Context, bail, ensure};

/// System calls that the recorder asks for: everything that changes files, what tells the order of a
/// thread's acts (locks, sends), and what tells processes apart. A file changed by any other means makes
/// the recording differ from the disk at its end, which is checked.
pub const CALLS: &str = "open,openat,openat2,creat,close,dup,dup2,dup3,fcntl,lseek,read,readv,write,writev,\
    pwrite64,pwritev,pwritev2,fsync,fdatasync,sync_file_range,sync,syncfs,rename,renameat,renameat2,link,\
    linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,truncate,ftruncate,fallocate,\
    copy_file_range,sendfile,splice,sendto,sendmsg,io_uring_setup,execve";
/// Calls whose data is not wanted (it is large, or secret): printed as numbers.
pub const RAW_CALLS: &str = "read,readv,sendto,sendmsg";

/// A finished call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Thread that made it.
    pub thread: u32,
    /// Name of the call.
    pub name: String,
    /// Its arguments as printed.
    pub args: Vec<String>,
    /// What it returned; -1 when it failed.
    pub result: i64,
}

/// What a line tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A call began that another thread's line interrupts; its arguments so far.
    Begin {
        /// Thread.
        thread: u32,
        /// Name of the call.
        name: String,
        /// Arguments so far.
        args: Vec<String>,
    },
    /// A call ended.
    Call(Call),
    /// A thread ended.
    End {
        /// Thread.
        thread: u32,
        /// Exit status; `None` when killed by a signal.
        status: Option<i32>,
    },
}

/// A path printed beside a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// Its number; negative for `AT_FDCWD`.
    pub number: i32,
    /// The path it had.
    pub path: Option<String>,
    /// Whether the file has no name any more.
    pub deleted: bool,
}

/// Reads lines one after another.
#[derive(Debug, Default)]
pub struct Reader {
    open: HashMap<u32, String>,
}

impl Reader {
    /// Reads one line; `None` for lines that tell nothing (signals, calls that never returned).
    ///
    /// # Errors
    /// When the line has another form: nothing may be missed silently.
    pub fn line(&mut self, line: &str) -> anyhow::Result<Option<Item>> {
        self.read(line).with_context(|| {
            let shown: String = line.chars().take(200).collect();
            format!("understand {shown:?}")
        })
    }

    fn read(&mut self, line: &str) -> anyhow::Result<Option<Item>> {
        let (thread, rest) = line.split_once(' ').context("no thread")?;
        let thread = thread.parse().context("no thread")?;
        let rest = rest.trim_start();
        if rest.starts_with("---") {
            return Ok(None);
        }
        if let Some(end) = rest.strip_prefix("+++ ") {
            let status = end.strip_prefix("exited with ").and_then(|text| text.split(' ').next());
            self.open.remove(&thread);
            return Ok(Some(Item::End { thread, status: status.map(str::parse).transpose()? }));
        }
        if let Some(resumed) = rest.strip_prefix("<... ") {
            let (_, tail) = resumed.split_once(" resumed>").context("no end of <...")?;
            let head = self.open.remove(&thread).context("resumes what did not begin")?;
            return call(thread, &format!("{head}{tail}"));
        }
        if let Some(head) = rest.strip_suffix("<unfinished ...>") {
            let head = head.trim_end();
            let (name, args) = head.split_once('(').context("no call")?;
            let begin = Item::Begin { thread, name: name.to_owned(), args: split(args) };
            ensure!(self.open.insert(thread, head.to_owned()).is_none(), "two calls of one thread at once");
            return Ok(Some(begin));
        }
        call(thread, rest)
    }
}

fn call(thread: u32, text: &str) -> anyhow::Result<Option<Item>> {
    let (head, result) = text.rsplit_once(" = ").context("no result")?;
    let head = head.trim_end().strip_suffix(')').context("no end of arguments")?;
    let (name, args) = head.split_once('(').context("no call")?;
    let number = result.split([' ', '<']).next().unwrap_or_default();
    if number == "?" {
        // The process was killed inside the call: whether it took effect is not known, as at a cut.
        return Ok(None);
    }
    let result = integer(number)?;
    Ok(Some(Item::Call(Call { thread, name: name.to_owned(), args: split(args), result })))
}

/// Splits arguments at the commas outside brackets. Strings are all `\xNN`, so they hold none of these.
fn split(args: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let (mut depth, mut from) = (0_u32, 0);
    for (at, byte) in args.bytes().enumerate() {
        match byte {
            b'[' | b'{' | b'(' => depth += 1,
            b']' | b'}' | b')' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => {
                parts.push(args[from..at].trim().to_owned());
                from = at + 1;
            }
            _ => {}
        }
    }
    let last = args[from..].trim();
    if !last.is_empty() {
        parts.push(last.to_owned());
    }
    parts
}

/// Reads a number, decimal or `0x…`.
///
/// # Errors
/// When it is none.
pub fn integer(text: &str) -> anyhow::Result<i64> {
    match text.strip_prefix("0x") {
        Some(hex) => Ok(u64::from_str_radix(hex, 16).with_context(|| format!("number {text:?}"))? as i64),
        None => text.parse().with_context(|| format!("number {text:?}")),
    }
}

/// Reads a string printed as `"\x68\x69"`.
///
/// # Errors
/// When it is not one, or was cut short.
pub fn bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        bail!("not a whole string: {:?}", text.chars().take(40).collect::<String>());
    };
    escaped(inner)
}

/// Reads a path printed as a string.
///
/// # Errors
/// When it is not one, or not text.
pub fn path(text: &str) -> anyhow::Result<String> {
    Ok(String::from_utf8(bytes(text)?)?)
}

fn escaped(inner: &str) -> anyhow::Result<Vec<u8>> {
    let inner = inner.as_bytes();
    ensure!(inner.len().is_multiple_of(4), "not all of it is \\xNN");
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    inner
        .chunks_exact(4)
        .map(|four| match four {
            [b'\\', b'x', high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect::<Option<Vec<u8>>>()
        .context("not all of it is \\xNN")
}

/// Reads the buffers of a vectored write: `[{iov_base="\x61", iov_len=1}, …]`.
///
/// # Errors
/// When one is not a whole string.
pub fn buffers(text: &str) -> anyhow::Result<Vec<u8>> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).context("not a list")?;
    let mut all = Vec::new();
    for part in split(inner) {
        let fields = part.strip_prefix("{iov_base=").context("no iov_base")?;
        let (string, _) = fields.split_once(", iov_len=").context("no iov_len")?;
        all.extend(bytes(string)?);
    }
    Ok(all)
}

/// Reads a list of strings: the arguments of `execve`.
///
/// # Errors
/// When one is not a whole string.
pub fn strings(text: &str) -> anyhow::Result<Vec<String>> {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).context("not a list")?;
    split(inner).iter().map(|part| path(part)).collect()
}

/// Reads `3<\x2f…>`, `3<\x2f…>(deleted)`, `AT_FDCWD<\x2f…>`, or a bare number.
///
/// # Errors
/// When it is none of them.
pub fn descriptor(text: &str) -> anyhow::Result<Descriptor> {
    let (number, rest) = text.split_once('<').map_or((text, None), |(number, rest)| (number, Some(rest)));
    let number = if number == "AT_FDCWD" { -100 } else { i32::try_from(integer(number)?)? };
    let Some(rest) = rest else { return Ok(Descriptor { number, path: None, deleted: false }) };
    let (path, after) = rest.split_once('>').context("no end of path")?;
    let path = String::from_utf8_lossy(&escaped(path)?).into_owned();
    Ok(Descriptor { number, path: Some(path), deleted: after.contains("deleted") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Item> {
        let mut reader = Reader::default();
        text.lines().filter_map(|line| reader.line(line).unwrap()).collect()
    }

    #[test]
    fn whole_calls_are_read() {
        let items = read(
            "7 pwrite64(3<\\x2f\\x61>, \"\\x00\\x22\\xff\", 3, 4096) = 3\n7 rename(\"\\x61\", \"\\x62\") = -1 ENOENT (No such file or directory)\n7 read(0x5, 0x7f00, 0x10) = 0x10\n7 +++ exited with 3 +++\n",
        );
        let Item::Call(write) = &items[0] else { panic!("{items:?}") };
        assert_eq!((write.thread, write.name.as_str(), write.result), (7, "pwrite64", 3));
        assert_eq!(bytes(&write.args[1]).unwrap(), [0, b'"', 0xff]);
        assert_eq!(descriptor(&write.args[0]).unwrap().path.as_deref(), Some("/a"));
        assert_eq!(integer(&write.args[3]).unwrap(), 4096);
        assert!(matches!(&items[1], Item::Call(call) if call.result == -1));
        assert!(matches!(&items[2], Item::Call(call) if call.result == 16 && call.args[0] == "0x5"));
        assert_eq!(items[3], Item::End { thread: 7, status: Some(3) });
    }

    #[test]
    fn halves_of_overlapping_calls_are_joined() {
        let items = read(
            "1 fsync(3<\\x61> <unfinished ...>\n2 write(4<\\x62>, \"\\x61\", 1) = 1\n1 <... fsync resumed>)              = 0\n2 openat(AT_FDCWD<\\x2f>, \"\\x61\", O_RDONLY|O_CLOEXEC <unfinished ...>\n1 --- SIGCHLD {si_signo=SIGCHLD, si_pid=5} ---\n2 <... openat resumed>) = 5<\\x2f\\x61>\n2 fsync(5<\\x61> <unfinished ...>\n1 +++ killed by SIGKILL +++\n2 <... fsync resumed>) = ?\n2 +++ killed by SIGKILL +++\n",
        );
        assert!(
            matches!(&items[0], Item::Begin { thread: 1, name, args } if name == "fsync" && args.len() == 1)
        );
        assert!(matches!(&items[1], Item::Call(call) if call.name == "write"));
        assert!(matches!(&items[2], Item::Call(call) if call.name == "fsync" && call.result == 0));
        assert!(
            matches!(&items[4], Item::Call(call) if call.name == "openat" && call.result == 5 && call.args.len() == 3)
        );
        assert!(matches!(&items[5], Item::Begin { .. }));
        assert_eq!(items[6], Item::End { thread: 1, status: None });
        assert_eq!(items.len(), 8);
    }

    #[test]
    fn lists_are_read() {
        assert_eq!(
            buffers("[{iov_base=\"\\x61\\x62\", iov_len=2}, {iov_base=\"\\x63\", iov_len=1}]").unwrap(),
            b"abc"
        );
        assert_eq!(strings("[\"\\x61\", \"\\x62\\x63\"]").unwrap(), ["a", "bc"]);
        let deleted = descriptor("3<\\x61>(deleted)").unwrap();
        assert!(deleted.deleted && deleted.number == 3);
    }

    #[test]
    fn what_is_cut_short_or_unknown_is_an_error() {
        assert!(bytes("\"\\x61\"...").is_err());
        assert!(bytes("0x7ffd0000").is_err());
        assert!(bytes("\"abcd\"").is_err());
        assert!(Reader::default().line("1 <... fsync resumed>) = 0").is_err());
        assert!(Reader::default().line("what is this").is_err());
    }
}
