//! `vaultfs key check`: what a token is, what it does, what it lets others do, and how fast it is.

use super::attacks::{self, Attack, Outcome};
use super::fault::Fault;
use super::probe;
use super::seat::{At, Seat};
use super::suite::{IvSource, Key, Suite};
use crate::crypto::random;
use crate::keys::KeyError;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Wraps and unwraps that are timed.
const ROUNDS: usize = 10;
/// The mechanisms that decide how a token can be used.
const MECHANISMS: [(&str, u64); 6] = [
    ("AES_KEY_GEN", cryptoki_sys::CKM_AES_KEY_GEN),
    ("AES_GCM", cryptoki_sys::CKM_AES_GCM),
    ("AES_KEY_WRAP", cryptoki_sys::CKM_AES_KEY_WRAP),
    ("GENERIC_SECRET_KEY_GEN", cryptoki_sys::CKM_GENERIC_SECRET_KEY_GEN),
    ("SHA256_HMAC", cryptoki_sys::CKM_SHA256_HMAC),
    ("RSA_PKCS_OAEP", cryptoki_sys::CKM_RSA_PKCS_OAEP),
];

/// What a check found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TokenCheck {
    pub label: String,
    pub serial: String,
    pub manufacturer: String,
    pub model: String,
    pub firmware: String,
    pub module: String,
    pub mechanisms: Vec<MechanismCheck>,
    /// 1 or 2; none when the token serves neither.
    pub suite: Option<u8>,
    /// `host`, `in place` or `appended`, for suite 1.
    pub iv: Option<String>,
    /// Why it is not suite 1, or none at all.
    pub lacks: Option<String>,
    pub attacks: Vec<Attack>,
    /// Medians, in microseconds.
    pub wrap_us: Option<u64>,
    pub unwrap_us: Option<u64>,
}

/// Whether the token says that it has a mechanism.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MechanismCheck {
    pub mechanism: String,
    pub offered: bool,
}

impl TokenCheck {
    /// Whether KEKs are safe in this token.
    pub fn is_safe(&self) -> bool {
        self.suite.is_some() && self.attacks.iter().all(|attack| attack.outcome != Outcome::Succeeded)
    }
}

impl Seat {
    /// Looks at a token that may be of no use, too.
    pub fn check(&mut self) -> Result<TokenCheck, KeyError> {
        self.climb(|at| {
            let ability = match probe::ability(at) {
                Ok(ability) => Ok(ability),
                Err(Fault::Final(KeyError::Configuration(lacks))) => Err(lacks),
                Err(other) => return Err(other),
            };
            let slot = at.link.slot(at.entered)?;
            let info = at.entered.token_info(slot)?;
            let mut check = TokenCheck {
                label: info.label().to_owned(),
                serial: info.serial_number().to_owned(),
                manufacturer: info.manufacturer_id().to_owned(),
                model: info.model().to_owned(),
                firmware: info.firmware_version().to_string(),
                module: at.link.module.path().display().to_string(),
                mechanisms: mechanisms(at)?,
                suite: None,
                iv: None,
                lacks: None,
                attacks: Vec::new(),
                wrap_us: None,
                unwrap_us: None,
            };
            match ability {
                Err(lacks) => check.lacks = Some(lacks),
                Ok(ability) => {
                    check.attacks = attacks::try_all(at, ability.suite)?;
                    let (wrap, unwrap) = latency(at, ability.suite, ability.iv)?;
                    (check.wrap_us, check.unwrap_us) = (Some(wrap), Some(unwrap));
                    check.suite = Some(ability.suite.number());
                    check.iv = (ability.suite == Suite::TokenGcm).then(|| ability.iv.name().to_owned());
                    check.lacks = ability.lacks;
                }
            }
            Ok(check)
        })
    }
}

fn mechanisms(at: &At) -> Result<Vec<MechanismCheck>, Fault> {
    let slot = at.link.slot(at.entered)?;
    let known = at.entered.pkcs11().get_mechanism_list(slot)?;
    let offered = |number: u64| known.iter().any(|mechanism| **mechanism == number);
    let one =
        |(name, number): &(&str, u64)| MechanismCheck { mechanism: (*name).to_owned(), offered: offered(*number) };
    Ok(MECHANISMS.iter().map(one).collect())
}

fn latency(at: &At, suite: Suite, source: IvSource) -> Result<(u64, u64), Fault> {
    probe::with_scratch(at, suite, |at, handle| {
        let (key, aad, secret) = (Key { handle, suite }, random::<32>(), random::<32>());
        let (mut wraps, mut unwraps) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            let (iv, sealed) = at.wrap(key, source, &aad, &secret)?;
            wraps.push(begun.elapsed().as_micros() as u64);
            let begun = Instant::now();
            at.unwrap(at.session, key, &iv, &aad, &sealed)?;
            unwraps.push(begun.elapsed().as_micros() as u64);
        }
        let median = |mut all: Vec<u64>| {
            all.sort_unstable();
            all[all.len() / 2]
        };
        Ok((median(wraps), median(unwraps)))
    })
}
