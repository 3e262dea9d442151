//! Routes: what answers a request for a name. A chain of models and remote services, from the small to the large,
//! with a rule at its end so that there is always an answer. Part of a configuration release.

use farlight_wire::ModelName;
use serde::{Deserialize, Serialize};

use super::invalid;
use crate::manifest::{ManifestError, Statistic};

/// Most stages of a route: each one costs its time.
pub const MAX_STAGES: usize = 8;
/// Most rows of a fall-back table.
pub const MAX_ROWS: usize = 256;
/// Most answers that a cache keeps.
pub const MAX_CACHED: usize = 65_536;
/// Longest address of a remote stage, in bytes.
const MAX_URL: usize = 512;
/// Longest time of anything here, ms: an hour.
const MAX_MS: u64 = 3_600_000;

/// What answers a request for a name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Route {
    /// Asked one after the other until one is sure enough.
    pub stages: Vec<Stage>,
    /// Another route or model for a share of the requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// A model that sees a share of the inputs, and decides nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Split>,
    /// Answers that are kept for inputs that come again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    /// When a stage that fails is left out.
    pub breaker: Breaker,
    /// The answer when no stage gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// One stage of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// What is asked.
    pub ask: Target,
    /// The answer counts when its best score is at least this; 0 for always. The last stage's always counts.
    #[serde(default)]
    pub accept_score: f32,
    /// Longest time of this stage, ms; the request's own deadline when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_ms: Option<u64>,
}

/// What a stage asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The active release of a model on this device.
    Model(ModelName),
    /// The release that was active before, where it is still in memory.
    Previous(ModelName),
    /// An Open Inference Protocol service: `http(s)://HOST/v2/models/NAME`.
    Remote(String),
}

/// A share of the requests for another model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The model.
    pub model: ModelName,
    /// Share of the requests, thousandths; the same id always goes the same way.
    pub permille: u16,
}

/// Answers that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// How long, ms.
    pub ttl_ms: u64,
    /// How many at most.
    pub entries: usize,
}

/// When a stage that fails is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// The last calls that are judged.
    pub calls: usize,
    /// Left out when more than this share of them failed or were slow, thousandths.
    pub bad_permille: u16,
    /// A call that takes longer is slow, ms; 0 for never.
    pub slow_ms: u64,
    /// How long it is left out before it is tried again, ms.
    pub open_ms: u64,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { calls: 20, bad_permille: 500, slow_ms: 0, open_ms: 10_000 }
    }
}

/// The answer when no stage gives one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "rule", deny_unknown_fields)]
pub enum Fallback {
    /// Always the same.
    Constant {
        /// Index of the class, or the number of a regression.
        value: f32,
    },
    /// The last answer of the route, while it is not older.
    Last {
        /// Longest age, ms.
        max_age_ms: u64,
        /// The answer before there was one, or when it is too old.
        otherwise: f32,
    },
    /// The first row that fits the input.
    Table {
        /// Rows, in order.
        rows: Vec<Row>,
        /// The answer when none fits.
        otherwise: f32,
    },
}

/// A row of a fall-back table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Channel (index of the first axis after the batch) of the main input.
    pub channel: usize,
    /// What of it is looked at.
    pub statistic: Statistic,
    /// The row fits when it is at least this.
    pub at_least: f32,
    /// The answer: index of the class, or the number of a regression.
    pub value: f32,
}

type Check = Result<(), ManifestError>;

impl Route {
    /// Whether every field keeps to its range; `path` is where the route is.
    ///
    /// # Errors
    /// [`ManifestError`] naming the field and the rule it breaks.
    pub(super) fn check(&self, path: &str) -> Check {
        if !(1..=MAX_STAGES).contains(&self.stages.len()) {
            return invalid(format!("{path}.stages"), format!("must name 1 to {MAX_STAGES} stages"));
        }
        for (i, stage) in self.stages.iter().enumerate() {
            stage.check(&format!("{path}.stages[{i}]"))?;
        }
        for (name, split) in [("split", &self.split), ("shadow", &self.shadow)] {
            if split.as_ref().is_some_and(|split| split.permille > 1000) {
                return invalid(format!("{path}.{name}.permille"), "must be from 0 to 1000");
            }
        }
        if let Some(cache) = &self.cache {
            is_time(&format!("{path}.cache.ttl_ms"), cache.ttl_ms)?;
            if !(1..=MAX_CACHED).contains(&cache.entries) {
                return invalid(format!("{path}.cache.entries"), format!("must be from 1 to {MAX_CACHED}"));
            }
        }
        let breaker = &self.breaker;
        is_time(&format!("{path}.breaker.open_ms"), breaker.open_ms)?;
        if breaker.bad_permille > 1000 || breaker.calls > 10_000 || breaker.slow_ms > MAX_MS {
            return invalid(
                format!("{path}.breaker"),
                format!("must have bad_permille up to 1000, calls up to 10000 and slow_ms up to {MAX_MS}"),
            );
        }
        self.fallback.as_ref().map_or(Ok(()), |fallback| fallback.check(&format!("{path}.fallback")))
    }
}

