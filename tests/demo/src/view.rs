//! Live progress in the terminal: one line a step, with what it found.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The terminal.
pub(crate) struct View {
    bar: Option<ProgressBar>,
    started: Instant,
}

impl View {
    /// A view that begins now.
    pub(crate) fn new() -> Self {
        Self { bar: None, started: Instant::now() }
    }

    /// Begins a step.
    pub(crate) fn step(&mut self, text: &str) {
        self.done("");
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("{spinner} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.enable_steady_tick(Duration::from_millis(120));
        bar.set_message(text.to_owned());
        if bar.is_hidden() {
            self.line(&format!("… {text}"));
        }
        self.bar = Some(bar);
    }

    /// Changes the text of the current step.
    pub(crate) fn now(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    /// Ends the current step with what it found.
    pub(crate) fn done(&mut self, text: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if !text.is_empty() {
            self.line(&format!("✓ {text}"));
        }
    }

    /// Says something.
    pub(crate) fn line(&self, text: &str) {
        use std::io::Write as _;
        let seconds = self.started.elapsed().as_secs();
        let _ = writeln!(std::io::stdout(), "[{:>3}:{:02}] {text}", seconds / 60, seconds % 60);
    }
}
