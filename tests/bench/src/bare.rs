//! The baseline of the benchmarks of serving: tract alone, with one state a thread that is used again and again,
//! and no contract, preprocessing or protocol.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tract_onnx::prelude::*;

use crate::client::{Connection, Taken, closed};

/// What a thread behind a socket answers with; about as long as an answer of the agent in binary.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 256\r\n\r\n";
const ANSWER_BODY: usize = 256;

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

    /// Has a thread run it that is asked over a Unix socket, looks for requests without a rest, and does nothing else with them:
    /// what no server can spare a client, which has to be woken.
    pub(crate) fn behind_socket(&self, request: &[u8], time: Duration) -> anyhow::Result<Taken> {
        let begin = || {
            let (client, server) = UnixStream::pair()?;
            server.set_nonblocking(true)?;
            let (plan, input, length) = (Arc::clone(&self.plan), self.input.clone(), request.len());
            // It ends with the client, who finds out when it ends before.
            std::thread::spawn(move || serve(server, length, &plan, &input));
            Ok(Connection::over(Box::new(client)))
        };
        closed(1, time, begin, |connection| connection.ask(request).map(drop))
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

/// Runs a model for each request of `length` bytes.
fn serve(
    mut client: UnixStream,
    length: usize,
    plan: &Arc<TypedSimplePlan>,
    input: &Tensor,
) -> anyhow::Result<()> {
    let fail = |error: TractError| anyhow::anyhow!("{error:#}");
    let mut state = plan.spawn().map_err(fail)?;
    let (mut request, answer) = (vec![0; length], [ANSWER, &[0; ANSWER_BODY]].concat());
    loop {
        let mut have = 0;
        while let Some(rest) = request.get_mut(have..).filter(|rest| !rest.is_empty()) {
            match client.read(rest) {
                Ok(0) => return Ok(()),
                Ok(read) => have += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(error) => return Err(error.into()),
            }
        }
        state.run(tvec![input.clone().into()]).map_err(fail)?;
        client.write_all(&answer)?;
    }
}
