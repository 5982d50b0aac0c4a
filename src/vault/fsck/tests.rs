//! One row of a table for each class of corruption: what is done to a copy of a sound vault, what exactly is found,
//! and what is still found after `--repair`. Those that hold the keys forge rows that authenticate.

use super::FindingCode::{self as Code, *};
use super::*;
use crate::store::{Change, Key, Table};
use crate::vault::records::Tx;
use crate::vault::row::{
    Attributes, Buried, ContentRecord, Entry, Extent, Freed, Object, Pending, Segment, Task, Tombstone,
};
use crate::vault::token::{self, Token};
use crate::vault::{Access, Caller, Make, SetXattr};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

const ORG: OrgNo = OrgNo(1);

/// A sound vault, where its parts are, and what its objects hold.
struct Sample {
    directory: TempDir,
    inodes: BTreeMap<&'static str, Ino>,
    ids: BTreeMap<&'static str, ObjectId>,
    values: Values,
}

type Values = BTreeMap<&'static str, Option<Vec<u8>>>;

const FILES: [&str; 4] = ["small", "folder/large", "folder/other", "folder/sub/deep"];

impl Sample {
    fn new(token: &Token) -> Sample {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("original");
        let config = token.config();
        Vault::init(&state, &config.uri.to_string(), &config.pin.to_string()).unwrap();
        let vault = Vault::open(&state, Options::default()).unwrap();
        let caller = Caller::daemon();
        let mut ids = BTreeMap::new();
        for organization in ["acme", "beta"] {
            vault.create_organization(&caller, organization, None, None).unwrap();
            let mut put = |path: &'static str, value: &[u8]| {
                let put = vault.put_object(&caller, format!("{organization}/{path}").as_bytes(), None, &mut &*value);
                let id: ObjectId = put.unwrap().id.parse().unwrap();
                ids.entry(path).or_insert(id);
                id
            };
            put("small", b"some words");
            put("folder/large", &[2; 50_000]);
            let temporary = put("temporary", &[9; 50_000]);
            put("folder/other", &[3; 40_000]);
            put("folder/sub/deep", &[4; 20_000]);
            put("gone", &[5; 20_000]);
            vault.delete_object(&caller, temporary, None).unwrap();
            vault.purge(&caller, temporary.to_string().as_bytes()).unwrap();
        }
        let find = |folder: Ino, name: &str| vault.lookup(&caller, folder, name.as_bytes()).unwrap().ino;
        let top = find(Ino::ROOT, "acme");
        let folder = find(top, "folder");
        let sub = find(folder, "sub");
        let mut inodes = BTreeMap::from([("", top), ("folder", folder), ("folder/sub", sub)]);
        inodes.insert("small", find(top, "small"));
        inodes.insert("folder/large", find(folder, "large"));
        inodes.insert("folder/other", find(folder, "other"));
        inodes.insert("folder/sub/deep", find(sub, "deep"));
        inodes.insert("gone", find(top, "gone"));
        // Pieces that only an earlier version needs.
        let access = Access { read: true, write: true, ..Access::default() };
        let handle = vault.open_file(&caller, inodes["folder/other"], access).unwrap();
        vault.write(&caller, handle, 16_384, &[6; 20_480]).unwrap();
        vault.flush(&caller, handle).unwrap();
        vault.release(handle).unwrap();
        vault.set_xattr(&caller, inodes["small"], b"user.note", b"a note", SetXattr::Any).unwrap();
        vault.make(&caller, top, b"link", 0o777, Make::Symlink(b"small")).unwrap();
        inodes.insert("link", find(top, "link"));
        vault.unlink(&caller, top, b"gone").unwrap();
        vault.close().unwrap();
        let mut sample = Sample { directory, inodes, ids, values: Values::new() };
        assert_eq!(sample.codes(&state, FsckOptions::default()), []);
        sample.values = sample.values(&state);
        assert!(sample.values.values().all(Option::is_some));
        sample
    }

    fn copy(&self) -> PathBuf {
        let copy = self.directory.path().join("copy");
        let _ = fs::remove_dir_all(&copy);
        copy_tree(&self.directory.path().join("original"), &copy);
        copy
    }

    fn values(&self, state: &Path) -> Values {
        let vault = Vault::open(state, Options::default()).unwrap();
        vault.on_report(Box::new(|_| ()));
        let read = |path: &&'static str| {
            let mut value = Vec::new();
            let mut add = |part: &[u8]| {
                value.extend_from_slice(part);
                Ok(())
            };
            let id = vault.find_object(format!("acme/{path}").as_bytes()).ok();
            let read = id.and_then(|id| vault.read_object(id, None, &mut add).ok());
            (*path, read.map(|()| value))
        };
        let values = FILES.iter().map(read).collect();
        vault.close().unwrap();
        values
    }

    fn fsck(&self, state: &Path, how: FsckOptions) -> (Vec<Finding>, Vec<Lost>) {
        let mut findings = Vec::new();
        let options = Options::default();
        let lost = Vault::fsck_offline(state, &options, how, &mut |f| findings.push(f), &mut |_, _| ()).unwrap();
        (findings, lost)
    }

    /// The codes of what is found and not repaired, in order.
    fn codes(&self, state: &Path, how: FsckOptions) -> Vec<Code> {
        let (findings, _) = self.fsck(state, how);
        let mut codes: Vec<Code> = findings.iter().filter(|f| !f.repaired).map(|f| f.code).collect();
        codes.sort();
        codes
    }

    /// `left`: what a repair leaves. Where it leaves nothing, every value is as it was and a repair finds no work.
    fn judge(&self, class: &str, state: &Path, found: &[Code], left: &[Code]) {
        let sorted = |codes: &[Code]| {
            let mut codes = codes.to_vec();
            codes.sort();
            codes
        };
        assert_eq!(self.codes(state, FsckOptions::default()), sorted(found), "{class}");
        let repair = FsckOptions { repair: true, ..FsckOptions::default() };
        let (findings, _) = self.fsck(state, repair);
        let mut rest: Vec<Code> = findings.iter().filter(|f| !f.repaired).map(|f| f.code).collect();
        rest.sort();
        assert_eq!(rest, sorted(left), "{class}: {findings:?}");
        if left.is_empty() {
            assert_eq!(self.codes(state, FsckOptions::default()), [], "{class}: after the repair");
            assert_eq!(self.values(state), self.values, "{class}");
        }
    }
}

