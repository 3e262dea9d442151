//! What crosses the air: ids, topics, frozen versioned payloads and their envelope. The bytes are
//! described in `PROTOCOL.md` beside this crate. No I/O, no clock; both shells and the core call it.

pub mod ack;
pub mod case;
pub mod codes;
pub mod counts;
pub mod desired;
pub mod envelope;
pub mod ids;
pub mod limits;
pub mod report;
pub mod sketch;
pub mod stream;
pub mod telemetry;
pub mod topics;

pub use ack::Ack;
pub use case::Case;
pub use counts::Counts;
pub use desired::{Command, Desired};
pub use envelope::{DecodeError, EncodeError, decode, encode};
pub use ids::{DeviceId, FleetId, IdError, Millis, ModelName, Permille, ReleaseId, RolloutId, Seq};
pub use report::Report;
pub use sketch::Sketch;
pub use stream::{Batch, Stream};
pub use telemetry::Window;
