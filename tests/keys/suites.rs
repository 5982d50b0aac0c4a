//! What the probe makes of tokens that differ, and that wrapping is right on each of them.

use crate::token::{context, eventually, isolated, kek, refusal, wrapped};
use std::time::Duration;
use vaultfs::keys::{
    KekRef, KeyError, Keyring, KeyringConfig, Outcome, Patience, PinSource, SUITE_HMAC_KDF, SUITE_TOKEN_GCM, WrapLayer,
    WrappedDek,
};

/// Behaviours of the shim, and the suite and the length of the IV or salt that they lead to.
const TOKENS: [(&str, u8, usize); 4] = [
    ("gcm=host", SUITE_TOKEN_GCM, 12),
    ("gcm=inplace", SUITE_TOKEN_GCM, 12),
    ("gcm=appended", SUITE_TOKEN_GCM, 16),
    ("gcm=none", SUITE_HMAC_KDF, 32),
];

#[test]
fn every_way_of_making_ivs_and_none_at_all_wraps_and_authenticates() {
    isolated("suites::every_way_of_making_ivs_and_none_at_all_wraps_and_authenticates", |token| {
        let mut made = Vec::new();
        for (behaviour, suite, len) in TOKENS {
            let keyring = Keyring::open(token.config_with_shim(&[behaviour])).unwrap();
            assert_eq!(keyring.status().suite, Some(suite), "{behaviour}");
            let kek = kek(&keyring);
            token.assert_kek_is_shut(kek);
            let (fresh, other) = (wrapped(&keyring, kek), wrapped(&keyring, kek));
            let layer = &fresh.layers[0];
            assert_eq!((layer.suite, layer.iv.len()), (suite, len), "{behaviour}");
            assert_ne!(layer.iv, other.layers[0].iv, "{behaviour}");
            let before = keyring.token_calls();
            let key = keyring.unwrap(1, &fresh, &context("a"), Patience::Wait).unwrap();
            assert_eq!(keyring.token_calls(), before + 1, "{behaviour}");
            let changed = |change: &dyn Fn(&mut WrappedDek)| {
                let mut wrapped = fresh.clone();
                change(&mut wrapped);
                wrapped
            };
            for bad in [
                changed(&|w| w.ciphertext[0] ^= 1),
                changed(&|w| w.ciphertext[47] ^= 1),
                changed(&|w| w.layers[0].iv[0] ^= 1),
                changed(&|w| w.layers[0].suite ^= 3),
                changed(&|w| w.layers[0].iv.truncate(8)),
                changed(&|w| w.dek_id[0] ^= 1),
            ] {
                let error = keyring.unwrap(1, &bad, &context("a"), Patience::Wait).unwrap_err();
                assert!(matches!(error, KeyError::Authentication), "{behaviour}: {error}");
            }
            assert_eq!(keyring.status().calls.recoveries, 0, "{behaviour}");
            made.push((fresh, *key.expose()));
        }
        let keyring = Keyring::open(token.config_with_shim(&["gcm=host"])).unwrap();
        for (wrapped, key) in &made {
            let opened = keyring.unwrap(1, wrapped, &context("a"), Patience::Wait).unwrap();
            assert_eq!(opened.expose(), key, "a layer opens by what it says, not by what the token does now");
        }
        let pairs = [context("a"), vec![("customer".to_owned(), "c".to_owned())]].concat();
        let (new, old) = (kek(&keyring), made[3].0.layers[0].kek);
        let both = keyring.fresh(1, &[old, new], &pairs, Patience::Wait).unwrap();
        assert_eq!(both.wrapped.layers.iter().map(|layer| layer.suite).collect::<Vec<_>>(), [2, 1]);
        keyring.forget(&both.wrapped.dek_id);
        let opened = keyring.unwrap(1, &both.wrapped, &pairs, Patience::Wait).unwrap();
        assert_eq!(opened.expose(), both.key.expose());
    });
}

/// Computed by another implementation (Python's `hmac` and OpenSSL's AES-GCM) from docs/format.md.
#[test]
fn known_wrapped_keys_open_in_both_suites() {
    isolated("suites::known_wrapped_keys_open_in_both_suites", |token| {
        let keyring = Keyring::open(token.config_with_shim(&["gcm=host"])).unwrap();
        let dek: Vec<u8> = (100..132).collect();
        let vectors = [
            (
                SUITE_TOKEN_GCM,
                (0..12).collect(),
                "7ce48f177560b3221bdf8bf392291e899549c0f9601b0d4a6ab31dc50e56ef8654dff4f2769522482dee88222f785edd",
            ),
            (
                SUITE_TOKEN_GCM,
                (0..16).collect(),
                "c675a8c4cfc8dbf3d62a9af964dc09fceece6fc79affa806c3739613cbb9c06096604f5319839679ccd11dd4975bbe1f",
            ),
            (
                SUITE_HMAC_KDF,
                (200..232).collect::<Vec<u8>>(),
                "224aac3abea1c98665545b811149e5b2a83fd7959939a39d73d99aa6b2f45c8be80cf3ec7ef49eb3f00de76aade22ffa",
            ),
        ];
        for (suite, iv, ciphertext) in vectors {
            let kek = KekRef::fresh();
            token.import(kek, suite, &[7; 32]);
            let bytes = |at: usize| u8::from_str_radix(&ciphertext[at..at + 2], 16).unwrap();
            let wrapped = WrappedDek {
                dek_id: std::array::from_fn(|at| at as u8),
                layers: vec![WrapLayer { suite, kek, iv }],
                ciphertext: (0..ciphertext.len()).step_by(2).map(bytes).collect(),
            };
            let opened = keyring.unwrap(1, &wrapped, &context("a"), Patience::Wait).unwrap();
            assert_eq!(opened.expose()[..], dek);
            keyring.forget(&wrapped.dek_id);
        }
    });
}

