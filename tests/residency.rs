//! Where keys live: in the token, wrapped in the store, or in a token of an organization's own; and moving between them.

#[path = "keys/second.rs"]
mod second;
#[path = "keys/token.rs"]
#[allow(dead_code, reason = "the tests of the keys use the rest")]
mod token;
#[path = "keys/world.rs"]
mod world;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use second::Second;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use token::{Token, context, eventually, isolated, slot};
use vaultfs::keys::{Home, KekRef, KeyError, Lodging, Patience, WrappedKek};
use vaultfs::vault::{Caller, Options, Residency, Result, Vault};
use world::{Dying, World, errno, open, read, set_pair};

fn residencies(vault: &Vault, organization: &str) -> Vec<(String, String)> {
    let all = vault.list_keks(Some(organization)).unwrap();
    all.into_iter().map(|kek| (kek.state, kek.residency.split(' ').next().unwrap().to_owned())).collect()
}

fn current(residency: &str, count: usize) -> Vec<(String, String)> {
    vec![("current".to_owned(), residency.to_owned()); count]
}

fn create(vault: &Vault, name: &str, residency: Residency) {
    vault.create_organization_at(&Caller::daemon(), name, (None, None), Some(residency)).unwrap();
}

fn move_keys(world: &World, organization: &str, to: Residency) {
    world.vault.move_keys(&Caller::daemon(), organization, to).unwrap();
    world.rotated();
}

fn is_sound(vault: &Vault) {
    let mut findings = Vec::new();
    vault.fsck(&mut |finding| findings.push(finding), &mut |_, _| {}).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
}

#[test]
fn wrapped_keks_take_no_room_in_the_token() {
    isolated("wrapped_keks_take_no_room_in_the_token", |token| {
        let mut world = World::residing(token, "wrapped");
        let keys = token.keys();
        let mut objects = Vec::new();
        for name in ["one", "two", "three"] {
            world.org(name);
            set_pair(&world.vault, name, "region", "eu");
            for n in 0..5u8 {
                objects.push((world.put(&format!("{name}/{n}"), &[n; 5000]), vec![n; 5000]));
            }
            assert_eq!(residencies(&world.vault, name), current("wrapped", 2));
        }
        assert_eq!(token.keys(), keys, "one root key holds them all");
        world.reopen();
        for (id, value) in &objects {
            assert_eq!(read(&world.vault, *id).unwrap(), *value);
        }
        is_sound(&world.vault);
        assert_eq!(token.keys(), keys);
        world.vault.close().unwrap();
    });
}

#[test]
fn a_token_that_would_give_wrapped_keks_away_is_not_asked_to_hold_them() {
    isolated("a_token_that_would_give_wrapped_keks_away_is_not_asked_to_hold_them", |token| {
        let (directory, config) = (tempfile::tempdir().unwrap(), token.config());
        let state = directory.path().join("state");
        let made = Vault::init_residing(&state, &config.uri.to_string(), &config.pin.to_string(), "wrapped");
        if token.guards_wrapped_keys() {
            made.unwrap();
            return assert_eq!(token.keys(), 2, "the vault's own KEK and the root key");
        }
        let refused = |why: String| assert!(why.contains("this token cannot keep wrapped KEKs safe"), "{why}");
        refused(made.unwrap_err().to_string());
        assert_eq!(token.keys(), 0);
        let world = World::new(token);
        world.org("acme");
        let keys = token.keys();
        let made =
            world.vault.create_organization_at(&Caller::daemon(), "other", (None, None), Some(Residency::Wrapped));
        refused(made.err().unwrap().to_string());
        assert_eq!(errno(world.vault.organization("other")), libc::ENOENT);
        refused(world.vault.move_keys(&Caller::daemon(), "acme", Residency::Wrapped).unwrap_err().to_string());
        assert_eq!(residencies(&world.vault, "acme"), current("token", 1));
        assert_eq!(token.keys(), keys);
        world.vault.close().unwrap();
    });
}

#[test]
fn a_mount_asks_the_token_for_no_organization() {
    isolated("a_mount_asks_the_token_for_no_organization", |token| {
        let mut world = World::residing(token, "wrapped");
        world.org("first");
        let id = world.put("first/f", b"value");
        world.reopen();
        let few = world.vault.status().token.calls;
        (0..20).for_each(|n| world.org(&format!("org-{n}")));
        world.reopen();
        assert_eq!(world.vault.status().token.calls, few, "20 organizations more, and no call");
        assert_eq!(read(&world.vault, id).unwrap(), b"value");
        world.vault.close().unwrap();
    });
}

