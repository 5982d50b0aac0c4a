//! Wrapped KEKs: born in the token, kept in the store under a root key, and session objects of the token while in use.
//!
//! A root key wraps and unwraps and does nothing else. Its UNWRAP_TEMPLATE keeps whoever holds the PIN and a blob from
//! unwrapping it as a key that can be read: without it every KEK could be had in clear. Tokens that ignore it are told
//! by trying it, and serve no wrapped KEKs.

use super::count;
use super::fault::Fault;
use super::loaded::InUse;
use super::seat::{At, Seat};
use super::suite::{self, IV, IvSource, Suite};
use crate::keys::home::{Home, Lodging, WrappedKek};
use crate::keys::{KekRef, KeyError, configuration};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki_sys::{CK_ATTRIBUTE, CK_ATTRIBUTE_TYPE, CK_BBOOL, CK_FALSE, CK_TRUE, CK_ULONG, CKA_CLASS, CKA_DECRYPT};
use cryptoki_sys::{
    CKA_ENCRYPT, CKA_EXTRACTABLE, CKA_KEY_TYPE, CKA_SENSITIVE, CKA_TOKEN, CKA_UNWRAP, CKA_UNWRAP_TEMPLATE,
};
use cryptoki_sys::{CKA_WRAP, CKK_AES, CKO_SECRET_KEY};
use std::ffi::c_void;
use std::sync::Arc;

/// Bytes of a wrapped 256-bit key (RFC 3394).
const WRAPPED: usize = 40;
/// What confirms a KEK is this under it.
const CONFIRMED: [u8; 32] = [0; 32];

/// A KEK, and where it lives if that is not the token itself.
#[derive(Clone)]
pub struct Key {
    pub kek: KekRef,
    pub lodging: Option<Arc<Lodging>>,
}

impl Key {
    fn wrapped(&self) -> Option<(&WrappedKek, &Lodging)> {
        match &self.lodging.as_deref()?.home {
            Home::Wrapped(_, wrapped) => Some((wrapped, self.lodging.as_deref()?)),
            Home::Token(_) | Home::External(_) => None,
        }
    }
}

impl Seat {
    /// Makes a root key as a token object, on a token that guards what is wrapped under it.
    pub fn create_root(&mut self, root: KekRef) -> Result<(), KeyError> {
        self.climb(|at| {
            at.guards_wrapped_keys()?;
            let _alone = at.link.objects.write();
            match at.search(root) {
                Err(Fault::Final(KeyError::NoSuchKey(_))) => {}
                Ok(_) => return Err(KeyError::KekExists(root).into()),
                Err(other) => return Err(other),
            }
            let names = [Attribute::Id(root.object_id()), Attribute::Label(root.label().into_bytes())];
            let wanted: Vec<_> = root_key(true).into_iter().chain(names).collect();
            let key = at.generate_root(&wanted)?;
            let found =
                at.session.get_attributes(key, &wanted.iter().map(Attribute::attribute_type).collect::<Vec<_>>())?;
            if wanted.iter().all(|attribute| found.contains(attribute)) {
                at.link.remember_key(root, at.entered.generation(), held(key));
                return Ok(());
            }
            at.session.destroy_object(key)?;
            Err(unfit("it does not keep the attributes of a root key as asked"))
        })
    }

    /// Makes a KEK that lives under a root key: what is to be stored of it. The token keeps nothing.
    pub fn bear(&mut self, kek: KekRef, root: KekRef, aad: &[u8; 32]) -> Result<WrappedKek, KeyError> {
        self.climb(|at| {
            at.guards_wrapped_keys()?;
            at.with_key(root, |root_key| {
                let root_key = root_key.handle;
                let born = at.session.generate_key(&Mechanism::AesKeyGen, &extractable())?;
                let blob = at.wrap_out(root_key, born);
                at.session.destroy_object(born)?;
                let blob = blob?;
                let key = at.unwrap_in(at.session, root_key, &blob)?;
                let (iv, confirmation) = at.wrap(held(key), at.link.ability()?.iv, aad, &CONFIRMED)?;
                let iv = iv.try_into().map_err(|_| unfit("the IVs that it makes are too long"))?;
                let wrapped = WrappedKek { root, blob, iv, confirmation };
                let confirmed = at.confirms(key, &wrapped, aad);
                at.session.destroy_object(key)?;
                if confirmed? { Ok(wrapped) } else { Err(Fault::Sick(format!("it does not give {kek} back"))) }
            })
        })
    }

