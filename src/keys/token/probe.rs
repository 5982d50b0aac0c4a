//! The start-up probe: suite 1 is used on tokens that were seen to do it, and on no others.
//!
//! Tokens differ in who chooses the GCM IV (the host, or the token in place or appended), and an IV that
//! a token ignores or reuses would give the wrapping key away. A scratch session key shows which it is.

use super::fault::Fault;
use super::seat::{At, whole};
use crate::crypto::random;
use crate::keys::configuration;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectHandle};

/// A round trip of AES-256-GCM with the host's IV, which every change to its output breaks.
pub fn suite_one(at: &At) -> Result<(), Fault> {
    let template = [
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::ValueLen(32.into()),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    let key = at.session.generate_key(&Mechanism::AesKeyGen, &template).map_err(|error| lacking(error.to_string()))?;
    let outcome = trial(at, key);
    let _ = at.session.destroy_object(key);
    outcome
}

fn trial(at: &At, key: ObjectHandle) -> Result<(), Fault> {
    let (secret, iv, aad) = (random::<32>(), random::<12>(), random::<32>());
    let encrypt = |iv: &[u8; 12]| -> Result<[u8; 48], Fault> {
        let sealed = at.encrypt(key, iv, &aad, &secret)?;
        Ok(whole(&sealed, 48)?.try_into().expect("just measured"))
    };
    let sealed = encrypt(&iv).map_err(explained)?;
    if sealed != encrypt(&iv).map_err(explained)? {
        return Err(lacking("it does not use the IV it is given"));
    }
    let mut other_iv = iv;
    other_iv[0] ^= 1;
    if sealed[..32] == encrypt(&other_iv).map_err(explained)?[..32] {
        return Err(lacking("its output does not depend on the IV"));
    }
    let opened = at.decrypt(at.session, key, &iv, &aad, &sealed).map_err(explained)?;
    if opened.bytes() != secret {
        return Err(lacking("it does not decrypt what it encrypted"));
    }
    let mut changed = sealed;
    changed[0] ^= 1;
    let mut cut_tag = sealed;
    cut_tag[47] ^= 1;
    let mut other_aad = aad;
    other_aad[31] ^= 1;
    for (aad, sealed) in [(&aad, &changed), (&aad, &cut_tag), (&other_aad, &sealed)] {
        // A session of its own, since some tokens do not leave an operation that failed.
        let session = at.link.open_session(at.entered)?;
        let accepted = at.decrypt(&session, key, &iv, aad, sealed).is_ok();
        let _ = session.close();
        if accepted {
            return Err(lacking("it accepts a ciphertext or AAD that was changed"));
        }
    }
    Ok(())
}

fn explained(fault: Fault) -> Fault {
    match fault {
        Fault::Sick(reason) | Fault::Refused(reason) => lacking(reason),
        other => other,
    }
}

fn lacking(reason: impl std::fmt::Display) -> Fault {
    configuration(format!(
        "this token does not serve AES-256-GCM with the host's IV, which wrapping (suite 1) needs: {reason}; use another token"
    ))
    .into()
}
