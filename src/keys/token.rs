//! The token as the keyring sees it: a queue of questions in front of threads that each keep one session.

mod attacks;
mod check;
mod crew;
mod fault;
mod hot;
mod kek;
mod link;
mod loaded;
mod module;
mod probe;
mod seat;
mod suite;
mod wrapping;

pub use attacks::{Attack, Outcome};
pub use check::{MechanismCheck, TokenCheck};
pub(super) use seat::Seat;
pub(super) use wrapping::Key;

use super::{KeyError, Pin, TokenUri};
use crew::Crew;
use link::Link;
use module::Module;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Loading a module and logging in may take seconds on a token of many objects.
const START: Duration = Duration::from_secs(60);

/// Whether a KEK can be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KekState {
    Active,
    /// The token does not serve, for this reason.
    Unavailable(String),
    /// The token answers and does not hold it.
    Missing,
}

/// What `status` shows of a token and of the keys held in memory.
#[derive(Clone, Debug)]
pub struct TokenStatus {
    pub label: String,
    pub serial: String,
    pub module: PathBuf,
    /// `active`, `unavailable` or `pin refused`.
    pub state: &'static str,
    /// The suite of the KEKs that are made on it.
    pub suite: Option<u8>,
    /// DEKs in the cache.
    pub cached: usize,
    /// DEKs wrapped ahead of need.
    pub pooled: usize,
    pub calls: TokenCounters,
    pub last_error: Option<String>,
}

/// Numbers since the keyring was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TokenCounters {
    /// DEKs that the token opened.
    pub unwraps: u64,
    /// DEKs that the token wrapped.
    pub wraps: u64,
    /// PINs presented, accepted or not.
    pub logins: u64,
    /// Times the module was finalized and initialized because the token did not serve.
    pub recoveries: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    unwraps: AtomicU64,
    wraps: AtomicU64,
    logins: AtomicU64,
    recoveries: AtomicU64,
    /// Encryptions, decryptions and searches, canaries included.
    calls: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// One token, logged in to, with the threads that ask it.
pub(super) struct Token {
    link: Arc<Link>,
    crew: Crew,
    probed: AtomicBool,
}

impl Token {
    /// Loads the module, finds the token, logs in and probes it; `timeout` is for every later question.
    pub fn open(uri: TokenUri, pin: Pin, timeout: Duration) -> Result<Self, KeyError> {
        let link = Arc::new(Link::new(Module::load(&uri)?, uri, pin));
        let crew = Crew::hire(link.clone(), timeout)?;
        crew.ask(START, |seat| seat.start())?;
        Ok(Token { link, crew, probed: AtomicBool::new(true) })
    }

    /// Another token than the vault's: it may be away now and come later, and is probed when it is first asked.
    pub fn beside(uri: TokenUri, pin: Pin, timeout: Duration) -> Result<Self, KeyError> {
        let link = Arc::new(Link::new(Module::load(&uri)?, uri, pin));
        let crew = Crew::hire(link.clone(), timeout)?;
        Ok(Token { link, crew, probed: AtomicBool::new(false) })
    }

    /// Probes it, unless that was done.
    pub fn probe(&self) -> Result<(), KeyError> {
        if !self.probed.load(Relaxed) {
            self.ask(|seat| seat.probe())?;
            self.probed.store(true, Relaxed);
        }
        Ok(())
    }

    /// What a token is, does and lets others do; it may be one that [`Token::open`] refuses.
    pub fn examine(uri: TokenUri, pin: Pin) -> Result<TokenCheck, KeyError> {
        let link = Arc::new(Link::new(Module::load(&uri)?, uri, pin));
        Crew::hire(link, START)?.ask(START, |seat| seat.connect().and_then(|()| seat.check()))
    }

    /// The same of this token.
    pub fn check(&self) -> Result<TokenCheck, KeyError> {
        self.link.module.same_process()?;
        self.crew.ask(START, |seat| seat.check())
    }

    /// Gives the token another PIN, and presents that from now on.
    pub fn set_pin(&self, new: Pin) -> Result<(), KeyError> {
        self.ask(move |seat| seat.set_pin(new))
    }

    /// Asks now and waits for the answer, at most the timeout.
    pub fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Seat) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        // The threads of the crew stayed in the parent.
        self.link.module.same_process()?;
        let answer = self.crew.ask(self.crew.timeout(), question);
        if matches!(answer, Err(KeyError::Unavailable(_))) {
            // A timeout is seen here alone.
            self.link.note(&answer);
        }
        // There may be several tokens: it is said which.
        answer.map_err(|error| self.link.named(error))
    }

    /// Asks when nobody waits for another answer.
    pub fn later(&self, job: impl FnOnce(&mut Seat) + Send + 'static) {
        self.crew.later(Box::new(job));
    }

    pub fn kek_state(&self, key: Key) -> KekState {
        match self.ask(move |seat| seat.confirm_key(&key)) {
            Ok(()) => KekState::Active,
            Err(KeyError::NoSuchKey(_)) => KekState::Missing,
            Err(other) => KekState::Unavailable(other.to_string()),
        }
    }

    pub fn calls(&self) -> u64 {
        self.link.counters.calls.load(Relaxed)
    }

    /// The status with nothing cached and nothing pooled.
    pub fn status(&self) -> TokenStatus {
        let counters = &self.link.counters;
        let outlook = self.link.outlook();
        TokenStatus {
            label: outlook.label,
            serial: outlook.serial,
            module: self.link.module.path().to_owned(),
            state: outlook.state,
            suite: self.link.ability().ok().map(|ability| ability.suite.number()),
            cached: 0,
            pooled: 0,
            calls: TokenCounters {
                unwraps: counters.unwraps.load(Relaxed),
                wraps: counters.wraps.load(Relaxed),
                logins: counters.logins.load(Relaxed),
                recoveries: counters.recoveries.load(Relaxed),
            },
            last_error: outlook.last_error,
        }
    }
}
