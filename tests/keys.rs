//! The keyring on a real token. Each test runs in a process of its own with a token of its own, because a
//! PKCS#11 module and `SOFTHSM2_CONF` belong to the whole process.

#[path = "keys/outage.rs"]
mod outage;
#[path = "keys/suites.rs"]
mod suites;
#[path = "keys/token.rs"]
mod token;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use token::{context, eventually, isolated, kek, refusal, wrapped};
use vaultfs::keys::{CacheLimits, KekRef, KekState, KeyError, Keyring, Patience, WrappedDek};

#[test]
fn a_dek_survives_its_wrapping_and_a_new_keyring() {
    isolated("a_dek_survives_its_wrapping_and_a_new_keyring", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        assert_eq!(keyring.kek_state(kek), KekState::Active);
        let fresh = keyring.fresh(1, &[kek], &context("a"), Patience::Wait).unwrap();
        assert_eq!(fresh.wrapped.layers[0].kek, kek);
        drop(keyring);
        let again = token.open();
        let opened = again.unwrap(1, &fresh.wrapped, &context("a"), Patience::Wait).unwrap();
        assert_eq!(opened.expose(), fresh.key.expose());
        assert_eq!(again.status().label, "vault");
        assert_eq!(again.status().state, "active");
    });
}

#[test]
fn a_kek_cannot_be_read_copied_or_changed() {
    isolated("a_kek_cannot_be_read_copied_or_changed", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        assert!(matches!(keyring.create_kek(kek), Err(KeyError::KekExists(k)) if k == kek));
        token.assert_kek_is_shut(kek);
    });
}

#[test]
fn what_was_changed_or_moved_does_not_authenticate() {
    isolated("what_was_changed_or_moved_does_not_authenticate", |token| {
        let keyring = token.open();
        let kek_one = kek(&keyring);
        let good = wrapped(&keyring, kek_one);
        let other = kek(&keyring);
        let second_version = KekRef { version: 2, ..kek_one };
        keyring.create_kek(second_version).unwrap();
        let changed = |change: &dyn Fn(&mut WrappedDek)| {
            let mut wrapped = good.clone();
            change(&mut wrapped);
            wrapped
        };
        let bad = [
            changed(&|w| w.ciphertext[0] ^= 1),
            changed(&|w| w.ciphertext[47] ^= 1),
            changed(&|w| w.ciphertext.truncate(20)),
            changed(&|w| w.layers[0].iv[5] ^= 1),
            changed(&|w| w.layers[0].iv.push(0)),
            changed(&|w| w.dek_id[0] ^= 1),
            changed(&|w| w.layers[0].kek = other),
            changed(&|w| w.layers[0].kek = second_version),
            changed(&|w| w.layers[0].suite ^= 3),
            changed(&|w| w.layers.clear()),
            changed(&|w| w.layers.push(w.layers[0].clone())),
        ];
        for wrapped in &bad {
            let error = keyring.unwrap(1, wrapped, &context("a"), Patience::Wait).unwrap_err();
            assert!(matches!(error, KeyError::Authentication), "{error}");
        }
        let error = keyring.unwrap(1, &good, &context("b"), Patience::Wait).unwrap_err();
        assert!(matches!(error, KeyError::Authentication), "{error}");

        keyring.unwrap(1, &good, &context("a"), Patience::Wait).unwrap();
        let error = keyring.unwrap(1, &good, &context("b"), Patience::Wait).unwrap_err();
        assert!(matches!(error, KeyError::Authentication), "a cached key opens for its own context alone: {error}");
        assert_eq!(keyring.status().calls.recoveries, 0, "a forgery is no reason to start the module over");
    });
}

#[test]
fn a_missing_kek_is_reported_and_not_made() {
    isolated("a_missing_kek_is_reported_and_not_made", |token| {
        let keyring = token.open();
        let kept = kek(&keyring);
        let lost = kek(&keyring);
        let dek = wrapped(&keyring, lost);
        keyring.destroy_kek(lost).unwrap();
        assert!(matches!(keyring.destroy_kek(lost), Err(KeyError::NoSuchKey(k)) if k == lost));
        let unwrapped = keyring.unwrap(1, &dek, &context("a"), Patience::Wait);
        assert!(matches!(unwrapped, Err(KeyError::NoSuchKey(k)) if k == lost));
        let fresh = keyring.fresh(1, &[lost], &context("a"), Patience::Wait);
        assert!(matches!(fresh, Err(KeyError::NoSuchKey(k)) if k == lost));
        assert_eq!(keyring.kek_state(lost), KekState::Missing);
        assert_eq!(keyring.kek_state(kept), KekState::Active);
        assert_eq!(token.keys(), 1);

        keyring.destroy_kek(kept).unwrap();
        assert_eq!(keyring.kek_state(kept), KekState::Missing, "an empty token is believed once started over");
        assert_eq!(token.keys(), 0);
    });
}

