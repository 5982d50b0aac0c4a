//! `vaultfs object …`: encrypted values and their versions.

use super::client::Client;
use super::exit::Failure;
use super::output::{fields, print, print_json, shown, table, write};
use super::{Global, place};
use crate::api::percent::encode;
use crate::api::shape::{self, Deleted, List, ObjectSummary, Version};
use crate::api::stream::pieces;
use crate::api::{Code, Problem};
use axum::body::Body;
use axum::http::Method;
use clap::Subcommand;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

/// Objects asked for in one request of a listing.
const PAGE: usize = 1000;
/// Bytes of a value that travel in one piece.
const PIECE: usize = 256 << 10;

#[derive(Subcommand)]
pub enum Object {
    /// List objects: of all organizations, of one, or of a folder
    List {
        #[arg(value_name = "ORG[/FOLDER]")]
        place: Option<OsString>,
    },
    /// Show what is known of an object without opening it
    Describe { object: OsString },
    /// Write an object's value to standard output
    Get {
        object: OsString,
        /// An earlier version, by its ordinal
        #[arg(long, value_name = "ORDINAL")]
        version: Option<u64>,
    },
    /// Store standard input as the value of a new object or as a new version
    Put {
        object: OsString,
        /// Store only on top of this version, else end with 4
        #[arg(long, value_name = "VERSION-ID|ORDINAL")]
        if_version: Option<String>,
    },
    /// Delete an object; its tombstone can be restored
    Delete {
        object: OsString,
        /// Delete only this version, else end with 4
        #[arg(long, value_name = "VERSION-ID|ORDINAL")]
        if_version: Option<String>,
    },
    /// List the versions of an object
    Versions { object: OsString },
    /// Give an object the value of an earlier version, as a new version
    Restore {
        object: OsString,
        /// The earlier version, by its ordinal or id
        #[arg(long, value_name = "ORDINAL|VERSION-ID")]
        version: String,
        /// Store only on top of this version, else end with 4
        #[arg(long, value_name = "VERSION-ID|ORDINAL")]
        if_version: Option<String>,
    },
}

impl Object {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let client = &mut Client::new(&place::state(global)?)?;
        match self {
            Object::List { place } => list(client, place.as_deref(), global),
            Object::Describe { object } => describe(client, &object, global).map_err(|f| f.about(object.display())),
            Object::Get { object, version } => {
                get(client, &object, version, global).map_err(|f| f.about(object.display()))
            }
            Object::Put { object, if_version } => {
                let path = format!("{}{}", route(&object), check(&if_version));
                let stored = client.put(&path, standard_input()).map_err(|f| f.about(object.display()))?;
                done(&stored, global)
            }
            Object::Delete { object, if_version } => {
                let path = format!("{}{}", route(&object), check(&if_version));
                let deleted: Deleted = client.ask(Method::DELETE, &path).map_err(|f| f.about(object.display()))?;
                if global.json { print_json(&deleted) } else { Ok(()) }
            }
            Object::Restore { object, version, if_version } => {
                let version = encode(version.as_bytes());
                let path = format!("{}/versions/{version}/restore{}", route(&object), check(&if_version));
                let stored = client.ask(Method::POST, &path).map_err(|f| f.about(object.display()))?;
                done(&stored, global)
            }
            Object::Versions { object } => versions(client, &object, global).map_err(|f| f.about(object.display())),
        }
    }
}

/// What a command says of the object that it stored or restored.
pub fn done(object: &shape::VaultObject, global: &Global) -> Result<(), Failure> {
    if global.json {
        return print_json(object);
    }
    let place = format!("{}/{}", shown(&object.metadata.organization), shown(&object.name));
    let version = object.metadata.version_id.as_deref().unwrap_or_default();
    print(&format!("{place}  version {}  {version}\n", object.metadata.version))
}