#[test]
fn a_token_that_comes_to_make_ivs_otherwise_is_not_believed() {
    isolated("suites::a_token_that_comes_to_make_ivs_otherwise_is_not_believed", |token| {
        for (then, now) in [("gcm=host", "gcm=inplace"), ("gcm=inplace", "gcm=host"), ("gcm=appended", "gcm=host")] {
            let keyring = Keyring::open(token.config_with_shim(&[then])).unwrap();
            let kek = kek(&keyring);
            let before = wrapped(&keyring, kek);
            token.shim(&[now]);
            let error = keyring.fresh(1, &[kek], &context("a"), Patience::Wait).unwrap_err();
            assert!(error.to_string().contains("how it makes IVs") || error.to_string().contains("are due"), "{error}");
            keyring.unwrap(1, &before, &context("a"), Patience::Wait).unwrap();
        }
    });
}

#[test]
fn attacks_are_refused_by_a_good_token_and_seen_to_succeed_on_a_weak_one() {
    isolated("suites::attacks_are_refused_by_a_good_token_and_seen_to_succeed_on_a_weak_one", |token| {
        let good = token.config_with_shim(&[]);
        for behaviour in ["gcm=host", "gcm=none"] {
            token.shim(&[behaviour]);
            let found = Keyring::check_token(good.uri.clone(), &good.pin).unwrap();
            assert!(found.attacks.iter().all(|a| a.outcome == Outcome::Refused), "{behaviour}: {:?}", found.attacks);
            assert!(found.is_safe() && found.wrap_us.is_some() && found.attacks.len() == 7);
            assert!(found.mechanisms.iter().any(|m| m.mechanism == "SHA256_HMAC" && m.offered));
        }
        token.shim(&["weak=yes"]);
        let found = Keyring::check_token(good.uri.clone(), &good.pin).unwrap();
        let succeeding: Vec<_> =
            found.attacks.iter().filter(|a| a.outcome == Outcome::Succeeded).map(|a| a.attack.as_str()).collect();
        let expected = [
            "copy a KEK with more rights",
            "give a KEK more rights",
            "unwrap a wrapped KEK as a readable key",
            "let the root key decrypt what it wrapped",
        ];
        assert_eq!(succeeding, expected);
        assert!(!found.is_safe());
        let keyring = Keyring::open(good).unwrap();
        let error = keyring.create_kek(KekRef::fresh()).unwrap_err();
        assert!(error.to_string().contains("does not keep these attributes"), "{error}");
        assert_eq!(token.keys(), 0);
    });
}

#[test]
fn a_token_that_lets_keys_be_copied_serves_where_that_is_accepted() {
    isolated("suites::a_token_that_lets_keys_be_copied_serves_where_that_is_accepted", |token| {
        let strict = |lines: &[&str]| token.config_with_shim(&[&["copyable=unknown"][..], lines].concat());
        let accepting = |lines: &[&str]| {
            let config = strict(lines);
            KeyringConfig { uri: format!("{}&copies=accepted", config.uri).parse().unwrap(), ..config }
        };
        let outcomes = |config: &KeyringConfig| {
            let found = Keyring::check_token(config.uri.clone(), &config.pin).unwrap();
            let of = |which: &str| found.attacks.iter().find(|a| a.attack == which).unwrap().outcome;
            (found.is_safe(), of("copy a KEK as a readable key"), of("copy a KEK with more rights"))
        };
        let serves = |config: KeyringConfig| {
            let keyring = Keyring::open(config).unwrap();
            let kek = kek(&keyring);
            keyring.unwrap(1, &wrapped(&keyring, kek), &context("a"), Patience::Wait).unwrap();
            keyring.destroy_kek(kek).unwrap();
        };
        let refuses = |config: KeyringConfig, why: &str| {
            let error = Keyring::open(config).unwrap().create_kek(KekRef::fresh()).unwrap_err();
            assert!(matches!(error, KeyError::Configuration(_)) && error.to_string().contains(why), "{error}");
            assert_eq!(token.keys(), 0);
        };
        // What can neither be changed nor copied with a change is as good as before.
        assert_eq!(outcomes(&strict(&[])), (true, Outcome::Refused, Outcome::Refused));
        serves(strict(&[]));

        assert_eq!(outcomes(&strict(&["copies=other"])), (false, Outcome::Refused, Outcome::Succeeded));
        refuses(strict(&["copies=other"]), "copies=accepted");
        assert_eq!(outcomes(&accepting(&["copies=other"])), (true, Outcome::Refused, Outcome::Accepted));
        serves(accepting(&["copies=other"]));
        let root = Keyring::open(accepting(&["copies=other"])).unwrap().create_root(KekRef::fresh()).unwrap_err();
        assert!(root.to_string().contains("cannot keep wrapped KEKs safe"), "{root}");

        assert_eq!(outcomes(&accepting(&["copies=readable"])), (false, Outcome::Succeeded, Outcome::Accepted));
        refuses(accepting(&["copies=readable"]), "value of a copy");
        refuses(accepting(&["weak=yes"]), "Modifiable");
    });
}

