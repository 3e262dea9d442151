//! Where clients connect over HTTP: the listeners, and how a connection is served.

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
use tokio::sync::watch;

use crate::connections::{Doors, stopped};
use crate::exit::{ExitCode, Fatal};
use crate::settings;
use crate::threads::Threads;

/// Connections at once, of either kind: more wait until one is closed. Each costs some ten kilobytes.
const MAX_CONNECTIONS: u32 = 1_024;
/// A client that takes longer for the head of a request, or stays silent so long after an answer, is let go.
const HEAD_TIME: Duration = Duration::from_secs(120);

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
        let doors = Doors::new(threads, shutdown.clone(), MAX_CONNECTIONS);
        let with = || (router.clone(), shutdown.clone());
        let tcp = doors.open(self.tcp, |stream| {
            let (router, shutdown) = with();
            async move { talk(TcpStream::from_std(stream)?, router, shutdown).await }
        });
        let unix = doors.open(self.unix, |stream| {
            let (router, shutdown) = with();
            async move { talk(UnixStream::from_std(stream)?, router, shutdown).await }
        });
        tokio::join!(tcp, unix);
        doors.closed().await;
    }
}

/// One connection, until the client closes it or the shutdown lets it answer what it has begun.
async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    shutdown: watch::Receiver<bool>,
) -> Result<(), BoxError> {
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = stopped(shutdown) => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
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