#[test]
fn a_kek_destroyed_by_another_process_is_missing() {
    isolated("a_kek_destroyed_by_another_process_is_missing", |token| {
        let keyring = token.open();
        let (lost, _kept) = (kek(&keyring), kek(&keyring));
        let dek = wrapped(&keyring, lost);
        token.destroy_elsewhere(lost);
        let unwrapped = keyring.unwrap(1, &dek, &context("a"), Patience::Wait);
        assert!(matches!(unwrapped, Err(KeyError::NoSuchKey(k)) if k == lost), "{unwrapped:?}");
    });
}

#[test]
fn what_has_to_be_put_right_before_the_start_is_named() {
    isolated("what_has_to_be_put_right_before_the_start_is_named", |token| {
        let open = |uri: &str| {
            let mut config = token.config();
            config.uri = uri.parse().unwrap();
            refusal(Keyring::open(config)).to_string()
        };
        let message = open("pkcs11:token=vault");
        assert!(message.contains("add ?module-path="), "{message}");
        let message = open("pkcs11:token=vault?module-path=/nonexistent/module.so");
        assert!(message.contains("/nonexistent/module.so") && message.contains("install it"), "{message}");
        let message = open("pkcs11:token=vault?module-path=/etc/passwd");
        assert!(message.contains("/etc/passwd is not a usable PKCS#11 module"), "{message}");
        let started = Instant::now();
        let message = open(&format!("pkcs11:token=other?module-path={}", token.module().display()));
        assert!(message.contains("pkcs11:token=other") && message.contains("token=vault (serial "), "{message}");
        assert!(started.elapsed() < Duration::from_secs(20));

        token.without_user_pin("bare");
        let message = open(&format!("pkcs11:token=bare?module-path={}", token.module().display()));
        assert!(message.contains("bare has no user PIN"), "{message}");

        let mut config = token.config();
        config.pin = token.pin_file_with_mode(0o644);
        let error = refusal(Keyring::open(config));
        assert!(matches!(&error, KeyError::Configuration(message) if message.contains("chmod 0400")), "{error}");
    });
}

#[test]
fn a_root_key_is_made_where_it_guards_what_is_wrapped_and_nowhere_else() {
    isolated("a_root_key_is_made_where_it_guards_what_is_wrapped_and_nowhere_else", |token| {
        let keyring = token.open();
        let (root, kek) = (KekRef::fresh(), KekRef::fresh());
        let made = keyring.create_root(root);
        if token.guards_wrapped_keys() {
            made.unwrap();
            keyring.create_wrapped_kek(0, kek, root, ("organizationId".to_owned(), "a".to_owned())).unwrap();
            assert_eq!(token.keys(), 1);
        } else {
            let error = made.unwrap_err();
            assert!(error.to_string().contains("this token cannot keep wrapped KEKs safe"), "{error}");
            assert_eq!(token.keys(), 0);
        }
    });
}

/// SoftHSM fails to make a key that another session comes across meanwhile, and keeps a part of it without a name.
#[test]
fn keys_are_made_and_destroyed_while_others_are_looked_for() {
    isolated("keys_are_made_and_destroyed_while_others_are_looked_for", |token| {
        let keyring = token.open();
        // A token without any key is not believed.
        let kept = kek(&keyring);
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..40 {
                        let kek = kek(&keyring);
                        keyring.destroy_kek(kek).unwrap();
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
            while made.load(std::sync::atomic::Ordering::SeqCst) < 120 {
                let none = keyring.fresh(1, &[KekRef::fresh()], &context("a"), Patience::Wait);
                assert!(matches!(none, Err(KeyError::NoSuchKey(_))));
            }
        });
        keyring.destroy_kek(kept).unwrap();
        assert_eq!(token.keys(), 0);
        assert_eq!(keyring.status().calls.recoveries, 0);
    });
}

#[test]
fn a_warm_pool_makes_deks_without_the_token() {
    isolated("a_warm_pool_makes_deks_without_the_token", |token| {
        let mut config = token.config();
        config.pool = 16;
        let keyring = Keyring::open(config).unwrap();
        let kek = kek(&keyring);
        let none = keyring.fresh(1, &[kek], &context("a"), Patience::Never);
        assert!(matches!(none, Err(KeyError::WouldWait)));
        eventually(Duration::from_secs(30), || keyring.status().pooled == 16);
        let before = keyring.token_calls();
        let deks: Vec<_> =
            (0..7).map(|_| keyring.fresh(1, &[kek], &context("a"), Patience::Never).unwrap().wrapped).collect();
        assert_eq!(keyring.token_calls(), before);
        assert_eq!(deks.iter().map(|dek| dek.dek_id).collect::<HashSet<_>>().len(), 7);
        for dek in &deks {
            keyring.unwrap(1, dek, &context("a"), Patience::Never).unwrap();
            keyring.forget(&dek.dek_id);
            keyring.unwrap(1, dek, &context("a"), Patience::Wait).unwrap();
        }
        keyring.fresh(1, &[kek], &context("a"), Patience::Never).unwrap();
        eventually(Duration::from_secs(30), || keyring.status().pooled == 16);
        keyring.forget_organization(1);
        assert_eq!((keyring.status().pooled, keyring.status().cached), (0, 0));
    });
}

