//! The power-cut rig: records what the real agent does to its state directory, builds every state that a
//! power cut may leave under the strict POSIX model, starts the agent's own boot code in each, and holds
//! the result to what had been relied upon before the cut.

pub mod boot;
pub mod cuts;
pub mod disk;
pub mod evidence;
pub mod faults;
pub mod kills;
pub mod look;
pub mod record;
pub mod replay;
pub mod rules;
pub mod scenario;
pub mod strace;
pub mod trace;
