//! One thread's place at the token: its session, the questions it can ask, and the ladder after a refusal.

use super::fault::Fault;
use super::hot::{Gcm, Output};
use super::link::{INTERVAL, Link};
use super::module::Entered;
use super::{count, probe};
use crate::crypto::random;
use crate::keys::{KekRef, KeyError, SUITE_TOKEN_GCM, WrapLayer, configuration, unavailable};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use std::num::NonZeroUsize;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Bytes of an AES-GCM tag.
const TAG: usize = 16;

/// Asks the token with one session that is opened again when it is no longer good.
pub struct Seat {
    link: Arc<Link>,
    session: Option<Opened>,
}

struct Opened {
    generation: u64,
    session: Session,
}

/// Inside the module, with a session: valid for one question.
pub struct At<'a> {
    pub link: &'a Link,
    pub entered: &'a Entered<'a>,
    pub session: &'a Session,
}

impl Seat {
    pub fn new(link: Arc<Link>) -> Self {
        Seat { link, session: None }
    }

    /// Connects to the token and refuses one that cannot serve suite 1.
    pub fn start(&mut self) -> Result<(), KeyError> {
        self.link.start()?;
        self.probe()
    }

    /// Refuses a token that cannot serve suite 1.
    pub fn probe(&mut self) -> Result<(), KeyError> {
        self.climb(probe::suite_one)
    }

    /// Makes one layer over `inner`, a DEK or what the layer below wrote: the layer, and the tag longer ciphertext.
    pub fn wrap(&mut self, kek: KekRef, aad: &[u8; 32], inner: &[u8]) -> Result<(WrapLayer, Vec<u8>), KeyError> {
        self.climb(|at| {
            let iv = random();
            let output = at.with_key(kek, |key| at.encrypt(key, &iv, aad, inner))?;
            count(&at.link.counters.wraps);
            let layer = WrapLayer { suite: SUITE_TOKEN_GCM, kek, iv: iv.to_vec() };
            Ok((layer, whole(&output, inner.len() + TAG)?.to_vec()))
        })
    }

    /// Opens one layer.
    pub fn unwrap(&mut self, layer: &WrapLayer, aad: &[u8; 32], outer: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let iv = <&[u8; 12]>::try_from(&layer.iv[..]).map_err(|_| KeyError::Authentication)?;
        if layer.suite != SUITE_TOKEN_GCM || outer.len() < 32 + TAG {
            return Err(KeyError::Authentication);
        }
        self.climb(|at| {
            let decrypt = |key| at.decrypt(at.session, key, iv, aad, outer);
            let output = at.with_key(layer.kek, decrypt).or_else(|fault| match fault {
                Fault::Sick(_) => at.second_opinion(layer.kek, iv, aad, outer, fault),
                other => Err(other),
            })?;
            count(&at.link.counters.unwraps);
            Ok(Zeroizing::new(whole(&output, outer.len() - TAG)?.to_vec()))
        })
    }

    /// Whether the token holds `kek` now.
    pub fn confirm(&mut self, kek: KekRef) -> Result<(), KeyError> {
        self.climb(|at| at.search(kek).map(drop))
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// Asks, and climbs the ladder when the token refuses: a new session, then the module started over.
    pub(super) fn climb<T>(&mut self, question: impl Fn(&At) -> Result<T, Fault>) -> Result<T, KeyError> {
        let link = self.link.clone();
        let answer = self.answer(&link, question);
        link.note(&answer);
        answer
    }

    fn answer<T>(&mut self, link: &Link, question: impl Fn(&At) -> Result<T, Fault>) -> Result<T, KeyError> {
        let (mut new_session, mut recovered) = (false, false);
        loop {
            let entered = link.module.enter()?;
            let generation = entered.generation();
            let answer = self.session(&entered).and_then(|session| {
                let session = &session.session;
                question(&At { link, entered: &entered, session })
            });
            if answer.is_err() {
                self.leave(&entered);
            }
            drop(entered);
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Refused(_)) if !new_session => new_session = true,
                Err(Fault::Refused(reason) | Fault::Sick(reason)) if !recovered => {
                    link.recover(generation, &reason)?;
                    (new_session, recovered) = (true, true);
                }
                Err(Fault::Refused(reason) | Fault::Sick(reason)) => return Err(unavailable(reason)),
            }
        }
    }

    fn session(&mut self, entered: &Entered) -> Result<&Opened, Fault> {
        let generation = entered.generation();
        let opened = match self.session.take().filter(|opened| opened.generation == generation) {
            Some(opened) => opened,
            None => Opened { generation, session: self.link.open_session(entered)? },
        };
        Ok(self.session.insert(opened))
    }

    /// Gives the session up. One of an earlier generation must not be closed: its handle may be another's now.
    fn leave(&mut self, entered: &Entered) {
        if let Some(opened) = self.session.take()
            && opened.generation == entered.generation()
        {
            let _ = opened.session.close();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let link = self.link.clone();
        if let Ok(entered) = link.module.enter() {
            self.leave(&entered);
        }
    }
}

