//! The router: what answers a request for a name. Without a route it is the model of that name, at no cost; with one
//! it is a chain of stages, each bounded in time and left out while it fails, with a rule at its end.

mod cache;
mod remote;
mod rule;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use farlight_device::breaker::{self, Breaker};
use farlight_inference::{Item, Prediction, RunError};
use farlight_release::config::{self, route};
use farlight_wire::{Millis, ModelName};
use tokio::sync::Semaphore;

use crate::models::{Answer, Ask, InferError, Loaded, Models, Timing};
use crate::queue::{Priority, Refused};
use crate::runtime::Runtime;
use cache::Cache;

/// Shadow inputs that run at once: the shadow never takes more than one place from what decides.
const SHADOWS: usize = 1;

/// What answers requests.
pub struct Router {
    models: Arc<Models>,
    runtime: Runtime,
    /// Asks remote stages; none where the device's owner does not allow them.
    client: Option<reqwest::Client>,
    routes: ArcSwap<Routes>,
    began: Instant,
}

/// The routes of one configuration and what they remember.
#[derive(Default)]
struct Routes {
    config: Option<Arc<config::Runtime>>,
    by_name: HashMap<String, Arc<Active>>,
}

/// A route in use.
pub struct Active {
    name: String,
    route: config::Route,
    breakers: Vec<Mutex<Breaker>>,
    cache: Option<Mutex<Cache>>,
    last: Mutex<Option<(Instant, Prediction)>>,
    /// What it did.
    pub counts: Counts,
    shadows: Arc<Semaphore>,
}

/// What a route did since its configuration came into force.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answers that each stage gave.
    pub stages: Vec<AtomicU64>,
    /// Answers of the rule.
    pub rule: AtomicU64,
    /// Answers that were kept.
    pub cached: AtomicU64,
    /// Answers of the model that gets a share.
    pub split: AtomicU64,
    /// Requests without an answer.
    pub failed: AtomicU64,
    /// Answers that the shadow gave the same, shared with its tasks.
    pub agreed: Arc<AtomicU64>,
    /// Answers that the shadow gave otherwise.
    pub disagreed: Arc<AtomicU64>,
}

/// Who answers a request for a name, looked up before the request is read.
pub struct Door {
    /// Says what the input is like: the model itself, or the first of the route that is loaded.
    pub loaded: Arc<Loaded>,
    route: Option<Arc<Active>>,
}

/// An answer and where it came from.
pub struct Routed {
    /// The prediction.
    pub prediction: Prediction,
    /// The release that answered, or the door's where a rule or another service did.
    pub loaded: Arc<Loaded>,
    /// Which stage answered; `None` without a route.
    pub stage: Option<String>,
    /// How long its stages took on this device.
    pub timing: Timing,
}

impl Routed {
    fn of(answer: Answer, stage: Option<String>) -> Self {
        let Answer { prediction, loaded, timing } = answer;
        Self { prediction, loaded, stage, timing }
    }

    /// The answer of something that is no release on this device.
    fn by(door: &Door, prediction: Prediction, stage: String) -> Self {
        let (loaded, timing) = (Arc::clone(&door.loaded), Timing::default());
        Self { prediction, loaded, stage: Some(stage), timing }
    }
}

impl Router {
    /// Routes under the configuration `runtime`; remote stages are asked by `client`.
    pub fn new(models: Arc<Models>, runtime: Runtime, client: Option<reqwest::Client>) -> Self {
        Self { models, runtime, client, routes: ArcSwap::default(), began: Instant::now() }
    }

    /// The models that it routes to.
    pub fn models(&self) -> &Arc<Models> {
        &self.models
    }

    /// The routes in use, by name.
    pub fn list(&self) -> Vec<(String, Arc<Active>)> {
        let routes = self.routes();
        let mut list: Vec<_> =
            routes.by_name.iter().map(|(name, route)| (name.clone(), Arc::clone(route))).collect();
        list.sort_by(|a, b| a.0.cmp(&b.0));
        list
    }

