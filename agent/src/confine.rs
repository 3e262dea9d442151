//! What the self-test child gives up before it reads the first byte of a release: network, other programs, other
//! processes, its share of the device. Called by `selftest::child` alone. What the kernel does not give is said.

use std::io;

use rustix::process::{
    Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setpriority_process, setrlimit,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

/// Lowest priority. The kernel takes the priority for the disk from it (`ioprio_set(2)`), so that what runs is not
/// disturbed there either.
const NICEST: i32 = 19;
/// What the kernel ends first when memory runs out.
const FIRST_TO_GO: &str = "1000";
/// Open files: three streams, one file of the slot at a time, and what `/proc` is read with.
const OPEN_FILES: u64 = 16;
/// The same with the devices and libraries of a driver.
const OPEN_FILES_OF_DRIVERS: u64 = 256;

/// Whether the child runs models on devices: a driver opens them, starts threads of its own, and reserves addresses
/// far beyond the memory that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drivers {
    /// It runs them on the processor, in the thread that it has.
    None,
    /// It runs them on the processor, in several threads.
    Threads,
    /// It does.
    Some,
}

/// System calls that an engine has no business with. They fail with EPERM.
const DENIED: &[libc::c_long] = &[
    // Network and local sockets, also by way of a ring.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_io_uring_setup,
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes: the agent runs under the same user.
    libc::SYS_kill,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    // The kernel itself, and what the process sees of the system.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];

/// Confines this process, the child of `parent`, for the rest of its life: it ends with its parent, stands last in
/// line for everything, writes no file, starts nothing and reaches nobody. What could not be had.
///
/// # Errors
/// When the parent is gone already, or a limit cannot be set.
pub fn enter(parent: u32, drivers: Drivers) -> io::Result<Vec<String>> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if getppid().is_none_or(|now| now.as_raw_nonzero().get().unsigned_abs() != parent) {
        return Err(io::Error::other("the process that asked for the self-test is gone"));
    }
    let parts = [
        ("the lowest priority", setpriority_process(None, NICEST).map_err(|error| error.to_string())),
        (
            "the first place to go when memory runs out",
            std::fs::write("/proc/self/oom_score_adj", FIRST_TO_GO).map_err(|error| error.to_string()),
        ),
        ("a filter of system calls", filter()),
    ];
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    match drivers {
        Drivers::None => {
            limit(Resource::Nofile, OPEN_FILES)?;
            // One thread is enough, and it is there.
            limit(Resource::Nproc, 0)?;
        }
        Drivers::Threads => limit(Resource::Nofile, OPEN_FILES)?,
        Drivers::Some => limit(Resource::Nofile, OPEN_FILES_OF_DRIVERS)?,
    }
    let missing = |(what, done): (&str, Result<(), String>)| done.err().map(|why| format!("{what} ({why})"));
    Ok(parts.into_iter().filter_map(missing).collect())
}

/// Sets a limit for good.
///
/// # Errors
/// When the kernel refuses.
pub fn limit(resource: Resource, most: u64) -> io::Result<()> {
    Ok(setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?)
}

/// Denies [`DENIED`] to every thread, and new privileges with them. Calls by another architecture's numbers end the
/// process.
fn filter() -> Result<(), String> {
    let arch = std::env::consts::ARCH;
    let target = TargetArch::try_from(arch).map_err(|_| format!("not made for {arch}"))?;
    let rules = DENIED.iter().flat_map(numbers).map(|number| (number, Vec::new())).collect();
    let refuse = SeccompAction::Errno(rustix::io::Errno::PERM.raw_os_error().unsigned_abs());
    let program: BpfProgram = SeccompFilter::new(rules, SeccompAction::Allow, refuse, target)
        .and_then(TryInto::try_into)
        .map_err(|error| error.to_string())?;
    seccompiler::apply_filter_all_threads(&program).map_err(|error| error.to_string())
}

/// The numbers of a system call: on x86-64 a second one, by which kernels built for x32 take it as well.
#[cfg_attr(
    target_pointer_width = "64",
    expect(clippy::unnecessary_cast, reason = "c_long has 32 bits on other targets")
)]
fn numbers(call: &libc::c_long) -> impl Iterator<Item = i64> + use<> {
    const X32: i64 = 0x4000_0000;
    let number = *call as i64;
    [Some(number), cfg!(target_arch = "x86_64").then_some(number | X32)].into_iter().flatten()
}
