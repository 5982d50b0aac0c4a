//! What somebody who can write to the state directory can reach: an error for what they touched, named by
//! `fsck`, never a wrong byte; everything else goes on.

#[path = "support/dice.rs"]
mod dice;
#[path = "tampering/random.rs"]
mod random;
#[path = "keys/token.rs"]
#[allow(dead_code, reason = "the tests of the keys use the rest")]
mod token;

use rusqlite::Connection;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use token::Token;
use vaultfs::vault::{
    Access, Caller, Error, Finding, FindingCode, Ino, Make, ObjectId, Options, Result, SetXattr, Severity, Vault,
};

const TABLES: [&str; 17] = [
    "organization",
    "node",
    "entry",
    "attributes",
    "content",
    "extent",
    "past",
    "object",
    "tombstone",
    "buried",
    "pending",
    "segment",
    "freed",
    "api_key",
    "profile",
    "kek",
    "intent",
];

/// Everything a reader can ask for, by what they would call it; an error as its errno.
type Seen = BTreeMap<String, std::result::Result<Vec<u8>, i32>>;

struct Sample {
    directory: TempDir,
    seen: Seen,
}

impl Sample {
    /// Two organizations with every kind of row that lasts.
    fn new(token: &Token) -> Sample {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("original");
        let config = token.config();
        Vault::init(&state, &config.uri.to_string(), &config.pin.to_string()).unwrap();
        let vault = Vault::open(&state, Options::default()).unwrap();
        let caller = Caller::daemon();
        for organization in ["alpha", "beta"] {
            vault.create_organization(&caller, organization, None, None).unwrap();
            let put = |path: &str, value: &[u8]| {
                vault.put_object(&caller, format!("{organization}/{path}").as_bytes(), None, &mut &*value).unwrap()
            };
            let tag = organization.as_bytes()[0];
            put("small", &[tag; 100]);
            put("folder/large", &vec![tag ^ 1; 50_000]);
            let large = put("folder/other", &vec![tag ^ 2; 40_000]);
            put("gone", &[tag ^ 3; 9000]);
            // Pieces that only an earlier version needs.
            let top = vault.lookup(&caller, Ino::ROOT, organization.as_bytes()).unwrap().ino;
            let folder = vault.lookup(&caller, top, b"folder").unwrap().ino;
            let other = vault.lookup(&caller, folder, b"other").unwrap().ino;
            let access = Access { read: true, write: true, ..Access::default() };
            let handle = vault.open_file(&caller, other, access).unwrap();
            vault.write(&caller, handle, 10_000, &[tag ^ 4; 6000]).unwrap();
            vault.flush(&caller, handle).unwrap();
            vault.release(handle).unwrap();
            vault.set_xattr(&caller, other, b"user.note", b"a note", SetXattr::Any).unwrap();
            vault.make(&caller, top, b"link", 0o777, Make::Symlink(b"folder/large")).unwrap();
            vault.unlink(&caller, top, b"gone").unwrap();
            assert_eq!(vault.versions(large.id.parse().unwrap()).unwrap().len(), 2);
        }
        vault.close().unwrap();
        let seen = look(&Vault::open(&state, Options::default()).unwrap());
        let sample = Sample { directory, seen };
        assert!(sample.seen.values().all(|value| value.is_ok()), "{:?}", sample.seen.keys());
        sample
    }

    /// A copy that may be changed.
    fn copy(&self) -> PathBuf {
        let copy = self.directory.path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&self.directory.path().join("original"), &copy);
        copy
    }

    fn rows(&self, table: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let database = Connection::open(self.directory.path().join("original/records.db")).unwrap();
        let mut statement = database.prepare(&format!("SELECT k, v FROM {table} ORDER BY k")).unwrap();
        let rows = statement.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.collect::<rusqlite::Result<_>>().unwrap()
    }

    /// Opens what was tampered with: nothing that is read may be anything else than what was written. Returns
    /// what fsck found, or the refusal to open, and how many things could not be read.
    fn judge(&self, state: &Path, what: &str) -> (std::result::Result<Vec<Finding>, Error>, usize) {
        let vault = match open(state) {
            Ok(vault) => vault,
            Err(error) => return (Err(error), 0),
        };
        let seen = look(&vault);
        let mut lost = 0;
        for (name, written) in &self.seen {
            match seen.get(name) {
                Some(read) if read == written => {}
                Some(Ok(_)) => panic!("{what}: {name} reads as something else"),
                Some(Err(errno)) => {
                    assert!([libc::EIO, libc::ENOENT].contains(errno), "{what}: {name}: errno {errno}");
                    lost += 1;
                }
                None => lost += 1,
            }
        }
        if let Some(more) = seen.keys().find(|name| !self.seen.contains_key(*name)) {
            panic!("{what}: {more} was never there");
        }
        let findings = fsck(&vault);
        let _ = vault.close();
        (Ok(findings), lost)
    }
}

