//! `vaultfs org …`: organizations.

use super::client::Client;
use super::exit::Failure;
use super::output::{fields, print, print_json, shown, table};
use super::{Global, place};
use crate::api::percent::encode;
use crate::api::shape::{Deleted, List, NewOrganization, Organization};
use axum::http::Method;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Org {
    /// Make an organization and its KEK
    Create {
        name: String,
        /// Who owns its directory; without it, whoever runs the command
        #[arg(long, value_name = "UID:GID", value_parser = owner)]
        owner: Option<(u32, u32)>,
        /// Permission bits of its directory in octal [default: 0700]
        #[arg(long, value_parser = mode)]
        mode: Option<u32>,
    },
    /// List the organizations
    List,
    /// Show an organization
    Show {
        /// Name or id (org_…)
        organization: String,
    },
    /// Delete an empty organization; its KEKs live until its last tombstone is purged
    Delete {
        /// Name or id (org_…)
        organization: String,
    },
}

impl Org {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let client = &mut Client::new(&place::state(global)?)?;
        match self {
            Org::Create { name, owner, mode } => {
                let new = NewOrganization { name, owner, mode };
                let made = client.post("/organizations", &new).map_err(|f| f.about(&new.name))?;
                show(&made, global)
            }
            Org::List => list(client, global),
            Org::Show { organization } => {
                let shown = client.ask(Method::GET, &route(&organization)).map_err(|f| f.about(&organization))?;
                show(&shown, global)
            }
            Org::Delete { organization } => {
                let deleted = client.ask(Method::DELETE, &route(&organization));
                let deleted: Deleted = deleted.map_err(|f| f.about(&organization))?;
                if global.json { print_json(&deleted) } else { Ok(()) }
            }
        }
    }
}

fn list(client: &mut Client, global: &Global) -> Result<(), Failure> {
    let list: List<Organization> = client.ask(Method::GET, "/organizations")?;
    if global.json {
        return print_json(&list);
    }
    let row = |o: &Organization| {
        [
            shown(&o.name),
            o.id.clone(),
            o.objects.to_string(),
            o.bytes.to_string(),
            o.tombstones.to_string(),
            o.key_state.clone(),
        ]
    };
    let rows: Vec<_> = list.data.iter().map(row).collect();
    print(&table(["name", "id", "objects", "bytes", "tombstones", "key"], &rows))
}

fn show(organization: &Organization, global: &Global) -> Result<(), Failure> {
    if global.json {
        return print_json(organization);
    }
    print(&fields(&[
        ("name", shown(&organization.name)),
        ("id", organization.id.clone()),
        ("created", organization.created_at.clone()),
        ("objects", organization.objects.to_string()),
        ("bytes", organization.bytes.to_string()),
        ("tombstones", organization.tombstones.to_string()),
        ("key", format!("{} ({})", organization.key_id, organization.key_state)),
    ]))
}

fn route(organization: &str) -> String {
    format!("/organizations/{}", encode(organization.as_bytes()))
}

fn owner(text: &str) -> Result<(u32, u32), &'static str> {
    let pair = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    pair.ok_or("two numbers are expected, as in 1000:1000")
}

fn mode(text: &str) -> Result<u32, &'static str> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or("permission bits are expected, as in 0750")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes_are_numbers() {
        assert_eq!(owner("1000:100"), Ok((1000, 100)));
        assert!(owner("root:root").is_err() && owner("1000").is_err());
        assert_eq!(mode("0750"), Ok(0o750));
        assert!(mode("rwx").is_err() && mode("17777").is_err());
    }
}
