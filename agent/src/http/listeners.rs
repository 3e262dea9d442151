//! Where clients connect over HTTP: the listeners, and how a connection is served.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::BoxError;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;

use crate::connections::{Doors, stopped};
use crate::exit::{ExitCode, Fatal};
use crate::settings;
use crate::threads::Threads;

/// Connections at once, of either kind: more wait until one is closed. Each costs some ten kilobytes.
const MAX_CONNECTIONS: u32 = 1_024;
/// A client that takes longer for the head of a request, or stays silent so long after an answer, is let go.
const HEAD_TIME: Duration = Duration::from_secs(120);

/// What answers the requests of all connections.
pub trait Handler:
    HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<T> Handler for T where
    T: HttpService<Incoming, ResBody = Body, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// The bound listeners.
pub struct Listeners {
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
}

impl Listeners {
    /// Binds what the settings ask for, before anything else starts. A socket that the service manager listens on
    /// already takes the place of the one of its kind.
    ///
    /// # Errors
    /// When an address is taken or not allowed, or when a socket is passed that is of no use.
    pub async fn bind(settings: &settings::Http) -> Result<Self, Fatal> {
        let passed = passed().map_err(|error| {
            let hint = "give farlight-agent.socket one ListenStream= of each kind at most: a path, and an address with a port";
            Fatal::new(ExitCode::Config, error, hint)
        })?;
        let tcp = if passed.tcp.is_some() || settings.listen.is_empty() {
            passed.tcp
        } else {
            let listener = TcpListener::bind(&settings.listen)
                .await
                .with_context(|| format!("listen on {}", settings.listen))
                .map_err(|e| {
                    Fatal::new(
                        ExitCode::Resource,
                        e,
                        "choose another address with http.listen, or stop what uses it",
                    )
                })?;
            Some(listener)
        };
        let hint = "check the folder of http.socket and its permissions";
        let unix = match passed.unix.is_some() || settings.socket.as_os_str().is_empty() {
            true => passed.unix,
            false => Some(bind_unix(&settings.socket, 0o660, hint)?),
        };
        Ok(Self { tcp, unix })
    }

    /// Binds the administrator's socket, which only the agent's own user and root may open.
    ///
    /// # Errors
    /// When its path cannot be used.
    pub fn bind_admin(path: &Path) -> Result<Self, Fatal> {
        let hint = "set device.admin_socket to a path of under 108 bytes in a folder the agent may write";
        Ok(Self { tcp: None, unix: Some(bind_unix(path, 0o600, hint)?) })
    }

    /// The TCP address in use.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves on `threads` until `shutdown` turns true, then finishes requests in flight.
    pub async fn serve(self, handler: impl Handler, threads: Arc<Threads>, shutdown: watch::Receiver<bool>) {
        let doors = Doors::new(threads, shutdown.clone(), MAX_CONNECTIONS);
        let with = || (handler.clone(), shutdown.clone());
        let tcp = doors.open(self.tcp, |stream| {
            let (handler, shutdown) = with();
            async move { talk(TcpStream::from_std(stream)?, handler, shutdown).await }
        });
        let unix = doors.open(self.unix, |stream| {
            let (handler, shutdown) = with();
            async move { talk(UnixStream::from_std(stream)?, handler, shutdown).await }
        });
        tokio::join!(tcp, unix);
        doors.closed().await;
    }
}

/// One connection, until the client closes it or the shutdown lets it answer what it has begun.
async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handler: impl Handler,
    shutdown: watch::Receiver<bool>,
) -> Result<(), BoxError> {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .serve_connection(TokioIo::new(stream), handler)
    );
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = stopped(shutdown) => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

/// What the service manager passes: `sd_listen_fds(3)`.
fn passed() -> anyhow::Result<Listeners> {
    let passed = sd_listen_fds::get().context("read LISTEN_PID and LISTEN_FDS")?;
    sort(passed.into_iter().map(|(_, socket)| socket.into_std()))
}

/// Finds out what `sockets` are: at most one of each kind.
fn sort(sockets: impl IntoIterator<Item = OwnedFd>) -> anyhow::Result<Listeners> {
    let mut listeners = Listeners { tcp: None, unix: None };
    for socket in sockets {
        // They come without it, and no child is to inherit them.
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).context("a passed socket")?;
        anyhow::ensure!(
            rustix::net::sockopt::socket_acceptconn(&socket).unwrap_or(false),
            "a passed file listens for no streams"
        );
        let family = rustix::net::sockopt::socket_domain(&socket).context("a passed socket")?;
        let second = if family == rustix::net::AddressFamily::UNIX {
            let listener = std::os::unix::net::UnixListener::from(socket);
            listener.set_nonblocking(true)?;
            listeners.unix.replace(UnixListener::from_std(listener)?).is_some()
        } else {
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            listeners.tcp.replace(TcpListener::from_std(listener)?).is_some()
        };
        anyhow::ensure!(!second, "two sockets of the same kind are passed");
    }
    Ok(listeners)
}

fn bind_unix(path: &Path, mode: u32, hint: &str) -> Result<UnixListener, Fatal> {
    let fail = |error: std::io::Error| {
        let error = anyhow::Error::new(error).context(format!("listen on {}", path.display()));
        Fatal::new(ExitCode::Resource, error, hint)
    };
    // A socket left by an earlier life is replaced; any other file is not.
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        use std::os::unix::fs::FileTypeExt;
        if !meta.file_type().is_socket() {
            return Err(fail(std::io::ErrorKind::AlreadyExists.into()));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(fail(std::io::ErrorKind::AddrInUse.into()));
        }
        std::fs::remove_file(path).map_err(fail)?;
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, mode).map_err(fail)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_socket_of_each_kind_is_taken_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let unix = |name| std::os::unix::net::UnixListener::bind(folder.path().join(name)).unwrap();
        let tcp = || std::net::TcpListener::bind("[::1]:0").unwrap();

        let none = sort([]).unwrap();
        assert!(none.tcp.is_none() && none.unix.is_none());
        let both = sort([OwnedFd::from(tcp()), OwnedFd::from(unix("a"))]).unwrap();
        assert!(both.address().is_some());
        let connecting = UnixStream::connect(folder.path().join("a"));
        let (connected, accepted) = tokio::join!(connecting, both.unix.as_ref().unwrap().accept());
        connected.unwrap();
        accepted.unwrap();

        let refused = |sockets: Vec<OwnedFd>| sort(sockets).err().unwrap().to_string();
        assert!(refused(vec![tcp().into(), tcp().into()]).contains("two sockets"));
        assert!(refused(vec![unix("b").into(), unix("c").into()]).contains("two sockets"));
        let file = std::fs::File::open(folder.path()).unwrap();
        assert!(refused(vec![file.into()]).contains("listens for no streams"));
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(refused(vec![datagrams.into()]).contains("listens for no streams"));
    }
}
