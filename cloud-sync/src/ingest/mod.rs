//! From the broker into the store: decode, judge by watermark, write records and watermark in one
//! transaction, and only then acknowledge. Nothing is lost because a device keeps what was not
//! acknowledged; nothing counts twice because the watermark and the record move together.

mod cases;
mod link;
mod reports;
mod windows;
mod writer;

pub use link::{Incoming, Link, LinkDown, LinkSettings};
pub use writer::{Changes, Ingest};
