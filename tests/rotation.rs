//! Rotating KEKs, ending them, and what an earlier copy of the state directory can open afterwards.

#[path = "keys/token.rs"]
#[allow(dead_code, reason = "the tests of the keys use the rest")]
mod token;
#[path = "keys/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use token::{eventually, isolated};
use vaultfs::vault::{Access, Caller, Error, Ino, ObjectId, Options, Vault};
use world::{Dying, World, errno, inode, open, read, set_pair};

/// Versions of all KEKs but the vault's own, by their states.
fn versions(vault: &Vault) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for kek in vault.list_keks(None).unwrap().into_iter().filter(|kek| !kek.organization.is_empty()) {
        found.entry(kek.state).or_default().push(kek.key_id.rsplit_once(":v").unwrap().1.to_owned());
    }
    found
}

fn only(state: &str, version: &str, count: usize) -> BTreeMap<String, Vec<String>> {
    BTreeMap::from([(state.to_owned(), vec![version.to_owned(); count])])
}

#[test]
fn a_rotation_wraps_everything_anew_and_destroys_the_old_versions() {
    isolated("a_rotation_wraps_everything_anew_and_destroys_the_old_versions", |token| {
        let mut world = World::new(token);
        world.org("one");
        world.org("two");
        let mut objects: Vec<_> =
            (0..150u8).map(|n| (world.put(&format!("one/f{n}"), &[n; 100]), vec![n; 100])).collect();
        set_pair(&world.vault, "one", "region", "eu");
        objects.push((world.put("one/eu", &[9; 300_000]), vec![9; 300_000]));
        objects.push((world.put("two/f", b"two"), b"two".to_vec()));
        let keys = token.keys();
        assert_eq!(versions(&world.vault), only("current", "1", 3));
        let unchanged = |objects: &[(ObjectId, Vec<u8>)], vault: &Vault| {
            objects.iter().for_each(|(id, value)| assert_eq!(read(vault, *id).unwrap(), *value));
        };
        for round in 2..4 {
            world.vault.rotate_all(&Caller::daemon()).unwrap();
            world.rotated();
            assert_eq!(versions(&world.vault), only("current", &round.to_string(), 3));
            assert_eq!(token.keys(), keys, "the old versions are gone from the token");
            unchanged(&objects, &world.vault);
            world.reopen();
            unchanged(&objects, &world.vault);
        }
        world.put("one/later", b"later");
        world.rotate("two");
        assert_eq!(versions(&world.vault)["current"], ["3", "3", "4"]);
        let mut findings = Vec::new();
        world.vault.fsck(&mut |finding| findings.push(finding), &mut |_, _| {}).unwrap();
        assert!(findings.is_empty(), "{findings:?}");
        world.vault.close().unwrap();
    });
}

