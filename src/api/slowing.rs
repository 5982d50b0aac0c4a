//! Slowing those who try API keys: each wrong key from an address makes the next answer wait longer.
//!
//! A request without any key guesses nothing and waits only when there were very many of them, so that nobody fills the
//! audit log at the speed of the network.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit};

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
/// An address that was quiet for this long begins anew.
const FORGIVEN: Duration = Duration::from_secs(60);
const ADDRESSES: usize = 10_000;
/// Failures that wait for their answer at one time; more are turned away at once.
const WAITING: usize = 64;
/// So many requests without any key weigh as much as one wrong key.
const KEYLESS: u64 = 1000;
/// At most one of those that are turned away in this time is put on record.
const TOLD_EACH: Duration = Duration::from_secs(1);

/// What is wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    NoKey,
    WrongKey,
}

pub struct Failures {
    by_address: Mutex<HashMap<IpAddr, (u64, Instant)>>,
    waiting: Semaphore,
    told: Mutex<Option<Instant>>,
}

/// The wait that a failure deserves.
pub struct Pause<'a> {
    time: Duration,
    _place: Option<SemaphorePermit<'a>>,
}

impl Pause<'_> {
    pub async fn over(self) {
        if !self.time.is_zero() {
            tokio::time::sleep(self.time).await;
        }
    }
}

impl Default for Failures {
    fn default() -> Self {
        Failures { by_address: Mutex::default(), waiting: Semaphore::new(WAITING), told: Mutex::default() }
    }
}

impl Failures {
    /// How long one more failure from here has to wait; `None` if too many wait already.
    pub fn pause(&self, from: IpAddr, failure: Failure) -> Option<Pause<'_>> {
        let time = self.count(site(from), failure);
        if time.is_zero() {
            return Some(Pause { time, _place: None });
        }
        let place = self.waiting.try_acquire().ok()?;
        Some(Pause { time, _place: Some(place) })
    }

    /// Whether one that is turned away is put on record; most are not, or they would fill it.
    pub fn is_told(&self) -> bool {
        let mut told = self.told.lock();
        let due = told.is_none_or(|last| last.elapsed() >= TOLD_EACH);
        if due {
            *told = Some(Instant::now());
        }
        due
    }

    fn count(&self, from: IpAddr, failure: Failure) -> Duration {
        let mut known = self.by_address.lock();
        if known.len() >= ADDRESSES {
            known.retain(|_, (_, last)| last.elapsed() < FORGIVEN);
        }
        if known.len() >= ADDRESSES && !known.contains_key(&from) {
            return LONGEST;
        }
        let (weight, last) = known.entry(from).or_insert((0, Instant::now()));
        if last.elapsed() >= FORGIVEN {
            *weight = 0;
        }
        *weight += if failure == Failure::WrongKey { KEYLESS } else { 1 };
        *last = Instant::now();
        match *weight / KEYLESS {
            0 => Duration::ZERO,
            times => (FIRST * 2u32.saturating_pow((times - 1).min(16) as u32)).min(LONGEST),
        }
    }
}

/// Who counts as one: an IPv4 address, or the /64 in which an IPv6 host chooses its own.
fn site(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wrong_key_of_an_address_waits_longer_up_to_a_limit() {
        let (failures, one, other) = (Failures::default(), [127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        assert_eq!(failures.count(one, Failure::WrongKey), FIRST);
        assert_eq!(failures.count(one, Failure::WrongKey), FIRST * 2);
        assert_eq!(failures.count(other, Failure::WrongKey), FIRST);
        for _ in 0..40 {
            failures.count(one, Failure::WrongKey);
        }
        assert_eq!(failures.count(one, Failure::WrongKey), LONGEST);
        assert_eq!(failures.count(one, Failure::NoKey), LONGEST, "leaving the key away does not help");
    }

    #[test]
    fn requests_without_a_key_wait_only_when_they_are_very_many() {
        let (failures, one) = (Failures::default(), [127, 0, 0, 1].into());
        for _ in 1..KEYLESS {
            assert_eq!(failures.count(one, Failure::NoKey), Duration::ZERO);
        }
        assert_eq!(failures.count(one, Failure::NoKey), FIRST);
        for _ in 0..10 * KEYLESS {
            failures.count(one, Failure::NoKey);
        }
        assert_eq!(failures.count(one, Failure::NoKey), LONGEST);
    }

    #[test]
    fn more_than_can_wait_are_turned_away_and_told_of_once() {
        let (failures, one) = (Failures::default(), [127, 0, 0, 1].into());
        let waiting: Vec<_> = (0..WAITING).map(|_| failures.pause(one, Failure::WrongKey)).collect();
        assert!(waiting.iter().all(Option::is_some) && failures.pause(one, Failure::WrongKey).is_none());
        assert!(failures.is_told() && !failures.is_told());
        drop(waiting);
        assert!(failures.pause(one, Failure::WrongKey).is_some());
    }

    #[test]
    fn an_ipv6_host_is_known_by_its_network() {
        let site_of = |text: &str| site(text.parse().unwrap());
        assert_eq!(site_of("2001:db8::1"), site_of("2001:db8::ffff:1"));
        assert_ne!(site_of("2001:db8::1"), site_of("2001:db8:0:1::1"));
        assert_eq!(site_of("::ffff:10.0.0.1"), site_of("10.0.0.1"));
    }
}
