//! The baseline of the benchmarks of serving: tract alone, with one state a thread that is used again and again,
//! and no contract, preprocessing or protocol.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tract_onnx::prelude::*;

use crate::client::{Taken, closed};

/// A loaded graph.
pub(crate) struct Bare {
    plan: Arc<TypedSimplePlan>,
    input: Tensor,
}

impl Bare {
    /// Loads a graph with one input of this shape, the batch of 1 left out.
    pub(crate) fn load(onnx: &[u8], shape: &[usize], input: &[f32]) -> anyhow::Result<Self> {
        let shape: Vec<usize> = std::iter::once(1).chain(shape.iter().copied()).collect();
        let reader = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
        let load = || -> TractResult<Self> {
            let mut model = reader.model_for_read(&mut &onnx[..])?;
            model.set_input_fact(0, InferenceFact::dt_shape(f32::datum_type(), &shape))?;
            let plan = TypedSimplePlan::new(model.into_typed()?.into_optimized()?)?;
            Ok(Self { plan, input: Tensor::from_shape(&shape, input)? })
        };
        load().map_err(|error| anyhow::anyhow!("{error:#}")).context("load the model with tract")
    }

    /// Runs it on `threads` threads at once.
    pub(crate) fn run(&self, threads: usize, time: Duration) -> anyhow::Result<Taken> {
        let fail = |error: TractError| anyhow::anyhow!("{error:#}");
        let begin = || self.plan.spawn().map_err(fail);
        closed(threads, time, begin, |state| {
            state.run(tvec![self.input.clone().into()]).map_err(fail)?;
            Ok(())
        })
    }
}
