//! A machine that is switched off: the agent installs releases from sticks in a user-mode Linux with a disk of its
//! own, and the machine is killed at a random moment. What the kernel had not written yet is lost, as in a power
//! cut. Then the disk is read by a fresh kernel, and its content held to the rules.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use farlight_device::pointer::Pointer;
use farlight_test_support::{Device, DeviceOptions, Fleet, MODEL, Programs};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;

use crate::boot::Starter;
use crate::evidence::Required;
use crate::rules;
use crate::scenario::publish_patient;
use crate::trace::Tree;

/// The program: Debian's package `user-mode-linux`.
const MACHINE: &str = "linux.uml";
/// Its memory, and the size of its disk.
const MEMORY: &str = "mem=256M";
const DISK: &str = "96M";
/// Longest wait for a machine that boots, or copies what is on its disk.
const BOOT: Duration = Duration::from_secs(120);
/// Longest life of a machine after the agent came up, milliseconds: several installations.
const LONGEST_LIFE: u64 = 9_000;
/// What is installed in turn, from 1.0.0 on: with each installation the release before the last is collected.
const STICKS: [&str; 3] = ["1.1.0", "1.2.0", "1.0.0"];
/// Lines of the machine that are meant for us begin with this.
const MARK: &str = "FARLIGHT ";
/// Without barriers of its own for renamed files, and committing only when asked: the agent gets no more than
/// it asks for.
const MOUNT: &str = "mount -t ext4 -o noauto_da_alloc,commit=300 /dev/ubda";

/// Switches a machine off `count` times. With `unsynced` every sync of the agent is left out, and a broken rule is
/// what must be found. Prints what it does; whether all was as it must be.
///
/// # Errors
/// When the machine cannot be made or started.
pub fn run(
    runtime: &Runtime,
    count: u32,
    seed: u64,
    unsynced: bool,
    say: &impl Fn(&str),
) -> anyhow::Result<bool> {
    let mut random = StdRng::seed_from_u64(seed);
    let (fleet, device) = runtime.block_on(prepare())?;
    let sticks = sticks(&fleet);
    let machine = Machine::make(&fleet.programs, &device, &sticks, unsynced)?;
    let starter = Starter::new()?;
    let began = Instant::now();
    let mut required = Required { is_enrolled: true, ..Required::default() };
    required.serving.insert(MODEL.to_owned());
    let good = digests(&fleet)?;
    required.tested.extend(good.iter().cloned());
    required.confirmed.extend(good);
    required.left(&machine.read()?);
    let (mut violations, mut acknowledged) = (0, 0);
    for number in 1..=count {
        let life = Duration::from_millis(random.random_range(0..LONGEST_LIFE));
        let told = machine.live(life)?;
        acknowledged += told.len();
        for pointer in &told {
            required.pointers.insert(MODEL.to_owned(), pointer.sequence);
        }
        let tree = machine.read()?;
        let outcome = starter.examine(&tree)?;
        let broken = rules::judge(&outcome, &required);
        if !broken.is_empty() {
            violations += 1;
            for violation in &broken {
                say(&format!("  seed {seed} cut {number}: {:?}: {}", violation.rule, violation.text));
            }
            if unsynced {
                break;
            }
            say(&format!("    again: tests/power-cut/run --cuts {count} --seed {seed}"));
        }
        required.left(&tree);
    }
    say(&format!(
        "cuts: {count} in {} s, {acknowledged} installations acknowledged, {violations} violations, seed {seed}",
        began.elapsed().as_secs(),
    ));
    Ok((violations > 0) == unsynced)
}

/// A fleet whose one device runs 1.0.0, and a stick with each release.
async fn prepare() -> anyhow::Result<(Fleet, Device)> {
    let fleet = Fleet::start().await?;
    for version in STICKS {
        publish_patient(&fleet, version).await?;
    }
    let mut device = fleet.device("gw-1", &DeviceOptions::default()).await?;
    let rollout = fleet.roll_out("1.0.0").await?;
    fleet.rollout_is(&rollout, "completed", &[&device]).await?;
    device.stop().await?;
    for version in STICKS {
        let out = sticks(&fleet).join(version).display().to_string();
        fleet.operator.run(&["release", "export", &format!("{MODEL}/{version}"), "--out", &out]).await?;
    }
    Ok((fleet, device))
}

fn sticks(fleet: &Fleet) -> PathBuf {
    fleet.folder.path().join("sticks")
}

/// Digests of the releases, which all are good.
fn digests(fleet: &Fleet) -> anyhow::Result<BTreeSet<String>> {
    STICKS
        .into_iter()
        .map(|version| {
            let bytes = std::fs::read(fleet.folder.path().join(version).join("manifest.json"))?;
            Ok(farlight_release::digest::sha256(&bytes))
        })
        .collect()
}

/// A machine: a disk in a file, and what it runs.
struct Machine {
    folder: tempfile::TempDir,
    life: PathBuf,
    rescue: PathBuf,
}