#[test]
fn reads_and_writes_go_on_while_keys_rotate() {
    isolated("reads_and_writes_go_on_while_keys_rotate", |token| {
        let mut world = World::new(token);
        world.org("acme");
        let done = AtomicBool::new(false);
        let written: Vec<Vec<(ObjectId, Vec<u8>)>> = std::thread::scope(|scope| {
            let writer = |thread: u8| {
                let (world, done) = (&world, &done);
                move || {
                    let mut mine = Vec::new();
                    for n in 0u32.. {
                        if done.load(Ordering::SeqCst) && n > 50 {
                            break;
                        }
                        let value = [&[thread][..], &n.to_be_bytes(), &[thread; 6000][..]].concat();
                        mine.push((world.put(&format!("acme/{thread}/{n}"), &value), value));
                        let (id, value) = &mine[n as usize / 2];
                        assert_eq!(read(&world.vault, *id).unwrap(), *value);
                    }
                    mine
                }
            };
            let writers: Vec<_> = (0..3).map(|thread| scope.spawn(writer(thread))).collect();
            for _ in 0..4 {
                world.rotate("acme");
            }
            done.store(true, Ordering::SeqCst);
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        assert_eq!(versions(&world.vault), only("current", "5", 1));
        world.reopen();
        for (id, value) in written.iter().flatten() {
            assert_eq!(read(&world.vault, *id).unwrap(), *value);
        }
        world.vault.close().unwrap();
    });
}

#[test]
fn the_vaults_own_kek_rotates() {
    isolated("the_vaults_own_kek_rotates", |token| {
        let mut world = World::new(token);
        world.org("acme");
        let id = world.put("acme/f", b"value");
        let copy = world.copy("copy");
        let keys = token.keys();
        for round in 2..4 {
            world.vault.rotate_root(&Caller::daemon()).unwrap();
            let own = world.vault.list_keks(None).unwrap().remove(0).key_id;
            assert!(own.ends_with(&format!(":v{round}")), "{own}");
            assert_eq!(token.keys(), keys);
            world.reopen();
            assert_eq!(read(&world.vault, id).unwrap(), b"value");
        }
        world.vault.close().unwrap();
        assert_eq!(errno(Vault::open(&copy, Options::default())), libc::ENOKEY, "an earlier copy has lost its key");
    });
}

#[test]
fn a_purged_object_is_lost_to_earlier_copies_once_the_keys_have_rotated() {
    isolated("a_purged_object_is_lost_to_earlier_copies_once_the_keys_have_rotated", |token| {
        let mut world = World::new(token);
        world.org("acme");
        world.org("other");
        let (gone, kept) = (world.put("acme/gone", b"secret"), world.put("acme/kept", b"kept"));
        let other = world.put("other/f", b"other");
        let copy = world.copy("copy");
        world.purge(gone);
        assert_eq!(errno(read(&world.vault, gone)), libc::ENOENT);
        let earlier = open(&copy);
        assert_eq!(read(&earlier, gone).unwrap(), b"secret", "a copy opens it as long as the KEK version is there");
        earlier.close().unwrap();
        world.rotate("acme");
        let earlier = open(&copy);
        for id in [gone, kept] {
            assert_eq!(errno(read(&earlier, id)), libc::ENOKEY, "{id}");
        }
        assert_eq!(read(&earlier, other).unwrap(), b"other", "another organization's copies are as they were");
        earlier.close().unwrap();
        assert_eq!(read(&world.vault, kept).unwrap(), b"kept");
        world.vault.close().unwrap();
    });
}

#[test]
fn a_purged_organization_is_lost_to_every_copy() {
    isolated("a_purged_organization_is_lost_to_every_copy", |token| {
        let mut world = World::new(token);
        world.org("acme");
        set_pair(&world.vault, "acme", "region", "eu");
        let id = world.put("acme/f", b"secret");
        let copy = world.copy("copy");
        let before = token.keys();
        let caller = Caller::daemon();
        let organization = world.vault.organization("acme").unwrap().id;
        world.purge(id);
        world.vault.delete_organization(&caller, "acme").unwrap();
        world.vault.purge(&caller, organization.as_bytes()).unwrap();
        assert_eq!(token.keys(), before - 2, "the KEK of each pair is destroyed");
        let earlier = open(&copy);
        assert_eq!(errno(read(&earlier, id)), libc::ENOKEY);
        earlier.close().unwrap();
        world.vault.close().unwrap();
    });
}

#[test]
fn deleting_with_purge_ends_an_organization_with_all_that_is_in_it() {
    isolated("deleting_with_purge_ends_an_organization_with_all_that_is_in_it", |token| {
        let mut world = World::new(token);
        let caller = Caller::daemon();
        let before = token.keys();
        world.org("other");
        let other = world.put("other/f", b"other");
        world.org("acme");
        set_pair(&world.vault, "acme", "region", "eu");
        let (small, large) = (world.put("acme/small", b"small"), world.put("acme/d/large", &[7; 300_000]));
        world.put("acme/small", b"its second version");
        let deleted = world.put("acme/deleted", b"deleted");
        world.vault.delete_object(&caller, deleted, None).unwrap();
        assert_eq!(token.keys(), before + 3);
        let copy = world.copy("copy");
        let node = inode(&world.vault, "acme/small");
        let access = Access { read: true, write: true, ..Access::default() };
        let handle = world.vault.open_file(&caller, node, access).unwrap();
        world.vault.write(&caller, handle, 0, b"not saved yet").unwrap();

        world.vault.purge_living_organization(&caller, "acme").unwrap();
        assert_eq!(token.keys(), before + 1, "the KEK of each pair is destroyed");
        assert_eq!(errno(world.vault.organization("acme")), libc::ENOENT);
        for id in [small, large, deleted] {
            assert_eq!(errno(read(&world.vault, id)), libc::ENOENT);
        }
        assert!(world.vault.tombstones(None).unwrap().is_empty());
        assert!(world.vault.write(&caller, handle, 0, b"x").is_err(), "an open file is of no more use");
        let _ = world.vault.release(handle);
        let mut findings = Vec::new();
        world.vault.fsck(&mut |finding| findings.push(finding), &mut |_, _| {}).unwrap();
        assert!(findings.is_empty(), "{findings:?}");
        world.org("acme");
        world.reopen();
        assert_eq!(read(&world.vault, other).unwrap(), b"other");
        assert_eq!(std::fs::read_dir(world.state().join("segments")).unwrap().count(), 0, "its bytes are gone");

        let earlier = open(&copy);
        for id in [small, large, deleted] {
            assert_eq!(errno(read(&earlier, id)), libc::ENOKEY, "not even its records open");
        }
        assert_eq!(read(&earlier, other).unwrap(), b"other");
        earlier.close().unwrap();
        world.vault.close().unwrap();
    });
}

#[test]
fn a_deleted_organization_is_purged_with_its_tombstones() {
    isolated("a_deleted_organization_is_purged_with_its_tombstones", |token| {
        let world = World::new(token);
        let (caller, before) = (Caller::daemon(), token.keys());
        world.org("acme");
        let id = world.put("acme/f", b"secret");
        world.vault.delete_object(&caller, id, None).unwrap();
        world.vault.delete_organization(&caller, "acme").unwrap();
        let entry = world.vault.tombstones(None).unwrap().pop().unwrap().entry;
        let gone = world.vault.remove_directory(&caller, Ino::GRAVEYARD, entry.as_bytes());
        assert_eq!(errno(gone), libc::ENOTEMPTY, "rmdir does not take tombstones with it");
        world.vault.purge(&caller, entry.as_bytes()).unwrap();
        assert_eq!(token.keys(), before);
        assert!(world.vault.tombstones(None).unwrap().is_empty());
        world.vault.close().unwrap();
    });
}

#[test]
fn an_organization_is_not_purged_without_the_token() {
    isolated("an_organization_is_not_purged_without_the_token", |token| {
        let world = World::new(token);
        let caller = Caller::daemon();
        world.org("acme");
        let id = world.put("acme/f", b"value");
        token.take_away();
        assert_eq!(errno(world.vault.purge_living_organization(&caller, "acme")), libc::ENOKEY);
        token.bring_back();
        eventually(Duration::from_secs(10), || read(&world.vault, id).is_ok_and(|value| value == b"value"));
        eventually(Duration::from_secs(10), || world.vault.purge_living_organization(&caller, "acme").is_ok());
        world.vault.close().unwrap();
    });
}

#[test]
fn a_revoked_pair_closes_its_objects_for_ever() {
    isolated("a_revoked_pair_closes_its_objects_for_ever", |token| {
        let mut world = World::new(token);
        world.org("acme");
        let plain = world.put("acme/plain", b"plain");
        set_pair(&world.vault, "acme", "customer", "c17");
        let closed = world.put("acme/closed", b"secret");
        let copy = world.copy("copy");
        let caller = Caller::daemon();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let own = pair("organizationId", &world.vault.organization("acme").unwrap().id);
        assert_eq!(errno(world.vault.revoke(&caller, "acme", &own)), libc::EPERM);
        assert_eq!(errno(world.vault.revoke(&caller, "acme", &pair("customer", "c18"))), libc::ENOENT);
        world.vault.revoke(&caller, "acme", &pair("customer", "c17")).unwrap();
        assert_eq!(errno(read(&world.vault, closed)), libc::ENOKEY, "its cached key is gone too");
        assert!(matches!(world.vault.put_object(&caller, b"acme/new", None, &mut &b"x"[..]), Err(Error::Revoked)));
        world.rotate("acme");
        world.reopen();
        assert_eq!(read(&world.vault, plain).unwrap(), b"plain");
        assert_eq!(errno(read(&world.vault, closed)), libc::ENOKEY);
        assert_eq!(versions(&world.vault)["revoked"].len(), 1);
        world.purge(closed);
        let earlier = open(&copy);
        assert_eq!(errno(read(&earlier, closed)), libc::ENOKEY);
        earlier.close().unwrap();
        world.vault.close().unwrap();
    });
}

#[test]
fn keys_rotate_by_themselves_when_they_are_old() {
    isolated("keys_rotate_by_themselves_when_they_are_old", |token| {
        let mut world = World::new(token);
        world.org("acme");
        let id = world.put("acme/f", b"value");
        world.vault.close().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let settings = vec![("key_rotation".to_owned(), "10ms".to_owned())];
        world.vault = Vault::open(&world.state(), Options { settings, ..Options::default() }).unwrap();
        eventually(Duration::from_secs(10), || !versions(&world.vault)["current"].contains(&"1".to_owned()));
        world.reopen();
        world.rotated();
        assert_eq!(read(&world.vault, id).unwrap(), b"value");
        world.vault.close().unwrap();
    });
}

#[test]
fn a_vault_closes_while_its_keys_rotate_by_themselves() {
    isolated("a_vault_closes_while_its_keys_rotate_by_themselves", |token| {
        let mut world = World::new(token);
        ["a", "b", "c"].iter().for_each(|name| world.org(name));
        let id = world.put("a/f", b"value");
        world.vault.close().unwrap();
        for pause in [0, 5, 20, 60, 120, 200] {
            let settings = vec![("key_rotation".to_owned(), "1ms".to_owned())];
            let vault = Vault::open(&world.state(), Options { settings, ..Options::default() }).unwrap();
            std::thread::sleep(Duration::from_millis(pause));
            let (done, closed) = std::sync::mpsc::channel();
            // A thread of its own, so that a close without an end ends the test.
            std::thread::spawn(move || done.send(vault.close()));
            closed.recv_timeout(Duration::from_secs(60)).expect("closing hangs").unwrap();
        }
        world.vault = open(&world.state());
        world.rotated();
        assert_eq!(read(&world.vault, id).unwrap(), b"value");
        world.vault.close().unwrap();
    });
}

#[test]
fn an_organization_whose_making_is_cut_short_leaves_no_key() {
    isolated("an_organization_whose_making_is_cut_short_leaves_no_key", |token| {
        let mut world = World::new(token);
        world.vault.close().unwrap();
        let mut made = false;
        for changes in 0..200 {
            let disk = Arc::new(Dying(AtomicI64::new(i64::MAX)));
            let vault = Vault::open_on(&world.state(), Options::default(), disk.clone()).unwrap();
            disk.0.store(changes, Ordering::SeqCst);
            let _ = vault.create_organization(&Caller::daemon(), "acme", None, None);
            // The process ends here, so that nothing is put right by it.
            disk.0.store(0, Ordering::SeqCst);
            let _ = vault.close();
            world.vault = open(&world.state());
            let living = world.vault.list_keks(None).unwrap().len();
            eventually(Duration::from_secs(10), || token.keys() == living);
            world.vault.close().unwrap();
            // With an answer or without.
            made = living == 2;
            if made {
                break;
            }
        }
        assert!(made, "it is never made");
    });
}