/// With its holes.
fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([from, to]).status().unwrap();
    assert!(copied.success());
}

/// Changes records as somebody would who has the keys.
fn forge(state: &Path, change: &dyn Fn(&Vault, &mut Tx)) {
    let vault = Vault::inspect(state, Options::default()).unwrap();
    vault.enter(Ino::top_of(ORG), Patience::Wait).unwrap();
    vault.start_writer().unwrap();
    let mut tx = vault.records.begin();
    change(&vault, &mut tx);
    vault.finish(tx);
    vault.close().unwrap();
}

fn hash(vault: &Vault, folder: Ino, name: &str) -> [u8; 16] {
    vault.records.name_hash(folder, name.as_bytes()).unwrap()
}

fn change(tx: &mut Tx, ino: Ino, change: impl FnOnce(&mut Node)) {
    let mut node = (*tx.need::<Node>(ino).unwrap()).clone();
    change(&mut node);
    tx.put(ino, node);
}

fn segment(state: &Path) -> PathBuf {
    state.join("segments/00000001/00000000")
}

/// The key of the tombstone and of the path's index.
fn grave(vault: &Vault) -> ((OrgNo, u64), (OrgNo, [u8; 16])) {
    let (number, grave) = vault.graves(ORG, 0, 1).unwrap().remove(0);
    let path = String::from_utf8(grave.original_path.clone()).unwrap();
    ((ORG, number), (ORG, hash(vault, Ino::graveyard_of(ORG), &path)))
}

type Forgery<'a> = (&'a str, &'a dyn Fn(&Vault, &mut Tx), &'a [Code], &'a [Code]);

