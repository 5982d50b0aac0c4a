//! Moving a vault to another token: afterwards the old one is not needed, and whatever cuts it short, it goes on.

#[path = "keys/second.rs"]
mod second;
#[path = "keys/token.rs"]
#[allow(dead_code, reason = "the tests of the keys use the rest")]
mod token;
#[path = "keys/world.rs"]
mod world;

use second::Second;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;
use token::{Token, eventually, isolated};
use vaultfs::vault::{Caller, Error, ObjectId, Options, Vault};
use world::{Dying, World, errno, open, read, set_pair};

const LONG: Duration = Duration::from_secs(60);

fn migrate(vault: &Vault, to: &Second) {
    vault.migrate(&Caller::daemon(), &to.uri(), &to.pin_source()).unwrap();
}

fn migrated(vault: &Vault) {
    eventually(LONG, || vault.status().migration.is_none());
}

fn waits(vault: &Vault) -> String {
    vault.status().migration.and_then(|migration| migration.waits).unwrap_or_default()
}

fn is_sound(vault: &Vault) {
    let mut findings = Vec::new();
    vault.fsck(&mut |finding| findings.push(finding), &mut |_, _| {}).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
}

fn unchanged(vault: &Vault, objects: &[(ObjectId, Vec<u8>)]) {
    objects.iter().for_each(|(id, value)| assert_eq!(read(vault, *id).unwrap(), *value));
}

/// Where SoftHSM keeps the token that the vault was made on.
fn first_token() -> PathBuf {
    let configuration = PathBuf::from(std::env::var_os("SOFTHSM2_CONF").unwrap());
    let mut tokens = std::fs::read_dir(configuration.parent().unwrap().join("tokens")).unwrap();
    tokens.next().unwrap().unwrap().path()
}

/// To a token of another module, and from there to one of the same.
fn moves_twice(token: &Token, residency: &str) {
    let first = first_token();
    let (second, third) = (Second::make("second", true), Second::make("third", false));
    let mut world = World::residing(token, residency);
    world.org("one");
    world.org("two");
    set_pair(&world.vault, "one", "region", "eu");
    let mut objects: Vec<_> =
        (0..80u8).map(|n| (world.put(&format!("one/{n}"), &[n; 20_000]), vec![n; 20_000])).collect();
    objects.push((world.put("two/f", b"two"), b"two".to_vec()));
    let (keys, segments) = (token.keys(), world.segments());

    migrate(&world.vault, &second);
    migrated(&world.vault);
    assert_eq!(world.vault.status().token.uri, second.uri());
    assert_eq!((token.keys(), second.keys()), (0, keys), "all is on the new token, and nothing on the old one");
    assert_eq!(world.segments(), segments, "no byte of a value was rewritten");
    unchanged(&world.vault, &objects);
    objects.push((world.put("two/later", b"later"), b"later".to_vec()));
    let again = world.vault.migrate(&Caller::daemon(), &second.uri(), &second.pin_source());
    assert!(again.unwrap_err().to_string().contains("already"));

    world.vault.close().unwrap();
    std::fs::remove_dir_all(&first).unwrap();
    for target in [&second, &third] {
        world.vault = open(&world.state());
        assert_eq!(world.vault.status().token.uri, target.uri(), "no option names it");
        unchanged(&world.vault, &objects);
        let name = format!("new-{}", objects.len());
        world.org(&name);
        objects.push((world.put(&format!("{name}/f"), b"new"), b"new".to_vec()));
        world.rotate("one");
        world.vault.rotate_root(&Caller::daemon()).unwrap();
        world.rotated();
        is_sound(&world.vault);
        unchanged(&world.vault, &objects);
        if target.uri() == second.uri() {
            migrate(&world.vault, &third);
            migrated(&world.vault);
            assert_eq!(second.keys(), 0);
        }
        world.vault.close().unwrap();
    }
}

#[test]
fn a_vault_moves_to_another_token_and_the_old_one_is_not_needed() {
    isolated("a_vault_moves_to_another_token_and_the_old_one_is_not_needed", |token| moves_twice(token, "token"));
}

#[test]
fn a_vault_of_wrapped_keys_moves_to_another_token_and_the_old_one_is_not_needed() {
    isolated("a_vault_of_wrapped_keys_moves_to_another_token_and_the_old_one_is_not_needed", |token| {
        moves_twice(token, "wrapped");
    });
}

