//! Where clients connect: the listeners, and the connections that they accept, each on one of the threads that answer.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::{BoxError, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::exit::{ExitCode, Fatal};
use crate::settings;
use crate::threads::Threads;

/// Connections at once, of either kind: more wait until one is closed. Each costs some ten kilobytes.
const MAX_CONNECTIONS: usize = 1_024;
/// A client that takes longer for the head of a request, or stays silent so long after an answer, is let go.
const HEAD_TIME: Duration = Duration::from_secs(120);
/// Rest after a connection that could not be accepted: most likely there are no file handles left.
const ACCEPT_REST: Duration = Duration::from_secs(1);

/// The bound listeners.
pub struct Listeners {
    tcp: Option<TcpListener>,
    unix: Option<UnixListener>,
}

impl Listeners {
    /// Binds what the settings ask for, before anything else starts.
    ///
    /// # Errors
    /// When an address is taken or not allowed.
    pub async fn bind(settings: &settings::Http) -> Result<Self, Fatal> {
        let tcp = if settings.listen.is_empty() {
            None
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
        let unix = match settings.socket.as_os_str().is_empty() {
            true => None,
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
    pub async fn serve(self, router: Router, threads: Arc<Threads>, shutdown: watch::Receiver<bool>) {
        let doors = Doors { router, threads, shutdown, free: Arc::new(Semaphore::new(MAX_CONNECTIONS)) };
        let both = [self.tcp.map(Listener::Tcp), self.unix.map(Listener::Unix)];
        futures_util::future::join_all(both.iter().flatten().map(|listener| doors.open(listener))).await;
        // Those in flight have every place again when they are done.
        let _ = doors.free.acquire_many(MAX_CONNECTIONS as u32).await;
    }
}

/// What accepted connections are served with.
struct Doors {
    router: Router,
    threads: Arc<Threads>,
    shutdown: watch::Receiver<bool>,
    free: Arc<Semaphore>,
}

impl Doors {
    /// Takes connections until the shutdown.
    async fn open(&self, listener: &Listener) {
        let mut shutdown = self.shutdown.clone();
        loop {
            let (stream, place) = tokio::select! {
                accepted = self.next(listener) => accepted,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            let (router, shutdown) = (self.router.clone(), self.shutdown.clone());
            self.threads.spawn(async move {
                if let Err(error) = stream.talk(router, shutdown).await {
                    tracing::debug!(%error, "a connection ended");
                }
                drop(place);
            });
        }
    }

    /// The next connection, and its place among those there may be.
    async fn next(&self, listener: &Listener) -> (Stream, Option<OwnedSemaphorePermit>) {
        // It is never closed.
        let place = Arc::clone(&self.free).acquire_owned().await.ok();
        loop {
            match listener.accept().await {
                Ok(stream) => return (stream, place),
                // A client that went before it was served.
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn accept(&self) -> std::io::Result<Stream> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are small: waiting to fill a packet only adds latency.
                stream.set_nodelay(true)?;
                Stream::Tcp(stream.into_std()?)
            }
            Self::Unix(listener) => Stream::Unix(listener.accept().await?.0.into_std()?),
        })
    }
}

/// An accepted connection that no event loop knows yet.
enum Stream {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Stream {
    /// Serves it on the event loop of this thread.
    async fn talk(self, router: Router, shutdown: watch::Receiver<bool>) -> Result<(), BoxError> {
        match self {
            Self::Tcp(stream) => talk(TcpStream::from_std(stream)?, router, shutdown).await,
            Self::Unix(stream) => talk(UnixStream::from_std(stream)?, router, shutdown).await,
        }
    }
}

/// One connection, until the client closes it or the shutdown lets it answer what it has begun.
async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), BoxError> {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    let stopped = async {
        // Its guard must not live on.
        let _ = shutdown.wait_for(|stop| *stop).await;
    };
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = stopped => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}

fn is_of_the_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
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