#[test]
fn rows_that_do_not_fit_together_are_found_and_those_repaired_that_can_be() {
    token::isolated(
        "vault::fsck::tests::rows_that_do_not_fit_together_are_found_and_those_repaired_that_can_be",
        |token| {
            let sample = Sample::new(token);
            let at = |path: &str| sample.inodes[path];
            let id = |path: &str| sample.ids[path];
            let (top, folder, sub, small, large) =
                (at(""), at("folder"), at("folder/sub"), at("small"), at("folder/large"));
            let unused = Ino::new(ORG, 1 << 30);
            let extent = |tx: &Tx, ino: Ino| tx.need::<Extent>((ino, 0)).unwrap().0.clone();
            let table: &[Forgery] = &[
                ("a dangling entry", &|_, tx| tx.delete::<Node>(at("link")), &[EntryDangling], &[]),
                (
                    "an entry without its name's hash",
                    &|vault, tx| {
                        let entry = tx.need::<Entry>((top, hash(vault, top, "small"))).unwrap();
                        tx.delete::<Entry>((top, hash(vault, top, "small")));
                        tx.put((top, hash(vault, top, "smell")), (*entry).clone());
                    },
                    &[EntryName],
                    &[EntryName],
                ),
                (
                    "an entry of another kind",
                    &|vault, tx| {
                        let entry = tx.need::<Entry>((top, hash(vault, top, "small"))).unwrap();
                        tx.put((top, hash(vault, top, "small")), Entry { kind: libc::S_IFIFO, ..(*entry).clone() });
                    },
                    &[EntryKind],
                    &[],
                ),
                (
                    "a lost entry of a file",
                    &|vault, tx| tx.delete::<Entry>((top, hash(vault, top, "small"))),
                    &[EntryMissing],
                    &[],
                ),
                (
                    "a lost entry of a folder",
                    &|vault, tx| tx.delete::<Entry>((folder, hash(vault, folder, "sub"))),
                    &[EntryMissing],
                    &[],
                ),
                (
                    "a cycle of folders",
                    &|vault, tx| {
                        tx.delete::<Entry>((top, hash(vault, top, "folder")));
                        let entry = Entry { name: b"folder".to_vec(), ino: folder, kind: libc::S_IFDIR };
                        tx.put((sub, hash(vault, sub, "folder")), entry);
                        change(tx, folder, |node| {
                            node.kind = Kind::Directory { parent: sub, name: b"folder".to_vec() }
                        });
                    },
                    &[FolderCycle, FolderCycle],
                    &[FolderCycle, FolderCycle],
                ),
                (
                    "a folder that takes another for its parent",
                    &|_, tx| {
                        change(tx, sub, |node| node.kind = Kind::Directory { parent: top, name: b"sub".to_vec() });
                    },
                    &[FolderParent],
                    &[],
                ),
                ("a lost folder", &|_, tx| tx.delete::<Node>(sub), &[EntryDangling, FolderMissing], &[FolderMissing]),
                (
                    "a lost inode of an object",
                    &|_, tx| tx.delete::<Node>(large),
                    &[EntryDangling, ObjectInode],
                    &[ObjectInode],
                ),
                (
                    "lost extended attributes",
                    &|_, tx| tx.delete::<Attributes>(small),
                    &[AttributesMissing],
                    &[AttributesMissing],
                ),
                (
                    "extended attributes of nobody",
                    &|_, tx| tx.put(unused, Attributes::default()),
                    &[OrphanedAttributes],
                    &[],
                ),
                (
                    "a lost object",
                    &|_, tx| tx.delete::<Object>((ORG, id("folder/large"))),
                    &[ObjectMissing],
                    &[ObjectMissing],
                ),
                (
                    "a version that names a missing content",
                    &|_, tx| tx.delete::<ContentRecord>(large),
                    &[WrappedKeyMissing],
                    &[WrappedKeyMissing],
                ),
                (
                    "a content that does not know its object",
                    &|_, tx| {
                        let record = tx.need::<ContentRecord>(large).unwrap();
                        tx.put(large, ContentRecord { owners: Vec::new(), ..(*record).clone() });
                    },
                    &[ContentOwner],
                    &[],
                ),
                (
                    "a wrapped key of nobody",
                    &|_, tx| {
                        let record = tx.need::<ContentRecord>(large).unwrap();
                        tx.put(unused, ContentRecord { owners: Vec::new(), ..(*record).clone() });
                    },
                    &[OrphanedKey, WrappedKey],
                    &[],
                ),
                ("extents of nobody", &|_, tx| tx.put((unused, 0), Extent(extent(tx, small))), &[OrphanedExtents], &[]),
                (
                    "an extent over another",
                    &|_, tx| {
                        tx.put((large, 4096), Extent(extent(tx, large).part(0, 4096..8192)));
                    },
                    &[ExtentOverlap],
                    &[ExtentOverlap],
                ),
                (
                    "an extent in another's place",
                    &|_, tx| {
                        let (mut mine, theirs) = (extent(tx, at("folder/sub/deep")), extent(tx, large));
                        mine.bytes = theirs.bytes;
                        tx.put((at("folder/sub/deep"), 0), Extent(mine));
                    },
                    &[SegmentOverlap, Block],
                    &[SegmentOverlap, Block],
                ),
                ("a lost extent", &|_, tx| tx.delete::<Extent>((large, 0)), &[ExtentMissing], &[ExtentMissing]),
                (
                    "a count of stored bytes that is too low",
                    &|_, tx| change(tx, large, |node| node.stored = 4096),
                    &[StoredCount],
                    &[],
                ),
                ("a wrong count of links", &|_, tx| change(tx, large, |node| node.links = 5), &[LinkCount], &[]),
                ("a wrong count of subfolders", &|_, tx| change(tx, folder, |node| node.links = 9), &[LinkCount], &[]),
                (
                    "a wrong count of objects",
                    &|vault, tx| vault.count(tx, ORG, |org| org.objects += 1).unwrap(),
                    &[OrganizationCount],
                    &[],
                ),
                (
                    "a wrong count of bytes",
                    &|vault, tx| vault.count(tx, ORG, |org| org.bytes -= 1).unwrap(),
                    &[OrganizationCount],
                    &[],
                ),
                (
                    "a number that would be given out twice",
                    &|vault, tx| {
                        vault.count(tx, ORG, |org| org.next_local = Ino::FIRST_LOCAL).unwrap();
                    },
                    &[NumberReused],
                    &[],
                ),
                (
                    "a lost tombstone",
                    &|vault, tx| tx.delete::<Tombstone>(grave(vault).0),
                    &[TombstoneMissing],
                    &[TombstoneMissing],
                ),
                (
                    "a tombstone without its inode",
                    &|_, tx| tx.delete::<Node>(at("gone")),
                    &[TombstoneInode, ObjectInode],
                    &[TombstoneInode, ObjectInode],
                ),
                (
                    "a lost index of tombstones",
                    &|vault, tx| tx.delete::<Buried>(grave(vault).1),
                    &[TombstoneIndex],
                    &[],
                ),
                (
                    "an index of tombstones that are not there",
                    &|vault, tx| tx.put(grave(vault).1, Buried(vec![77])),
                    &[TombstoneIndex],
                    &[],
                ),
                (
                    "a value that nothing will commit",
                    &|_, tx| change(tx, small, |node| node.changed = true),
                    &[TaskMissing],
                    &[],
                ),
                (
                    "an inode without a name that nothing will end",
                    &|_, tx| {
                        let node =
                            Node { links: 0, kind: Kind::Fifo, ..(*tx.need::<Node>(at("link")).unwrap()).clone() };
                        tx.put(Ino::new(ORG, 30), node);
                    },
                    &[TaskMissing],
                    &[],
                ),
                ("work left undone", &|_, tx| tx.put((small, Task::Commit), Pending { epoch: 0 }), &[Unfinished], &[]),
                (
                    "work on an inode that is gone",
                    &|_, tx| tx.put((unused, Task::Commit), Pending { epoch: 0 }),
                    &[TaskStale, Unfinished],
                    &[],
                ),
                ("a lost record of a segment", &|_, tx| tx.delete::<Segment>((ORG, 0)), &[SegmentRecord], &[]),
                (
                    "a segment that counts too many live bytes",
                    &|_, tx| {
                        let record = (*tx.need::<Segment>((ORG, 0)).unwrap()).clone();
                        tx.put((ORG, 0), Segment { live: record.live + 4096, ..record });
                    },
                    &[SegmentCount],
                    &[],
                ),
                (
                    "space that waits to be given back",
                    &|_, tx| {
                        tx.put((ORG, crate::store::Place { segment: 0, offset: 53_248 }), Freed { len: 4096 });
                    },
                    &[Unfinished],
                    &[],
                ),
                (
                    "space that would be given back and is needed",
                    &|_, tx| {
                        tx.put((ORG, crate::store::Place { segment: 0, offset: 0 }), Freed { len: 4096 });
                    },
                    &[FreedInUse],
                    &[],
                ),
            ];
            for (class, damage, found, left) in table {
                let state = sample.copy();
                forge(&state, damage);
                let found_at_once: Vec<Code> = found.to_vec();
                if *class == "a dangling entry" {
                    // The name is gone with what it led to; everything else is as it was.
                    assert_eq!(sample.fsck(&state, FsckOptions::default()).0[0].path.as_deref(), Some("link"));
                }
                sample.judge(class, &state, &found_at_once, left);
            }
        },
    );
}