    /// The routes of the configuration in force.
    fn routes(&self) -> Arc<Routes> {
        let config = self.runtime.get();
        let known = self.routes.load_full();
        if known.config.as_ref().is_some_and(|of| Arc::ptr_eq(of, &config)) {
            return known;
        }
        let active = |(name, route): (&ModelName, &config::Route)| {
            (name.to_string(), Arc::new(Active::new(name.as_str(), route)))
        };
        let by_name = config.routes.iter().map(active).collect();
        let routes = Arc::new(Routes { config: Some(config), by_name });
        // Two requests may both find a new configuration; one set of counts begins a moment later.
        self.routes.store(Arc::clone(&routes));
        routes
    }

    /// Who answers for a name, or for one version of a model.
    ///
    /// # Errors
    /// [`InferError::Unknown`].
    pub fn door(&self, name: &str, version: Option<&str>) -> Result<Door, InferError> {
        if version.is_some() || !self.runtime.has_routes() {
            return Ok(Door { loaded: self.models.find(name, version)?, route: None });
        }
        let Some(route) = self.routes().by_name.get(name).cloned() else {
            return Ok(Door { loaded: self.models.find(name, None)?, route: None });
        };
        let first = route.route.stages.iter().find_map(|stage| self.loaded(&stage.ask));
        let loaded = first.ok_or_else(|| InferError::Unknown(name.to_owned()))?;
        Ok(Door { loaded, route: Some(route) })
    }

    fn loaded(&self, target: &route::Target) -> Option<Arc<Loaded>> {
        match target {
            route::Target::Model(model) => self.models.find(model.as_str(), None).ok(),
            route::Target::Previous(model) => self.models.previous(model.as_str()),
            route::Target::Remote(_) => None,
        }
    }

    /// Answers one item of a door's model.
    ///
    /// # Errors
    /// [`InferError`] of the last stage that was asked.
    pub async fn infer(&self, door: &Door, item: Item, ask: &Ask<'_>) -> Result<Routed, InferError> {
        let Some(active) = &door.route else {
            let answer = self.models.infer(Arc::clone(&door.loaded), item, ask).await?;
            return Ok(Routed::of(answer, None));
        };
        // What is switched off answers by no rule either.
        if self.runtime.is_off(&active.name) {
            return Err(InferError::Off(active.name.clone()));
        }
        if let Some(split) = active.route.split.as_ref().filter(|split| chosen(split, ask))
            && let Ok(other) = self.models.find(split.model.as_str(), None)
        {
            let answer = self.models.infer(other, item, ask).await?;
            active.counts.split.fetch_add(1, Ordering::Relaxed);
            return Ok(Routed::of(answer, Some(split.model.to_string())));
        }
        let key = active.key(&item, ask);
        let releases = key.as_ref().map(|_| self.releases(active)).unwrap_or_default();
        if let Some(key) = &key
            && let Some(kept) = active.kept(key, &releases)
        {
            active.counts.cached.fetch_add(1, Ordering::Relaxed);
            let (prediction, stage) = kept;
            return Ok(Routed::by(door, prediction, format!("cache of {}", active.name(stage))));
        }
        let (index, mut routed) = match self.stages(door, active, &item, ask).await {
            Ok(answer) => answer,
            Err(error) => return active.by_rule(door, &item, error),
        };
        let prediction = &routed.prediction;
        active.counts.answered(index);
        if let Some(key) = key {
            active.keep(key, &releases, prediction, index);
        }
        if matches!(active.route.fallback, Some(route::Fallback::Last { .. })) {
            *lock(&active.last) = Some((Instant::now(), prediction.clone()));
        }
        self.shadow(active, item, prediction);
        routed.stage = Some(active.name(index));
        Ok(routed)
    }