fn open(state: &Path) -> Result<Arc<Vault>> {
    let vault = Vault::open(state, Options::default())?;
    vault.on_report(Box::new(|_| ()));
    Ok(vault)
}

fn fsck(vault: &Vault) -> Vec<Finding> {
    let mut findings = Vec::new();
    vault.fsck(&mut |finding| findings.push(finding), &mut |_, _| ()).unwrap();
    findings
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &to)
        } else {
            drop(fs::copy(entry.path(), to))
        }
    }
}

fn look(vault: &Vault) -> Seen {
    let caller = Caller::daemon();
    let mut seen = Seen::new();
    for organization in ["alpha", "beta"] {
        let top = vault.lookup(&caller, Ino::ROOT, organization.as_bytes()).map(|attr| attr.ino);
        for (folder, name) in [("", "small"), ("folder", "large"), ("folder", "other"), ("", "link")] {
            let path = format!("{organization}/{folder}/{name}");
            let ino = top.as_ref().map_err(|e| e.errno()).and_then(|top| {
                let folder = match folder {
                    "" => *top,
                    _ => vault.lookup(&caller, *top, folder.as_bytes()).map_err(|e| e.errno())?.ino,
                };
                vault.lookup(&caller, folder, name.as_bytes()).map(|attr| attr.ino).map_err(|e| e.errno())
            });
            let value = ino.and_then(|ino| read(vault, ino).map_err(|e| e.errno()));
            seen.insert(path.clone(), value);
            if name == "other" {
                let note = ino.and_then(|ino| vault.get_xattr(&caller, ino, b"user.note").map_err(|e| e.errno()));
                seen.insert(format!("{path} note"), note);
                for ordinal in [1, 2] {
                    let old = vault.find_object(format!("{organization}/folder/other").as_bytes());
                    let old = old.and_then(|id| version(vault, id, ordinal)).map_err(|e| e.errno());
                    seen.insert(format!("{path} version {ordinal}"), old);
                }
            }
        }
        for grave in vault.tombstones(Some(organization)).unwrap_or_default() {
            let what = format!("{organization} tombstone {}", grave.original_path);
            seen.insert(what, Ok(grave.size.to_string().into_bytes()));
        }
    }
    seen
}

fn read(vault: &Vault, ino: Ino) -> Result<Vec<u8>> {
    let caller = Caller::daemon();
    if let Ok(target) = vault.read_link(&caller, ino) {
        return Ok(target);
    }
    let handle = vault.open_file(&caller, ino, Access { read: true, ..Access::default() })?;
    let value = vault.read(&caller, handle, 0, 1 << 20);
    vault.release(handle)?;
    value
}

fn version(vault: &Vault, id: ObjectId, ordinal: u64) -> Result<Vec<u8>> {
    let mut value = Vec::new();
    vault.read_object(id, Some(ordinal), &mut |part| {
        value.extend_from_slice(part);
        Ok(())
    })?;
    Ok(value)
}