type Damage<'a> = (&'a str, &'a dyn Fn(&Path), &'a [Code], &'a [Code]);

#[test]
fn damaged_files_are_found_and_what_is_too_much_is_removed() {
    token::isolated("vault::fsck::tests::damaged_files_are_found_and_what_is_too_much_is_removed", |token| {
        let sample = Sample::new(token);
        let write = |path: PathBuf, at: u64, bytes: &[u8]| {
            File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
        };
        let flip = |state: &Path, at: u64| {
            let mut byte = [0];
            File::open(segment(state)).unwrap().read_exact_at(&mut byte, at).unwrap();
            write(segment(state), at, &[byte[0] ^ 1]);
        };
        let blocks = |count: usize| vec![Block; count];
        let all_blocks = [vec![SegmentMissing], blocks(7)].concat();
        let after_first = [vec![SegmentShort], blocks(7)].concat();
        let table: &[Damage] = &[
            ("a flipped bit in a segment", &|state| flip(state, 20_000), &[Block], &[Block]),
            ("a flipped bit of an earlier version", &|state| flip(state, 53_248 + 53_248 + 20_000), &[Block], &[Block]),
            (
                "a truncated segment",
                &|state| {
                    File::options().write(true).open(segment(state)).unwrap().set_len(4096).unwrap();
                },
                &after_first,
                &after_first,
            ),
            ("a missing segment", &|state| fs::remove_file(segment(state)).unwrap(), &all_blocks, &all_blocks),
            (
                "another organization's segment",
                &|state| {
                    copy_tree(&state.join("segments/00000002/00000000"), &segment(state));
                },
                &after_first,
                &after_first,
            ),
            (
                "bytes behind a segment's end",
                &|state| {
                    let size = fs::metadata(segment(state)).unwrap().len();
                    write(segment(state), size.next_multiple_of(4096), &[7; 9000]);
                },
                &[OrphanedBytes],
                &[],
            ),
            (
                "a segment that no record names",
                &|state| fs::write(state.join("segments/00000001/00000007"), [7; 9000]).unwrap(),
                &[OrphanedSegment],
                &[],
            ),
            (
                "segments of nobody",
                &|state| {
                    fs::create_dir(state.join("segments/00000009")).unwrap();
                    fs::write(state.join("segments/00000009/00000000"), [7; 9000]).unwrap();
                },
                &[OrphanedSegment],
                &[],
            ),
            ("blocks that nothing needs", &|state| write(segment(state), 61_440, &[7; 8192]), &[LeakedSpace], &[]),
            (
                "an edited header",
                &|state| {
                    let text = fs::read_to_string(state.join("vault.json")).unwrap();
                    fs::write(state.join("vault.json"), text.replace("\"format\": 1", "\"format\": 1, \"more\": 1"))
                        .unwrap();
                },
                &[Header],
                &[Header],
            ),
            (
                "a header whose seal does not fit",
                &|state| {
                    let text = fs::read_to_string(state.join("vault.json")).unwrap();
                    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
                    value["sealed"]["created"] = "1970-01-01T00:00:00.000000Z".into();
                    fs::write(state.join("vault.json"), value.to_string()).unwrap();
                },
                &[Header],
                &[Header],
            ),
            (
                "no database",
                &|state| fs::write(state.join("records.db"), [7; 8192]).unwrap(),
                &[Database, Database],
                &[Database, Database],
            ),
        ];
        for (class, damage, found, left) in table {
            let state = sample.copy();
            damage(&state);
            sample.judge(class, &state, found, left);
        }

        let state = sample.copy();
        flip(&state, 20_000);
        let (findings, lost) = sample.fsck(&state, FsckOptions::default());
        let place = FindingPlace::segment(1, 0, Some(16_384));
        assert_eq!((&findings[0].place, findings[0].severity), (&place, Severity::Error));
        assert_eq!(findings[0].path.as_deref(), Some("folder/large"));
        let [lost] = &lost[..] else { panic!("{lost:?}") };
        assert_eq!(
            (lost.object.clone(), lost.path.as_deref()),
            (sample.ids["folder/large"].to_string(), Some("folder/large"))
        );
        assert_eq!((lost.versions[0].readable, &lost.versions[0].gone[..]), (false, &[(16_384, 20_480)][..]));

        let state = sample.copy();
        flip(&state, 53_248 + 53_248 + 20_000);
        let (_, lost) = sample.fsck(&state, FsckOptions::default());
        let readable: Vec<bool> = lost[0].versions.iter().map(|version| version.readable).collect();
        assert_eq!(readable, [false, true], "only the earlier version is touched: {lost:?}");
    });
}

