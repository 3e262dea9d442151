//! The operator's command line: arguments, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    farlight_cloud::cli::main()
}
