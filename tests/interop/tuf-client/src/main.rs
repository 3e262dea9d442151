//! The client of `farlight-release` behind the command line that tuf-conformance drives: `init`,
//! `refresh`, `download`. Metadata lies under its un-versioned names in one folder; exit code 0 or 1.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use tuf_client::{Downloads, Store, refresh};

/// A TUF client for conformance and interoperability tests.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder of the trusted metadata
    #[arg(long)]
    metadata_dir: PathBuf,
    /// Address of the repository's metadata
    #[arg(long)]
    metadata_url: Option<String>,
    /// Targets to download, in this order
    #[arg(long)]
    target_name: Vec<String>,
    /// Address of the repository's target files
    #[arg(long)]
    target_base_url: Option<String>,
    /// Folder for target files
    #[arg(long)]
    target_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Trust this root
    Init {
        /// Its file
        root: PathBuf,
    },
    /// Bring the top-level metadata up to date
    Refresh,
    /// Bring the metadata up to date and download targets
    Download,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tuf-client: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let store = Store::new(arguments.metadata_dir);
    let missing = |name: &str| anyhow::anyhow!("{name} is missing");
    match arguments.command {
        Command::Init { root } => store.init(&std::fs::read(root)?),
        Command::Refresh => {
            let url = arguments.metadata_url.ok_or_else(|| missing("--metadata-url"))?;
            refresh(&store, &url).await.map(|_| ())
        }
        Command::Download => {
            let url = arguments.metadata_url.ok_or_else(|| missing("--metadata-url"))?;
            let downloads = Downloads {
                url: arguments.target_base_url.ok_or_else(|| missing("--target-base-url"))?,
                folder: arguments.target_dir.ok_or_else(|| missing("--target-dir"))?,
            };
            let mut client = refresh(&store, &url).await?;
            for name in &arguments.target_name {
                downloads.download(&store, &mut client, &url, name).await?;
            }
            Ok(())
        }
    }
}