#[test]
fn rows_are_judged_by_table_with_keys_and_without() {
    token::isolated("vault::fsck::tests::rows_are_judged_by_table_with_keys_and_without", |token| {
        let sample = Sample::new(token);
        let without = FsckOptions { without_keys: true, ..FsckOptions::default() };
        let rows = |state: &Path, table| {
            let store = Rows::open(state, Arc::new(RealDisk)).unwrap();
            store.scan(table, &[], &[0xFF; 24], usize::MAX).unwrap()
        };
        let put = |state: &Path, table, key: &[u8], value: Option<Vec<u8>>| {
            let store = Rows::open(state, Arc::new(RealDisk)).unwrap();
            let change = Change { table, key: Key::from(key), value };
            store.commit([change], crate::store::Durability::Synced).unwrap();
        };
        // What one flipped bit in the text of a row, or its loss, is found as.
        let flipped: &[(Table, &[Code])] = &[
            (Table::Organization, &[VaultRecord]),
            (Table::Node, &[RowNotAuthentic]),
            (Table::Entry, &[RowNotAuthentic]),
            (Table::Attributes, &[RowNotAuthentic]),
            (Table::Content, &[RowNotAuthentic, WrappedKey]),
            (Table::Extent, &[RowNotAuthentic]),
            (Table::Past, &[RowNotAuthentic]),
            (Table::Object, &[RowNotAuthentic]),
            (Table::Tombstone, &[RowNotAuthentic]),
            (Table::Buried, &[RowNotAuthentic]),
            (Table::Segment, &[RowNotAuthentic]),
        ];
        for (table, codes) in flipped {
            let state = sample.copy();
            let (key, mut value) = rows(&state, *table).pop().unwrap();
            *value.last_mut().unwrap() ^= 1;
            put(&state, *table, &key, Some(value));
            assert_eq!(sample.codes(&state, without), [], "{table:?}: nobody without keys can tell");
            sample.judge(&format!("a flipped bit in {table:?}"), &state, codes, codes);
        }
        let lost: &[(Table, &[Code])] = &[
            (Table::Extent, &[ExtentMissing]),
            (Table::Past, &[LeakedSpace, SegmentCount]),
            (Table::Buried, &[TombstoneIndex]),
        ];
        for (table, codes) in lost {
            let state = sample.copy();
            let row = rows(&state, *table).into_iter().find(|(key, _)| ino_org(*table, key) == ORG).unwrap();
            put(&state, *table, &row.0, None);
            assert_eq!(sample.codes(&state, FsckOptions::default()), *codes, "a lost row of {table:?}");
        }
        for table in Table::ALL {
            let state = sample.copy();
            put(&state, table, b"key", Some(vec![0; 60]));
            assert_eq!(sample.codes(&state, without), [RowShape], "{table:?}");
        }
        let state = sample.copy();
        put(&state, Table::Node, &Ino::new(OrgNo(7), 20).0.to_be_bytes(), Some([&[0, 0, 0, 7][..], &[0; 60]].concat()));
        assert_eq!(sample.codes(&state, without), [RowOwner]);
        assert_eq!(sample.codes(&state, FsckOptions::default()), [RowOwner]);

        // A page of SQLite's that is overwritten.
        let state = sample.copy();
        let page: u64 = {
            let database = rusqlite::Connection::open(state.join("records.db")).unwrap();
            let root = "SELECT rootpage FROM sqlite_schema WHERE name = 'content'";
            database.query_row(root, (), |row| row.get::<_, i64>(0)).unwrap() as u64
        };
        let file = File::options().write(true).open(state.join("records.db")).unwrap();
        file.write_all_at(&[0xA5; 4096], (page - 1) * 4096).unwrap();
        for how in [FsckOptions::default(), without] {
            let (findings, _) = sample.fsck(&state, how);
            assert!(
                !findings.is_empty() && findings.iter().all(|f| [Database, NotChecked].contains(&f.code)),
                "{findings:?}"
            );
            assert_eq!(findings[0].severity, Severity::Fatal);
        }
    });
}

