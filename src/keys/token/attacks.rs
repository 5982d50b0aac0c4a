//! The known ways to get a key out of a token, or to give it rights it was not made with, tried on scratch keys.
//!
//! Each was seen to succeed on some token: Clulow, "On the Security of PKCS#11" (2003); Bortolozzo, Centenaro, Focardi
//! and Steel, "Attacking and Fixing PKCS#11 Security Tokens" (2010).

use super::fault::Fault;
use super::kek;
use super::seat::At;
use super::suite::Suite;
use crate::keys::configuration;
use cryptoki::error::Result;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys::*;
use serde::{Deserialize, Serialize};
use std::ffi::c_void;

/// What became of an attack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Refused,
    Succeeded,
    /// It succeeded, and the operator has accepted that.
    Accepted,
    /// The token lacks what the attack needs.
    NotPossible,
}

/// One attack that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attack {
    pub attack: String,
    pub outcome: Outcome,
}

const COPY: &str = "copy a KEK with more rights";

type Trial = fn(&Session, Suite) -> Result<Outcome>;

const KNOWN: [(&str, Trial); 7] = [
    ("read a KEK's value", read),
    ("copy a KEK as a readable key", copy_readable),
    (COPY, copy),
    ("give a KEK more rights", change),
    ("wrap a KEK out under a key of one's own", wrap_out),
    ("unwrap a wrapped KEK as a readable key", unwrap_readable),
    ("let the root key decrypt what it wrapped", root_decrypts),
];

/// Tries all of them; only a token that does not answer is an error.
pub fn try_all(at: &At, suite: Suite) -> std::result::Result<Vec<Attack>, Fault> {
    let one = |(attack, trial): (&str, Trial)| {
        // Scratch keys end with their session.
        let outcome = match at.apart(|at| Ok(trial(at.session, suite).unwrap_or(Outcome::NotPossible)))? {
            Outcome::Succeeded if attack == COPY && at.link.accepts_copies() => Outcome::Accepted,
            outcome => outcome,
        };
        Ok(Attack { attack: attack.to_owned(), outcome })
    };
    KNOWN.into_iter().map(one).collect()
}

/// Refuses a token that does not keep a KEK from being copied, for what whoever has the PIN gains by a copy.
pub fn weigh_copies(at: &At, suite: Suite) -> std::result::Result<(), Fault> {
    let succeeds = |trial: Trial| at.apart(|at| Ok(trial(at.session, suite)? == Outcome::Succeeded));
    if succeeds(copy_readable)? {
        return Err(configuration("the token would show the value of a copy of a KEK; use another token").into());
    }
    if succeeds(copy)? && !at.link.accepts_copies() {
        return Err(configuration(
            "the token does not keep CKA_COPYABLE (PKCS#11 2.40), so that whoever has its PIN can copy a KEK and give \
             the copy other uses: use another token, or accept that by copies=accepted in its URI, as in \
             pkcs11:token=…?module-path=…&copies=accepted",
        )
        .into());
    }
    Ok(())
}

fn read(session: &Session, suite: Suite) -> Result<Outcome> {
    let key = scratch_kek(session, suite)?;
    Ok(verdict(readable(session, key)))
}

/// By the copy itself, or by changing a copy that can be changed.
fn copy_readable(session: &Session, suite: Suite) -> Result<Outcome> {
    let key = scratch_kek(session, suite)?;
    let opens = || [Attribute::Extractable(true), Attribute::Sensitive(false)];
    let shown = |copy: ObjectHandle| {
        let changed = opens().into_iter().any(|more| session.update_attributes(copy, &[more]).is_ok());
        changed || readable(session, copy) || extractable(session, copy)
    };
    let mut ways = opens().into_iter().chain([Attribute::Modifiable(true)]);
    Ok(verdict(ways.any(|way| session.copy_object(key, &[way]).is_ok_and(shown))))
}

fn copy(session: &Session, suite: Suite) -> Result<Outcome> {
    let key = scratch_kek(session, suite)?;
    Ok(verdict(more_rights().iter().any(|more| session.copy_object(key, std::slice::from_ref(more)).is_ok())))
}

fn change(session: &Session, suite: Suite) -> Result<Outcome> {
    let key = scratch_kek(session, suite)?;
    Ok(verdict(more_rights().iter().any(|more| session.update_attributes(key, std::slice::from_ref(more)).is_ok())))
}

fn wrap_out(session: &Session, suite: Suite) -> Result<Outcome> {
    let key = scratch_kek(session, suite)?;
    let own = [Attribute::Token(false), Attribute::ValueLen(32.into()), Attribute::Wrap(true)];
    let own = session.generate_key(&Mechanism::AesKeyGen, &own)?;
    Ok(verdict(session.wrap_key(&Mechanism::AesKeyWrap, own, key).is_ok()))
}

