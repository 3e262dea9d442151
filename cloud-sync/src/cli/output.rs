//! What a command prints: JSON or text on standard output, errors and progress on standard error. A
//! reader that closes the pipe is not an error.

use std::io::{self, ErrorKind, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::error::CliError;

/// Prints a value as JSON.
///
/// # Errors
/// [`CliError`] when standard output cannot be written.
pub fn json<T: Serialize>(value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| CliError::failure(format!("write the answer as JSON: {e}")))?;
    self::text(&text)
}

/// Prints text and ends the line.
///
/// # Errors
/// [`CliError`] when standard output cannot be written.
pub fn text(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::failure(format!("write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// Says on standard error what a command is doing.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Says on standard error why a command failed.
pub fn error(error: &CliError, as_json: bool) {
    let mut out = io::stderr().lock();
    if as_json {
        let body = serde_json::json!({ "error": {
            "code": error.code(), "message": error.message(), "hint": error.advice() } });
        let _ = writeln!(out, "{body}");
        return;
    }
    let _ = writeln!(out, "error: {} [{}]", error.message(), error.code());
    if let Some(hint) = error.advice() {
        let _ = writeln!(out, "hint: {hint}");
    }
}

/// A table with aligned columns.
pub fn table<const N: usize>(columns: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = columns.map(|column| column.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[&str]| {
        let cells: Vec<String> =
            cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&columns)];
    lines.extend(rows.iter().map(|row| line(&row.each_ref().map(String::as_str))));
    lines.join("\n")
}

/// A progress bar over bytes on standard error; nothing is drawn where that is no terminal.
pub fn progress(bytes: u64, what: &str) -> ProgressBar {
    let target =
        if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(bytes), target).with_message(what.to_owned());
    let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_by_characters() {
        let rows = [["ä".to_owned(), "1".to_owned()], ["long name".to_owned(), String::new()]];
        assert_eq!(table(["name", "n"], &rows), "name       n\nä          1\nlong name");
    }
}