    /// Asks one stage after the other until one is sure. When none is, the last answer counts, and when there is none
    /// the first error that is not of the request itself.
    async fn stages(
        &self,
        door: &Door,
        active: &Active,
        item: &Item,
        ask: &Ask<'_>,
    ) -> Result<(usize, Routed), InferError> {
        let (mut unsure, mut failed) = (None, None);
        let last = active.route.stages.len().saturating_sub(1);
        let policy = door.loaded.policy();
        let deadline = ask.arrived + ask.timeout.map_or(policy.deadline, |own| own.min(policy.deadline));
        for (index, stage) in active.route.stages.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let within = stage.within_ms.map_or(left, |ms| Duration::from_millis(ms).min(left));
            let Some(breaker) = active.breakers.get(index) else { continue };
            if within.is_zero() || !lock(breaker).allows(self.now()) {
                continue;
            }
            let started = Instant::now();
            let ask = Ask { timeout: Some(ask.arrived.elapsed() + within), ..*ask };
            let answer = self.stage(door, &stage.ask, item, &ask, within).await;
            let took = Millis(started.elapsed().as_millis() as u64);
            match answer {
                // What is wrong with the request is wrong at every stage, and says nothing of this one.
                Err(Failed::Request(error)) => return Err(error),
                Err(Failed::Stage(error)) => {
                    lock(breaker).ended(false, took, self.now());
                    tracing::debug!(stage = active.name(index), %error, "a stage did not answer");
                    failed = failed.or(Some(error));
                }
                Ok(routed) => {
                    let prediction = &routed.prediction;
                    let finite = !prediction.non_finite;
                    lock(breaker).ended(finite, took, self.now());
                    let sure = finite && !prediction.abstained && prediction.score >= stage.accept_score;
                    if sure || (index == last && finite) {
                        return Ok((index, routed));
                    }
                    if finite {
                        unsure = Some((index, routed));
                    }
                }
            }
        }
        unsure.ok_or_else(|| {
            let model = door.loaded.slot.release.model.to_string();
            failed.unwrap_or(InferError::Busy {
                model,
                why: Refused::Stages,
                retry_after: Duration::from_secs(1),
            })
        })
    }

    async fn stage(
        &self,
        door: &Door,
        target: &route::Target,
        item: &Item,
        ask: &Ask<'_>,
        within: Duration,
    ) -> Result<Routed, Failed> {
        if let route::Target::Remote(url) = target {
            let off = || Failed::Stage(InferError::Remote("router.remote does not allow it here".to_owned()));
            let client = self.client.as_ref().ok_or_else(off)?;
            let remote = remote::Remote { client, url, trace: ask.trace };
            let asked = remote.ask(&door.loaded.manifest, item, within).await;
            let asked = asked.map_err(|error| Failed::Stage(InferError::Remote(error)))?;
            return Ok(Routed::by(door, asked, String::new()));
        }
        let unknown = || Failed::Stage(InferError::Unknown(format!("{target:?}")));
        let loaded = self.loaded(target).ok_or_else(unknown)?;
        // A stream is of the stages that have a state; the others answer each call by itself.
        let ask = Ask { stream: ask.stream.filter(|_| loaded.has_state()), ..*ask };
        match self.models.infer(Arc::clone(&loaded), item.clone(), &ask).await {
            Ok(answer) => Ok(Routed::of(answer, None)),
            Err(
                error @ InferError::Run(
                    RunError::Length { .. } | RunError::Inputs(_) | RunError::Contract { .. },
                ),
            ) if Arc::ptr_eq(&loaded, &door.loaded) => Err(Failed::Request(error)),
            Err(error) => Err(Failed::Stage(error)),
        }
    }

    /// Which releases answer for a route now.
    fn releases(&self, active: &Active) -> Vec<String> {
        let digest = |stage: &route::Stage| self.loaded(&stage.ask).map(|loaded| loaded.slot.digest.clone());
        active.route.stages.iter().map(|stage| digest(stage).unwrap_or_default()).collect()
    }

    /// Shows a share of the answered inputs to another model, in its own time, and counts whether it agrees.
    fn shadow(&self, active: &Active, item: Item, prediction: &Prediction) {
        let Some(shadow) = &active.route.shadow else { return };
        if rand::random_range(0..1000) >= shadow.permille {
            return;
        }
        let Ok(loaded) = self.models.find(shadow.model.as_str(), None) else { return };
        // One at a time; what comes meanwhile is not seen.
        let Ok(permit) = Arc::clone(&active.shadows).try_acquire_owned() else { return };
        let (models, top) = (Arc::clone(&self.models), prediction.top);
        let counts = (Arc::clone(&active.counts.agreed), Arc::clone(&active.counts.disagreed));
        tokio::spawn(async move {
            let ask = Ask { priority: Priority::default(), ..Ask::now("shadow") };
            if let Ok(answer) = models.infer(loaded, item, &ask).await {
                let count = if answer.prediction.top == top { counts.0 } else { counts.1 };
                count.fetch_add(1, Ordering::Relaxed);
            }
            drop(permit);
        });
    }

    fn now(&self) -> Millis {
        Millis(self.began.elapsed().as_millis() as u64)
    }
}

