//! The short form of `bench swap`, as a check of correctness: while the model is swapped under load no request
//! fails and both versions answer. How fast that is, and the memory it takes, is for the benchmark alone.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use serde_json::Value;

/// Swaps: enough for requests to be caught in each step of one.
const SWAPS: &str = "50";
/// Requests a second: few, so that a busy machine does not refuse any for want of time.
const RATE: &str = "200";

#[test]
fn no_request_fails_while_the_model_is_swapped() {
    let output = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["swap", "--swaps", SWAPS, "--rate", RATE, "--json"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // 1 says that a goal was missed, which may be that of memory; 2 that it could not be measured.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}: {said}", output.status);
    let lines = String::from_utf8(output.stdout).unwrap();
    let reports: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let failed = reports.iter().find(|report| report["name"] == "swap/failed").unwrap();
    assert_eq!(failed["value"], 0.0, "{failed}");
}
