//! Slowing those who try API keys: each failure from an address makes the next answer wait longer.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
/// An address that was quiet for this long begins anew.
const FORGIVEN: Duration = Duration::from_secs(60);
const ADDRESSES: usize = 10_000;
/// Failures that wait for their answer at one time; more are turned away at once.
const WAITING: usize = 64;

pub struct Failures {
    by_address: Mutex<HashMap<IpAddr, (u32, Instant)>>,
    waiting: Semaphore,
}

impl Default for Failures {
    fn default() -> Self {
        Failures { by_address: Mutex::default(), waiting: Semaphore::new(WAITING) }
    }
}

impl Failures {
    /// Waits as long as one more failure from here deserves; false if too many wait already.
    pub async fn pause(&self, from: IpAddr) -> bool {
        let pause = self.count(from);
        let Ok(_place) = self.waiting.try_acquire() else { return false };
        tokio::time::sleep(pause).await;
        true
    }

    fn count(&self, from: IpAddr) -> Duration {
        let mut known = self.by_address.lock();
        if known.len() >= ADDRESSES {
            known.retain(|_, (_, last)| last.elapsed() < FORGIVEN);
        }
        if known.len() >= ADDRESSES && !known.contains_key(&from) {
            return LONGEST;
        }
        let (count, last) = known.entry(from).or_insert((0, Instant::now()));
        *count = if last.elapsed() < FORGIVEN { *count + 1 } else { 1 };
        *last = Instant::now();
        (FIRST * 2u32.saturating_pow((*count - 1).min(16))).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_of_an_address_waits_longer_up_to_a_limit() {
        let (failures, one, other) = (Failures::default(), [127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        assert_eq!(failures.count(one), FIRST);
        assert_eq!(failures.count(one), FIRST * 2);
        assert_eq!(failures.count(other), FIRST);
        for _ in 0..40 {
            failures.count(one);
        }
        assert_eq!(failures.count(one), LONGEST);
    }
}
