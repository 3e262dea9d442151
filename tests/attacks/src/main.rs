//! `attack-fixtures`: writes `models/fixtures/` anew, and the table in `docs/attacks.md`.

use std::path::Path;

use anyhow::Context;
use farlight_attacks::attacks::{all, document};

fn main() -> anyhow::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.parent().and_then(Path::parent).context("the workspace has a root")?;
    let folder = root.join("models/fixtures");
    let _ = std::fs::remove_dir_all(&folder);
    for (path, bytes) in all()?.1 {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        std::fs::write(path, bytes)?;
    }
    std::fs::write(root.join("docs/attacks.md"), document()?)?;
    Ok(())
}
