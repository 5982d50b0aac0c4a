//! The start-up probe: what a token does with scratch session keys decides the suite of the KEKs that are made on it.
//!
//! Suite 1 is used on tokens that were seen to do it, and suite 2 where they do not. Tokens differ in who chooses the
//! GCM IV, and an IV that a token ignores or reuses would give the wrapping key away: each way is recognized by what
//! two encryptions show, and no IV is ever left empty.

use super::fault::Fault;
use super::seat::At;
use super::suite::{IvSource, Key, Suite};
use crate::crypto::{TAG, random};
use crate::keys::configuration;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};

/// What a token can do.
#[derive(Clone, Debug)]
pub struct Ability {
    /// The suite of the KEKs that are made.
    pub suite: Suite,
    /// How KEKs of suite 1 get their IVs.
    pub iv: IvSource,
    /// Why it is not suite 1.
    pub lacks: Option<String>,
}

/// The best suite that this token serves.
pub fn ability(at: &At) -> Result<Ability, Fault> {
    let lacks = match reason(with_scratch(at, Suite::TokenGcm, gcm))? {
        Ok(iv) => return Ok(Ability { suite: Suite::TokenGcm, iv, lacks: None }),
        Err(reason) => reason,
    };
    match reason(with_scratch(at, Suite::HmacKdf, hmac))? {
        Ok(()) => Ok(Ability { suite: Suite::HmacKdf, iv: IvSource::Host, lacks: Some(lacks) }),
        Err(also) => Err(configuration(format!(
            "this token serves neither AES-256-GCM, for wrapping by suite 1 ({lacks}), nor HMAC-SHA256, for suite 2 \
             ({also}); use another token"
        ))
        .into()),
    }
}

/// Whether the token works at all, by the suite that it was found to have.
pub fn canary(at: &At) -> Result<(), Fault> {
    let Ability { suite, iv, .. } = *at.link.ability()?;
    match with_scratch(at, suite, |at, handle| at.round_trip(Key { handle, suite }, iv))? {
        true => Ok(()),
        false => Err(Fault::Sick("it decrypts to something else than it encrypted".to_owned())),
    }
}

/// What the token itself says against it, apart from what keeps it from being asked.
fn reason<T>(tried: Result<T, Fault>) -> Result<Result<T, String>, Fault> {
    match tried {
        Ok(done) => Ok(Ok(done)),
        Err(Fault::Sick(reason) | Fault::Refused(reason)) => Ok(Err(reason)),
        Err(last) => Err(last),
    }
}

/// A key of a suite that ends with the trial.
pub fn with_scratch<T>(
    at: &At,
    suite: Suite,
    trial: impl FnOnce(&At, ObjectHandle) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut template = vec![
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::ValueLen(32.into()),
    ];
    match suite {
        Suite::TokenGcm => template.extend([Attribute::Encrypt(true), Attribute::Decrypt(true)]),
        Suite::HmacKdf => template.push(Attribute::Sign(true)),
    }
    // The key ends with its session.
    at.apart(|at| trial(at, at.session.generate_key(&mechanism(suite), &template)?))
}

/// What makes a key of a suite.
pub fn mechanism(suite: Suite) -> Mechanism<'static> {
    match suite {
        Suite::TokenGcm => Mechanism::AesKeyGen,
        Suite::HmacKdf => Mechanism::GenericSecretKeyGen,
    }
}

/// Who makes the IVs, and a round trip that every change breaks.
fn gcm(at: &At, key: ObjectHandle) -> Result<IvSource, Fault> {
    let (secret, aad) = (random::<32>(), random::<32>());
    // Each in a session of its own, since some tokens do not leave an operation that failed.
    let encrypt = |iv| at.apart(|at| at.encrypt_with(key, iv, &aad, &secret));
    let offered = random::<12>();
    // A token that makes IVs may insist on being offered an empty place for them.
    let (left, first) = encrypt(offered).or_else(|fault| match fault {
        Fault::Sick(_) => encrypt([0; 12]),
        other => Err(other),
    })?;
    let source = match first.bytes().len().checked_sub(32 + TAG) {
        Some(0) if left == offered => {
            host(first.bytes(), encrypt(offered)?.1.bytes(), encrypt(random())?.1.bytes())?;
            IvSource::Host
        }
        Some(0) if left != [0; 12] => IvSource::InPlace,
        Some(len @ 12..=16) => IvSource::Appended(len),
        _ => return Err(Fault::Sick("nothing shows which IV it uses".to_owned())),
    };
    let key = Key { handle: key, suite: Suite::TokenGcm };
    let (one, other) = (at.wrap(key, source, &aad, &secret)?, at.wrap(key, source, &aad, &secret)?);
    if one.0 == other.0 || one.0.iter().all(|byte| *byte == 0) {
        return Err(Fault::Sick("it uses one IV twice".to_owned()));
    }
    tamper(at, key, &aad, &secret, one)?;
    Ok(source)
}

/// The same IV gives the same bytes, and another IV other bytes.
fn host(first: &[u8], again: &[u8], other: &[u8]) -> Result<(), Fault> {
    if first != again {
        return Err(Fault::Sick("it does not use the IV that it is given".to_owned()));
    }
    if first[..32] == other[..32] {
        return Err(Fault::Sick("its output does not depend on the IV".to_owned()));
    }
    Ok(())
}

/// The same input gives the same key, another input another one, and a round trip that every change breaks.
fn hmac(at: &At, key: ObjectHandle) -> Result<(), Fault> {
    let key = Key { handle: key, suite: Suite::HmacKdf };
    let (secret, aad) = (random::<32>(), random::<32>());
    let wrapped = at.wrap(key, IvSource::Host, &aad, &secret)?;
    tamper(at, key, &aad, &secret, wrapped)
}

/// What was wrapped opens, and nothing that was changed.
fn tamper(at: &At, key: Key, aad: &[u8; 32], secret: &[u8; 32], (iv, sealed): (Vec<u8>, Vec<u8>)) -> Result<(), Fault> {
    if **at.unwrap(at.session, key, &iv, aad, &sealed)? != *secret {
        return Err(Fault::Sick("it does not decrypt what it encrypted".to_owned()));
    }
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let other_aad = flipped(aad, 31).try_into().expect("as long as before");
    let changed = [
        (iv.clone(), *aad, flipped(&sealed, 0)),
        (iv.clone(), *aad, flipped(&sealed, 47)),
        (iv.clone(), other_aad, sealed.clone()),
        (flipped(&iv, 0), *aad, sealed.clone()),
    ];
    for (iv, aad, sealed) in &changed {
        if at.apart(|apart| apart.unwrap(apart.session, key, iv, aad, sealed)).is_ok() {
            return Err(Fault::Sick("it accepts a ciphertext, an IV or AAD that was changed".to_owned()));
        }
    }
    Ok(())
}
