//! Connections as they are accepted: so many at once, each on one of the threads that answer, until the agent stops.

use std::io::{Error, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use axum::BoxError;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::threads::Threads;

/// Rest after a connection that could not be accepted: most likely there are no file handles left.
const ACCEPT_REST: Duration = Duration::from_secs(1);

/// What a listener gives: connections that no event loop knows yet.
pub(crate) trait Accept: Send + Sync {
    /// A connection.
    type Stream: Send + 'static;
    /// The next one.
    fn accept(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = std::net::TcpStream;

    async fn accept(&self) -> std::io::Result<Self::Stream> {
        let (stream, _) = Self::accept(self).await?;
        // Answers are small: waiting to fill a packet only adds latency.
        stream.set_nodelay(true)?;
        stream.into_std()
    }
}

impl Accept for UnixListener {
    type Stream = std::os::unix::net::UnixStream;

    async fn accept(&self) -> std::io::Result<Self::Stream> {
        Self::accept(self).await?.0.into_std()
    }
}

/// Lets connections in.
pub(crate) struct Doors {
    threads: Arc<Threads>,
    shutdown: watch::Receiver<bool>,
    places: Arc<Semaphore>,
    most: u32,
}

impl Doors {
    /// For `most` connections at once; more wait until one ends.
    pub(crate) fn new(threads: Arc<Threads>, shutdown: watch::Receiver<bool>, most: u32) -> Self {
        Self { threads, shutdown, places: Arc::new(Semaphore::new(most as usize)), most }
    }

    /// Takes connections until the agent stops, and lets `talk` serve each on the thread that it is given to.
    pub(crate) async fn open<L, F, T>(&self, listener: Option<L>, talk: F)
    where
        L: Accept,
        F: Fn(L::Stream) -> T + Send + Sync,
        T: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let Some(listener) = listener else { return };
        let mut stop = std::pin::pin!(stopped(self.shutdown.clone()));
        loop {
            let (stream, place) = tokio::select! {
                accepted = self.next(&listener) => accepted,
                () = &mut stop => return,
            };
            let talk = talk(stream);
            self.threads.spawn(async move {
                if let Err(error) = talk.await {
                    tracing::debug!(%error, "a connection ended");
                }
                drop(place);
            });
        }
    }

    /// The next connection, and its place among those there may be.
    async fn next<L: Accept>(&self, listener: &L) -> (L::Stream, Option<OwnedSemaphorePermit>) {
        // It is never closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        loop {
            match listener.accept().await {
                Ok(stream) => return (stream, place),
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    /// Returns when the last connection has ended.
    pub(crate) async fn closed(self) {
        let _ = self.places.acquire_many(self.most).await;
    }
}

/// Ends when the agent stops.
pub(crate) async fn stopped(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

/// It went before it was served.
fn is_of_the_client(error: &Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
