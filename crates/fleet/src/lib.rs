//! What the fleet decides: pure functions over what the cloud knows. No clock, no I/O, no chance but
//! from a given seed; `cloud-sync` calls it and acts.

pub mod evaluation;
