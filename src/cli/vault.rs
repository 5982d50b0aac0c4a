//! `vaultfs init` and `status`: the vault as a whole.

use super::client::Client;
use super::exit::Failure;
use super::output::{fields, print, print_json, shown};
use super::{Global, place};
use crate::api::Problem;
use crate::api::shape::{self, Status};
use crate::daemon::process;
use crate::vault::Vault;
use axum::http::Method;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Init {
    /// The state directory; made if it is not there
    state: PathBuf,
    /// The token that shall hold the keys, as in pkcs11:token=vault?module-path=/usr/lib/softhsm/libsofthsm2.so
    #[arg(long, value_name = "PKCS11-URI")]
    token: String,
    /// Where its PIN is read each time: file:PATH, credential:NAME, fd:N or prompt
    #[arg(long, value_name = "SOURCE")]
    pin_source: String,
    /// Where the keys of organizations live: each in the token, or wrapped under one root key (100,000 organizations)
    #[arg(long, default_value = "token", value_parser = ["token", "wrapped"])]
    residency: String,
}

impl Init {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        process::keep_secrets();
        let made = Vault::init_residing(&self.state, &self.token, &self.pin_source, &self.residency);
        let vault = made.map_err(|e| Failure::from(Problem::from(e)))?.to_string();
        let state = super::canonical(&self.state)?.display().to_string();
        if global.json {
            return print_json(&serde_json::json!({ "vault": vault, "state_directory": state }));
        }
        print(&fields(&[("vault", vault), ("state", state)]))
    }
}

pub fn status(global: &Global) -> Result<(), Failure> {
    let status: Status = Client::new(&place::state(global)?)?.ask(Method::GET, "/status")?;
    if global.json {
        return print_json(&status);
    }
    let vault = status.vault;
    let token = &vault.token;
    let mounted = match &status.daemon {
        Some(shape::Daemon { pid, mount_point: Some(point), .. }) => format!("{} by process {pid}", shown(point)),
        Some(daemon) => format!("no; served by process {}", daemon.pid),
        None => "no".into(),
    };
    let listens = status.daemon.as_ref().and_then(|daemon| daemon.listens.clone());
    let mut lines = vec![
        ("vault", format!("{} (format {})", vault.vault, vault.format)),
        ("state", shown(&vault.state_directory)),
        ("mounted", mounted),
        ("token", format!("{} ({})", shown(&token.label), token.state)),
        ("token suite", token.suite.map_or_else(|| "-".into(), |suite| suite.to_string())),
        ("token calls", token.calls.to_string()),
        ("keys cached", token.cached_keys.to_string()),
        ("organizations", vault.organizations.to_string()),
        ("objects", vault.objects.to_string()),
        ("bytes", vault.bytes.to_string()),
        ("tombstones", vault.tombstones.to_string()),
        ("bytes pending", vault.pending_bytes.to_string()),
        ("writing", vault.writing.clone()),
    ];
    for own in &vault.own_tokens {
        let names: Vec<_> = own.organizations.iter().map(|organization| shown(&organization.name)).collect();
        let error =
            own.last_error.as_ref().filter(|_| own.state != "active").map(|e| format!(": {e}")).unwrap_or_default();
        lines.push(("own token", format!("{} of {} ({}){error}", shown(&own.uri), names.join(", "), own.state)));
    }
    if let Some(migration) = &vault.migration {
        let to = format!("{} from {} ({})", shown(&migration.to), shown(&migration.from), migration.stage);
        lines.push(("moves to", to));
        if let Some(waits) = &migration.waits {
            lines.push(("waits", waits.clone()));
        }
    }
    if let Some(address) = listens {
        lines.insert(3, ("listens on", address));
    }
    if let Some(error) = &token.last_error {
        lines.push(("token error", error.clone()));
    }
    print(&fields(&lines))
}
