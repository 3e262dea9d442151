//! What a release is and who vouches for it: the TUF client and signer, the manifest, chunk lists and
//! assignments. No I/O, no clock (`now` is an argument); shells fetch, store and call in here.

pub mod assignment;
pub mod blob;
pub mod canonical;
pub mod config;
pub mod delta;
pub mod digest;
mod envelope;
pub mod key;
pub mod manifest;
pub mod timestamp;
pub mod tuf;
mod verified;

pub use verified::Verified;
