//! Where releases come from: a repository over HTTP(S), or a folder with the same files (a USB stick, a
//! bundle from `farlight release export`). A source is never trusted: all that it gives is verified.

use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use farlight_device::update::Failure;
use farlight_wire::codes::Code;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE, RETRY_AFTER};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::validator::Validator;

/// Bytes read from a file at a time.
const READ: usize = 256 * 1024;
/// Longest wait that a server may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// One place to fetch from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A repository over HTTP(S).
    Http {
        /// The client to ask with.
        client: reqwest::Client,
        /// Its address, ending in `/`.
        base: String,
    },
    /// A folder with the repository's files.
    Folder(PathBuf),
}

/// Why a source did not give a file.
#[derive(Debug)]
pub struct Trouble {
    /// What went wrong.
    pub failure: Failure,
    /// How long the server asks to wait.
    pub wait: Option<Duration>,
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self { failure, wait: None }
    }
}

/// The bytes of a file from some offset on.
pub enum Body {
    /// Over HTTP; the first `skip` bytes are before the offset.
    Http {
        /// The answer.
        response: reqwest::Response,
        /// Bytes to leave out.
        skip: u64,
        /// Bytes of the whole file, as far as the server says.
        whole: Option<u64>,
        /// For messages.
        name: String,
    },
    /// From a folder.
    File {
        /// The file, at the offset.
        file: std::fs::File,
        /// Bytes of the whole file.
        whole: u64,
        /// For messages.
        name: String,
    },
}

fn unreachable(what: &str, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Code::FetchUnreachable, format!("fetch {what}: {error}"))
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { base, .. } => f.write_str(base),
            Self::Folder(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Source {
    /// Reads a small file whole, at most one byte more than `max_len` (which proves that it is too long);
    /// `None` when the source has none.
    ///
    /// # Errors
    /// `fetch.*` when the source fails.
    pub async fn small(&self, path: &str, max_len: u64) -> Result<Option<Vec<u8>>, Failure> {
        let mut body = match self.open(path, 0, None).await {
            Ok(Some(body)) => body,
            Ok(None) => return Ok(None),
            Err(trouble) => return Err(trouble.failure),
        };
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > max_len {
                bytes.truncate(usize::try_from(max_len).unwrap_or(usize::MAX).saturating_add(1));
                break;
            }
        }
        Ok(Some(bytes))
    }

    /// Opens a file from byte `from` on; `None` when the source has none. `version` guards a resumed transfer. A
    /// server that has another version by now is asked for that one: what is there already was verified, and
    /// what comes will be.
    ///
    /// # Errors
    /// [`Trouble`] when the source fails.
    pub async fn open(
        &self,
        path: &str,
        from: u64,
        version: Option<&Validator>,
    ) -> Result<Option<Body>, Trouble> {
        match self {
            Self::Http { client, base } => {
                let url = format!("{base}{path}");
                let answer = match ask(client, &url, path, from, version).await? {
                    Answer::Changed => ask(client, &url, path, from, None).await?,
                    answer => answer,
                };
                match answer {
                    Answer::Body(body) => Ok(Some(body)),
                    Answer::NotThere => Ok(None),
                    Answer::Changed => {
                        let text = format!("fetch {path}: the server refuses to resume");
                        Err(Failure::new(Code::FetchUnreachable, text).into())
                    }
                }
            }
            Self::Folder(folder) => Ok(open_beneath(folder, path, from)?),
        }
    }
}

enum Answer {
    Body(Body),
    NotThere,
    Changed,
}

async fn ask(
    client: &reqwest::Client,
    url: &str,
    name: &str,
    from: u64,
    version: Option<&Validator>,
) -> Result<Answer, Trouble> {
    let mut request = client.get(url);
    if from > 0 {
        request = request.header(RANGE, format!("bytes={from}-"));
        if let Some(version) = version {
            request = version.guard(request);
        }
    }
    let response = send(request).await.map_err(|error| unreachable(name, &error))?;
    let body = |response: reqwest::Response, skip: u64| {
        let whole = response.content_length().map(|length| length.saturating_add(from - skip));
        Answer::Body(Body::Http { response, skip, whole, name: name.to_owned() })
    };
    match response.status() {
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::GONE => Ok(Answer::NotThere),
        StatusCode::PRECONDITION_FAILED if from > 0 => Ok(Answer::Changed),
        StatusCode::PARTIAL_CONTENT if from > 0 => {
            let begins = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let begins =
                begins.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
            if begins == Some(from) {
                return Ok(body(response, 0));
            }
            let text = format!("fetch {name}: the server answered with another range than asked for");
            Err(Failure::new(Code::FetchRefused, text).into())
        }
        // The server ignores ranges: what is there already is skipped.
        StatusCode::OK => Ok(body(response, from)),
        other => Err(refused(name, other, &response)),
    }
}

/// Sends a request, and once more when the connection that was kept for it is closed by the server just then: what
/// nginx does after some answers without saying so.
async fn send(request: reqwest::RequestBuilder) -> reqwest::Result<reqwest::Response> {
    let again = request.try_clone();
    match (request.send().await, again) {
        (Err(error), Some(again)) if is_cut_off(&error) => again.send().await,
        (sent, _) => sent,
    }
}

