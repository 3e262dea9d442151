//! Logs as strace writes them, and what they tell of the state directory.

use super::*;
use crate::disk::Disk;
use crate::trace::Item as At;

/// Prints what stands between backquotes as strace prints strings.
fn log(text: &str) -> String {
    let hex = |part: &str| part.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let part = |(at, part): (usize, &str)| if at % 2 == 1 { hex(part) } else { part.to_owned() };
    text.split('`').enumerate().map(part).collect()
}

fn follow(text: &str) -> anyhow::Result<(Trace, Tree)> {
    let mut before = Tree::default();
    before.0.insert("old".into(), At::Folder);
    before.0.insert("old/file".into(), At::File(crate::trace::Content::new(b"12345".to_vec())));
    let trace = read(&log(text), Path::new("/s"), &before)?;
    let mut disk = Disk::new(&trace);
    trace.events.iter().for_each(|event| {
        disk.follow(event);
    });
    let visible = disk.visible();
    Ok((trace, visible))
}

const START: &str = "1 execve(\"`/agent`\", [\"`agent`\", \"`run`\"], 0x7f /* 3 vars */) = 0\n";

#[test]
fn files_are_followed_through_descriptors_offsets_and_names() {
    let (_, tree) = follow(&format!(
        "{START}1 mkdir(\"`/s/a`\", 0777) = 0\n\
         1 openat(AT_FDCWD<`/`>, \"`/s/a/x.new`\", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0640) = 5<`/s/a/x.new`>\n\
         1 write(5<`/s/a/x.new`>, \"`hello`\", 5) = 5\n\
         2 lseek(5<`/s/a/x.new`>, 1, SEEK_SET) = 1\n\
         2 writev(5<`/s/a/x.new`>, [{{iov_base=\"`E`\", iov_len=1}}, {{iov_base=\"`LL`\", iov_len=2}}], 2) = 2\n\
         1 pwrite64(5<`/s/a/x.new`>, \"`!`\", 1, 6) = 1\n\
         1 rename(\"`/s/a/x.new`\", \"`/s/a/x`\") = 0\n\
         1 write(5<`/s/a/x`>, \"`ab`\", 2) = 2\n\
         1 openat(AT_FDCWD<`/`>, \"`/s/old`\", O_RDONLY|O_DIRECTORY) = 6<`/s/old`>\n\
         1 unlinkat(6<`/s/old`>, \"`file`\", 0) = 0\n\
         1 close(6<`/s/old`>) = 0\n\
         1 rmdir(\"`/s/old`\") = 0\n\
         1 ftruncate(5<`/s/a/x`>, 6) = 0\n\
         1 unlink(\"`/s/none`\") = -1 ENOENT (No such file or directory)\n"
    ))
    .unwrap();
    assert_eq!(tree.file("a/x"), Some(&b"hELab\0"[..]));
    assert_eq!(tree.0.len(), 2, "{tree:?}");
}

#[test]
fn a_child_has_descriptors_of_its_own_and_its_words_are_kept() {
    let (trace, _) = follow(&format!(
        "{START}1 openat(AT_FDCWD<`/`>, \"`/s/old/file`\", O_RDWR|O_TRUNC) = 1<`/s/old/file`>\n\
         9 execve(\"`/agent`\", [\"`agent`\", \"`self-test`\"], 0x7f /* 3 vars */) = 0\n\
         9 write(1<`pipe:[1]`>, \"`{{}}`\", 2) = 2\n\
         9 +++ exited with 0 +++\n\
         1 +++ killed by SIGKILL +++\n\
         5 execve(\"`/agent`\", [\"`agent`\", \"`run`\"], 0x7f /* 3 vars */) = 0\n"
    ))
    .unwrap();
    let said = trace.events.iter().find(|event| matches!(event.act, Act::Said { .. })).unwrap();
    assert_eq!((said.process, &said.act), (9, &Act::Said { bytes: Arc::new(b"{}".to_vec()) }));
    let ends = trace.events.iter().filter(|event| matches!(event.act, Act::End { .. }));
    assert_eq!(ends.map(|event| event.process).collect::<Vec<_>>(), [9, 1]);
    assert_eq!(trace.events.last().unwrap().process, 5);
    assert!(trace.events.iter().any(|event| matches!(event.act, Act::Resize { length: 0, .. })));
}

#[test]
fn a_sync_begins_where_its_first_half_stands() {
    let (trace, _) = follow(&format!(
        "{START}1 openat(AT_FDCWD<`/`>, \"`/s/old/file`\", O_RDWR) = 3<`/s/old/file`>\n\
         1 fdatasync(3<`/s/old/file`> <unfinished ...>\n\
         2 pwrite64(3<`/s/old/file`>, \"`x`\", 1, 0) = 1\n\
         1 <... fdatasync resumed>) = 0\n\
         2 sendto(0x7, 0x7f00, 0x5, 0, 0, 0) = 0x5\n\
         2 sendto(0x7, 0x7f00, 0x5, 0, 0, 0) = 0x5\n"
    ))
    .unwrap();
    let acts: Vec<&Act> = trace.events[2..].iter().map(|event| &event.act).collect();
    assert!(matches!(acts[..], [Act::SyncBegin { .. }, Act::Write { .. }, Act::SyncEnd { .. }, Act::Other]));
}

#[test]
fn what_cannot_be_followed_is_refused() {
    for line in [
        "1 link(\"`/s/old/file`\", \"`/s/b`\") = 0",
        "1 pwrite64(3<`/s/old/file`>, \"`x`\", 1, 0) = 1",
        "1 rename(\"`/s/old/file`\", \"`/elsewhere`\") = 0",
        "1 syncfs(3<`/s`>) = 0",
        "1 io_uring_setup(8, {}) = 3",
        "1 unlink(\"`/s/never/made`\") = 0",
    ] {
        assert!(follow(&format!("{START}{line}\n")).is_err(), "{line}");
    }
    // Elsewhere, and on what is ignored, anything goes.
    for line in [
        "1 link(\"`/t/old`\", \"`/t/b`\") = 0",
        "1 ftruncate(4<`/s/x.db-shm`>, 32768) = 0",
        "1 pwrite64(3<`/t/file`>, \"`x`\", 1, 0) = 1",
    ] {
        assert!(follow(&format!("{START}{line}\n")).is_ok(), "{line}");
    }
}
