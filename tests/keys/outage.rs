//! A token that goes away, hangs, or is used by others: what the keyring says meanwhile, and that it heals.

use crate::token::{context, eventually, isolated, kek, refusal, wrapped};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use vaultfs::keys::{KekRef, KekState, KeyError, Keyring, Patience};

#[test]
fn a_token_that_goes_away_is_bridged_and_noticed_when_back() {
    isolated("outage::a_token_that_goes_away_is_bridged_and_noticed_when_back", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        let cached = keyring.fresh(1, &[kek], &context("a"), Patience::Wait).unwrap().wrapped;
        let cold = wrapped(&keyring, kek);
        token.take_away();
        for _ in 0..5 {
            let asked = Instant::now();
            let error = keyring.unwrap(1, &cold, &context("a"), Patience::Wait).unwrap_err();
            assert!(matches!(error, KeyError::Unavailable(_)), "{error}");
            assert!(asked.elapsed() < Duration::from_secs(10));
            assert!(matches!(keyring.kek_state(kek), KekState::Unavailable(_)));
            let created = keyring.create_kek(KekRef::fresh());
            assert!(matches!(created, Err(KeyError::Unavailable(_))), "{created:?}");
            keyring.unwrap(1, &cached, &context("a"), Patience::Never).unwrap();
            std::thread::sleep(Duration::from_millis(150));
        }
        assert_eq!(keyring.status().state, "unavailable");
        assert!(keyring.status().last_error.is_some());
        token.bring_back();
        eventually(Duration::from_secs(30), || keyring.unwrap(1, &cold, &context("a"), Patience::Wait).is_ok());
        assert_eq!(keyring.status().state, "active");
        assert_eq!(keyring.kek_state(kek), KekState::Active);
        assert_eq!(token.keys(), 1);
    });
}

#[test]
fn an_absence_that_nobody_noticed_is_not_a_missing_key() {
    isolated("outage::an_absence_that_nobody_noticed_is_not_a_missing_key", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        let cold = wrapped(&keyring, kek);
        std::thread::sleep(Duration::from_millis(1100));
        token.take_away();
        assert!(!matches!(keyring.kek_state(KekRef::fresh()), KekState::Missing));
        token.bring_back();
        eventually(Duration::from_secs(30), || match keyring.unwrap(1, &cold, &context("a"), Patience::Wait) {
            Ok(_) => true,
            Err(KeyError::Unavailable(_)) => false,
            Err(other) => panic!("{other}"),
        });
    });
}

#[test]
fn an_outage_under_load_is_never_mistaken_for_a_bad_key() {
    isolated("outage::an_outage_under_load_is_never_mistaken_for_a_bad_key", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        let deks: Vec<_> = (0..6).map(|_| wrapped(&keyring, kek)).collect();
        let done = AtomicBool::new(false);
        // Ends the threads when an assertion ends the test.
        let end = Instant::now() + Duration::from_secs(30);
        let (opened, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for dek in &deks {
                let (keyring, done, opened, refused) = (&keyring, &done, &opened, &refused);
                scope.spawn(move || {
                    while !done.load(SeqCst) && Instant::now() < end {
                        keyring.forget(&dek.dek_id);
                        match keyring.unwrap(1, dek, &context("a"), Patience::Wait) {
                            Ok(_) => opened.fetch_add(1, SeqCst),
                            Err(KeyError::Unavailable(_)) => refused.fetch_add(1, SeqCst),
                            Err(other) => panic!("{other}"),
                        };
                    }
                });
            }
            for pause in [0, 30, 400, 1300] {
                let pause = Duration::from_millis(pause);
                token.take_away();
                std::thread::sleep(pause);
                token.bring_back();
                eventually(Duration::from_secs(30), || keyring.kek_state(kek) == KekState::Active);
                std::thread::sleep(pause);
            }
            done.store(true, SeqCst);
        });
        assert!(opened.load(SeqCst) > 100 && refused.load(SeqCst) > 0);
        assert_eq!(token.keys(), 1);
    });
}

#[test]
fn a_wrong_pin_is_presented_once() {
    isolated("outage::a_wrong_pin_is_presented_once", |token| {
        let error = refusal(Keyring::open(token.config_with_pin("99999999")));
        assert!(matches!(error, KeyError::PinRefused(_)), "{error}");
        assert!(error.to_string().contains("correct the PIN source"), "{error}");
        drop(token.open());

        let keyring = token.open();
        let kek = kek(&keyring);
        let cold = wrapped(&keyring, kek);
        token.change_pin("55555555");
        token.log_everybody_out();
        for _ in 0..3 {
            let error = keyring.unwrap(1, &cold, &context("a"), Patience::Wait).unwrap_err();
            assert!(matches!(error, KeyError::PinRefused(_)), "{error}");
        }
        assert_eq!(keyring.status().calls.logins, 2, "the right one at start, the wrong one once");
        assert_eq!(keyring.status().state, "pin refused");
    });
}

