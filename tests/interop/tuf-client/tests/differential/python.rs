//! python-tuf in a process of its own: the interpreter that `FARLIGHT_PYTHON` names.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::clients::Verdict;
use super::repository::NOW;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../python_tuf_verdicts.py");

/// The process.
pub(crate) struct Python {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Python {
    /// Starts it, if there is an interpreter.
    pub(crate) fn start() -> Option<Self> {
        let python = std::env::var_os("FARLIGHT_PYTHON")?;
        let mut command = Command::new(python);
        command.arg(SCRIPT).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Some(Self { child, requests, answers })
    }

    /// Its verdict on these files, and what it has stored then.
    pub(crate) fn ask(
        &mut self,
        root: &[u8],
        stored: &Value,
        files: &BTreeMap<String, Vec<u8>>,
        paths: &[String],
    ) -> (Verdict, Value) {
        let files: BTreeMap<&String, String> =
            files.iter().map(|(path, bytes)| (path, STANDARD.encode(bytes))).collect();
        let request = json!({ "now": NOW.0, "root": STANDARD.encode(root), "stored": stored,
            "files": files, "targets": paths });
        writeln!(self.requests.as_mut().unwrap(), "{request}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let mut answer: Value = serde_json::from_str(&line).unwrap();
        let verdict = match answer["accepted"] == true {
            true => Verdict::Accepted(serde_json::from_value(answer["targets"].take()).unwrap()),
            false => Verdict::Refused,
        };
        (verdict, answer["stored"].take())
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.requests.take());
        let _ = self.child.wait();
    }
}
