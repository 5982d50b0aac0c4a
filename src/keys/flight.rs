//! One question to the token for each DEK at a time, whose answer all who wait for it share.

use super::cache::Claim;
use super::{KeyError, unavailable};
use crate::crypto::{CryptoError, LockedKey};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

type Answer = Result<Arc<LockedKey>, KeyError>;

/// The questions under way, by DEK id.
#[derive(Default)]
pub struct Flights(Mutex<HashMap<[u8; 16], Arc<Flight>>>);

struct Flight {
    claim: Claim,
    answer: Mutex<Option<Answer>>,
    landed: Condvar,
}

impl Flights {
    /// Asks, or waits for the answer of whoever asks the same already.
    pub fn ask(&self, claim: &Claim, timeout: Duration, question: impl FnOnce() -> Answer) -> Answer {
        let id = claim.wrapped.dek_id;
        let under_way = {
            let mut flights = self.0.lock();
            let under_way = flights.get(&id).cloned();
            if under_way.is_none() {
                let flight = Flight { claim: claim.clone(), answer: Mutex::new(None), landed: Condvar::new() };
                flights.insert(id, Arc::new(flight));
            }
            under_way
        };
        match under_way {
            Some(flight) if flight.claim == *claim => flight.wait(timeout),
            // The same id with other bytes: one of the two will not authenticate, so they share nothing.
            Some(_) => question(),
            None => {
                let answer = question();
                if let Some(flight) = self.0.lock().remove(&id) {
                    *flight.answer.lock() = Some(again(&answer));
                    flight.landed.notify_all();
                }
                answer
            }
        }
    }
}

impl Flight {
    fn wait(&self, timeout: Duration) -> Answer {
        let deadline = Instant::now() + timeout;
        let mut landed = self.answer.lock();
        loop {
            if let Some(answer) = &*landed {
                return again(answer);
            }
            if self.landed.wait_until(&mut landed, deadline).timed_out() {
                return Err(unavailable(format!("no answer within {timeout:?}")));
            }
        }
    }
}

/// The same answer for another caller; `std::io::Error` is why `KeyError` is not `Clone`.
fn again(answer: &Answer) -> Answer {
    Err(match answer {
        Ok(key) => return Ok(key.clone()),
        Err(KeyError::WouldWait) => KeyError::WouldWait,
        Err(KeyError::Unavailable(reason)) => KeyError::Unavailable(reason.clone()),
        Err(KeyError::PinRefused(reason)) => KeyError::PinRefused(reason.clone()),
        Err(KeyError::NoSuchKey(kek)) => KeyError::NoSuchKey(*kek),
        Err(KeyError::KekExists(kek)) => KeyError::KekExists(*kek),
        Err(KeyError::Authentication | KeyError::Memory(CryptoError::Authentication)) => KeyError::Authentication,
        Err(KeyError::Configuration(reason)) => KeyError::Configuration(reason.clone()),
        Err(KeyError::Memory(CryptoError::LockedMemory(error))) => {
            KeyError::Memory(CryptoError::LockedMemory(std::io::Error::new(error.kind(), error.to_string())))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::WrappedDek;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn who_asks_the_same_at_the_same_time_asks_once() {
        let flights = Flights::default();
        let wrapped = WrappedDek { dek_id: [1; 16], layers: Vec::new(), ciphertext: Vec::new() };
        let claim = Claim { organization: 1, context: [0; 32], wrapped };
        let (asked, started, timeout) = (AtomicUsize::new(0), Barrier::new(2), Duration::from_secs(10));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let answer = flights.ask(&claim, timeout, || {
                    asked.fetch_add(1, Ordering::SeqCst);
                    started.wait();
                    // The other has had the time to join, or will find the answer missing and fail below.
                    std::thread::sleep(Duration::from_millis(200));
                    Err(KeyError::Authentication)
                });
                assert!(matches!(answer, Err(KeyError::Authentication)));
            });
            started.wait();
            let late = Claim { organization: 2, ..claim.clone() };
            assert!(flights.ask(&late, timeout, || Ok(Arc::new(LockedKey::generate().unwrap()))).is_ok());
            let shared = flights.ask(&claim, timeout, || unreachable!("somebody asks already"));
            assert!(matches!(shared, Err(KeyError::Authentication)));
        });
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(flights.0.lock().is_empty());
    }
}