#[test]
fn reads_writes_and_new_organizations_go_on_while_a_vault_moves() {
    isolated("reads_writes_and_new_organizations_go_on_while_a_vault_moves", |token| {
        let (second, third) = (Second::make("second", true), Second::make("third", true));
        let mut world = World::new(token);
        world.org("acme");
        let done = AtomicBool::new(false);
        let written: Vec<(ObjectId, Vec<u8>)> = std::thread::scope(|scope| {
            let (shared, over) = (&world, &done);
            let writer = scope.spawn(move || {
                let mut mine = Vec::new();
                for n in 0u32.. {
                    if over.load(Ordering::SeqCst) && n > 50 {
                        break;
                    }
                    let organization = if n % 10 == 0 { format!("org-{n}") } else { "acme".to_owned() };
                    if n % 10 == 0 {
                        shared.org(&organization);
                    }
                    let value = [&n.to_be_bytes()[..], &[7; 6000]].concat();
                    mine.push((shared.put(&format!("{organization}/{n}"), &value), value));
                    let (id, value) = &mine[n as usize / 2];
                    assert_eq!(read(&shared.vault, *id).unwrap(), *value);
                }
                mine
            });
            for target in [&second, &third] {
                migrate(&shared.vault, target);
                migrated(&shared.vault);
            }
            over.store(true, Ordering::SeqCst);
            writer.join().unwrap()
        });
        assert_eq!((token.keys(), second.keys()), (0, 0));
        world.reopen();
        unchanged(&world.vault, &written);
        is_sound(&world.vault);
        world.vault.close().unwrap();
    });
}

/// Every few changes of the disk on the way to another token and back.
fn goes_on(token: &Token, residency: &str) {
    let mut tokens = [Second::make("second", true), Second::make("third", true)];
    let mut world = World::residing(token, residency);
    world.org("acme");
    set_pair(&world.vault, "acme", "region", "eu");
    let objects: Vec<_> = (0..10u8).map(|n| (world.put(&format!("acme/{n}"), &[n; 6000]), vec![n; 6000])).collect();
    let keys = token.keys();
    migrate(&world.vault, &tokens[1]);
    migrated(&world.vault);
    let mut over = false;
    for changes in (1..).step_by(11) {
        world.vault.close().unwrap();
        let disk = Arc::new(Dying(AtomicI64::new(i64::MAX)));
        let vault = Vault::open_on(&world.state(), Options::default(), disk.clone()).unwrap();
        vault.on_report(Box::new(|_| ()));
        disk.0.store(changes, Ordering::SeqCst);
        let to = &tokens[0];
        let begun = vault.migrate(&Caller::daemon(), &to.uri(), &to.pin_source()).is_ok();
        while begun && disk.0.load(Ordering::SeqCst) > 0 && vault.status().migration.is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        over |= begun && disk.0.swap(0, Ordering::SeqCst) > 0;
        let _ = vault.close();
        drop(vault);
        world.vault = open(&world.state());
        migrated(&world.vault);
        unchanged(&world.vault, &objects);
        is_sound(&world.vault);
        let now = world.vault.status().token.uri;
        assert!(now == tokens[0].uri() || (now == tokens[1].uri() && !over), "{changes}: {now}");
        if now == tokens[0].uri() {
            tokens.reverse();
        }
        eventually(LONG, || (tokens[0].keys(), tokens[1].keys()) == (0, keys));
        if over {
            break;
        }
    }
    world.vault.close().unwrap();
}

#[test]
fn a_migration_that_is_cut_short_goes_on() {
    isolated("a_migration_that_is_cut_short_goes_on", |token| goes_on(token, "token"));
}

#[test]
fn a_migration_of_wrapped_keys_that_is_cut_short_goes_on() {
    isolated("a_migration_of_wrapped_keys_that_is_cut_short_goes_on", |token| goes_on(token, "wrapped"));
}

#[test]
fn a_token_that_is_of_no_use_is_refused_and_nothing_has_changed() {
    isolated("a_token_that_is_of_no_use_is_refused_and_nothing_has_changed", |token| {
        let second = Second::make("second", true);
        let mut world = World::residing(token, "wrapped");
        world.org("acme");
        let id = world.put("acme/f", b"value");
        let header = || std::fs::read(world.state().join("vault.json")).unwrap();
        let (before, keys) = (header(), token.keys());
        let refused = |uri: &str, pin: &str, says: &str| {
            let error = world.vault.migrate(&Caller::daemon(), uri, pin).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert!(world.vault.status().migration.is_none());
            assert_eq!(header(), before);
        };
        let (uri, pin) = (second.uri(), second.pin_source());
        let module = uri.split_once("module-path=").unwrap().1;
        refused(&format!("pkcs11:token=nowhere?module-path={module}"), &pin, "no token fits");
        refused("pkcs11:token=second?module-path=/nonexistent.so", &pin, "/nonexistent.so");
        refused(&uri, "file:/nonexistent/pin", "/nonexistent/pin");
        let own = token.config();
        refused(&own.uri.to_string(), &own.pin.to_string(), "already");
        second.write_pin("9999");
        refused(&uri, &pin, "PIN was refused");
        second.write_pin("4321");
        // Reached through modules that make of it a token without a suite, and one that gives wrapped keys away.
        let shim = world.directory.path().join("shim.so");
        std::fs::copy(token.config_with_shim(&[]).uri.module_path().unwrap(), &shim).unwrap();
        // An instance of its own, which is not initialized yet.
        let softhsm = world.directory.path().join("softhsm.so");
        std::fs::copy(module, &softhsm).unwrap();
        let behind = format!("pkcs11:token=second?module-path={}", shim.display());
        let behaves = |line: &str| {
            let file = std::env::var_os("VAULTFS_SHIM").unwrap();
            std::fs::write(file, format!("module={}\n{line}\n", softhsm.display())).unwrap();
        };
        behaves("gcm=none\nhmac=none");
        refused(&behind, &pin, "suite");
        behaves("weak=yes");
        refused(&behind, &pin, "token");
        eventually(LONG, || second.keys() == 0);
        assert_eq!(token.keys(), keys);

        // Once it is of use, it is taken.
        migrate(&world.vault, &second);
        migrated(&world.vault);
        world.reopen();
        assert_eq!(read(&world.vault, id).unwrap(), b"value");
        world.vault.close().unwrap();
    });
}