/// Whether the server ended the connection before it said anything.
fn is_cut_off(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let closed = cause.downcast_ref::<std::io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected
            )
        });
        let silent = cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message);
        if closed || silent {
            return true;
        }
        source = cause.source();
    }
    false
}

/// 4xx will not change by asking again; 5xx, 408 and 429 may.
fn refused(what: &str, status: StatusCode, response: &reqwest::Response) -> Trouble {
    let again = status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT;
    let code = if again { Code::FetchUnreachable } else { Code::FetchRefused };
    let seconds =
        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let wait = seconds.map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER)).filter(|_| again);
    Trouble { failure: Failure::new(code, format!("fetch {what}: status {status}")), wait }
}

impl Body {
    /// Bytes of the whole file, as the source announces it; `None` when it does not.
    pub fn whole(&self) -> Option<u64> {
        match self {
            Self::Http { whole, .. } => *whole,
            Self::File { whole, .. } => Some(*whole),
        }
    }

    /// The version that is sent, if the source tells.
    pub fn version(&self) -> Option<Validator> {
        match self {
            Self::Http { response, .. } => Validator::of(response.headers()),
            Self::File { .. } => None,
        }
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// `fetch.unreachable` when the source breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Self::Http { response, skip, name, .. } => loop {
                let Some(mut bytes) = response.chunk().await.map_err(|error| unreachable(name, &error))?
                else {
                    return Ok(None);
                };
                let skipped = (*skip).min(bytes.len() as u64);
                *skip -= skipped;
                let _ = bytes.split_to(skipped as usize);
                if !bytes.is_empty() {
                    return Ok(Some(bytes));
                }
            },
            Self::File { file, name, .. } => {
                let mut buffer = vec![0; READ];
                let read = tokio::task::block_in_place(|| file.read(&mut buffer));
                let read = read.map_err(|error| unreachable(name, &error))?;
                buffer.truncate(read);
                Ok((read > 0).then(|| buffer.into()))
            }
        }
    }
}

/// Opens a regular file below `folder` without following any link on the way, so that a stick cannot show
/// the agent a file of its own device.
fn open_beneath(folder: &Path, path: &str, from: u64) -> Result<Option<Body>, Failure> {
    use std::io::{Seek, SeekFrom};
    let outside =
        |why: &str| Failure::new(Code::FetchOutside, format!("open {path} in {}: {why}", folder.display()));
    let refuse = |error: rustix::io::Errno| match error {
        rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => outside("it is or leads through a link"),
        other => unreachable(path, &std::io::Error::from(other)),
    };
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    let Some((Component::Normal(name), folders)) = parts.split_last().map(|(last, rest)| (*last, rest))
    else {
        return Err(outside("it is no name of a file"));
    };
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at: OwnedFd = match rustix::fs::openat(CWD, folder, directory, Mode::empty()) {
        Ok(at) => at,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(unreachable(path, &std::io::Error::from(error))),
    };
    for part in folders {
        let Component::Normal(part) = part else { return Err(outside("it leads out of the folder")) };
        at = match rustix::fs::openat(&at, *part, directory | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(next) => next,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(refuse(error)),
        };
    }
    let plain = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&at, name, plain, Mode::empty()) {
        Ok(file) => file,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(refuse(error)),
    };
    let stat = rustix::fs::fstat(&file).map_err(refuse)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(outside("it is no plain file"));
    }
    let mut file = std::fs::File::from(file);
    file.seek(SeekFrom::Start(from)).map_err(|error| unreachable(path, &error))?;
    Ok(Some(Body::File { file, whole: u64::try_from(stat.st_size).unwrap_or(0), name: path.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(folder: &Path, path: &str) -> Result<Option<Vec<u8>>, Code> {
        Source::Folder(folder.to_path_buf()).small(path, 4).await.map_err(|failure| failure.code)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_folder_gives_its_own_plain_files_only() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, secret) = (dir.path().join("bundle"), dir.path().join("secret"));
        std::fs::create_dir_all(inside.join("a")).unwrap();
        std::fs::write(&secret, "no").unwrap();
        std::fs::write(inside.join("a/file"), "yes").unwrap();
        std::os::unix::fs::symlink(&secret, inside.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), inside.join("up")).unwrap();
        assert_eq!(read(&inside, "a/file").await, Ok(Some(b"yes".to_vec())));
        assert_eq!(read(&inside, "none").await, Ok(None));
        assert_eq!(read(&inside, "none/none").await, Ok(None));
        assert_eq!(read(&dir.path().join("none"), "a").await, Ok(None));
        for path in ["link", "up/secret", "../secret", "a/../../secret", "/etc/hostname", "a", "", "."] {
            assert_eq!(read(&inside, path).await, Err(Code::FetchOutside), "{path}");
        }
        std::fs::write(inside.join("long"), "12345678").unwrap();
        assert_eq!(read(&inside, "long").await.unwrap().unwrap().len(), 5, "one byte over the limit");
    }
}