    /// Does something with a KEK that stays in the token meanwhile, wherever it lives.
    pub fn with<T>(&mut self, key: &Key, act: impl Fn(&mut Seat) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let Some((wrapped, lodging)) = key.wrapped() else { return act(self) };
        let aad = lodging.aad(key.kek);
        let held = self.load(key.kek, wrapped, &aad)?;
        match act(self) {
            // The token lost it, and it is no object that a search would find.
            Err(KeyError::NoSuchKey(lost)) if lost == key.kek => {
                self.link().loaded.drop_handle(key.kek, &held);
                drop(held);
                let _held = self.load(key.kek, wrapped, &aad)?;
                act(self)
            }
            done => done,
        }
    }

    /// Whether the KEK can be used now.
    pub fn confirm_key(&mut self, key: &Key) -> Result<(), KeyError> {
        match key.wrapped() {
            Some((wrapped, lodging)) => self.load(key.kek, wrapped, &lodging.aad(key.kek)).map(drop),
            None => self.confirm(key.kek),
        }
    }

    /// Takes a wrapped KEK out of the token.
    pub fn unload(&mut self, kek: KekRef) -> Result<(), KeyError> {
        self.climb(|at| {
            at.link.loaded.unload(at, kek);
            Ok(())
        })
    }

    fn load(&mut self, kek: KekRef, wrapped: &WrappedKek, aad: &[u8; 32]) -> Result<Arc<InUse>, KeyError> {
        self.climb(|at| {
            let generation = at.entered.generation();
            let key = match at.link.loaded.find(kek, generation) {
                Some(key) => key,
                None => at.link.loaded.load(at, kek, |owner| {
                    at.with_key(wrapped.root, |root| at.fetch(owner, root.handle, wrapped, aad))
                })?,
            };
            at.link.remember_key(kek, generation, held(key.0));
            Ok(key)
        })
    }
}