#[test]
fn keys_move_between_residencies_and_values_stay_where_they_are() {
    isolated("keys_move_between_residencies_and_values_stay_where_they_are", |token| {
        let mut world = World::new(token);
        world.org("acme");
        world.org("other");
        set_pair(&world.vault, "acme", "region", "eu");
        let mut objects: Vec<_> =
            (0..80u8).map(|n| (world.put(&format!("acme/{n}"), &[n; 20_000]), vec![n; 20_000])).collect();
        let keys = token.keys();
        let segments = world.segments();
        move_keys(&world, "acme", Residency::Wrapped);
        assert_eq!(residencies(&world.vault, "acme"), current("wrapped", 2));
        assert_eq!(residencies(&world.vault, "other"), current("token", 1));
        assert_eq!(token.keys(), keys - 2 + 1, "its two KEKs are destroyed, and there is a root key");
        assert_eq!(world.segments(), segments, "no byte of a value was rewritten");
        objects.push((world.put("acme/later", b"later"), b"later".to_vec()));
        world.reopen();
        objects.iter().for_each(|(id, value)| assert_eq!(read(&world.vault, *id).unwrap(), *value));
        world.rotate("acme");
        assert_eq!(residencies(&world.vault, "acme"), current("wrapped", 2), "a rotation leaves them where they are");
        move_keys(&world, "acme", Residency::Token);
        assert_eq!(residencies(&world.vault, "acme"), current("token", 2));
        assert_eq!(token.keys(), keys + 1);
        world.reopen();
        objects.iter().for_each(|(id, value)| assert_eq!(read(&world.vault, *id).unwrap(), *value));
        is_sound(&world.vault);
        world.vault.close().unwrap();
    });
}

type Act<'a> = &'a dyn Fn(&Vault) -> Result<()>;

/// Every few changes of the disk on the way to `wrapped` and back, and of a rotation of the root key.
#[test]
fn a_move_that_is_cut_short_goes_on() {
    isolated("a_move_that_is_cut_short_goes_on", |token| {
        let mut world = World::new(token);
        world.org("acme");
        set_pair(&world.vault, "acme", "region", "eu");
        let objects: Vec<_> = (0..10u8).map(|n| (world.put(&format!("acme/{n}"), &[n; 6000]), vec![n; 6000])).collect();
        move_keys(&world, "acme", Residency::Wrapped);
        let with_root = token.keys();
        move_keys(&world, "acme", Residency::Token);
        let ways: [(&str, Act); 3] = [
            ("wrapped", &|vault| vault.move_keys(&Caller::daemon(), "acme", Residency::Wrapped)),
            ("wrapped", &|vault| vault.rotate_root(&Caller::daemon())),
            ("token", &|vault| vault.move_keys(&Caller::daemon(), "acme", Residency::Token)),
        ];
        for (residency, act) in ways {
            let mut over = false;
            for changes in (1..).step_by(13) {
                world.vault.close().unwrap();
                let disk = Arc::new(Dying(AtomicI64::new(i64::MAX)));
                let vault = Vault::open_on(&world.state(), Options::default(), disk.clone()).unwrap();
                vault.on_report(Box::new(|_| ()));
                disk.0.store(changes, Ordering::SeqCst);
                let begun = act(&vault).is_ok();
                while begun && disk.0.load(Ordering::SeqCst) > 0 && !vault.rotations().is_empty() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                over |= begun && disk.0.swap(0, Ordering::SeqCst) > 0;
                let _ = vault.close();
                drop(vault);
                world.vault = open(&world.state());
                world.rotated();
                objects.iter().for_each(|(id, value)| assert_eq!(read(&world.vault, *id).unwrap(), *value));
                is_sound(&world.vault);
                if over {
                    break;
                }
            }
            assert_eq!(residencies(&world.vault, "acme"), current(residency, 2));
            // The vault's own and the root, and the organization's two where they are objects.
            let keys = if residency == "token" { with_root + 2 } else { with_root };
            eventually(Duration::from_secs(30), || token.keys() == keys);
        }
        world.vault.close().unwrap();
    });
}

#[test]
fn the_root_key_rotates_with_all_that_is_under_it() {
    isolated("the_root_key_rotates_with_all_that_is_under_it", |token| {
        let mut world = World::residing(token, "wrapped");
        world.org("one");
        create(&world.vault, "two", Residency::Token);
        let objects = [world.put("one/f", b"one"), world.put("two/f", b"two")];
        let keys = token.keys();
        let copy = world.copy("copy");
        for round in 2..4 {
            world.vault.rotate_root(&Caller::daemon()).unwrap();
            world.rotated();
            eventually(Duration::from_secs(30), || token.keys() == keys);
            let ids: Vec<_> = world.vault.list_keks(None).unwrap().into_iter().map(|kek| kek.key_id).collect();
            assert!(ids[0].ends_with(&format!(":v{round}")) && ids[1].ends_with(&format!(":v{round}")), "{ids:?}");
            assert!(ids[2].ends_with(":v1"), "what is not wrapped stays: {ids:?}");
            world.reopen();
            assert_eq!(read(&world.vault, objects[0]).unwrap(), b"one");
            assert_eq!(read(&world.vault, objects[1]).unwrap(), b"two");
        }
        world.vault.close().unwrap();
        assert_eq!(errno(Vault::open(&copy, Options::default())), libc::ENOKEY);
    });
}

