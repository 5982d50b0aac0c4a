//! `kill -9` of the daemon at random moments, all loads running.

use crate::dice::Dice;
use crate::vault::Vault;
use crate::{Score, loads, rounds};
use std::time::Duration;

/// Rounds after which a new vault is taken.
const FRESH: usize = 10;

#[test]
fn after_kill_9_under_load_everything_acknowledged_is_whole() {
    let (mut score, mut dice) = (Score::default(), Dice::thrown());
    let mut left = rounds("VAULTFS_KILLS", 3);
    while left > 0 {
        let vault = Vault::up_with(&loads::OPTIONS);
        let a = vault.org("a");
        for round in 0..left.min(FRESH) {
            left -= 1;
            let at = a.join(format!("{round}"));
            let done = loads::until(&at, round, || {
                std::thread::sleep(Duration::from_millis(dice.between(50, 2500) as u64));
                vault.kill();
            });
            if !score.add("kill", &done, loads::recovered(&vault, &done)) {
                break;
            }
        }
    }
    score.end();
}
