//! The HTTPS listener: rustls in front of hyper, bounded connections, time limits on handshakes and
//! headers, and an orderly end: no new connections, requests in flight finish.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::enrol::ServerIdentity;

/// Connections at the same time; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 2048;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for the header of a request, also while a connection idles.
const HEADER: Duration = Duration::from_secs(60);
/// Time for requests in flight when the service ends.
const DRAIN: Duration = Duration::from_secs(10);

/// What can go wrong when listening.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be had.
    #[error("listen on {address}: {source}; choose another address or stop what uses it")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error("set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// A bound HTTPS listener.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Server {
    /// Binds an address.
    ///
    /// # Errors
    /// [`ServerError`] when the address is taken or the certificate cannot be used.
    pub async fn bind(address: SocketAddr, identity: ServerIdentity) -> Result<Self, ServerError> {
        let mut config =
            ServerConfig::builder().with_no_client_auth().with_single_cert(identity.chain, identity.key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener =
            TcpListener::bind(address).await.map_err(|source| ServerError::Bind { address, source })?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// The address in use.
    ///
    /// # Errors
    /// [`ServerError::Bind`] when the system does not say.
    pub fn address(&self) -> Result<SocketAddr, ServerError> {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        self.listener.local_addr().map_err(|source| ServerError::Bind { address: unknown, source })
    }

    /// Serves until cancelled.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let slot = tokio::select! {
                slot = Arc::clone(&slots).acquire_owned() => slot,
                () = shutdown.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (acceptor, router) = (self.acceptor.clone(), router.clone());
                    let shutdown = shutdown.clone();
                    connections.spawn(async move {
                        let _slot = slot;
                        serve_connection(stream, acceptor, router, shutdown).await;
                    });
                }
                Err(error) => {
                    // Out of file descriptors: wait for connections to end instead of spinning.
                    tracing::warn!(%error, "accept failed");
                    let _ = tokio::time::timeout(Duration::from_millis(200), shutdown.cancelled()).await;
                }
            }
        }
        let drain = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN, drain).await;
    }
}

async fn serve_connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else {
        tracing::debug!("TLS handshake failed or took too long");
        return;
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return log_end(ended),
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    log_end(connection.await);
}

fn log_end(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}
