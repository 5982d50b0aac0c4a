//! The token and the key hierarchy: KEKs that never leave the token, DEKs that are stored only wrapped.
//!
//! [`Keyring`] is the whole surface: it makes and destroys KEKs, opens wrapped DEKs through a cache of
//! locked memory, and hands out new ones from a pool that was wrapped ahead of need. Beneath it:
//!
//! ```text
//! keyring ─ cache, pool, flight      what costs no call to the token
//!    ├─ home                         where each KEK lives: in the vault's token, in the store, in another token
//!    └─ token ─ crew                 a few threads ask the token, so that a hung one holds nobody up
//!        └─ seat ─ session, hot      one thread's session; what an answer means; the recovery ladder
//!            └─ link, module         finding the token, logging in; the PKCS#11 library of this process
//! ```
//! PKCS#11 is OASIS "PKCS #11 Specification Version 3.1"; keys are named in the words of NIST SP 800-57.

mod cache;
mod flight;
mod home;
mod keyring;
mod pin;
mod pool;
mod token;
mod uri;
mod wrapped;

pub use cache::CacheLimits;
pub use home::{Home, Lodging, Residency, TokenPlace, WrappedKek};
pub use keyring::{FreshDek, Keyring, KeyringConfig};
pub use pin::{Pin, PinSource};
pub use token::{Attack, KekState, MechanismCheck, Outcome, TokenCheck, TokenCounters, TokenStatus};
pub use uri::TokenUri;
pub use wrapped::{KekRef, SUITE_HMAC_KDF, SUITE_TOKEN_GCM, WrapLayer, WrappedDek};

use crate::crypto::CryptoError;

/// Every error of this layer; the message says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The caller would not wait, and the token has to be asked.
    #[error("the token has to be asked for this key")]
    WouldWait,
    /// The token is gone, slow or refuses its service; this may heal by itself.
    #[error("the token does not serve: {0}")]
    Unavailable(String),
    /// The token refused the PIN. It is not tried again before the keyring is opened anew.
    #[error("the PIN was refused: {0}")]
    PinRefused(String),
    /// The catalogue names this KEK and the token, which answers, does not hold it.
    #[error("{0} is not on the token: restore it from the token's backup; no key is made in its place")]
    NoSuchKey(KekRef),
    /// A KEK with this id is already on the token.
    #[error("{0} is already on the token: a KEK is never made twice")]
    KekExists(KekRef),
    /// The wrapped key was changed, or belongs to another context, KEK version or DEK id.
    #[error("the wrapped key does not authenticate: it was changed or moved")]
    Authentication,
    /// A setting or the token itself has to be put right first.
    #[error("{0}")]
    Configuration(String),
    /// No locked memory for the key.
    #[error(transparent)]
    Memory(CryptoError),
}

impl From<CryptoError> for KeyError {
    fn from(error: CryptoError) -> Self {
        match error {
            CryptoError::Authentication => KeyError::Authentication,
            memory @ CryptoError::LockedMemory(_) => KeyError::Memory(memory),
        }
    }
}

/// Whether a caller may be kept waiting for the token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Answer from memory, or with [`KeyError::WouldWait`].
    Never,
    /// Wait for the token, at most the keyring's timeout.
    Wait,
}

/// An error of a setting: what is wrong, then what to do.
fn configuration(message: impl Into<String>) -> KeyError {
    KeyError::Configuration(message.into())
}

fn unavailable(message: impl std::fmt::Display) -> KeyError {
    KeyError::Unavailable(message.to_string())
}
