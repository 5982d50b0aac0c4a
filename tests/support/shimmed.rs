//! Compiles the module that behaves like other tokens (`shim.rs`), once for each version of its source.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("shim.rs");

/// The shim's path.
pub fn path() -> PathBuf {
    let mut hasher = DefaultHasher::new();
    SOURCE.hash(&mut hasher);
    let directory = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let built = directory.join(format!("libshim-{:016x}.so", hasher.finish()));
    if !built.exists() {
        build(&built);
    }
    built
}

fn build(to: &Path) {
    let scratch = tempfile::tempdir_in(to.parent().unwrap()).unwrap();
    let (source, library) = (scratch.path().join("shim.rs"), scratch.path().join("libshim.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let arguments = ["--edition", "2024", "-O", "--crate-type", "cdylib", "--crate-name", "shim", "-o"];
    let output = Command::new(compiler).args(arguments).args([&library, &source]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Whole or not at all: other tests build it at the same time.
    std::fs::rename(library, to).unwrap();
}
