//! Runs a command against one cloud and one device: `stage COMMAND …`. The device serves `watch-gestures`, `types` (every
//! element type), `counter` (a state) and `slow` (one request at a time, none waits); clients may unload models. The
//! command finds the agent's addresses in `FARLIGHT_HTTP` and `FARLIGHT_GRPC`.

use std::io::Write as _;
use std::process::{Command, ExitCode};

use anyhow::Context;
use farlight_test_support::{DeviceOptions, Fleet, Graph};

fn main() -> ExitCode {
    let outcome =
        tokio::runtime::Runtime::new().context("start the runtime").and_then(|rt| rt.block_on(run()));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> anyhow::Result<bool> {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().context("name a command to run")?;
    let fleet = Fleet::start().await?;
    fleet.publish("1.0.0").await?;
    let options = DeviceOptions {
        tcp: true,
        grpc: true,
        http: "model_control = true\n".to_owned(),
        extra: "[inference]\nmodel.slow = { workers = 1, queue = 0, deadline_ms = 60000 }\n".to_owned(),
        ..DeviceOptions::default()
    };
    let device = fleet.device("gw-1", &options).await?;
    let rollout = fleet.roll_out("1.0.0").await?;
    fleet.rollout_is(&rollout, "completed", &[&device]).await?;
    for graph in [Graph::types()?, Graph::counter()?, Graph::slow()?] {
        fleet.install(&device, &graph, "1.0.0").await?;
    }
    let mut command = Command::new(program);
    command.args(args).env("FARLIGHT_HTTP", &device.address).env("FARLIGHT_GRPC", &device.grpc_address);
    let status = tokio::task::spawn_blocking(move || command.status()).await?.context("run the command")?;
    Ok(status.success())
}