fn database(state: &Path, sql: &str, parameters: impl rusqlite::Params) {
    let database = Connection::open(state.join("records.db")).unwrap();
    assert!(database.execute(sql, parameters).unwrap() > 0, "{sql}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A row that was changed is found at its place, or the vault does not open at all.
fn assert_found(judged: &std::result::Result<Vec<Finding>, Error>, table: &str, key: &[u8], what: &str) {
    match judged {
        Ok(findings) => {
            let row = hex(key);
            let there = |f: &&Finding| f.place.table.as_deref() == Some(table) && f.place.row.as_ref() == Some(&row);
            let named = findings.iter().find(there).unwrap_or_else(|| panic!("{what}: {findings:?}"));
            assert_eq!(named.severity, Severity::Error, "{what}: {findings:?}");
            let codes = [FindingCode::RowNotAuthentic, FindingCode::RowOwner, FindingCode::WrappedKey];
            assert!(codes.contains(&named.code), "{what}: {findings:?}");
        }
        Err(error) => assert_eq!(error.errno(), libc::EIO, "{what}: {error}"),
    }
}

#[test]
fn a_flipped_byte_in_any_row_is_an_error_there_and_found() {
    token::isolated("a_flipped_byte_in_any_row_is_an_error_there_and_found", |token| {
        let sample = Sample::new(token);
        for table in TABLES {
            let rows = sample.rows(table);
            for (key, value) in [rows.first(), rows.last()].into_iter().flatten() {
                let last = value.len() - 1;
                for (class, at) in
                    [("organization", 3), ("version", 11), ("salt", 13), ("text", last / 2 + 16), ("tag", last)]
                {
                    let mut flipped = value.clone();
                    flipped[at.min(last)] ^= 1;
                    let state = sample.copy();
                    database(&state, &format!("UPDATE {table} SET v = ?1 WHERE k = ?2"), (flipped, key));
                    let what = format!("{class} of {table} {}", hex(key));
                    let (judged, lost) = sample.judge(&state, &what);
                    assert_found(&judged, table, key, &what);
                    assert!(lost < sample.seen.len() || table == "organization", "{what}: all is lost");
                }
            }
        }
    });
}

#[test]
fn swapped_rows_are_an_error_and_found() {
    token::isolated("swapped_rows_are_an_error_and_found", |token| {
        let sample = Sample::new(token);
        for table in TABLES {
            let rows = sample.rows(table);
            let pairs = [(0, 1), (0, rows.len().saturating_sub(1))];
            for (one, other) in pairs {
                let (Some((one, first)), Some((other, second))) = (rows.get(one), rows.get(other)) else { continue };
                if one == other {
                    continue;
                }
                let state = sample.copy();
                database(&state, &format!("UPDATE {table} SET v = ?1 WHERE k = ?2"), (second, one));
                database(&state, &format!("UPDATE {table} SET v = ?1 WHERE k = ?2"), (first, other));
                let what = format!("{table} {} and {}", hex(one), hex(other));
                let (judged, _) = sample.judge(&state, &what);
                assert_found(&judged, table, one, &what);
            }
        }
    });
}

#[test]
fn a_changed_or_foreign_segment_is_an_error_and_found() {
    token::isolated("a_changed_or_foreign_segment_is_an_error_and_found", |token| {
        let sample = Sample::new(token);
        let segment = |state: &Path, org: u32| state.join(format!("segments/{org:08x}/00000000"));
        let (alpha, beta) = {
            let state = sample.copy();
            (fs::read(segment(&state, 1)).unwrap(), fs::read(segment(&state, 2)).unwrap())
        };
        for at in [0, 5000, 60_000] {
            let state = sample.copy();
            let mut flipped = alpha.clone();
            flipped[at] ^= 1;
            fs::write(segment(&state, 1), flipped).unwrap();
            let what = format!("byte {at} of a segment");
            let (judged, lost) = sample.judge(&state, &what);
            let findings = judged.unwrap();
            assert!(
                findings.iter().all(|f| f.code == FindingCode::Block && f.place.file == "segments/00000001/00000000"),
                "{findings:?}"
            );
            assert!(!findings.is_empty() && (1..=3).contains(&lost), "{what}: {lost} lost, {findings:?}");
            assert!(findings.iter().all(|f| f.object.is_some()), "{findings:?}");
        }
        for (what, bytes) in [("foreign", &beta[..]), ("shortened", &alpha[..4096]), ("empty", &[])] {
            let state = sample.copy();
            fs::write(segment(&state, 1), bytes).unwrap();
            let (judged, lost) = sample.judge(&state, what);
            let findings = judged.unwrap();
            assert!(findings.iter().any(|f| f.code == FindingCode::Block), "{what}: {findings:?}");
            assert!(lost >= 2 && lost < sample.seen.len() / 2, "{what}: {lost} lost");
        }
    });
}

#[test]
fn an_edited_header_is_refused_with_a_reason() {
    token::isolated("an_edited_header_is_refused_with_a_reason", |token| {
        let sample = Sample::new(token);
        let header = fs::read_to_string(sample.copy().join("vault.json")).unwrap();
        let header: serde_json::Value = serde_json::from_str(&header).unwrap();
        let mut places = Vec::new();
        leaves(&header["sealed"], "/sealed", &mut places);
        places.push("/seal".to_owned());
        assert!(places.len() > 8, "{places:?}");
        for place in places {
            let mut edited = header.clone();
            let leaf = edited.pointer_mut(&place).unwrap();
            *leaf = match &*leaf {
                serde_json::Value::String(text) => {
                    let last = if text.ends_with('0') { '1' } else { '0' };
                    format!("{}{last}", &text[..text.len() - 1]).into()
                }
                serde_json::Value::Number(number) => (number.as_u64().unwrap() ^ 1).into(),
                other => panic!("{place}: {other}"),
            };
            let state = sample.copy();
            fs::write(state.join("vault.json"), edited.to_string()).unwrap();
            let error = open(&state).err().unwrap_or_else(|| panic!("{place} was edited, and it opened"));
            let text = error.to_string();
            assert!(["vault.json", "key", "token"].iter().any(|word| text.contains(word)), "{place}: {text}");
        }
    });
}

fn leaves(value: &serde_json::Value, place: &str, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| leaves(value, &format!("{place}/{name}"), found));
        }
        serde_json::Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| leaves(value, &format!("{place}/{at}"), found));
        }
        _ => found.push(place.to_owned()),
    }
}