#[test]
fn a_purged_wrapped_organization_is_lost_to_copies_once_the_root_has_rotated() {
    isolated("a_purged_wrapped_organization_is_lost_to_copies_once_the_root_has_rotated", |token| {
        let mut world = World::residing(token, "wrapped");
        world.org("acme");
        world.org("kept");
        let (gone, kept) = (world.put("acme/f", b"secret"), world.put("kept/f", b"kept"));
        let copy = world.copy("copy");
        world.vault.purge_living_organization(&Caller::daemon(), "acme").unwrap();
        let earlier = open(&copy);
        assert_eq!(read(&earlier, gone).unwrap(), b"secret", "the copy has the wrapped KEK, and the token the root");
        earlier.close().unwrap();
        let root = token.keys();
        world.vault.rotate_root(&Caller::daemon()).unwrap();
        world.rotated();
        eventually(Duration::from_secs(30), || token.keys() == root);
        assert_eq!(errno(Vault::open(&copy, Options::default())), libc::ENOKEY);
        assert_eq!(read(&world.vault, kept).unwrap(), b"kept");
        world.vault.close().unwrap();
    });
}

#[test]
fn an_organization_brings_its_own_token() {
    isolated("an_organization_brings_its_own_token", |token| {
        bring_your_own_key(token, &Second::make("acme-hsm", true))
    });
}

#[test]
fn an_organization_brings_another_token_of_the_same_module() {
    isolated("an_organization_brings_another_token_of_the_same_module", |token| {
        bring_your_own_key(token, &Second::make("acme-hsm", false));
    });
}

fn bring_your_own_key(token: &Token, second: &Second) {
    let mut world = World::new(token);
    world.org("other");
    let other = world.put("other/f", b"other");
    create(&world.vault, "acme", second.residency());
    set_pair(&world.vault, "acme", "region", "eu");
    let id = world.put("acme/f", b"value");
    assert_eq!(residencies(&world.vault, "acme"), current("external", 2));
    assert_eq!(second.keys(), 2);
    world.reopen();
    assert_eq!(read(&world.vault, id).unwrap(), b"value");

    world.vault.close().unwrap();
    second.take_away();
    world.vault = open(&world.state());
    assert_eq!(errno(read(&world.vault, id)), libc::ENOKEY, "without its token it is closed");
    assert_eq!(read(&world.vault, other).unwrap(), b"other");
    assert_eq!(errno(world.vault.purge_living_organization(&Caller::daemon(), "acme")), libc::ENOKEY);
    world.put("other/g", b"and goes on");
    second.bring_back();
    eventually(Duration::from_secs(20), || read(&world.vault, id).is_ok_and(|value| value == b"value"));

    world.rotate("acme");
    assert_eq!(second.keys(), 2);
    move_keys(&world, "acme", Residency::Token);
    assert_eq!(residencies(&world.vault, "acme"), current("token", 2));
    assert_eq!(second.keys(), 0, "nothing is left on the other token");
    world.reopen();
    assert_eq!(read(&world.vault, id).unwrap(), b"value");
    move_keys(&world, "acme", second.residency());
    world.reopen();
    assert_eq!(read(&world.vault, id).unwrap(), b"value");
    world.vault.purge_living_organization(&Caller::daemon(), "acme").unwrap();
    assert_eq!(second.keys(), 0);
    world.vault.close().unwrap();
}

#[test]
fn a_wrong_pin_of_another_token_is_presented_once_and_makes_nothing() {
    isolated("a_wrong_pin_of_another_token_is_presented_once_and_makes_nothing", |token| {
        let second = Second::make("acme-hsm", true);
        let world = World::new(token);
        second.write_pin("9999");
        let residency = Some(second.residency());
        let made = world.vault.create_organization_at(&Caller::daemon(), "acme", (None, None), residency);
        assert_eq!(errno(made), libc::ENOKEY);
        assert_eq!(errno(world.vault.organization("acme")), libc::ENOENT);
        world.org("other");
        assert!(world.vault.move_keys(&Caller::daemon(), "other", second.residency()).is_err());
        world.vault.close().unwrap();
        let records = rusqlite::Connection::open(world.state().join("records.db")).unwrap();
        let intents: u32 = records.query_row("SELECT count(*) FROM intent", (), |row| row.get(0)).unwrap();
        assert_eq!(intents, 0, "the next mount would present the PIN again");
        second.write_pin("4321");
        assert_eq!(second.keys(), 0);
    });
}