impl Machine {
    /// Puts the device's state on a disk.
    fn make(programs: &Programs, device: &Device, sticks: &Path, unsynced: bool) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("farlight-machine-").tempdir()?;
        let state = device.state_dir();
        let disk = folder.path().join("disk");
        let made = Command::new("mke2fs")
            .args(["-q", "-q", "-t", "ext4", "-d"])
            .args([state.as_os_str(), disk.as_os_str(), DISK.as_ref()])
            .stdout(Stdio::null())
            .status()
            .context("start mke2fs (Debian package e2fsprogs)")?;
        ensure!(made.success(), "mke2fs ended with {made}");
        std::fs::create_dir_all(folder.path().join("out"))?;
        let (agent, config) = (programs.agent.display(), device.folder().join("agent.toml"));
        let (device, config, state_text) = (device.folder().display(), config.display(), state.display());
        let preload = if unsynced { "LD_PRELOAD=libeatmydata.so " } else { "" };
        let installations: String = STICKS
            .iter()
            .map(|version| {
                let stick = sticks.join(version);
                format!(
                    "{agent} --config $config install {} --probation 1\n\
                     echo; echo \"{MARK}$(head -n 1 {state_text}/models/{MODEL}/active)\"\n",
                    stick.display()
                )
            })
            .collect();
        // The device's folder is covered: of all that is in it only the disk outlives the machine.
        let life = format!(
            "#!/bin/sh\nmount -t proc proc /proc\nmount -t tmpfs tmpfs /run\nconfig=/run/agent.toml\ncp {config} $config\n\
             mount -t tmpfs tmpfs {device}\nmkdir {state_text}\nip link set lo up\n{MOUNT} {state_text} || exit 1\n\
             export RUST_LOG=warn\n{preload}{agent} --config $config run &\n\
             until {agent} --config $config status >/dev/null 2>&1; do :; done\n\
             echo; echo \"{MARK}up\"\nwhile :; do\n{installations}done\n"
        );
        let out = folder.path().join("out");
        let rescue = format!(
            "#!/bin/sh\nmount -t proc proc /proc\nmount -t tmpfs tmpfs /run\nmkdir /run/disk /run/out\n\
             {MOUNT} /run/disk || exit 1\nmount -t hostfs none /run/out -o {} || exit 1\n\
             cp -a /run/disk/. /run/out/ && umount /run/disk && echo && echo \"{MARK}copied\"\nwhile :; do read -r line; done\n",
            out.display()
        );
        let new = Self { life: folder.path().join("life"), rescue: folder.path().join("rescue"), folder };
        for (path, text) in [(&new.life, life), (&new.rescue, rescue)] {
            std::fs::write(path, text)?;
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
        Ok(new)
    }

    /// Starts the machine, lets it live for a while after the agent came up, and switches it off. The pointers
    /// that it told of.
    fn live(&self, life: Duration) -> anyhow::Result<Vec<Pointer>> {
        let mut running = self.start(&self.life)?;
        running.hears("up")?;
        let end = Instant::now() + life;
        let mut told = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match running.lines.recv_timeout(left) {
                Ok(line) => {
                    // The second line of the file, its checksum, is the agent's own business.
                    if let Ok(pointer) = serde_json::from_str::<Pointer>(&line) {
                        told.push(pointer);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(told),
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the machine ended by itself: {}", running.last())
                }
            }
        }
    }

    /// What is on the disk, read by a machine that does nothing else.
    fn read(&self) -> anyhow::Result<Tree> {
        let out = self.folder.path().join("out");
        std::fs::remove_dir_all(&out)?;
        std::fs::create_dir(&out)?;
        self.start(&self.rescue)?.hears("copied")?;
        let _ = std::fs::remove_dir_all(out.join("lost+found"));
        Tree::read(&out)
    }

    fn start(&self, init: &Path) -> anyhow::Result<Running> {
        let console = self.folder.path().join("console.log");
        let mut child = Command::new(MACHINE)
            .arg(MEMORY)
            .arg(format!("ubd0={}", self.folder.path().join("disk").display()))
            .args([
                "rootfstype=hostfs",
                "rootflags=/",
                "ro",
                "quiet",
                "con=null",
                "con0=null,fd:1",
                "ssl=null",
            ])
            .arg(format!("init={}", init.display()))
            // Where it keeps its memory and control socket.
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&console)?)
            // Every thread and guest process of it is one of the host's: all are killed at once.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {MACHINE} (Debian package user-mode-linux)"))?;
        let output = BufReader::new(child.stdout.take().context("no console")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(line) = line.trim().strip_prefix(MARK)
                    && sender.send(line.to_owned()).is_err()
                {
                    break;
                }
            }
        });
        Ok(Running { child, lines, console })
    }
}

/// A machine that runs; it is switched off with this value.
struct Running {
    child: Child,
    lines: Receiver<String>,
    console: PathBuf,
}

impl Running {
    fn hears(&mut self, what: &str) -> anyhow::Result<()> {
        let until = Instant::now() + BOOT;
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if line == what => return Ok(()),
                Ok(_) => {}
                Err(_) => bail!("the machine did not say {what:?}: {}", self.last()),
            }
        }
    }

    /// The end of what its kernel said.
    fn last(&self) -> String {
        let text = std::fs::read_to_string(&self.console).unwrap_or_default();
        text.lines().rev().take(5).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = format!("-{}", self.child.id());
        // It may have ended already.
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).status();
        let _ = self.child.wait();
    }
}
