//! What the end of one open file does to another that is under way.

use crate::vault::token;
use crate::vault::{Access, Caller, Make, Options, Patience, Vault};
use std::sync::Barrier;

const ROUNDS: u64 = 200;

/// The kernel tells of a release when it likes: after the next writer has begun, or in the middle of that.
#[test]
fn a_writers_late_release_does_not_commit_the_next_writers_truncated_value() {
    token::isolated(
        "vault::file::tests::a_writers_late_release_does_not_commit_the_next_writers_truncated_value",
        |token| {
            let directory = tempfile::tempdir().unwrap();
            let state = directory.path().join("state");
            let config = token.config();
            Vault::init(&state, &config.uri.to_string(), &config.pin.to_string()).unwrap();
            let settings = vec![("keep_versions".to_owned(), "1000".to_owned())];
            let vault = Vault::open(&state, Options { settings, ..Options::default() }).unwrap();
            let caller = &Caller { patience: Patience::Wait, ..Caller::daemon() };
            let acme = vault.make(caller, crate::vault::Ino::ROOT, b"acme", 0o755, Make::Directory).unwrap().ino;
            let writes = Access { write: true, ..Access::default() };
            let truncates = Access { truncate: true, ..writes };
            let (attr, mut first) = vault.create(caller, acme, b"f", 0o644, writes).unwrap();
            vault.write(caller, first, 0, b"value").unwrap();
            vault.flush(caller, first).unwrap();
            let id = vault.find_object(b"acme/f").unwrap();
            for round in 1..ROUNDS {
                let barrier = Barrier::new(2);
                let second = std::thread::scope(|scope| {
                    let vault = &vault;
                    let late = scope.spawn(|| {
                        barrier.wait();
                        vault.release(first).unwrap();
                    });
                    barrier.wait();
                    let second = vault.open_file(caller, attr.ino, truncates).unwrap();
                    late.join().unwrap();
                    assert_eq!(vault.versions(id).unwrap().len() as u64, round, "the next writer has not closed yet");
                    second
                });
                vault.write(caller, second, 0, b"value").unwrap();
                vault.flush(caller, second).unwrap();
                first = second;
            }
            let versions = vault.versions(id).unwrap();
            assert_eq!(versions.len() as u64, ROUNDS);
            assert!(versions.iter().all(|version| version.size == 5), "none is empty");
            vault.release(first).unwrap();
            vault.close().unwrap();
        },
    );
}
