//! `vaultfs apikey …`: who may use the vault over the network.

use super::client::Client;
use super::exit::Failure;
use super::output::{print, print_json, shown, table};
use super::{Global, place};
use crate::api::percent::encode;
use crate::api::shape::{self, List, NewApiKey};
use crate::vault::Permission;
use axum::http::Method;
use clap::{Subcommand, ValueEnum};

#[derive(Subcommand)]
pub enum ApiKey {
    /// Make an API key; it is shown this once
    Create {
        /// What it is called in listings, versions and the audit log
        name: String,
        /// An organization that it is for: name, id or external id; without it, the whole vault
        #[arg(long, value_name = "ORG")]
        org: Vec<String>,
        #[arg(long, default_value = "write")]
        permission: Allowed,
    },
    /// List the API keys, without their secrets
    List,
    /// End an API key: from now on it is refused
    Revoke {
        /// Its id (key_…)
        id: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Allowed {
    /// List, describe and read objects, decrypt data keys
    Read,
    /// Also create, update, delete and restore objects, make data keys
    Write,
    /// Also organizations, purges, events, metrics and API keys
    Admin,
}

impl ApiKey {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let client = &mut Client::new(&place::state(global)?)?;
        match self {
            ApiKey::Create { name, org, permission } => {
                let permission = match permission {
                    Allowed::Read => Permission::Read,
                    Allowed::Write => Permission::Write,
                    Allowed::Admin => Permission::Admin,
                };
                let organizations = Some(org).filter(|some| !some.is_empty());
                let made: shape::ApiKey = client.post("/api_keys", &NewApiKey { name, organizations, permission })?;
                if global.json {
                    return print_json(&made);
                }
                print(&format!("{}\n", made.value.unwrap_or_default()))
            }
            ApiKey::List => list(client, global),
            ApiKey::Revoke { id } => {
                let path = format!("/api_keys/{}", encode(id.as_bytes()));
                let revoked: shape::ApiKey = client.ask(Method::DELETE, &path).map_err(|f| f.about(&id))?;
                if global.json { print_json(&revoked) } else { Ok(()) }
            }
        }
    }
}

fn list(client: &mut Client, global: &Global) -> Result<(), Failure> {
    let list: List<shape::ApiKey> = client.ask(Method::GET, "/api_keys")?;
    if global.json {
        return print_json(&list);
    }
    let row = |key: &shape::ApiKey| {
        let scope = key.organizations.as_ref().map_or_else(|| "vault".into(), |some| some.join(" "));
        let permission = format!("{:?}", key.permission).to_lowercase();
        [key.id.clone(), shown(&key.name), permission, scope, key.created_at.clone()]
    };
    let rows: Vec<_> = list.data.iter().map(row).collect();
    print(&table(["id", "name", "permission", "for", "created"], &rows))
}