#[test]
fn a_logout_by_others_is_healed() {
    isolated("outage::a_logout_by_others_is_healed", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        let cold = wrapped(&keyring, kek);
        token.log_everybody_out();
        keyring.unwrap(1, &cold, &context("a"), Patience::Wait).unwrap();
        assert_eq!(keyring.status().calls.recoveries, 0);
        assert_eq!(keyring.status().calls.logins, 2);
    });
}

#[test]
fn a_logout_by_others_is_not_a_missing_key() {
    isolated("outage::a_logout_by_others_is_not_a_missing_key", |token| {
        let keyring = token.open();
        let (kek, _other) = (kek(&keyring), kek(&keyring));
        let cold = wrapped(&keyring, kek);
        drop(keyring);
        // It has not looked for the KEK before.
        let keyring = token.open();
        token.log_everybody_out();
        keyring.unwrap(1, &cold, &context("a"), Patience::Wait).unwrap();
        token.log_everybody_out();
        assert_eq!(keyring.kek_state(kek), KekState::Active);
    });
}

#[test]
fn a_call_that_hangs_holds_up_nobody_else() {
    isolated("outage::a_call_that_hangs_holds_up_nobody_else", |token| {
        let mut config = token.config();
        let timeout = Duration::from_secs(2);
        config.timeout = timeout;
        let keyring = Keyring::open(config).unwrap();
        let kek = kek(&keyring);
        let deks: Vec<_> = (0..5).map(|_| wrapped(&keyring, kek)).collect();
        let hanging: HashSet<_> = deks[..3].iter().map(|dek| dek.dek_id).collect();
        let release = Arc::new(AtomicBool::new(false));
        let released = release.clone();
        // The hook runs on the token's thread, so that it hangs as a call would.
        keyring.on_unwrap(Box::new(move |_, dek_id| {
            while hanging.contains(dek_id) && !released.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }));
        let unwrap = |dek| {
            let asked = Instant::now();
            let answer = keyring.unwrap(1, dek, &context("a"), Patience::Wait).map(drop);
            (answer, asked.elapsed())
        };
        for dek in &deks[..2] {
            let (answer, took) = unwrap(dek);
            assert!(matches!(answer, Err(KeyError::Unavailable(_))), "{answer:?}");
            assert!(took >= timeout, "{took:?}");
        }
        unwrap(&deks[3]).0.unwrap();
        assert!(unwrap(&deks[2]).0.is_err());
        // Once all threads have been at it for as long as a caller waits, nobody waits any more.
        eventually(Duration::from_secs(60), || {
            let (answer, took) = unwrap(&deks[4]);
            assert!(matches!(answer, Err(KeyError::Unavailable(_))), "{answer:?}");
            took < timeout
        });
        assert_eq!(keyring.status().state, "unavailable");
        release.store(true, SeqCst);
        eventually(Duration::from_secs(60), || unwrap(&deks[4]).0.is_ok());
        // It was in the last thread's hands, and the answer may still be on its way.
        eventually(Duration::from_secs(60), || keyring.unwrap(1, &deks[0], &context("a"), Patience::Never).is_ok());
        let before = keyring.token_calls();
        unwrap(&deks[0]).0.unwrap();
        assert_eq!(keyring.token_calls(), before, "an answer that came too late is kept");
    });
}

#[test]
fn a_forked_child_is_refused() {
    isolated("outage::a_forked_child_is_refused", |token| {
        let keyring = token.open();
        let kek = kek(&keyring);
        let cold = wrapped(&keyring, kek);
        // SAFETY: the child asks the keyring, which refuses before it needs another thread, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = keyring.unwrap(1, &cold, &context("a"), Patience::Wait);
            let told = matches!(refused, Err(KeyError::Configuration(message)) if message.contains("fork"));
            // SAFETY: ends the child at once, without the destructors of its parent's threads.
            unsafe { libc::_exit(if told { 0 } else { 1 }) };
        }
        let mut status = -1;
        // SAFETY: waits for the child made above; `status` is a place for its result.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        keyring.unwrap(1, &cold, &context("a"), Patience::Wait).unwrap();
    });
}