fn ino_org(table: Table, key: &Key) -> OrgNo {
    match table {
        Table::Buried => OrgNo(u32::from_be_bytes(key[..4].try_into().unwrap())),
        _ => census::ino_of(key).organization(),
    }
}

#[test]
fn a_kek_that_is_not_on_the_token_closes_its_organization_alone() {
    token::isolated("vault::fsck::tests::a_kek_that_is_not_on_the_token_closes_its_organization_alone", |token| {
        let sample = Sample::new(token);
        let state = sample.copy();
        let vault = Vault::inspect(&state, Options::default()).unwrap();
        let kek = vault.organizations.find(OrgNo(2)).unwrap().kek();
        vault.keyring.destroy_kek(kek).unwrap();
        vault.close().unwrap();
        let (findings, _) = sample.fsck(&state, FsckOptions::default());
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((finding.code, finding.severity), (KekMissing, Severity::Error));
        assert_eq!(finding.place.file, "token");
        assert!(finding.organization.as_ref().is_some_and(|org| org.starts_with("org_")));
        assert_eq!(sample.values(&state), sample.values);
    });
}

#[test]
fn a_check_leaves_one_line_in_the_audit_log() {
    token::isolated("vault::fsck::tests::a_check_leaves_one_line_in_the_audit_log", |token| {
        let sample = Sample::new(token);
        let state = sample.copy();
        let lines = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let log = lines.clone();
        let audit = crate::vault::AuditHook::new(move |event| log.lock().push((event.event, event.detail.clone())));
        let options = Options { audit, ..Options::default() };
        Vault::fsck_offline(&state, &options, FsckOptions::default(), &mut |_| (), &mut |_, _| ()).unwrap();
        assert_eq!(*lines.lock(), [("key.unwrapped", Some("fsck".to_owned()))]);
    });
}

