//! `vaultfs org …`: organizations.

use super::client::Client;
use super::exit::Failure;
use super::output::{fields, print, print_json, shown, table};
use super::{Global, place};
use crate::api::percent::encode;
use crate::api::shape::{Deleted, List, NewOrganization, Organization, OrganizationChange};
use axum::http::Method;
use clap::Subcommand;

/// Organizations asked for in one request of a listing.
const PAGE: usize = 1000;

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
        /// Where its keys live [default: as the vault was told]
        #[arg(long, value_name = "token|wrapped", value_parser = ["token", "wrapped"])]
        residency: Option<String>,
        /// Bring your own key: the token that shall hold its keys, as in pkcs11:token=acme?module-path=…
        #[arg(long, value_name = "PKCS11-URI", conflicts_with = "residency")]
        kek: Option<String>,
        /// Where the PIN of that token is read: file:PATH, credential:NAME
        #[arg(long, value_name = "SOURCE", requires = "kek")]
        pin_source: Option<String>,
    },
    /// Change what is known of an organization, and its limits; `none` takes a limit away
    Set {
        /// Name, id (org_…) or external id
        organization: String,
        #[arg(long)]
        name: Option<String>,
        #[arg(long, value_name = "ID|none")]
        external_id: Option<String>,
        /// How long a version is kept after it was replaced, instead of by number: 30d, 12h
        #[arg(long, value_name = "DURATION|none", value_parser = duration)]
        keep_versions_for: Option<Limit>,
        #[arg(long, value_name = "BYTES|none", value_parser = number)]
        quota_bytes: Option<Limit>,
        #[arg(long, value_name = "NUMBER|none", value_parser = number)]
        quota_objects: Option<Limit>,
    },
    /// List the organizations
    List,
    /// Show an organization
    Show {
        /// Name or id (org_…)
        organization: String,
    },
    /// Take an organization's keys out of memory: it answers ENOKEY until it is unlocked
    Lock {
        /// Name or id (org_…)
        organization: String,
    },
    /// Let an organization's keys be used again
    Unlock {
        /// Name or id (org_…)
        organization: String,
    },
    /// Delete an empty organization; its KEKs live until its last tombstone is purged
    Delete {
        /// Name or id (org_…)
        organization: String,
        /// With all that is in it, for ever: first its KEKs are destroyed, then its records and bytes
        #[arg(long)]
        purge: bool,
    },
}

impl Org {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let client = &mut Client::new(&place::state(global)?)?;
        match self {
            Org::Create { name, owner, mode, residency, kek, pin_source } => {
                let (residency, change) = (residency.or(kek), OrganizationChange::default());
                let new = NewOrganization { name, owner, mode, residency, pin_source, change };
                let made = client.post("/organizations", &new).map_err(|f| f.about(&new.name))?;
                show(&made, global)
            }
            Org::Set { organization, name, external_id, keep_versions_for, quota_bytes, quota_objects } => {
                let change = OrganizationChange {
                    name,
                    external_id: external_id.map(|id| Some(id).filter(|id| id != "none")),
                    keep_versions_for: keep_versions_for.map(|limit| limit.0),
                    quota_bytes: quota_bytes.map(|limit| limit.0),
                    quota_objects: quota_objects.map(|limit| limit.0),
                    ..OrganizationChange::default()
                };
                let changed = client.send_json(Method::PUT, &route(&organization), &change);
                show(&changed.map_err(|f| f.about(&organization))?, global)
            }
            Org::List => list(client, global),
            Org::Show { organization } => {
                let shown = client.ask(Method::GET, &route(&organization)).map_err(|f| f.about(&organization))?;
                show(&shown, global)
            }
            Org::Lock { organization } => order(client, &organization, "lock"),
            Org::Unlock { organization } => order(client, &organization, "unlock"),
            Org::Delete { organization, purge } => {
                let how = if purge { "?purge=true" } else { "" };
                let deleted = client.ask(Method::DELETE, &format!("{}{how}", route(&organization)));
                let deleted: Deleted = deleted.map_err(|f| f.about(&organization))?;
                if global.json { print_json(&deleted) } else { Ok(()) }
            }
        }
    }
}

fn order(client: &mut Client, organization: &str, what: &str) -> Result<(), Failure> {
    client.order(&format!("{}/{what}", route(organization)), &()).map_err(|f| f.about(organization))
}

fn list(client: &mut Client, global: &Global) -> Result<(), Failure> {
    let mut list: List<Organization> = List::whole(Vec::<Organization>::new());
    let mut after = String::new();
    loop {
        let page: List<Organization> =
            client.ask(Method::GET, &format!("/organizations?order=asc&limit={PAGE}{after}"))?;
        list.data.extend(page.data);
        match page.list_metadata.after {
            Some(last) => after = format!("&after={last}"),
            None => break,
        }
    }
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
    let mut lines = vec![
        ("name", shown(&organization.name)),
        ("id", organization.id.clone()),
        ("created", organization.created_at.clone()),
        ("objects", organization.objects.to_string()),
        ("bytes", organization.bytes.to_string()),
        ("tombstones", organization.tombstones.to_string()),
        ("key", format!("{} ({})", organization.key_id, organization.key_state)),
    ];
    lines.extend(organization.external_id.as_ref().map(|id| ("external id", shown(id))));
    lines.extend(
        organization
            .keep_versions_for
            .map(|seconds| ("versions kept", format!("{seconds} s after they were replaced"))),
    );
    lines.extend(organization.quota_bytes.map(|bytes| ("quota", format!("{bytes} bytes"))));
    lines.extend(organization.quota_objects.map(|objects| ("quota", format!("{objects} objects"))));
    print(&fields(&lines))
}

fn route(organization: &str) -> String {
    format!("/organizations/{}", encode(organization.as_bytes()))
}

fn owner(text: &str) -> Result<(u32, u32), &'static str> {
    let pair = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    pair.ok_or("two numbers are expected, as in 1000:1000")
}

/// A limit, or none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit(Option<u64>);

fn number(text: &str) -> Result<Limit, &'static str> {
    match text {
        "none" => Ok(Limit(None)),
        _ => text.parse().map(|number| Limit(Some(number))).map_err(|_| "a number is expected, or none"),
    }
}

fn duration(text: &str) -> Result<Limit, &'static str> {
    match text {
        "none" => Ok(Limit(None)),
        _ => {
            let time = crate::vault::parse_duration(text).ok_or("a duration is expected, as in 30d, or none")?;
            Ok(Limit(Some(time.as_secs())))
        }
    }
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
