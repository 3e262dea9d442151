//! `farlight-agent run`: the daemon's life, from the stores to the shutdown.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use farlight_wire::report;
use tokio::sync::{mpsc, watch};

use crate::awake::Awake;
use crate::clock::Zone;
use crate::exit::{ExitCode, Fatal};
use crate::fetch::Repository;
use crate::http::Listeners;
use crate::identity::{self, Identity};
use crate::journal::Journal;
use crate::link::Link;
use crate::models::Models;
use crate::protocol::{Service, Slow};
use crate::recorder::{self, Healths, Plan, Recorder};
use crate::router::Router;
use crate::runtime::Runtime;
use crate::settings::{self, Settings};
use crate::slots::Slots;
use crate::source::Source;
use crate::status::Status;
use crate::store::{Outbox, Store};
use crate::threads::Threads;
use crate::transfer::Limits;
use crate::trust::Trust;
use crate::update::{Driver, Input, Parts};
use crate::vitals::Vitals;
use crate::{clock, durable, engines, http, pages, sources};

/// Inputs that may wait for the update driver.
const INBOX: usize = 256;
/// Closed windows that may wait for it.
const HEALTHS: usize = 64;

/// Runs until a signal.
///
/// # Errors
/// [`Fatal`] with the exit code when the daemon cannot start.
pub async fn run(settings: Settings) -> Result<(), Fatal> {
    let state_dir = settings.device.state_dir.clone();
    let unusable = "check device.state_dir and its permissions";
    durable::create_folder(&state_dir)
        .with_context(|| format!("create {}", state_dir.display()))
        .map_err(|e| Fatal::new(ExitCode::Resource, e, unusable))?;
    let _lock = lock(&state_dir)?;
    let listeners = Listeners::bind(&settings.http).await?;
    #[cfg(feature = "grpc")]
    let calls = crate::grpc::Listener::bind(&settings.http).await?;
    let admin = Listeners::bind_admin(&settings.device.admin_socket())?;
    let identity = identify(&settings).await?;

    let (shutdown_sender, shutdown) = watch::channel(false);
    let Started { driver, inbox, healths, updates, models, runtime, status, recording, link } =
        start(&settings, identity.clone(), &shutdown).await?;
    let router =
        Arc::new(Router::new(Arc::clone(&models), runtime.clone(), remote(&settings.router, &identity)?));
    // On a single core it would be the client's that is taken.
    let look = match available() {
        1 => Duration::ZERO,
        _ => Duration::from_micros(settings.inference.poll_us),
    };
    let threads = Threads::start(cores(&settings), &settings.inference.cores, look).map_err(|error| {
        Fatal::new(ExitCode::Config, error, "name cores of this machine in inference.cores, or leave it out")
    })?;
    let threads = Arc::new(threads);
    let _awake = settings.inference.wake_latency_us.and_then(|micros| {
        let awake = Awake::within(micros);
        awake.inspect_err(|error| tracing::warn!("cores wake up as the kernel decides: {error:#}; docs/install.md says what the agent needs for inference.wake_latency_us")).ok()
    });
    let mut sources = sources::start(&settings.source, &router, &threads, &shutdown);
    status.set_sources(std::mem::take(&mut sources.tallies));
    let service = Arc::new(Service {
        models: Arc::clone(&models),
        router,
        status,
        max_body_bytes: settings.http.max_body_bytes,
        runtime,
        model_control: settings.http.model_control,
        triton_metrics: settings.http.triton_metrics,
        slow: Arc::new(Slow::new(Duration::from_millis(settings.http.slow_ms))),
        updates,
    });
    let address = listeners.address();
    let administering =
        tokio::spawn(admin.serve(http::admin(Arc::clone(&service)), Arc::clone(&threads), shutdown.clone()));
    #[cfg(feature = "grpc")]
    let calling = tokio::spawn(calls.serve(Arc::clone(&service), Arc::clone(&threads), shutdown.clone()));
    #[cfg(not(feature = "grpc"))]
    let calling = std::future::ready(());
    let serving = tokio::spawn(listeners.serve(http::api(service), Arc::clone(&threads), shutdown.clone()));
    let linking = tokio::spawn(link.run());
    let driving = tokio::spawn(driver.run(inbox, healths, shutdown.clone()));

    tracing::info!(http = address.map(|a| a.to_string()), "ready");
    notify(&[sd_notify::NotifyState::Ready]);
    let tending = tokio::spawn(pages::tend());
    let watchdog = sd_notify::watchdog_enabled();
    let watchdog = watchdog
        .map(|limit| tokio::spawn(watch(limit / 3, Arc::clone(&threads), recording.recorder.clone())));
    tokio::select! {
        () = signal() => {}
        () = sources.ended() => {}
    }
    tracing::info!("stopping");
    notify(&[sd_notify::NotifyState::Stopping]);
    let _ = shutdown_sender.send(true);
    tending.abort();
    if let Some(watchdog) = watchdog {
        watchdog.abort();
    }
    let ended = async {
        let _ = tokio::join!(serving, calling, administering, driving, linking);
    };
    if tokio::time::timeout(Duration::from_secs(10), ended).await.is_err() {
        tracing::warn!("some tasks did not end in time");
    }
    tokio::task::spawn_blocking(move || recording.stop()).await.context("stop the recorder")?;
    Ok(())
}

