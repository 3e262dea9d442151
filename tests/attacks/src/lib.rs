//! Attack fixtures: `models/fixtures/‹attack›/` holds what an attacker serves or sends, byte for byte, and says
//! how the device must refuse it. The fixtures are made here, always the same; the test runs them against the
//! agent.

pub mod attacks;
pub mod fixture;
pub mod models;
pub mod world;