#[test]
fn a_lost_record_of_a_segment_costs_no_value() {
    token::isolated("vault::fsck::tests::a_lost_record_of_a_segment_costs_no_value", |token| {
        let sample = Sample::new(token);
        let state = sample.copy();
        forge(&state, &|_, tx| tx.delete::<Segment>((ORG, 0)));
        // Mounting removes segments that nothing names, and deleting gives back what nothing needs: not this.
        assert_eq!(sample.values(&state), sample.values);
        let vault = Vault::open(&state, Options::default()).unwrap();
        let caller = Caller::daemon();
        vault.put_object(&caller, b"acme/new", None, &mut &[8; 300_000][..]).unwrap();
        for id in [vault.find_object(b"acme/new").unwrap(), sample.ids["folder/sub/deep"]] {
            vault.delete_object(&caller, id, None).unwrap();
            vault.purge(&caller, id.to_string().as_bytes()).unwrap();
        }
        vault.close().unwrap();
        let mut values = sample.values.clone();
        values.insert("folder/sub/deep", None);
        assert_eq!(sample.values(&state), values);
    });
}

#[test]
fn every_code_is_expected_by_a_test() {
    let text = include_str!("tests.rs");
    let name = |code: &Code| format!("{code:?}");
    let untested: Vec<String> = Code::ALL.iter().map(name).filter(|name| !text.contains(name.as_str())).collect();
    assert!(untested.is_empty(), "{untested:?}");
}
