//! Which vault a command means: a state directory, or a mount point that leads to one.

use super::exit::Failure;
use super::{Global, canonical};
use crate::daemon::mounts;
use std::path::{Path, PathBuf};

/// The canonical path of the state directory that `--vault` names.
pub fn state(global: &Global) -> Result<PathBuf, Failure> {
    // Asked before the path is touched: a mount whose daemon was killed answers nothing.
    let absolute = std::path::absolute(&global.vault).map_err(|e| Failure::io(global.vault.display(), e))?;
    if let Some(mount) = mounts::vault_on(&absolute) {
        return Ok(mount.source);
    }
    let path = canonical(&global.vault).map_err(|f| f.about("no vault here"))?;
    Ok(mounts::vault_on(&path).map_or(path, |mount| mount.source))
}

/// What the header of a state directory says in the open: where token and PIN are found.
pub struct Header {
    pub token: Option<String>,
    pub pin_source: Option<String>,
    pub format: Option<u64>,
}

impl Header {
    /// Reads without checking; opening the vault checks.
    pub fn peek(state: &Path) -> Result<Header, Failure> {
        let path = state.join("vault.json");
        let text = std::fs::read(&path).map_err(|e| Failure::io(path.display(), e))?;
        let value: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|e| Failure::new(crate::api::Code::Failure, format!("{}: {e}", path.display())))?;
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        Ok(Header { token: text("token"), pin_source: text("pin_source"), format: value["sealed"]["format"].as_u64() })
    }
}
