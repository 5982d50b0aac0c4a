//! Making and destroying KEKs. A KEK encrypts and decrypts (suite 1) or signs (suite 2), inside the token, and nothing
//! else can be done with it.
//!
//! MODIFIABLE and COPYABLE are false because many tokens let C_SetAttributeValue or C_CopyObject give a key
//! more rights than it was made with; and since tokens also ignore parts of a template, it is read back.
//! Tokens older than PKCS#11 2.40 do not know COPYABLE: what a copy gains there is tried.

use super::attacks;
use super::fault::Fault;
use super::probe;
use super::seat::{At, Seat};
use super::suite::{Key, Suite};
use crate::keys::{KekRef, KeyError, configuration, unavailable};
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, AttributeInfo, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

impl Seat {
    /// Makes a KEK as a token object. Every KEK is made here.
    ///
    /// `claim` says at the end whether the key is still wanted; one that is not is destroyed again, since a caller
    /// that left would never learn of it.
    pub fn create(&mut self, kek: KekRef, claim: impl Fn() -> bool) -> Result<(), KeyError> {
        self.climb(|at| {
            let _alone = at.link.objects.write();
            // Only a token that is sure not to have the key may make it.
            match at.search(kek) {
                Err(Fault::Final(KeyError::NoSuchKey(_))) => make(at, kek, &claim),
                Ok(_) => Err(KeyError::KekExists(kek).into()),
                Err(other) => Err(other),
            }
        })
    }

    /// Takes what an earlier try made of a KEK that nothing is wrapped under yet.
    ///
    /// SoftHSM stores a key before the key's value, so that a kill leaves one that is found and does nothing. It is
    /// destroyed and made anew, once a scratch key has shown that it is the key which fails, and not the token.
    pub fn adopt(&mut self, kek: KekRef, claim: impl Fn() -> bool) -> Result<(), KeyError> {
        self.climb(|at| {
            let _alone = at.link.objects.write();
            let key = at.search(kek)?;
            if at.proves(kek, key) {
                return Ok(());
            }
            probe::canary(at)?;
            at.link.forget_key(&kek);
            at.session.destroy_object(key.handle)?;
            make(at, kek, &claim)
        })
    }

    /// Destroys a KEK for good, and looks that it is gone.
    pub fn destroy(&mut self, kek: KekRef) -> Result<(), KeyError> {
        self.climb(|at| {
            let _alone = at.link.objects.write();
            let key = at.search(kek)?;
            at.link.forget_key(&kek);
            at.session.destroy_object(key.handle)?;
            if at.find(kek)?.is_empty() {
                return Ok(());
            }
            Err(configuration(format!("the token did not destroy {kek}: destroy it with the token's own tool")).into())
        })
    }
}

fn make(at: &At, kek: KekRef, claim: &impl Fn() -> bool) -> Result<(), Fault> {
    let suite = at.link.ability()?.suite;
    let template: Vec<_> = asked(kek, suite).into_iter().chain([Attribute::ValueLen(32.into())]).collect();
    let handle = generate(at.session, suite, &template)?;
    let key = Key { handle, suite };
    let wanted = verify(at, kek, key).and_then(|()| match claim() {
        true => Ok(()),
        false => Err(unavailable("it made the key too late for whoever asked, so the key is destroyed again").into()),
    });
    match wanted {
        Ok(()) => at.link.remember_key(kek, at.entered.generation(), key),
        Err(_) => at.session.destroy_object(handle)?,
    }
    wanted
}

/// A new key, without COPYABLE on a token that does not know it.
pub fn generate(session: &Session, suite: Suite, template: &[Attribute]) -> cryptoki::error::Result<ObjectHandle> {
    match session.generate_key(&probe::mechanism(suite), template) {
        Err(Error::Pkcs11(RvError::AttributeTypeInvalid, _)) => {
            let known = template.iter().filter(|a| a.attribute_type() != AttributeType::Copyable).cloned();
            session.generate_key(&probe::mechanism(suite), &known.collect::<Vec<_>>())
        }
        made => made,
    }
}

impl At<'_> {
    /// Whether the key is what a KEK has to be, and works.
    fn proves(&self, kek: KekRef, key: Key) -> bool {
        let works = || self.apart(|at| at.round_trip(key, at.link.ability()?.iv));
        verify(self, kek, key).is_ok() && matches!(works(), Ok(true))
    }
}

/// What a KEK is asked to be; all of it can be read back.
fn asked(kek: KekRef, suite: Suite) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(suite.key_type()),
        Attribute::Id(kek.object_id()),
        Attribute::Label(kek.label().into_bytes()),
        Attribute::Token(true),
    ];
    template.extend(rights(suite));
    template
}

/// What a KEK may be used for, and that it stays where it is.
pub fn rights(suite: Suite) -> Vec<Attribute> {
    let encrypts = suite == Suite::TokenGcm;
    let mut rights = vec![Attribute::Private(true), Attribute::Sensitive(true)];
    rights.extend([Attribute::Encrypt, Attribute::Decrypt].map(|right| right(encrypts)));
    rights.extend([Attribute::Sign(!encrypts), Attribute::Verify(false)]);
    rights.extend([Attribute::Wrap, Attribute::Unwrap, Attribute::Derive].map(|right| right(false)));
    rights.extend([Attribute::Extractable, Attribute::Modifiable, Attribute::Copyable].map(|way_out| way_out(false)));
    rights
}

/// Reads the key back: what was asked for, and what the token says of the key's past.
fn verify(at: &At, kek: KekRef, Key { handle: key, suite }: Key) -> Result<(), Fault> {
    let past = [Attribute::Local, Attribute::AlwaysSensitive, Attribute::NeverExtractable].map(|was| was(true));
    let wanted: Vec<_> = asked(kek, suite).into_iter().chain(past).collect();
    let types: Vec<_> = wanted.iter().map(Attribute::attribute_type).collect();
    let found = at.session.get_attributes(key, &types)?;
    let lost: Vec<_> =
        wanted.iter().filter(|attribute| !found.contains(attribute)).map(|a| a.attribute_type()).collect();
    if lost == [AttributeType::Copyable] {
        attacks::weigh_copies(at, suite)?;
    } else if !lost.is_empty() {
        let message =
            format!("the token does not keep these attributes of a KEK as asked: {lost:?}; use another token");
        return Err(configuration(message).into());
    }
    let value = at.session.get_attribute_info(key, &[AttributeType::Value])?;
    if !matches!(value[..], [AttributeInfo::Sensitive]) {
        return Err(configuration("the token would show the value of a KEK; use another token").into());
    }
    match at.find(kek)?.len() {
        0 => Err(Fault::Sick("it does not find the key that it made".to_owned())),
        1 => Ok(()),
        // Another process made one at the same time; both give theirs up.
        _ => Err(KeyError::KekExists(kek).into()),
    }
}
