//! `vaultfs tombstone …`: what was deleted and can still be had back.

use super::client::Client;
use super::exit::Failure;
use super::output::{print, print_json, shown, table};
use super::{Global, objects, place};
use crate::api::percent::encode;
use crate::api::shape::{self, Deleted, List, Restored};
use axum::http::Method;
use clap::Subcommand;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

#[derive(Subcommand)]
pub enum Tombstone {
    /// List the tombstones
    List {
        /// Only those of one organization: its name or id
        organization: Option<String>,
    },
    /// Restore a deleted object: same id, same history
    Restore {
        /// ORG/ENTRY as listed, or the object's id
        tombstone: OsString,
        /// Another path inside the same organization
        #[arg(long, value_name = "PATH")]
        to: Option<OsString>,
    },
    /// Destroy a deleted object for ever, first its wrapped DEK, then its bytes; or an organization with all its tombstones
    Purge {
        /// ORG/ENTRY as listed, the object's id, or a deleted organization's entry or id
        tombstone: OsString,
    },
}

impl Tombstone {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let client = &mut Client::new(&place::state(global)?)?;
        match self {
            Tombstone::List { organization } => list(client, organization, global),
            Tombstone::Restore { tombstone, to } => {
                let to = to.map(|to| format!("?to={}", encode(to.as_bytes()))).unwrap_or_default();
                let path = format!("{}/restore{to}", route(&tombstone));
                let restored = client.ask(Method::POST, &path).map_err(|f| f.about(tombstone.display()))?;
                match restored {
                    Restored::Object(object) => objects::done(&object, global),
                    Restored::Organization(organization) if global.json => print_json(&organization),
                    Restored::Organization(organization) => print(&format!("{}\n", organization.name)),
                }
            }
            Tombstone::Purge { tombstone } => {
                let purged = client.ask(Method::DELETE, &route(&tombstone));
                let purged: Deleted = purged.map_err(|f| f.about(tombstone.display()))?;
                if global.json { print_json(&purged) } else { Ok(()) }
            }
        }
    }
}

fn list(client: &mut Client, organization: Option<String>, global: &Global) -> Result<(), Failure> {
    let only = organization.as_ref().map(|o| format!("?organization={}", encode(o.as_bytes()))).unwrap_or_default();
    let listed = client.ask(Method::GET, &format!("/vault/v1/tombstones{only}"));
    let listed: List<shape::Tombstone> = listed.map_err(|f| match &organization {
        Some(organization) => f.about(organization),
        None => f,
    })?;
    if global.json {
        return print_json(&listed);
    }
    let row = |t: &shape::Tombstone| {
        let place = format!("{}/{}", shown(&t.organization), shown(&t.entry));
        [place, shown(&t.original_path), t.size.to_string(), t.deleted_by.clone(), t.purge_after.clone(), t.id.clone()]
    };
    let rows: Vec<_> = listed.data.iter().map(row).collect();
    print(&table(["tombstone", "was", "bytes", "deleted by", "purged after", "id"], &rows))
}

fn route(tombstone: &OsString) -> String {
    format!("/vault/v1/tombstones/{}", encode(tombstone.as_bytes()))
}