/// Why a stage gave no answer.
enum Failed {
    Request(InferError),
    Stage(InferError),
}

/// Whether a request is of the share that goes another way: by its stream, else by its id.
fn chosen(split: &route::Split, ask: &Ask<'_>) -> bool {
    let mut hasher = DefaultHasher::new();
    ask.stream.map_or(ask.id, |stream| stream.id).hash(&mut hasher);
    hasher.finish() % 1000 < u64::from(split.permille)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Counts {
    fn answered(&self, stage: usize) {
        if let Some(count) = self.stages.get(stage) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Active {
    fn new(name: &str, route: &config::Route) -> Self {
        let policy = breaker::Policy {
            calls: route.breaker.calls,
            bad_permille: route.breaker.bad_permille,
            slow: Millis(route.breaker.slow_ms),
            open: Millis(route.breaker.open_ms),
        };
        let stages = &route.stages;
        let cache = route.cache.map(|cache| Cache::new(Duration::from_millis(cache.ttl_ms), cache.entries));
        let counts =
            Counts { stages: stages.iter().map(|_| AtomicU64::new(0)).collect(), ..Counts::default() };
        Self {
            breakers: stages.iter().map(|_| Mutex::new(Breaker::new(policy))).collect(),
            cache: cache.map(Mutex::new),
            last: Mutex::new(None),
            counts,
            shadows: Arc::new(Semaphore::new(SHADOWS)),
            name: name.to_owned(),
            route: route.clone(),
        }
    }

    /// A stage's name for people and metrics.
    pub fn name(&self, stage: usize) -> String {
        match self.route.stages.get(stage).map(|stage| &stage.ask) {
            Some(route::Target::Model(model)) => model.to_string(),
            Some(route::Target::Previous(model)) => format!("previous {model}"),
            Some(route::Target::Remote(_)) => "remote".to_owned(),
            None => String::new(),
        }
    }

    /// How often the breaker of a stage opened.
    pub fn opened(&self, stage: usize) -> u64 {
        self.breakers.get(stage).map_or(0, |breaker| lock(breaker).opened())
    }

    /// What an input is looked up by; `None` where nothing is kept, or the input is of a stream or too large.
    fn key(&self, item: &Item, ask: &Ask<'_>) -> Option<Vec<u8>> {
        self.cache.as_ref()?;
        let size =
            |values: &farlight_inference::Values| values.len() * values.datatype().size().unwrap_or(64);
        let bytes: usize = std::iter::once(&item.main).chain(&item.more).map(size).sum();
        if ask.stream.is_some() || bytes > cache::MAX_KEY {
            return None;
        }
        postcard::to_allocvec(&(&item.main, &item.more)).ok()
    }

    fn kept(&self, key: &[u8], releases: &[String]) -> Option<(Prediction, usize)> {
        lock(self.cache.as_ref()?).get(key, releases, Instant::now())
    }

    fn keep(&self, key: Vec<u8>, releases: &[String], prediction: &Prediction, stage: usize) {
        if let Some(cache) = &self.cache {
            lock(cache).put(key, releases, prediction, stage, Instant::now());
        }
    }

    /// The rule's answer in place of an error, unless the request itself is wrong.
    fn by_rule(&self, door: &Door, item: &Item, error: InferError) -> Result<Routed, InferError> {
        let request = matches!(
            error,
            InferError::Run(RunError::Length { .. } | RunError::Inputs(_) | RunError::Contract { .. })
        );
        let last = lock(&self.last).clone();
        let last = last.map(|(at, prediction)| rule::Last { prediction, age: at.elapsed() });
        let rule = self.route.fallback.as_ref().filter(|_| !request);
        match rule.and_then(|rule| rule::answer(rule, &door.loaded.manifest, item, last)) {
            Some(prediction) => {
                self.counts.rule.fetch_add(1, Ordering::Relaxed);
                Ok(Routed::by(door, prediction, "fallback".to_owned()))
            }
            None => {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}