/// A key is born extractable, wrapped by the root, and loaded again: with whatever rights the template of the one who
/// loads it says, on a token that does not hold to the root's.
fn unwrap_readable(session: &Session, _: Suite) -> Result<Outcome> {
    let root = scratch_root(session)?;
    let born = scratch(session, &[Attribute::Extractable(true), Attribute::Encrypt(true), Attribute::Decrypt(true)])?;
    let wrapped = session.wrap_key(&Mechanism::AesKeyWrap, root, born)?;
    let as_it_should = loaded(false);
    let as_it_should_not = loaded(true);
    let loads = |template: &[Attribute]| {
        let key = session.unwrap_key(&Mechanism::AesKeyWrap, root, &wrapped, template);
        key.is_ok_and(|key| readable(session, key) || extractable(session, key))
    };
    Ok(verdict(loads(&as_it_should) || loads(&as_it_should_not)))
}

fn root_decrypts(session: &Session, _: Suite) -> Result<Outcome> {
    let root = scratch_root(session)?;
    let decrypt = [Attribute::Decrypt(true)];
    Ok(verdict(session.update_attributes(root, &decrypt).is_ok() || session.copy_object(root, &decrypt).is_ok()))
}

fn verdict(succeeded: bool) -> Outcome {
    if succeeded { Outcome::Succeeded } else { Outcome::Refused }
}

fn more_rights() -> [Attribute; 4] {
    [Attribute::Extractable(true), Attribute::Sensitive(false), Attribute::Wrap(true), Attribute::Derive(true)]
}

fn readable(session: &Session, key: ObjectHandle) -> bool {
    session.get_attributes(key, &[AttributeType::Value]).is_ok_and(|found| !found.is_empty())
}

fn extractable(session: &Session, key: ObjectHandle) -> bool {
    session
        .get_attributes(key, &[AttributeType::Extractable])
        .is_ok_and(|found| found.contains(&Attribute::Extractable(true)))
}

/// A KEK in everything but that it ends with the session.
fn scratch_kek(session: &Session, suite: Suite) -> Result<ObjectHandle> {
    let template: Vec<_> = kek::rights(suite)
        .into_iter()
        .chain([Attribute::Token(false), Attribute::KeyType(suite.key_type()), Attribute::ValueLen(32.into())])
        .collect();
    kek::generate(session, suite, &template)
}

/// A key as the root of wrapped KEKs has to be.
fn scratch_root(session: &Session) -> Result<ObjectHandle> {
    let rights = [
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        unwrap_template(),
    ];
    scratch(session, &rights)
}

fn scratch(session: &Session, rights: &[Attribute]) -> Result<ObjectHandle> {
    let all = [Attribute::Token(false), Attribute::Private(true), Attribute::Sensitive(true)];
    let template: Vec<_> = all.iter().chain(rights).cloned().chain([Attribute::ValueLen(32.into())]).collect();
    session.generate_key(&Mechanism::AesKeyGen, &template)
}

/// What is said of a key that is unwrapped.
fn loaded(readable: bool) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(!readable),
        Attribute::Extractable(readable),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
    ]
}

/// CKA_UNWRAP_TEMPLATE: the root loads keys that stay inside and only encrypt and decrypt, and no others.
fn unwrap_template() -> Attribute {
    static CLASS: CK_ULONG = CKO_SECRET_KEY;
    static TYPE: CK_ULONG = CKK_AES;
    static YES: CK_BBOOL = CK_TRUE;
    static NO: CK_BBOOL = CK_FALSE;
    let number =
        |attribute, value: &'static CK_ULONG| (attribute, (&raw const *value).cast::<c_void>(), size_of::<CK_ULONG>());
    let flag = |attribute, value: &'static CK_BBOOL| (attribute, (&raw const *value).cast::<c_void>(), 1);
    let entries = [
        number(CKA_CLASS, &CLASS),
        number(CKA_KEY_TYPE, &TYPE),
        flag(CKA_TOKEN, &NO),
        flag(CKA_PRIVATE, &YES),
        flag(CKA_SENSITIVE, &YES),
        flag(CKA_EXTRACTABLE, &NO),
        flag(CKA_ENCRYPT, &YES),
        flag(CKA_DECRYPT, &YES),
        flag(CKA_WRAP, &NO),
        flag(CKA_UNWRAP, &NO),
    ];
    // An array of CK_ATTRIBUTE, as the module reads it; it points to statics alone.
    let bytes = entries.into_iter().flat_map(|(attribute, value, len)| {
        [attribute.to_ne_bytes(), (value as CK_ULONG).to_ne_bytes(), (len as CK_ULONG).to_ne_bytes()].concat()
    });
    Attribute::VendorDefined((AttributeType::VendorDefined(CKA_UNWRAP_TEMPLATE), bytes.collect()))
}
