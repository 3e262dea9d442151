//! Learning in the cloud: data set snapshots, training jobs in a child process, and the gate that
//! re-scores base and candidate with the fleet's own engine. The arithmetic is `farlight-training`.

pub mod api;
pub mod datasets;
pub mod gate;
pub mod job;
pub mod jobs;
pub mod plan;
pub mod recipe;
pub mod records;
pub mod score;
pub mod trainer;
