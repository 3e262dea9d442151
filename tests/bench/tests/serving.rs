//! The short forms of the benchmarks of serving, as a check that they run: each prints its results as JSON. How fast
//! anything is, is for the benchmarks alone: a busy machine misses goals.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use serde_json::Value;

/// Runs the short form of one; its results.
fn short(name: &str) -> Vec<Value> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_bench")).args([name, "--short", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // 1 says that a goal was missed; 2 that it could not be measured.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{name}: {}: {said}", output.status);
    let lines = String::from_utf8(output.stdout).unwrap();
    let reports: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for report in &reports {
        assert!(report["name"].as_str().unwrap().starts_with(&format!("{name}/")), "{report}");
        assert!(report["value"].as_f64().is_some_and(f64::is_finite), "{report}");
        assert!(report["unit"].is_string() && report["load"].is_number(), "{report}");
        assert_eq!(report["baseline"].is_null(), report["ratio"].is_null(), "{report}");
        assert_eq!(report["goal"].is_null(), report["met"].is_null(), "{report}");
    }
    reports
}

#[test]
fn short_forms_print_their_results() {
    // One after the other: each has an agent and a load of its own.
    for (name, results) in [("throughput", 3), ("coldstart", 1), ("engines", 6), ("routing", 6)] {
        assert_eq!(short(name).len(), results, "{name}");
    }
    // Twice where cores can be kept awake.
    let overhead = short("overhead").len();
    assert!([20, 40].contains(&overhead), "{overhead}");
}

#[test]
fn a_flood_is_answered_with_200_and_503_and_nothing_else() {
    let reports = short("overload");
    let other = reports.iter().find(|report| report["name"] == "overload/other").unwrap();
    assert_eq!(other["value"], 0.0, "{other}");
}
