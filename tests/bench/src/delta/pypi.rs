//! Pairs of models that others publish, from wheels that `tests/bench/fetch-pypi` unpacked.
use std::path::Path;

use farlight_onnx::{Limits, Model};
use farlight_training::Plan;

use super::pairs::Pair;
use crate::report::Printer;

pub(super) fn pairs(folder: &Path, printer: &Printer) -> anyhow::Result<Vec<Pair>> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "onnx") {
            let bytes = std::fs::read(&path)?;
            let model = Model::parse(&bytes, &Limits::default())?;
            printer.note(&format!("{} {:?} {:?}", path.display(), model.inputs(), model.outputs()));
            match Plan::new(&model, &[]) {
                Ok(plan) => printer.note(&format!("ok {}", plan.parameters().len())),
                Err(e) => printer.note(&format!("{e}")),
            }
            for p in farlight_onnx::payloads(&bytes, 1_000_000)? {
                if p.range.len() > 10000 {
                    printer.note(&format!("{} {} {:?} {}", p.name, p.element, p.dims, p.range.len()));
                }
            }
        }
    }
    Ok(vec![])
}
