//! How a device comes to be trusted: the certificate authority, one-time tokens and the exchange of a
//! token and a certificate request for a certificate.

pub mod api;
mod authority;
mod secret;

pub use authority::{Authority, AuthorityError, DeviceRequest, ServerIdentity};
pub use secret::{Secret, digest, matches_digest};
