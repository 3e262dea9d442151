//! The cloud's acknowledgement, sent only after its own commit. Version 1, frozen.

use serde::{Deserialize, Serialize};

use crate::ids::Seq;
use crate::stream::Stream;

/// The newest acknowledgement version.
pub type Ack = AckV1;

/// Everything of this stream and epoch up to and including `upto` is committed: the device deletes
/// it. After a gap `upto` is lower than what was sent, and the device resends from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckV1 {
    /// The stream.
    pub stream: Stream,
    /// The epoch of the device's store.
    pub epoch: u64,
    /// The last number committed.
    pub upto: Seq,
}