#[test]
fn a_token_without_any_suite_is_refused_and_its_check_says_why() {
    isolated("suites::a_token_without_any_suite_is_refused_and_its_check_says_why", |token| {
        let config = token.config_with_shim(&["gcm=none", "hmac=none"]);
        let found = Keyring::check_token(config.uri.clone(), &config.pin).unwrap();
        assert_eq!(found.suite, None);
        assert!(!found.is_safe() && found.lacks.unwrap().contains("HMAC-SHA256"));
        let error = refusal(Keyring::open(config));
        assert!(matches!(&error, KeyError::Configuration(why) if why.contains("neither AES-256-GCM")), "{error}");
    });
}

#[test]
fn a_key_that_is_made_too_late_is_destroyed_again() {
    isolated("suites::a_key_that_is_made_too_late_is_destroyed_again", |token| {
        let mut config = token.config_with_shim(&[]);
        config.timeout = Duration::from_millis(400);
        let keyring = Keyring::open(config).unwrap();
        // Three calls before the key is made, and it is made after the caller has left.
        token.shim(&["delay=150"]);
        let made = keyring.create_kek(KekRef::fresh());
        assert!(matches!(made, Err(KeyError::Unavailable(_))), "{made:?}");
        token.shim(&[]);
        // Its end waits for calls under way.
        drop(keyring);
        eventually(Duration::from_secs(30), || token.keys() == 0);
    });
}

#[test]
fn a_slow_token_serves_and_one_that_is_too_slow_comes_back_by_itself() {
    isolated("suites::a_slow_token_serves_and_one_that_is_too_slow_comes_back_by_itself", |token| {
        let mut config = token.config_with_shim(&[]);
        config.timeout = Duration::from_secs(3);
        let keyring = Keyring::open(config).unwrap();
        let kek = kek(&keyring);
        let deks: Vec<_> = (0..3).map(|_| wrapped(&keyring, kek)).collect();
        token.shim(&["delay=50"]);
        keyring.unwrap(1, &deks[0], &context("a"), Patience::Wait).unwrap();
        token.shim(&["delay=5000"]);
        let asked = std::time::Instant::now();
        let late = keyring.unwrap(1, &deks[1], &context("a"), Patience::Wait);
        assert!(matches!(late, Err(KeyError::Unavailable(_))), "{late:?}");
        // The answer takes two such calls.
        assert!(asked.elapsed() < Duration::from_secs(9), "{:?}", asked.elapsed());
        assert_eq!(keyring.status().state, "unavailable");
        keyring.unwrap(1, &deks[0], &context("a"), Patience::Never).unwrap();
        token.shim(&[]);
        eventually(Duration::from_secs(30), || keyring.unwrap(1, &deks[2], &context("a"), Patience::Wait).is_ok());
        assert_eq!(keyring.status().state, "active");
        assert_eq!(keyring.status().calls.recoveries, 0, "what is slow is not started over");
    });
}

#[test]
fn lost_sessions_are_opened_anew() {
    isolated("suites::lost_sessions_are_opened_anew", |token| {
        let keyring = Keyring::open(token.config_with_shim(&["sessions=1"])).unwrap();
        let kek = kek(&keyring);
        let dek = wrapped(&keyring, kek);
        token.shim(&["sessions=2"]);
        keyring.unwrap(1, &dek, &context("a"), Patience::Wait).unwrap();
        wrapped(&keyring, kek);
        assert_eq!(keyring.status().state, "active");
        assert_eq!(token.keys(), 1);
    });
}

#[test]
fn a_new_pin_is_presented_from_then_on() {
    isolated("suites::a_new_pin_is_presented_from_then_on", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        let dek = wrapped(&keyring, kek);
        let new = token.config_with_pin("87878787").pin;
        let nowhere = PinSource::File("/nonexistent/pin".into());
        assert!(matches!(keyring.set_pin(&nowhere), Err(KeyError::Configuration(_))));
        keyring.set_pin(&new).unwrap();
        token.log_everybody_out();
        keyring.unwrap(1, &dek, &context("a"), Patience::Wait).unwrap();
        assert_eq!(keyring.status().calls.logins, 2);
        drop(keyring);
        assert!(matches!(refusal(Keyring::open(token.config())), KeyError::PinRefused(_)));
        drop(Keyring::open(token.config_with_pin("87878787")).unwrap());
    });
}