impl At<'_> {
    /// The KEK as an object of the owner's session, confirmed.
    fn fetch(
        &self,
        owner: &Session,
        root: ObjectHandle,
        wrapped: &WrappedKek,
        aad: &[u8; 32],
    ) -> Result<ObjectHandle, Fault> {
        let key = match self.unwrap_in(owner, root, &wrapped.blob) {
            // A token calls a changed blob what it calls its own failures.
            Err(Fault::Sick(_)) if self.unwraps_what_it_wraps(root)? => return Err(KeyError::Authentication.into()),
            unwrapped => unwrapped?,
        };
        if self.confirms(key, wrapped, aad)? {
            return Ok(key);
        }
        let _ = owner.destroy_object(key);
        Err(KeyError::Authentication.into())
    }

    fn confirms(&self, key: ObjectHandle, wrapped: &WrappedKek, aad: &[u8; 32]) -> Result<bool, Fault> {
        if wrapped.confirmation.len() != CONFIRMED.len() + 16 {
            return Ok(false);
        }
        match self.unwrap(self.session, held(key), &wrapped.iv, aad, &wrapped.confirmation) {
            Ok(opened) => Ok(**opened == CONFIRMED),
            // Not what confirms it, if the key does its work.
            Err(Fault::Sick(reason)) => {
                // A session of its own, since some tokens do not leave an operation that failed. Not for each key: a token
                // may look through all objects when a session is closed, as SoftHSM does.
                let session = self.link.open_session(self.entered)?;
                let works = At { session: &session, ..*self }.round_trip(held(key), self.link.ability()?.iv);
                let _ = session.close();
                if works? { Ok(false) } else { Err(Fault::Sick(reason)) }
            }
            Err(other) => Err(other),
        }
    }

    fn generate_root(&self, template: &[Attribute]) -> Result<ObjectHandle, Fault> {
        Ok(with_unwrap_template(|guard| {
            let whole: Vec<_> = template.iter().cloned().chain([guard, Attribute::ValueLen(32.into())]).collect();
            self.session.generate_key(&Mechanism::AesKeyGen, &whole)
        })?)
    }

    fn wrap_out(&self, root: ObjectHandle, key: ObjectHandle) -> Result<Vec<u8>, Fault> {
        count(&self.link.counters.calls);
        let mut blob = self.session.wrap_key(&Mechanism::AesKeyWrap, root, key)?;
        // Some report more than they write.
        blob.truncate(WRAPPED);
        Ok(blob)
    }

    fn unwrap_in(&self, session: &Session, root: ObjectHandle, blob: &[u8]) -> Result<ObjectHandle, Fault> {
        count(&self.link.counters.calls);
        let template: Vec<_> = unwrapped().into_iter().chain([Attribute::Private(true)]).collect();
        Ok(session.unwrap_key(&Mechanism::AesKeyWrap, root, blob, &template)?)
    }

    fn unwraps_what_it_wraps(&self, root: ObjectHandle) -> Result<bool, Fault> {
        let session = self.link.open_session(self.entered)?;
        let at = At { session: &session, ..*self };
        let done = session.generate_key(&Mechanism::AesKeyGen, &extractable()).map_err(Fault::from).and_then(|key| {
            let blob = at.wrap_out(root, key)?;
            at.unwrap_in(&session, root, &blob).map(drop)
        });
        let _ = session.close();
        Ok(done.is_ok())
    }

    /// Tries on scratch keys what would give a wrapped KEK away; once for each start of the module.
    fn guards_wrapped_keys(&self) -> Result<(), Fault> {
        let mut tried = self.link.guards.lock();
        if *tried != Some(self.entered.generation()) {
            // What is made here goes with its session.
            let session = self.link.open_session(self.entered)?;
            let outcome = At { session: &session, ..*self }.attack();
            let _ = session.close();
            outcome?;
            *tried = Some(self.entered.generation());
        }
        Ok(())
    }

    fn attack(&self) -> Result<(), Fault> {
        let ability = self.link.ability()?;
        if ability.suite != Suite::TokenGcm {
            return Err(unfit("it serves no AES-256-GCM"));
        }
        if matches!(ability.iv, IvSource::Appended(len) if len > IV) {
            return Err(unfit("the IVs that it makes are too long"));
        }
        let session = self.session;
        let root = self.generate_root(&root_key(false)).map_err(lacks("make a root key with an UNWRAP_TEMPLATE"))?;
        let key = session.generate_key(&Mechanism::AesKeyGen, &extractable())?;
        let blob = self.wrap_out(root, key).map_err(lacks("wrap with AES_KEY_WRAP"))?;
        let back = self.unwrap_in(session, root, &blob).map_err(lacks("unwrap with AES_KEY_WRAP"))?;
        let again = |template: &[Attribute]| session.unwrap_key(&Mechanism::AesKeyWrap, root, &blob, template).is_ok();
        let but = |change: Attribute| -> Vec<Attribute> {
            let kept = unwrapped().into_iter().filter(|a| a.attribute_type() != change.attribute_type());
            kept.chain([change.clone()]).collect()
        };
        let readable: Vec<_> =
            but(Attribute::Extractable(true)).into_iter().filter(|a| *a != Attribute::Sensitive(true)).collect();
        let value = session.get_attributes(back, &[AttributeType::Value])?;
        let ways_out = [
            ("read", !value.is_empty()),
            ("wrapped out again", session.wrap_key(&Mechanism::AesKeyWrap, root, back).is_ok()),
            (
                "unwrapped as readable",
                again(&readable) || again(&[&readable[..], &[Attribute::Sensitive(false)]].concat()),
            ),
            ("unwrapped as extractable", again(&but(Attribute::Extractable(true)))),
            ("unwrapped as not sensitive", again(&but(Attribute::Sensitive(false)))),
            ("unwrapped as a key that wraps", again(&but(Attribute::Wrap(true)))),
            ("unwrapped as another kind of key", again(&but(Attribute::KeyType(KeyType::GENERIC_SECRET)))),
            ("changed to extractable", session.update_attributes(back, &[Attribute::Extractable(true)]).is_ok()),
            ("changed to readable", session.update_attributes(back, &[Attribute::Sensitive(false)]).is_ok()),
            ("copied as extractable", session.copy_object(back, &[Attribute::Extractable(true)]).is_ok()),
            ("decrypted", session.update_attributes(root, &[Attribute::Decrypt(true)]).is_ok()),
            ("decrypted by a copy", session.copy_object(root, &[Attribute::Decrypt(true)]).is_ok()),
        ];
        match ways_out.iter().find(|(_, open)| *open) {
            None => Ok(()),
            Some((how, _)) => Err(unfit(&format!("a wrapped key could be {how}"))),
        }
    }
}