#[test]
fn a_locked_organization_is_waited_for() {
    isolated("a_locked_organization_is_waited_for", |token| {
        let second = Second::make("second", true);
        let mut world = World::new(token);
        world.org("acme");
        world.org("other");
        let (id, other) = (world.put("acme/f", b"value"), world.put("other/f", b"other"));
        let caller = Caller::daemon();
        world.vault.lock_organization(&caller, "acme").unwrap();
        migrate(&world.vault, &second);
        eventually(LONG, || waits(&world.vault).contains("acme") && waits(&world.vault).contains("unlock"));
        assert!(matches!(world.vault.rotate_root(&caller), Err(Error::Busy(_))));
        let elsewhere = "pkcs11:token=elsewhere?module-path=/nonexistent.so";
        let another = world.vault.migrate(&caller, elsewhere, &second.pin_source());
        assert!(matches!(another, Err(Error::Busy(_))));
        assert_eq!(read(&world.vault, other).unwrap(), b"other");

        // While it waits, both tokens are needed, and it is said which one is away.
        world.reopen();
        second.take_away();
        world.vault.unlock_organization(&caller, "acme").unwrap();
        eventually(LONG, || waits(&world.vault).contains("token=second"));
        assert!(world.vault.status().migration.is_some());
        second.bring_back();
        migrated(&world.vault);
        assert_eq!((token.keys(), second.keys()), (0, 3));
        world.reopen();
        assert_eq!(read(&world.vault, id).unwrap(), b"value");
        world.vault.close().unwrap();
    });
}

#[test]
fn organizations_with_tokens_of_their_own_stay_there() {
    isolated("organizations_with_tokens_of_their_own_stay_there", |token| {
        let (second, own) = (Second::make("second", true), Second::make("acme-hsm", true));
        let mut world = World::new(token);
        world.org("other");
        let residency = Some(own.residency());
        world.vault.create_organization_at(&Caller::daemon(), "acme", (None, None), residency).unwrap();
        let (id, other) = (world.put("acme/f", b"value"), world.put("other/f", b"other"));
        let before = world.vault.list_keks(Some("acme")).unwrap().remove(0).key_id;
        // It is not even asked.
        world.reopen();
        own.take_away();
        migrate(&world.vault, &second);
        migrated(&world.vault);
        own.bring_back();
        assert_eq!(own.keys(), 1);
        assert_eq!(world.vault.list_keks(Some("acme")).unwrap().remove(0).key_id, before);
        eventually(LONG, || read(&world.vault, id).is_ok_and(|value| value == b"value"));
        assert_eq!(read(&world.vault, other).unwrap(), b"other");
        world.vault.close().unwrap();
    });
}

#[test]
fn an_earlier_copy_cannot_be_opened_any_more() {
    isolated("an_earlier_copy_cannot_be_opened_any_more", |token| {
        let second = Second::make("second", true);
        let mut world = World::new(token);
        world.org("acme");
        let copy = world.copy("copy");
        migrate(&world.vault, &second);
        migrated(&world.vault);
        world.vault.close().unwrap();
        assert_eq!(errno(Vault::open(&copy, Options::default())), libc::ENOKEY);
    });
}

#[test]
fn a_new_pin_is_still_known_after_the_next_change_of_the_header() {
    isolated("a_new_pin_is_still_known_after_the_next_change_of_the_header", |token| {
        let mut world = World::new(token);
        world.org("acme");
        let id = world.put("acme/f", b"value");
        let new = world.directory.path().join("new-pin");
        std::fs::write(&new, "11223344").unwrap();
        std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        world.vault.set_pin(&Caller::daemon(), &format!("file:{}", new.display())).unwrap();
        world.vault.rotate_root(&Caller::daemon()).unwrap();
        world.reopen();
        assert_eq!(read(&world.vault, id).unwrap(), b"value");
        world.vault.close().unwrap();
    });
}