#[test]
fn a_wrong_pin_a_missing_module_and_another_token_are_named() {
    token::isolated("a_wrong_pin_a_missing_module_and_another_token_are_named", |token| {
        let sample = Sample::new(token);
        let refusal = |options| match Vault::open(&sample.copy(), options) {
            Ok(_) => panic!("it opened"),
            Err(error) => error.to_string(),
        };
        // A login belongs to the whole process, and making the sample was one.
        token.log_everybody_out();
        let wrong = token.config_with_pin("9999").pin.to_string();
        let text = refusal(Options { pin_source: Some(wrong), ..Options::default() });
        assert!(text.to_lowercase().contains("pin"), "{text}");
        let missing = "pkcs11:token=vault?module-path=/nowhere/module.so".to_owned();
        let text = refusal(Options { token: Some(missing), ..Options::default() });
        assert!(text.contains("/nowhere/module.so"), "{text}");
        let other = format!("pkcs11:token=other?module-path={}", token.module().display());
        let text = refusal(Options { token: Some(other), ..Options::default() });
        assert!(text.contains("other") || text.contains("token"), "{text}");
        assert!(open(&sample.copy()).is_ok(), "nothing of that did harm");
    });
}

#[test]
fn a_damaged_extent_stops_nothing_but_its_object() {
    token::isolated("a_damaged_extent_stops_nothing_but_its_object", |token| {
        let sample = Sample::new(token);
        let state = sample.copy();
        let database = Connection::open(state.join("records.db")).unwrap();
        let broken = "SELECT k FROM extent WHERE length(v) < 2000 ORDER BY k LIMIT 1";
        database.execute(&format!("UPDATE extent SET v = x'00' WHERE k = ({broken})"), ()).unwrap();
        drop(database);
        let vault = open(&state).unwrap();
        let caller = Caller::daemon();
        let mut refused = 0;
        for name in ["alpha/small", "alpha/folder/large", "alpha/folder/other"] {
            let id = vault.find_object(name.as_bytes()).unwrap();
            if version(&vault, id, 1).is_ok() {
                continue;
            }
            let (folder, name) = name.rsplit_once('/').unwrap();
            let mut ino = Ino::ROOT;
            for part in folder.split('/').chain([name]) {
                ino = vault.lookup(&caller, ino, part.as_bytes()).unwrap().ino;
            }
            let access = Access { read: true, write: true, ..Access::default() };
            let handle = vault.open_file(&caller, ino, access).unwrap();
            assert_eq!(vault.write(&caller, handle, 0, b"new").unwrap_err().errno(), libc::EIO);
            vault.release(handle).unwrap();
            vault.delete_object(&caller, id, None).unwrap();
            vault.purge(&caller, id.to_string().as_bytes()).unwrap();
            refused += 1;
        }
        assert_eq!(refused, 1);
        vault.put_object(&caller, b"alpha/folder/new", None, &mut &b"written"[..]).unwrap();
        assert_eq!(vault.status().writing, "ok");
        vault.close().unwrap();
        let vault = open(&state).unwrap();
        let new = vault.find_object(b"alpha/folder/new").unwrap();
        assert_eq!(version(&vault, new, 1).unwrap(), b"written");
        vault.close().unwrap();
    });
}

#[test]
fn a_missing_extent_is_an_error_and_not_a_hole() {
    token::isolated("a_missing_extent_is_an_error_and_not_a_hole", |token| {
        let sample = Sample::new(token);
        for (key, _) in sample.rows("extent") {
            let state = sample.copy();
            database(&state, "DELETE FROM extent WHERE k = ?1", [&key]);
            let what = format!("extent {}", hex(&key));
            let (judged, lost) = sample.judge(&state, &what);
            let codes: Vec<FindingCode> = judged.unwrap().iter().map(|finding| finding.code).collect();
            assert!(codes.contains(&FindingCode::ExtentMissing), "{what}: {codes:?}");
            // A tombstone's value is not read.
            assert!(lost > 0 || codes == [FindingCode::ExtentMissing], "{what}");
        }
    });
}
