//! Real crashes under real loads: the daemon killed at random moments, and the power of its disk cut.
//!
//! Some rounds of each; `VAULTFS_KILLS=N` and `VAULTFS_POWERCUTS=N` ask for more (`scripts/suites`).

#[path = "support/dice.rs"]
mod dice;
#[path = "crash/disk.rs"]
mod disk;
#[path = "crash/kill.rs"]
mod kill;
#[path = "crash/loads.rs"]
mod loads;
#[path = "crash/powercut.rs"]
mod powercut;
#[path = "support/vault.rs"]
mod vault;

/// How often, unless an environment variable says otherwise.
fn rounds(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).map_or(otherwise, |rounds| rounds.parse().expect("a number"))
}

/// Counts rounds and tells of them.
#[derive(Default)]
struct Score {
    passed: usize,
    failed: usize,
}

impl Score {
    /// Whether it went well.
    fn add(&mut self, what: &str, done: &impl std::fmt::Display, round: Result<(), String>) -> bool {
        let number = self.passed + self.failed + 1;
        match &round {
            Ok(()) => {
                self.passed += 1;
                println!("{what} {number}: {done}");
            }
            Err(why) => {
                self.failed += 1;
                println!("{what} {number} FAILED after {done}: {why}");
            }
        }
        round.is_ok()
    }

    fn end(self) {
        println!("{} passed, {} failed", self.passed, self.failed);
        assert_eq!(self.failed, 0, "see above");
    }
}