fn list(client: &mut Client, place: Option<&OsStr>, global: &Global) -> Result<(), Failure> {
    let mut query = format!("/vault/v1/kv?order=asc&limit={PAGE}");
    if let Some(place) = place {
        let mut parts = place.as_bytes().splitn(2, |b| *b == b'/');
        query += &format!("&organization={}", encode(parts.next().unwrap_or_default()));
        if let Some(folder) = parts.next().filter(|folder| !folder.is_empty()) {
            query += &format!("&prefix={}", encode(folder));
        }
    }
    let mut all: List<ObjectSummary> = List::whole(Vec::<ObjectSummary>::new());
    let mut after = String::new();
    loop {
        let page = client.ask::<List<ObjectSummary>>(Method::GET, &format!("{query}{after}"));
        let page = page.map_err(|f| match place {
            Some(place) => f.about(place.display()),
            None => f,
        })?;
        all.data.extend(page.data);
        match page.list_metadata.after {
            Some(last) => after = format!("&after={last}"),
            None => break,
        }
    }
    if global.json {
        return print_json(&all);
    }
    all.data.sort_by(|a, b| (&a.organization, &a.name).cmp(&(&b.organization, &b.name)));
    let row = |o: &ObjectSummary| {
        let place = format!("{}/{}", shown(&o.organization), shown(&o.name));
        [place, o.size.to_string(), o.version.to_string(), o.updated_at.clone(), o.id.clone()]
    };
    let rows: Vec<_> = all.data.iter().map(row).collect();
    print(&table(["object", "bytes", "version", "updated", "id"], &rows))
}

fn describe(client: &mut Client, object: &OsStr, global: &Global) -> Result<(), Failure> {
    let described: shape::VaultObject = client.ask(Method::GET, &format!("{}/metadata", route(object)))?;
    if global.json {
        return print_json(&described);
    }
    let metadata = described.metadata;
    let context: Vec<String> = metadata.context.iter().map(|(k, v)| format!("{}={}", shown(k), shown(v))).collect();
    let mut lines = vec![
        ("object", format!("{}/{}", shown(&metadata.organization), shown(&described.name))),
        ("id", described.id),
        ("bytes", metadata.size.to_string()),
        ("version", format!("{} of {} kept", metadata.version, metadata.versions)),
        ("key context", context.join(", ")),
        ("key", metadata.key_id),
        ("cipher", metadata.cipher),
        ("created", metadata.created_at),
        ("updated", format!("{} by {}", metadata.updated_at, metadata.updated_by.name)),
    ];
    if let Some(id) = metadata.version_id {
        lines.insert(4, ("version id", id));
    }
    print(&fields(&lines))
}

fn get(client: &mut Client, object: &OsStr, version: Option<u64>, global: &Global) -> Result<(), Failure> {
    if !global.json {
        let version = version.map(|v| format!("/versions/{v}")).unwrap_or_default();
        return client.stream(Method::GET, &format!("{}{version}", route(object)), &mut write);
    }
    // The version that is described is the one that is read, even if a new one comes in between.
    let described: shape::VaultObject = client.ask(Method::GET, &format!("{}/metadata", route(object)))?;
    let version = version.unwrap_or(described.metadata.version);
    let mut value = Vec::new();
    client.stream(Method::GET, &format!("{}/versions/{version}", route(object)), &mut |piece| {
        value.extend_from_slice(piece);
        Ok(())
    })?;
    let value = String::from_utf8(value)
        .map_err(|_| Failure::new(Code::Failure, "the value is not UTF-8, which JSON needs; leave --json away"))?;
    print_json(&serde_json::json!({ "id": described.id, "name": described.name, "version": version, "value": value }))
}

fn versions(client: &mut Client, object: &OsStr, global: &Global) -> Result<(), Failure> {
    let list: List<Version> = client.ask(Method::GET, &format!("{}/versions", route(object)))?;
    if global.json {
        return print_json(&list);
    }
    let row = |v: &Version| {
        let current = if v.current_version { "current" } else { "" };
        [
            v.version.to_string(),
            v.id.clone(),
            v.size.to_string(),
            v.created_at.clone(),
            v.created_by.clone(),
            current.into(),
        ]
    };
    let rows: Vec<_> = list.data.iter().map(row).collect();
    print(&table(["version", "id", "bytes", "created", "by", ""], &rows))
}

/// A body that is read while it is sent. What cannot be read breaks the request off: nothing is stored then.
fn standard_input() -> Body {
    let (to, body) = pieces(false);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        let mut buffer = vec![0; PIECE];
        loop {
            let piece = match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(len) => Ok(buffer[..len].to_vec().into()),
                Err(e) => Err(Problem::new(Code::Failure, format!("standard input: {e}"))),
            };
            if to.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    Body::new(body)
}

fn route(object: &OsStr) -> String {
    format!("/vault/v1/kv/{}", encode(object.as_bytes()))
}

fn check(version: &Option<String>) -> String {
    version.as_ref().map(|version| format!("?version_check={}", encode(version.as_bytes()))).unwrap_or_default()
}