/// The agent between its stores and the network: everything that is decided from what is on disk is done.
pub struct Started {
    /// The update driver, ready to run.
    pub driver: Driver,
    /// What it hears.
    pub inbox: mpsc::Receiver<Input>,
    /// Closed windows for it.
    pub healths: mpsc::Receiver<Healths>,
    /// Tells it something.
    pub updates: mpsc::Sender<Input>,
    /// The model table, with what is to run.
    pub models: Arc<Models>,
    /// The configuration in force.
    pub runtime: Runtime,
    /// What the agent says of itself.
    pub status: Arc<Status>,
    /// The recorder.
    pub recording: recorder::Running,
    /// The session with the cloud, not begun.
    pub link: Link,
}

/// Opens the stores and loads what is to run. This is all that a start does before it needs a network, so
/// it is also what the power-cut rig runs on the states that a cut may leave.
///
/// # Errors
/// [`Fatal`] when the state directory cannot be used.
pub async fn start(
    settings: &Settings,
    identity: Identity,
    shutdown: &watch::Receiver<bool>,
) -> Result<Started, Fatal> {
    let state_dir = &settings.device.state_dir;
    let store_error = |e: crate::store::StoreError| {
        Fatal::new(ExitCode::Resource, e, "check device.state_dir and its permissions")
    };
    let opened = Store::open(state_dir, clock::now()).map_err(store_error)?;
    let (journal, journal_damaged) = Journal::open(state_dir, clock::now()).map_err(store_error)?;
    let telemetry = Outbox::open(&state_dir.join("telemetry.db")).map_err(store_error)?;
    let reports = Outbox::open(&state_dir.join("state.db")).map_err(store_error)?;

    let (committed_sender, committed) = watch::channel(0);
    let (reported_sender, reported) = watch::channel(0);
    let (healths_sender, healths) = mpsc::channel(HEALTHS);
    let plan = Plan {
        window: Duration::from_secs(settings.telemetry.window_seconds),
        store_max_bytes: settings.telemetry.store_max_bytes,
        cases: settings.cases.enabled,
        case_bytes_per_day: settings.cases.max_bytes_per_day,
    };
    let vitals = Vitals::new(state_dir.clone());
    let runtime = Runtime::default();
    let recording =
        recorder::start(opened.store, plan, vitals, runtime.clone(), healths_sender, committed_sender)
            .context("start the recorder")?;
    let models = Arc::new(Models::new(
        settings.inference.plan(cores(settings)),
        engines::open(&settings.inference.onnxruntime)?,
        recording.recorder.clone(),
        runtime.clone(),
    ));
    let status = Arc::new(Status::new(identity.device.as_str(), identity.fleet.as_str()));

    let (updates, inbox) = mpsc::channel(INBOX);
    let zone = Zone::named(&settings.update.time_zone).context("time zone")?;
    let repository = repository(&settings.update, &identity, zone.clone())?;
    let parts = Parts {
        identity: identity.clone(),
        labels: settings.device.labels.clone(),
        models: Arc::clone(&models),
        runtime: runtime.clone(),
        slots: Slots::new(state_dir).pinned(settings.inference.pins(cores(settings))),
        trust: open_trust(state_dir),
        repository,
        journal,
        status: Arc::clone(&status),
        program: std::env::current_exe().context("find own program")?,
        self_test: Duration::from_secs(settings.update.self_test_seconds),
        choose: Duration::from_secs(settings.inference.choose_seconds),
        metadata_every: Duration::from_secs(settings.update.metadata_seconds),
        activation_windows: settings.update.activation_windows.clone(),
        zone,
        reported: reported_sender,
    };
    let driver = Driver::boot(parts, updates.clone()).await;
    for damaged in [opened.quarantined, journal_damaged].into_iter().flatten() {
        tracing::error!(path = %damaged.display(), "a damaged database was moved aside");
        driver.report(report::Event::Loss { what: damaged.display().to_string(), records: 0 });
    }

    let link = Link {
        tls: identity.tls()?,
        identity,
        telemetry,
        reports,
        committed,
        reported,
        recorder: recording.recorder.clone(),
        updates: updates.clone(),
        status: Arc::clone(&status),
        shutdown: shutdown.clone(),
    };
    Ok(Started { driver, inbox, healths, updates, models, runtime, status, recording, link })
}