/// A key of suite 1, as all that is wrapped is.
fn held(handle: ObjectHandle) -> suite::Key {
    suite::Key { handle, suite: Suite::TokenGcm }
}

/// What a root key is asked to be, its name and its UNWRAP_TEMPLATE aside.
fn root_key(token: bool) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES)];
    template.extend([Attribute::Token(token), Attribute::Wrap(true), Attribute::Unwrap(true)]);
    template.extend([Attribute::Private, Attribute::Sensitive].map(|attribute| attribute(true)));
    template.extend([Attribute::Encrypt, Attribute::Decrypt, Attribute::Derive].map(|right| right(false)));
    template.extend([Attribute::Sign, Attribute::Verify].map(|right| right(false)));
    template.extend([Attribute::Extractable, Attribute::Modifiable, Attribute::Copyable].map(|way_out| way_out(false)));
    template
}

/// A KEK when it is born: a session object that the root can wrap.
fn extractable() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(true),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ]
}

/// What a KEK is when it comes back; the root's UNWRAP_TEMPLATE says the same.
fn unwrapped() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
    ]
}

/// `cryptoki` does not know attributes that are templates.
fn with_unwrap_template<T>(act: impl FnOnce(Attribute) -> T) -> T {
    let (yes, no, class, kind): (CK_BBOOL, CK_BBOOL, CK_ULONG, CK_ULONG) = (CK_TRUE, CK_FALSE, CKO_SECRET_KEY, CKK_AES);
    fn entry<T>(name: CK_ATTRIBUTE_TYPE, value: &T) -> CK_ATTRIBUTE {
        let at = std::ptr::from_ref(value).cast::<c_void>().cast_mut();
        CK_ATTRIBUTE { type_: name, pValue: at, ulValueLen: size_of::<T>() as CK_ULONG }
    }
    let template = [
        entry(CKA_CLASS, &class),
        entry(CKA_KEY_TYPE, &kind),
        entry(CKA_TOKEN, &no),
        entry(CKA_SENSITIVE, &yes),
        entry(CKA_EXTRACTABLE, &no),
        entry(CKA_ENCRYPT, &yes),
        entry(CKA_DECRYPT, &yes),
        entry(CKA_WRAP, &no),
        entry(CKA_UNWRAP, &no),
    ];
    // SAFETY: an array of C structs without padding, read as the bytes that the module is to see; what they point to
    // lives until `act` has returned.
    let bytes = unsafe { std::slice::from_raw_parts(template.as_ptr().cast::<u8>(), size_of_val(&template)) };
    act(Attribute::VendorDefined((AttributeType::VendorDefined(CKA_UNWRAP_TEMPLATE), bytes.to_vec())))
}

fn lacks(what: &'static str) -> impl Fn(Fault) -> Fault {
    move |fault| match fault {
        Fault::Sick(reason) | Fault::Refused(reason) => unfit(&format!("it does not {what}: {reason}")),
        other => other,
    }
}

fn unfit(reason: &str) -> Fault {
    configuration(format!("this token cannot keep wrapped KEKs safe: {reason}; use the residency `token`")).into()
}
