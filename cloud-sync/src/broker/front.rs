//! The TLS front of the embedded broker: checks the client certificate against our authority, reads
//! the device's name from it, and only then opens a connection to the broker for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use farlight_wire::DeviceId;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use sqlx::Row;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::access::Access;
use crate::enrol::ServerIdentity;
use crate::store::{During, Store, StoreError};

/// Connections at the same time; more wait in the system's queue.
const MAX_CONNECTIONS: usize = 100_000;
/// Handshakes at the same time: they cost processor time, so a herd after an outage queues here.
const MAX_HANDSHAKES: usize = 64;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(15);

/// What can go wrong when the front starts.
#[derive(Debug, thiserror::Error)]
pub enum FrontError {
    /// rustls refuses our certificate.
    #[error("set up TLS for MQTT: {0}")]
    Tls(#[from] rustls::Error),
    /// The verifier of client certificates cannot be built.
    #[error("set up the check of device certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// Why a connection was turned away.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("TLS handshake: {0}")]
    Handshake(std::io::Error),
    #[error("TLS handshake took longer than {} s", HANDSHAKE.as_secs())]
    Slow,
    #[error("the certificate has no device id as its common name")]
    Name,
    #[error("device {0} is not enrolled or its certificate was revoked")]
    Unknown(DeviceId),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("connect to the broker: {0}")]
    Broker(std::io::Error),
}

/// The TLS front.
pub struct Front {
    acceptor: TlsAcceptor,
    broker: SocketAddr,
    access: Arc<Access>,
    store: Store,
}

impl Front {
    /// A front with this certificate that trusts certificates of this authority.
    ///
    /// # Errors
    /// [`FrontError`] when rustls refuses a certificate.
    pub fn new(
        identity: ServerIdentity,
        ca: CertificateDer<'static>,
        broker: SocketAddr,
        access: Arc<Access>,
        store: Store,
    ) -> Result<Self, FrontError> {
        let mut roots = RootCertStore::empty();
        roots.add(ca)?;
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
        let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(verifier)
            .with_single_cert(identity.chain, identity.key)?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), broker, access, store })
    }

    /// Serves until cancelled.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let front = Arc::new(self);
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    let _ = tokio::time::timeout(Duration::from_millis(200), shutdown.cancelled()).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else { continue };
            let (front, handshakes, shutdown) =
                (Arc::clone(&front), Arc::clone(&handshakes), shutdown.clone());
            connections.spawn(async move {
                let _slot = slot;
                tokio::select! {
                    served = front.connection(stream, &handshakes) => if let Err(error) = served {
                        tracing::warn!(%peer, %error, "MQTT connection refused");
                    },
                    () = shutdown.cancelled() => {}
                }
            });
        }
        connections.shutdown().await;
    }

    async fn connection(&self, stream: TcpStream, handshakes: &Semaphore) -> Result<(), Refused> {
        let _ = stream.set_nodelay(true);
        let handshake = async {
            let _turn = handshakes.acquire().await;
            self.acceptor.accept(stream).await
        };
        let mut stream = tokio::time::timeout(HANDSHAKE, handshake)
            .await
            .map_err(|_| Refused::Slow)?
            .map_err(Refused::Handshake)?;
        let device = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| common_name(chain.first()?))
            .ok_or(Refused::Name)?;
        if !self.enrolled(&device).await? {
            return Err(Refused::Unknown(device));
        }
        let mut upstream = TcpStream::connect(self.broker).await.map_err(Refused::Broker)?;
        let _ = upstream.set_nodelay(true);
        let local = upstream.local_addr().map_err(Refused::Broker)?;
        let end = self.access.sessions.open(local, device);
        // Declared after `upstream`, dropped before it: the address is forgotten before the system
        // can give it to somebody else, also when this task is cancelled.
        let _session = CloseOnDrop { access: &self.access, local };
        tokio::select! {
            // An error here is a connection that broke; the broker sees the same and sends the will.
            _ = tokio::io::copy_bidirectional(&mut stream, &mut upstream) => {}
            () = end.cancelled() => {}
        }
        Ok(())
    }

    async fn enrolled(&self, device: &DeviceId) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT revoked FROM devices WHERE id = $1")
            .bind(device.as_str())
            .fetch_optional(self.store.reader())
            .await
            .during("look up a device")?;
        Ok(row.is_some_and(|row| row.get::<i64, _>(0) == 0))
    }
}

struct CloseOnDrop<'a> {
    access: &'a Access,
    local: SocketAddr,
}

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.access.sessions.close(self.local);
    }
}

/// The one common name of a certificate, when it is a device id.
fn common_name(certificate: &CertificateDer<'_>) -> Option<DeviceId> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    if names.next().is_some() { None } else { DeviceId::new(name).ok() }
}