/// The cloud's repository and its mirrors.
fn repository(settings: &settings::Update, identity: &Identity, zone: Zone) -> anyhow::Result<Repository> {
    let client = match &settings.mirrors_ca {
        None => identity.http()?,
        Some(path) => {
            let pem = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            identity::http(&pem)?
        }
    };
    let mirror = |text: &String| match text.starts_with('/') {
        true => Source::Folder(text.into()),
        false => {
            let base = format!("{}/", text.trim_end_matches('/'));
            Source::Http { client: client.clone(), base }
        }
    };
    let mirrors = settings.mirrors.iter().map(mirror).collect();
    let cloud = Source::Http { client: identity.http()?, base: identity.repository.clone() };
    let limits = Limits {
        max_bytes_per_second: settings.max_bytes_per_second,
        stall: Duration::from_secs(settings.stall_seconds),
        windows: settings.download_windows.clone(),
        zone,
    };
    Ok(Repository::new(cloud, mirrors, limits))
}

/// Asks remote stages of routes, where the device's owner allows that.
fn remote(settings: &settings::Router, identity: &Identity) -> anyhow::Result<Option<reqwest::Client>> {
    if !settings.remote {
        return Ok(None);
    }
    let client = match &settings.remote_ca {
        Some(path) => {
            let ca = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            identity::http(&ca)?
        }
        None => identity.http()?,
    };
    Ok(Some(client))
}

/// Cores that requests are answered on.
fn cores(settings: &Settings) -> usize {
    match settings.inference.cores.len() {
        0 => available(),
        cores => cores,
    }
}

/// Cores that this process may use, or as many as its quota of processor time is worth.
fn available() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Two agents on one state directory would both be right about half of it.
fn lock(state_dir: &std::path::Path) -> Result<std::fs::File, Fatal> {
    let path = state_dir.join("lock");
    let fail = |error: anyhow::Error, hint: &str| Fatal::new(ExitCode::Resource, error, hint);
    let file = std::fs::File::create(&path)
        .with_context(|| format!("create {}", path.display()))
        .map_err(|e| fail(e, "check device.state_dir and its permissions"))?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("lock {}", path.display()))
        .map_err(|e| fail(e, "another agent uses this state directory"))?;
    Ok(file)
}

async fn identify(settings: &Settings) -> Result<Identity, Fatal> {
    let state_dir = &settings.device.state_dir;
    if let Some(identity) = Identity::load(state_dir)? {
        return Ok(identity);
    }
    match &settings.device.enrolment {
        Some(file) => identity::enrol(state_dir, file).await,
        None => Err(Fatal::new(
            ExitCode::Identity,
            anyhow::anyhow!("this device is not enrolled"),
            "make a file with `farlight device enrol ID --out FILE` and name it in device.enrolment",
        )),
    }
}

/// A lost or damaged trust store does not stop the agent: it runs on and installs nothing.
fn open_trust(state_dir: &std::path::Path) -> Option<Trust> {
    let trust = Trust::open(state_dir);
    trust.inspect_err(|error| tracing::error!(%error, "no new releases will be installed")).ok()
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd is not told");
    }
}

/// Tells systemd that work gets done: that this event loop turns, those that requests are answered on, and the one
/// that owns the store. What hangs keeps it silent.
async fn watch(every: Duration, threads: Arc<Threads>, recorder: Recorder) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        tokio::join!(threads.turn(), recorder.turn());
        notify(&[sd_notify::NotifyState::Watchdog]);
    }
}

async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be heard");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
