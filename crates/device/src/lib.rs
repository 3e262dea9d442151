//! What one device decides, without acting: when to install, keep or take back a release, which inputs
//! to keep, what to evict. The agent performs the effects and hands results back as events.

pub mod backoff;
pub mod breaker;
pub mod health;
pub mod pointer;
pub mod retention;
pub mod sampling;
pub mod schedule;
pub mod shadow;
pub mod stream;
pub mod update;
pub mod window;
