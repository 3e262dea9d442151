//! `generate PROTO OUT`: Rust types of a `.proto` file by prost and its service by tonic, with the file's digest at their
//! head, so that a test finds them out of date.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sha2::{Digest, Sha256};

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(proto), Some(out)) = (args.next(), args.next()) else {
        anyhow::bail!("name a .proto file and where its Rust code goes");
    };
    let folder = proto.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let digest: String =
        Sha256::digest(std::fs::read(&proto)?).iter().map(|byte| format!("{byte:02x}")).collect();
    let files = protox::compile([&proto], [folder]).context("compile the .proto file")?;
    let package = files.file.first().map(|file| file.package().to_owned()).unwrap_or_default();
    let made = std::env::temp_dir().join(format!("farlight-generate-{}", std::process::id()));
    std::fs::create_dir_all(&made)?;
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .bytes(".")
        .disable_comments(["."])
        .codec_path("crate::grpc::codec::Wire")
        .out_dir(&made)
        .compile_fds(files)?;
    let code = std::fs::read_to_string(made.join(format!("{package}.rs")))?;
    std::fs::remove_dir_all(&made)?;
    let name = proto.file_name().unwrap_or_default().to_string_lossy();
    let head = format!(
        "// Generated from agent/proto/{name} by agent/proto/generate/run. Checked in, so that building needs no generator.\n\
         // SHA-256 of {name}: {digest}\n"
    );
    std::fs::write(&out, head + &code).with_context(|| format!("write {}", out.display()))
}
