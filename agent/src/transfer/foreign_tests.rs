//! Transfers from somebody else's file server (nginx), which knows nothing of our digests: what it says about
//! its file's version guards what is resumed, and a version that changed costs one more request.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use farlight_release::blob::describe;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Longest wait for nginx.
const WAIT: Duration = Duration::from_secs(30);

/// nginx with a folder of files; it ends with the value.
struct Nginx {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Nginx {
    /// With these lines for the files; `None` where it is not installed (the full test run installs it and sets
    /// `FARLIGHT_REQUIRE_TOOLS`).
    async fn start(lines: &str) -> Option<Self> {
        loop {
            // A port that was free a moment ago may be somebody else's by now.
            let nginx = Self::try_start(lines).await?;
            if nginx.is_ours().await {
                return Some(nginx);
            }
        }
    }

    /// Whether it is this one that answers on its port.
    async fn is_ours(&self) -> bool {
        let name = self.folder.path().file_name().unwrap().to_str().unwrap();
        fs::write(self.folder.path().join(name), name).unwrap();
        let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await else {
            return false;
        };
        let mut answer = String::new();
        let asked = async {
            stream.write_all(format!("GET /{name} HTTP/1.0\r\n\r\n").as_bytes()).await?;
            stream.read_to_string(&mut answer).await
        };
        let heard = tokio::time::timeout(WAIT, asked).await.is_ok_and(|read| read.is_ok());
        heard && answer.ends_with(name)
    }

    async fn try_start(lines: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let at = folder.path().display();
        fs::create_dir(folder.path().join("blobs")).unwrap();
        let text = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;\n\
             events {{}}\n\
             http {{\n\
               log_format asked '$uri|$status|$http_range|$http_if_match|$http_if_unmodified_since';\n\
               access_log {at}/access.log asked;\n\
               client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3;\n\
               uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;\n\
               server {{ listen 127.0.0.1:{port}; root {at}; {lines} }}\n\
             }}\n"
        );
        let config = folder.path().join("nginx.conf");
        fs::write(&config, text).unwrap();
        let child = ["nginx", "/usr/sbin/nginx"].iter().find_map(|program| {
            let mut command = Command::new(program);
            command.arg("-e").arg(folder.path().join("error.log")).arg("-c").arg(&config);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
        });
        let Some(child) = child else {
            assert!(std::env::var_os("FARLIGHT_REQUIRE_TOOLS").is_none(), "nginx is not installed");
            return None;
        };
        let nginx = Self { child, folder, port };
        let listens = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let log = || fs::read_to_string(nginx.folder.path().join("error.log")).unwrap_or_default();
        tokio::time::timeout(WAIT, listens).await.unwrap_or_else(|_| panic!("nginx: {}", log()));
        Some(nginx)
    }

    fn file(&self, blob: &Blob) -> PathBuf {
        self.folder.path().join("blobs").join(&blob.id)
    }

    /// Writes a file with a time of its own: the tag of nginx is made of time and length.
    fn serve(&self, blob: &Blob, bytes: &[u8], seconds: u64) {
        fs::write(self.file(blob), bytes).unwrap();
        let file = File::options().write(true).open(self.file(blob)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)).unwrap();
    }

    fn asked(&self) -> Vec<Asked> {
        let log = fs::read_to_string(self.folder.path().join("access.log")).unwrap();
        let field = |text: &str| (text != "-").then(|| text.replace("\\x22", "\""));
        let asked = |line: &str| {
            let fields: Vec<&str> = line.split('|').collect();
            Asked {
                status: fields[1].parse().unwrap(),
                range: field(fields[2]),
                tag: field(fields[3]),
                date: field(fields[4]),
            }
        };
        log.lines().filter(|line| line.starts_with("/blobs/")).map(asked).collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What nginx says it was asked, and its answer.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    status: u16,
    range: Option<String>,
    tag: Option<String>,
    date: Option<String>,
}

/// One try of a job: nothing but files is kept from one to the next, as over a restart.
async fn fetch(nginx: &Nginx, part: &Path, blob: &Blob) -> Result<(), Code> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let base = format!("http://127.0.0.1:{}/", nginx.port);
    let sources = [Source::Http { client: reqwest::Client::new(), base }];
    let limits =
        Limits { max_bytes_per_second: 0, stall: WAIT, windows: Vec::new(), zone: Zone::named("").unwrap() };
    let (progress, received) = (Progress::default(), AtomicU64::new(0));
    let transfer = Transfer { sources: &sources, limits: &limits, progress: &progress, received: &received };
    let fetched = transfer.blob(&part.join(&blob.id), blob, blob.length).await;
    fetched.map_err(|trouble| trouble.failure.code)
}

/// Five chunks, of which the third comes damaged, so that two are there; then the file is mended.
async fn resumed(lines: &str, mended_after_seconds: u64) -> Option<Vec<Asked>> {
    let nginx = Nginx::start(lines).await?;
    let bytes: Vec<u8> =
        (0..5 * 1024 * 1024_u32 - 7).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let blob = describe(&bytes);
    let mut damaged = bytes.clone();
    damaged[2 * 1024 * 1024 + 5] ^= 1;
    nginx.serve(&blob, &damaged, 0);
    let part = tempfile::tempdir().unwrap();
    assert_eq!(fetch(&nginx, part.path(), &blob).await, Err(Code::FetchChunkMismatch));
    assert_eq!(fs::metadata(part.path().join(&blob.id)).unwrap().size(), 2 * 1024 * 1024);
    nginx.serve(&blob, &bytes, mended_after_seconds);
    assert_eq!(fetch(&nginx, part.path(), &blob).await, Ok(()));
    assert!(fs::read(part.path().join(&blob.id)).unwrap() == bytes);
    let mut asked = nginx.asked();
    assert_eq!(asked.remove(0), Asked { status: 200, range: None, tag: None, date: None });
    let range = Some("bytes=2097152-".to_owned());
    assert!(asked.iter().all(|asked| asked.range == range), "{asked:?}");
    Some(asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strong_tag_guards_what_is_resumed() {
    let Some(asked) = resumed("", 0).await else { return };
    let [Asked { status: 206, tag: Some(tag), date: None, .. }] = &asked[..] else { panic!("{asked:?}") };
    assert!(tag.starts_with('"') && tag.ends_with('"'), "{tag}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_on_the_server_is_asked_for_as_it_is_now() {
    for (lines, by_tag) in [("", true), ("etag off;", false)] {
        let Some(asked) = resumed(lines, 60).await else { return };
        let [first, second] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!((first.status, first.tag.is_some(), first.date.is_some()), (412, by_tag, !by_tag));
        assert_eq!((second.status, &second.tag, &second.date), (206, &None, &None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_date_guards_where_the_tag_is_weak_or_missing() {
    for lines in ["etag off;", "etag off; add_header ETag 'W/\"1\"';"] {
        let Some(asked) = resumed(lines, 0).await else { return };
        let [Asked { status: 206, tag: None, date: Some(date), .. }] = &asked[..] else {
            panic!("{asked:?}")
        };
        assert_eq!(date, "Tue, 14 Nov 2023 22:13:20 GMT");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_either_the_chunks_alone_are_relied_on() {
    for mended_after_seconds in [0, 60] {
        let lines = "etag off; add_header Last-Modified '';";
        let Some(asked) = resumed(lines, mended_after_seconds).await else { return };
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert_eq!((asked[0].status, &asked[0].tag, &asked[0].date), (206, &None, &None));
    }
}