impl Stage {
    fn check(&self, path: &str) -> Check {
        if !(0.0..=1.0).contains(&self.accept_score) {
            return invalid(format!("{path}.accept_score"), "must be from 0 to 1");
        }
        if let Some(within) = self.within_ms {
            is_time(&format!("{path}.within_ms"), within)?;
        }
        match &self.ask {
            Target::Remote(url) if !is_address(url) => {
                let rule = "must be http(s)://HOST/v2/models/NAME, optionally with /versions/VERSION";
                invalid(format!("{path}.ask.remote"), rule)
            }
            Target::Remote(_) | Target::Model(_) | Target::Previous(_) => Ok(()),
        }
    }
}

impl Fallback {
    fn check(&self, path: &str) -> Check {
        let finite = |name: &str, value: f32| match value.is_finite() {
            true => Ok(()),
            false => invalid(format!("{path}.{name}"), "must be finite"),
        };
        match self {
            Self::Constant { value } => finite("value", *value),
            Self::Last { max_age_ms, otherwise } => {
                finite("otherwise", *otherwise)?;
                is_time(&format!("{path}.max_age_ms"), *max_age_ms)
            }
            Self::Table { rows, otherwise } => {
                finite("otherwise", *otherwise)?;
                if rows.len() > MAX_ROWS {
                    return invalid(format!("{path}.rows"), format!("has more than {MAX_ROWS} rows"));
                }
                let broken = rows.iter().position(|row| !row.at_least.is_finite() || !row.value.is_finite());
                broken.map_or(Ok(()), |i| invalid(format!("{path}.rows[{i}]"), "must be finite"))
            }
        }
    }
}

fn is_time(field: &str, ms: u64) -> Check {
    match (1..=MAX_MS).contains(&ms) {
        true => Ok(()),
        false => invalid(field, format!("must be from 1 to {MAX_MS} ms")),
    }
}

/// Whether a text is the address of a model at a service.
fn is_address(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let path = rest.and_then(|rest| rest.split_once("/v2/models/"));
    let plain = url.len() <= MAX_URL && url.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '?' | '#'));
    plain && path.is_some_and(|(host, model)| !host.is_empty() && !model.is_empty() && !model.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn good() -> Value {
        json!({
            "stages": [
                {"ask": {"model": "small"}, "accept_score": 0.8, "within_ms": 20},
                {"ask": {"previous": "small"}},
                {"ask": {"remote": "https://models.example/v2/models/big/versions/2"}},
            ],
            "split": {"model": "other", "permille": 100},
            "cache": {"ttl_ms": 1000, "entries": 100},
            "breaker": {"slow_ms": 50},
            "fallback": {"rule": "table", "otherwise": 1.0, "rows":
                [{"channel": 0, "statistic": "mean", "at_least": 2.0, "value": 0.0}]},
        })
    }

    #[test]
    fn a_route_is_read_and_each_wrong_field_is_named() {
        let route: Route = serde_json::from_value(good()).unwrap();
        route.check("r").unwrap();
        assert_eq!(route.stages[1].ask, Target::Previous(ModelName::new("small").unwrap()));
        assert_eq!((route.breaker.slow_ms, route.breaker.calls), (50, 20));
        let again = serde_json::from_value::<Route>(serde_json::to_value(&route).unwrap()).unwrap();
        assert_eq!(again, route);
        for (pointer, value, field) in [
            ("/stages", json!([]), "r.stages"),
            ("/stages/0/accept_score", json!(1.5), "r.stages[0].accept_score"),
            ("/stages/0/within_ms", json!(0), "r.stages[0].within_ms"),
            ("/stages/2/ask/remote", json!("ftp://x/v2/models/a"), "r.stages[2].ask.remote"),
            ("/stages/2/ask/remote", json!("http://x/models/a"), "r.stages[2].ask.remote"),
            ("/split/permille", json!(1001), "r.split.permille"),
            ("/cache/entries", json!(0), "r.cache.entries"),
            ("/breaker", json!({"open_ms": 0}), "r.breaker.open_ms"),
        ] {
            let mut document = good();
            *document.pointer_mut(pointer).unwrap() = value;
            let route: Route = serde_json::from_value(document).unwrap();
            let error = route.check("r").unwrap_err().to_string();
            assert!(error.contains(field), "{pointer}: {error}");
        }
        let mut unknown = good();
        unknown["stagess"] = json!(1);
        assert!(serde_json::from_value::<Route>(unknown).is_err());
    }
}
