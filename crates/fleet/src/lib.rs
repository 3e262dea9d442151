//! What the fleet decides: who gets a release and when, whether the evidence is good enough, whether
//! inputs have drifted, whether a candidate is better. Pure: no clock, no randomness, no I/O; `now` and
//! seeds are arguments. `cloud-sync` calls it and acts.

pub mod drift;
pub mod evaluation;
pub mod gate;
pub mod rollout;
