//! One thread's place at the token: its session, the questions it can ask, and the ladder after a refusal.

use super::fault::Fault;
use super::link::{INTERVAL, Link};
use super::module::Entered;
use super::suite::{Key, Suite};
use super::{count, probe};
use crate::crypto::{TAG, burn_stack};
use crate::keys::{KekRef, KeyError, Pin, WrapLayer, configuration, unavailable};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use std::num::NonZeroUsize;
use std::sync::Arc;
use zeroize::Zeroizing;

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

    /// Connects to the token and refuses one that serves no suite.
    pub fn start(&mut self) -> Result<(), KeyError> {
        self.connect()?;
        self.probe()
    }

    pub fn connect(&mut self) -> Result<(), KeyError> {
        self.link.start()
    }

    /// Finds out what the token can do, and refuses one that serves no suite.
    pub fn probe(&mut self) -> Result<(), KeyError> {
        let ability = self.climb(probe::ability)?;
        self.link.probed(ability);
        Ok(())
    }

    /// C_SetPIN, from the PIN that logs in to the new one.
    pub fn set_pin(&mut self, new: Pin) -> Result<(), KeyError> {
        let new = Arc::new(new);
        self.climb(|at| at.link.set_pin(at.session, &new))
    }

    /// Makes one layer over `inner`, a DEK or what the layer below wrote: the layer, and the tag longer ciphertext.
    pub fn wrap(&mut self, kek: KekRef, aad: &[u8; 32], inner: &[u8]) -> Result<(WrapLayer, Vec<u8>), KeyError> {
        self.climb(|at| {
            let source = at.link.ability()?.iv;
            let (suite, (iv, outer)) = at.with_key(kek, |key| Ok((key.suite, at.wrap(key, source, aad, inner)?)))?;
            count(&at.link.counters.wraps);
            Ok((WrapLayer { suite: suite.number(), kek, iv }, outer))
        })
    }

    /// Opens one layer.
    pub fn unwrap(&mut self, layer: &WrapLayer, aad: &[u8; 32], outer: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        if outer.len() < 32 + TAG {
            return Err(KeyError::Authentication);
        }
        self.climb(|at| {
            let open = |session: &Session, key: Key| {
                if key.suite.number() != layer.suite || !key.suite.takes(&layer.iv) {
                    return Err(KeyError::Authentication.into());
                }
                at.unwrap(session, key, &layer.iv, aad, outer)
            };
            let inner = at.with_key(layer.kek, |key| open(at.session, key)).or_else(|fault| match fault {
                Fault::Sick(_) => at.second_opinion(layer.kek, open, fault),
                other => Err(other),
            })?;
            count(&at.link.counters.unwraps);
            Ok(inner)
        })
    }

    /// Whether the token holds `kek` now.
    pub fn confirm(&mut self, kek: KekRef) -> Result<(), KeyError> {
        self.climb(|at| at.look_for(kek).map(drop))
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
            // What the module's calls left, and our own copies of what went in and out.
            burn_stack();
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
    pub fn with_key<T>(&self, kek: KekRef, question: impl FnOnce(Key) -> Result<T, Fault>) -> Result<T, Fault> {
        let key = match self.link.known_key(&kek, self.entered.generation()) {
            Some(key) => key,
            None => self.look_for(kek)?,
        };
        question(key).inspect_err(|fault| {
            if matches!(fault, Fault::Refused(_)) {
                self.link.forget_key(&kek);
            }
        })
    }

    /// The KEK from the token itself, while none is made there.
    fn look_for(&self, kek: KekRef) -> Result<Key, Fault> {
        let _none_is_made = self.link.objects.read();
        self.search(kek)
    }

    /// The same for whoever holds [`Link::objects`].
    pub fn search(&self, kek: KekRef) -> Result<Key, Fault> {
        self.link.forget_key(&kek);
        let found = self.find(kek)?;
        match found[..] {
            [handle] => {
                let key = Key { handle, suite: self.suite_of(kek, handle)? };
                self.link.remember_key(kek, self.entered.generation(), key);
                Ok(key)
            }
            [] => Err(match self.absent(kek) {
                // Whoever is not logged in is shown no keys, and the login was made up for meanwhile.
                Fault::Final(KeyError::NoSuchKey(_)) if !self.find(kek)?.is_empty() => {
                    Fault::Refused("it did not show a key that it has".to_owned())
                }
                fault => fault,
            }),
            _ => {
                let message = format!("{} keys on the token are {kek}: remove the foreign ones", found.len());
                Err(configuration(message).into())
            }
        }
    }

    /// Every secret key of the token with the KEK's CKA_ID.
    pub fn find(&self, kek: KekRef) -> Result<Vec<ObjectHandle>, Fault> {
        count(&self.link.counters.calls);
        Ok(self.session.find_objects(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::Token(true),
            Attribute::Id(kek.object_id()),
        ])?)
    }

    fn suite_of(&self, kek: KekRef, handle: ObjectHandle) -> Result<Suite, Fault> {
        match self.session.get_attributes(handle, &[AttributeType::KeyType])?[..] {
            [Attribute::KeyType(key_type)] => Suite::of_key(key_type).ok_or_else(|| {
                configuration(format!("the key on the token that has the name of {kek} is of no suite: remove it"))
                    .into()
            }),
            _ => Err(Fault::Sick("it does not say of which type a key is".to_owned())),
        }
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
    fn second_opinion<T>(
        &self,
        kek: KekRef,
        open: impl Fn(&Session, Key) -> Result<T, Fault>,
        first: Fault,
    ) -> Result<T, Fault> {
        // A session of its own: the first may be stuck in the operation that failed.
        self.apart(|at| {
            let source = at.link.ability()?.iv;
            // A wrapped KEK is no object that a search finds.
            let known = self.link.known_key(&kek, self.entered.generation());
            let found = at.look_for(kek).or_else(|fault| match (fault, known) {
                (Fault::Final(KeyError::NoSuchKey(_)), Some(key)) => Ok(key),
                (fault, _) => Err(fault),
            });
            match found.and_then(|key| Ok((key, at.round_trip(key, source)?))) {
                Ok((key, true)) => open(at.session, key).map_err(|fault| match fault {
                    Fault::Sick(_) => KeyError::Authentication.into(),
                    other => other,
                }),
                Ok((_, false)) => Err(Fault::Sick("it decrypts to something else than it encrypted".to_owned())),
                Err(_) => Err(first),
            }
        })
    }

    /// Asks in a session of its own, which ends with the question, whatever the token makes of it.
    pub fn apart<T>(&self, question: impl FnOnce(&At) -> Result<T, Fault>) -> Result<T, Fault> {
        let session = self.link.open_session(self.entered)?;
        let answer = question(&At { session: &session, ..*self });
        let _ = session.close();
        answer
    }
}
