//! Where the answers of a source go.

use std::io::Write as _;

use rumqttc::{AsyncClient, QoS};
use tokio::sync::{mpsc, oneshot};

/// Lines that may wait for standard output.
const LINES: usize = 64;

/// Where answers go.
#[derive(Debug, Clone)]
pub(super) enum Sink {
    /// A topic, in which `{model}` and `{topic}` are filled in.
    Topic {
        /// The session.
        client: AsyncClient,
        /// The topic.
        template: String,
    },
    /// Standard output.
    Lines(mpsc::Sender<String>),
    /// Nowhere: telemetry has counted them.
    Nowhere,
}

impl Sink {
    /// Sends an answer of `model` to an input from `topic`; `false` when a topic does not take it now.
    pub(super) async fn send(&self, model: &str, topic: &str, answer: String) -> bool {
        match self {
            Self::Topic { client, template } => {
                let to = template.replace("{model}", model).replace("{topic}", topic);
                client.try_publish(to, QoS::AtLeastOnce, false, answer).is_ok()
            }
            Self::Lines(lines) => {
                // A program that closed its end has read enough.
                let _ = lines.send(answer).await;
                true
            }
            Self::Nowhere => true,
        }
    }

    /// Standard output, and what tells that all lines are written after the last sender is gone.
    pub(super) fn stdout() -> (Self, oneshot::Receiver<()>) {
        let (sender, mut lines) = mpsc::channel::<String>(LINES);
        let (done, written) = oneshot::channel();
        // A thread of its own: a reader that does not read holds up nothing else.
        std::thread::spawn(move || {
            let mut out = std::io::stdout().lock();
            while let Some(line) = lines.blocking_recv() {
                if let Err(error) = writeln!(out, "{line}").and_then(|()| out.flush()) {
                    tracing::warn!(%error, "standard output is closed: answers go nowhere");
                    break;
                }
            }
            let _ = done.send(());
        });
        (Self::Lines(sender), written)
    }
}