#[test]
fn a_first_unwrap_is_one_call_and_a_cached_one_is_none() {
    isolated("a_first_unwrap_is_one_call_and_a_cached_one_is_none", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        let dek = wrapped(&keyring, kek);
        let opened = Arc::new(Mutex::new(Vec::new()));
        let log = opened.clone();
        keyring.on_unwrap(Box::new(move |organization, dek_id| log.lock().unwrap().push((organization, *dek_id))));
        assert!(matches!(keyring.unwrap(1, &dek, &context("a"), Patience::Never), Err(KeyError::WouldWait)));
        let before = keyring.token_calls();
        keyring.unwrap(1, &dek, &context("a"), Patience::Wait).unwrap();
        assert_eq!(keyring.token_calls(), before + 1);
        keyring.unwrap(1, &dek, &context("a"), Patience::Never).unwrap();
        assert_eq!(keyring.token_calls(), before + 1);
        assert_eq!(*opened.lock().unwrap(), [(1, dek.dek_id)]);
    });
}

#[test]
fn a_key_past_its_soft_age_is_refreshed_in_the_background() {
    isolated("a_key_past_its_soft_age_is_refreshed_in_the_background", |token| {
        let mut config = token.config();
        config.cache = CacheLimits { entries: 10, soft: Duration::from_millis(50), hard: Duration::from_secs(60) };
        let keyring = Keyring::open(config).unwrap();
        let (lost, _kept) = (kek(&keyring), kek(&keyring));
        let dek = keyring.fresh(1, &[lost], &context("a"), Patience::Wait).unwrap().wrapped;
        std::thread::sleep(Duration::from_millis(60));
        let before = keyring.status().calls.unwraps;
        keyring.unwrap(1, &dek, &context("a"), Patience::Never).unwrap();
        eventually(Duration::from_secs(30), || keyring.status().calls.unwraps == before + 1);
        token.destroy_elsewhere(lost);
        eventually(Duration::from_secs(30), || keyring.unwrap(1, &dek, &context("a"), Patience::Never).is_err());
        assert_eq!(keyring.status().cached, 0);
    });
}

#[test]
fn eight_threads_ask_for_each_key_once() {
    isolated("eight_threads_ask_for_each_key_once", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        let deks: Vec<_> = (0..200).map(|_| wrapped(&keyring, kek)).collect();
        let before = keyring.token_calls();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (keyring, deks) = (&keyring, &deks);
                scope.spawn(move || {
                    for number in 0..deks.len() {
                        let dek = &deks[(number + thread % 2) % deks.len()];
                        keyring.unwrap(1, dek, &context("a"), Patience::Wait).unwrap();
                        keyring.fresh(2, &[kek], &context("b"), Patience::Wait).unwrap();
                    }
                });
            }
        });
        assert_eq!(keyring.token_calls() - before, 200 + 8 * 200);
        assert_eq!(keyring.status().calls.recoveries, 0);
    });
}

#[test]
fn two_keyrings_share_a_module() {
    isolated("two_keyrings_share_a_module", |token| {
        let (one, two) = (token.open(), token.open());
        let kek = kek(&one);
        let dek = wrapped(&one, kek);
        two.unwrap(1, &dek, &context("a"), Patience::Wait).unwrap();
        drop(one);
        two.forget(&dek.dek_id);
        two.unwrap(1, &dek, &context("a"), Patience::Wait).unwrap();
    });
}

#[test]
fn a_kek_that_a_kill_left_without_its_value_is_made_anew() {
    isolated("a_kek_that_a_kill_left_without_its_value_is_made_anew", |token| {
        let keyring = token.open();
        let whole = kek(&keyring);
        let others = token.object_files();
        let cut = kek(&keyring);
        let dek = wrapped(&keyring, whole);
        drop(keyring);
        token.cut_value(&others);
        let keyring = token.open();
        assert!(matches!(keyring.create_kek(cut), Err(KeyError::KekExists(_))));
        assert!(keyring.fresh(1, &[cut], &context("a"), Patience::Wait).is_err());
        for kek in [whole, cut] {
            keyring.adopt_kek(kek).unwrap();
        }
        wrapped(&keyring, cut);
        keyring.unwrap(1, &dek, &context("a"), Patience::Wait).unwrap();
        assert_eq!(token.keys(), 2);
    });
}