impl At<'_> {
    /// Runs `question` with the handle of the KEK; one that is refused is searched for next time.
    pub fn with_key<T>(
        &self,
        kek: KekRef,
        question: impl FnOnce(ObjectHandle) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let key = match self.link.known_key(&kek, self.entered.generation()) {
            Some(key) => key,
            None => self.search(kek)?,
        };
        question(key).inspect_err(|fault| {
            if matches!(fault, Fault::Refused(_)) {
                self.link.forget_key(&kek);
            }
        })
    }

    /// The KEK's handle from the token itself.
    pub fn search(&self, kek: KekRef) -> Result<ObjectHandle, Fault> {
        self.link.forget_key(&kek);
        let found = self.find(kek)?;
        match found[..] {
            [key] => {
                self.link.remember_key(kek, self.entered.generation(), key);
                Ok(key)
            }
            [] => Err(self.absent(kek)),
            _ => {
                let message = format!("{} keys on the token are {kek}: remove the foreign ones", found.len());
                Err(configuration(message).into())
            }
        }
    }

    /// Every AES key of the token with the KEK's CKA_ID.
    pub fn find(&self, kek: KekRef) -> Result<Vec<ObjectHandle>, Fault> {
        count(&self.link.counters.calls);
        Ok(self.session.find_objects(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Id(kek.object_id()),
        ])?)
    }

    /// Why a search found nothing: the key is not there, or the token only seems to answer.
    ///
    /// A token whose storage went away answers searches with nothing, and goes on so once it is back. It is
    /// believed when it shows some other key, or was initialized just now.
    fn absent(&self, kek: KekRef) -> Fault {
        let missing = || Fault::Final(KeyError::NoSuchKey(kek));
        if let Err(fault) = self.link.answers(self.entered) {
            return fault;
        }
        count(&self.link.counters.calls);
        let any = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Token(true)];
        match self.session.iter_objects_with_cache_size(&any, NonZeroUsize::MIN).map(|mut keys| keys.next()) {
            Ok(Some(Ok(_))) => missing(),
            Ok(None) if self.entered.age() < INTERVAL => missing(),
            Ok(None) => Fault::Sick("it shows no keys at all".to_owned()),
            Ok(Some(Err(error))) | Err(error) => error.into(),
        }
    }

    /// Tells a forged blob from a sick token, which no code does: a fresh secret has to survive the way
    /// through the same KEK, and the blob has to fail again after that.
    fn second_opinion(
        &self,
        kek: KekRef,
        iv: &[u8; 12],
        aad: &[u8; 32],
        outer: &[u8],
        first: Fault,
    ) -> Result<Output, Fault> {
        // A session of its own: the first may be stuck in the operation that failed.
        let session = self.link.open_session(self.entered)?;
        let at = At { session: &session, ..*self };
        // A wrapped KEK is no object that a search finds.
        let known = self.link.known_key(&kek, self.entered.generation());
        let found = at.search(kek).or_else(|fault| match (fault, known) {
            (Fault::Final(KeyError::NoSuchKey(_)), Some(key)) => Ok(key),
            (fault, _) => Err(fault),
        });
        let opinion = match found.and_then(|key| Ok((key, at.round_trip(key)?))) {
            Ok((key, true)) => at.decrypt(&session, key, iv, aad, outer).map_err(|fault| match fault {
                Fault::Sick(_) => Fault::Final(KeyError::Authentication),
                other => other,
            }),
            Ok((_, false)) => Err(Fault::Sick("it decrypts to something else than it encrypted".to_owned())),
            Err(_) => Err(first),
        };
        let _ = session.close();
        opinion
    }

    /// Whether a fresh secret survives the way through the key.
    pub fn round_trip(&self, key: ObjectHandle) -> Result<bool, Fault> {
        let (secret, iv, aad) = (random::<32>(), random(), random());
        let sealed = self.encrypt(key, &iv, &aad, &secret)?;
        Ok(self.decrypt(self.session, key, &iv, &aad, whole(&sealed, 32 + TAG)?)?.bytes() == secret)
    }

    pub fn encrypt(&self, key: ObjectHandle, iv: &[u8; 12], aad: &[u8; 32], data: &[u8]) -> Result<Output, Fault> {
        count(&self.link.counters.calls);
        let gcm = Gcm { session: self.session.handle(), key: key.handle(), iv, aad };
        let output = self.entered.hot().encrypt(gcm, data)?;
        if output.iv == *iv { Ok(output) } else { Err(Fault::Sick("it used an IV of its own".to_owned())) }
    }

    /// On the given session, which is of no more use after an error.
    pub fn decrypt(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &[u8; 12],
        aad: &[u8; 32],
        data: &[u8],
    ) -> Result<Output, Fault> {
        count(&self.link.counters.calls);
        let gcm = Gcm { session: session.handle(), key: key.handle(), iv, aad };
        Ok(self.entered.hot().decrypt(gcm, data)?)
    }
}

/// The output, when it has the length it has to have.
pub fn whole(output: &Output, len: usize) -> Result<&[u8], Fault> {
    let wrote = output.bytes().len();
    if wrote == len {
        return Ok(output.bytes());
    }
    Err(Fault::Sick(format!("it wrote {wrote} bytes where AES-GCM writes {len}")))
}
