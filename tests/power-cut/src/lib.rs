//! The power-cut rig: records what the real agent does to its state directory (`record`, by strace), builds the
//! states that a power cut may leave under the strict POSIX model (`disk`, `cuts`), starts the agent's own boot
//! code in each (`boot`), and holds the result (`rules`) to what had been relied upon before the cut (`evidence`).
//! `faults` plants faults into recordings: the rig must see them. `kills` is kill -9 on the whole agent,
//! `machine` a whole machine that is switched off; `device` judges what `tests/vm/run` brings from a booted Debian.

pub mod boot;
pub mod cuts;
pub mod device;
pub mod disk;
pub mod evidence;
pub mod faults;
pub mod kills;
pub mod look;
pub mod machine;
pub mod record;
pub mod replay;
pub mod rules;
pub mod scenario;
pub mod strace;
pub mod trace;
