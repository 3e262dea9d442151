//! What a benchmark prints: one object a result, a line of text or JSON.

use std::io::{self, Write as _};

use serde::Serialize;

/// One result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// What was measured.
    pub(crate) name: String,
    /// The result.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// The best of what it is compared with, in the same unit, measured in the same run.
    pub(crate) baseline: Option<f64>,
    /// `value / baseline`.
    pub(crate) ratio: Option<f64>,
    /// What is asked for; nothing where the result is only shown.
    pub(crate) goal: Option<String>,
    /// Whether it is met.
    pub(crate) met: Option<bool>,
    /// How it came about.
    pub(crate) detail: String,
}

/// What is asked of a result.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Goal {
    /// Most that the value may be.
    pub(crate) value: Option<f64>,
    /// Most that the value may be as a multiple of the baseline.
    pub(crate) ratio: Option<f64>,
    /// Most that the value may be above the baseline, in its unit.
    pub(crate) above: Option<f64>,
    /// Least that the value must be as a multiple of the baseline.
    pub(crate) least_ratio: Option<f64>,
}

impl Report {
    /// A result that is asked for `goal`.
    pub(crate) fn new(name: &str, value: f64, unit: &'static str, baseline: Option<f64>, goal: Goal) -> Self {
        let ratio = baseline.map(|baseline| value / baseline);
        let mut asked = Vec::new();
        asked.extend(goal.value.map(|most| (format!("value <= {most}"), value <= most)));
        asked.extend(
            goal.ratio.map(|most| (format!("ratio <= {most}"), ratio.is_some_and(|ratio| ratio <= most))),
        );
        asked.extend(goal.above.map(|most| {
            let met = baseline.is_some_and(|baseline| value - baseline <= most);
            (format!("value <= baseline + {most}"), met)
        }));
        asked.extend(
            goal.least_ratio
                .map(|least| (format!("ratio >= {least}"), ratio.is_some_and(|ratio| ratio >= least))),
        );
        let text: Vec<&str> = asked.iter().map(|(text, _)| text.as_str()).collect();
        Self {
            name: name.to_owned(),
            value,
            unit,
            baseline,
            ratio,
            goal: (!asked.is_empty()).then(|| text.join(", ")),
            met: (!asked.is_empty()).then(|| asked.iter().all(|(_, met)| *met)),
            detail: String::new(),
        }
    }

    /// Says how it came about.
    pub(crate) fn detail(mut self, text: impl Into<String>) -> Self {
        self.detail = text.into();
        self
    }

    fn line(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
        let met = match self.met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "",
        };
        format!(
            "{:<34} {:>10.3} {:<14} baseline {:>8}  ratio {:>6}  {} {met}  ({})",
            self.name,
            self.value,
            self.unit,
            number(self.baseline),
            number(self.ratio),
            self.goal.as_deref().unwrap_or("no goal"),
            self.detail,
        )
    }
}

/// Prints results as they come and remembers whether all goals are met.
#[derive(Debug)]
pub(crate) struct Printer {
    json: bool,
    missed: usize,
    /// The machine's load before the benchmark, mean of a minute.
    load: Option<f64>,
}

impl Printer {
    pub(crate) fn new(json: bool) -> Self {
        let load = std::fs::read_to_string("/proc/loadavg").ok();
        let load = load.and_then(|text| text.split(' ').next()?.parse().ok());
        Self { json, missed: 0, load }
    }

    /// Prints one result.
    pub(crate) fn print(&mut self, report: &Report) -> anyhow::Result<()> {
        self.missed += usize::from(report.met == Some(false));
        if self.json {
            let mut object = serde_json::to_value(report)?;
            // Numbers are only to be believed when nothing else ran: a reader can tell.
            object["load"] = self.load.into();
            return Ok(writeln!(io::stdout(), "{object}")?);
        }
        Ok(writeln!(io::stdout(), "{}", report.line())?)
    }

    /// Says how busy the machine was before.
    pub(crate) fn begin(&self) {
        if let Some(load) = self.load {
            self.note(&format!(
                "load average {load} before: numbers are only to be believed on an idle machine"
            ));
        }
    }

    /// Says on standard error what is going on.
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Goals that were missed.
    pub(crate) fn missed(&self) -> usize {
        self.missed
    }
}