fn pair(organization: &str) -> (String, String) {
    ("organizationId".to_owned(), organization.to_owned())
}

#[test]
fn a_changed_or_exchanged_wrapped_kek_does_not_authenticate() {
    isolated("a_changed_or_exchanged_wrapped_kek_does_not_authenticate", |token| {
        let keyring = token.open();
        let (root, a, b) = (KekRef::fresh(), KekRef::fresh(), KekRef::fresh());
        keyring.create_root(root).unwrap();
        let of_a = keyring.create_wrapped_kek(0, a, root, pair("a")).unwrap();
        let of_b = keyring.create_wrapped_kek(0, b, root, pair("b")).unwrap();
        let dek = keyring.fresh(1, &[a], &context("a"), Patience::Wait).unwrap();
        drop(keyring);
        let open_with = |wrapped: &WrappedKek, organization: &str| {
            let keyring = token.open();
            let lodging = Lodging { home: Home::Wrapped(0, wrapped.clone()), pair: pair(organization) };
            keyring.ask_for_homes(Box::new(move |_, _| Some(lodging.clone())));
            let opened = keyring.unwrap(1, &dek.wrapped, &context("a"), Patience::Wait);
            assert_eq!(keyring.status().calls.recoveries, 0, "a forgery is no reason to start the module over");
            opened
        };
        assert_eq!(open_with(&of_a, "a").unwrap().expose(), dek.key.expose());
        let mut changed = of_a.clone();
        changed.blob[7] ^= 1;
        let mut unconfirmed = of_a.clone();
        unconfirmed.confirmation[40] ^= 1;
        let exchanged = WrappedKek { blob: of_b.blob.clone(), ..of_a.clone() };
        for (what, wrapped, organization) in [
            ("changed", &changed, "a"),
            ("with another confirmation", &unconfirmed, "a"),
            ("another KEK", &exchanged, "a"),
            ("another KEK with its own confirmation", &of_b, "a"),
            ("of another organization", &of_a, "b"),
        ] {
            let error = open_with(wrapped, organization).unwrap_err();
            assert!(matches!(error, KeyError::Authentication), "{what}: {error}");
        }
        let lost = WrappedKek { root: KekRef::fresh(), ..of_a };
        assert!(matches!(open_with(&lost, "a"), Err(KeyError::NoSuchKey(root)) if root == lost.root));
    });
}

#[test]
fn a_wrapped_kek_cannot_be_unwrapped_as_a_readable_key() {
    isolated("a_wrapped_kek_cannot_be_unwrapped_as_a_readable_key", |token| {
        let keyring = token.open();
        let root = KekRef::fresh();
        keyring.create_root(root).unwrap();
        let blob = keyring.create_wrapped_kek(0, KekRef::fresh(), root, pair("a")).unwrap().blob;
        // What somebody with the PIN and a copy of the records can do; the keyring has logged the process in.
        let pkcs11 = Pkcs11::new(token.module()).unwrap();
        let session = pkcs11.open_rw_session(slot(&pkcs11)).unwrap();
        let id = [&root.id[..], &root.version.to_be_bytes()].concat();
        let [root] = session.find_objects(&[Attribute::Id(id)]).unwrap()[..] else { panic!("one root") };
        let unwrap = |changes: &[Attribute]| {
            let honest = [
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::AES),
                Attribute::Token(false),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::Wrap(false),
                Attribute::Unwrap(false),
            ];
            let changed = |a: &Attribute| changes.iter().any(|change| change.attribute_type() == a.attribute_type());
            let kept = honest.into_iter().filter(|a| !changed(a));
            let template: Vec<_> = kept.chain(changes.iter().cloned()).collect();
            session.unwrap_key(&Mechanism::AesKeyWrap, root, &blob, &template)
        };
        let key = unwrap(&[]).unwrap();
        assert!(session.get_attributes(key, &[AttributeType::Value]).unwrap().is_empty(), "readable");
        assert!(session.wrap_key(&Mechanism::AesKeyWrap, root, key).is_err(), "wrapped out");
        for changes in [
            &[Attribute::Sensitive(false), Attribute::Extractable(true)][..],
            &[Attribute::Sensitive(false)],
            &[Attribute::Extractable(true)],
            &[Attribute::Wrap(true)],
            &[Attribute::Token(true)],
            &[Attribute::KeyType(KeyType::GENERIC_SECRET)],
        ] {
            assert!(unwrap(changes).is_err(), "unwrapped with {changes:?}");
        }
        for more in [Attribute::Decrypt(true), Attribute::Extractable(true), Attribute::Modifiable(true)] {
            let more = [more];
            assert!(session.update_attributes(root, &more).is_err(), "changed: {more:?}");
            assert!(session.copy_object(root, &more).is_err(), "copied: {more:?}");
        }
    });
}
