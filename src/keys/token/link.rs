//! Finding the token, logging in, and starting the module over when the token does not serve.
//!
//! One session, the anchor, is opened for each generation of the module and never used: the token forgets
//! the login when a process closes its last session. A PIN is presented once; a refusal is remembered.

use super::fault::Fault;
use super::loaded::Loaded;
use super::module::{Entered, Module};
use super::probe::Ability;
use super::suite::Key;
use super::{Counters, count};
use crate::keys::{KekRef, KeyError, Pin, TokenUri, configuration, unavailable};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// The longest pause between two recoveries, and the time after which an empty token is not believed.
pub const INTERVAL: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(125);

/// In milliseconds. A process that starts can miss a token that another one is just logging in to.
const START_PAUSES: [u64; 4] = [100, 200, 400, 800];

/// One token of one module.
pub struct Link {
    pub module: Arc<Module>,
    pub counters: Counters,
    uri: TokenUri,
    pin: Mutex<Arc<Pin>>,
    /// Where each KEK is, in the generation it was found in.
    keys: Mutex<HashMap<KekRef, (u64, Key)>>,
    pub loaded: Loaded,
    /// The generation in which it was seen that nothing wrapped can be had in clear.
    pub guards: Mutex<Option<u64>>,
    /// Written while a token object is made or destroyed, read while one is looked for: SoftHSM may fail to make a key that
    /// another session comes across meanwhile, and then keeps what it had of it, without a name.
    pub objects: RwLock<()>,
    /// What the probe found.
    ability: OnceLock<Ability>,
    gate: Mutex<Gate>,
    /// The pause after the next recovery that fails. Taken before the module is entered, never after.
    recovery: Mutex<Duration>,
    outlook: Mutex<Outlook>,
}

struct Gate {
    anchor: Option<Anchor>,
    refused: Option<String>,
    /// No token is looked for, and none recovered, before this time.
    not_before: Instant,
}

struct Anchor {
    generation: u64,
    slot: Slot,
    session: Session,
}

/// What was last seen of the token.
#[derive(Clone)]
pub struct Outlook {
    pub label: String,
    pub serial: String,
    pub state: &'static str,
    pub last_error: Option<String>,
}

impl Link {
    pub fn new(module: Arc<Module>, uri: TokenUri, pin: Pin) -> Self {
        let unseen = Outlook { label: String::new(), serial: String::new(), state: "unavailable", last_error: None };
        Link {
            module,
            counters: Counters::default(),
            uri,
            pin: Mutex::new(Arc::new(pin)),
            keys: Mutex::default(),
            loaded: Loaded::default(),
            guards: Mutex::default(),
            objects: RwLock::default(),
            ability: OnceLock::new(),
            gate: Mutex::new(Gate { anchor: None, refused: None, not_before: Instant::now() }),
            recovery: Mutex::new(FIRST_PAUSE),
            outlook: Mutex::new(unseen),
        }
    }

    /// The first connection. A token that is not there yet gets some more chances.
    pub fn start(&self) -> Result<(), KeyError> {
        let mut pauses = START_PAUSES.into_iter().map(Duration::from_millis);
        loop {
            let entered = self.module.enter()?;
            let generation = entered.generation();
            let missing = match self.slot(&entered) {
                Ok(_) => return Ok(()),
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Refused(reason) | Fault::Sick(reason)) => reason,
            };
            drop(entered);
            std::thread::sleep(pauses.next().ok_or_else(|| configuration(missing))?);
            self.module.reload(generation)?;
        }
    }

    /// The slot of the token, which is logged in to when this returns.
    pub fn slot(&self, entered: &Entered) -> Result<Slot, Fault> {
        let Gate { anchor, refused, not_before } = &mut *self.gate.lock();
        if let Some(reason) = refused {
            return Err(KeyError::PinRefused(reason.clone()).into());
        }
        let alive =
            |anchor: &Anchor| anchor.generation == entered.generation() && anchor.session.get_session_info().is_ok();
        let anchor = match anchor.take().filter(alive) {
            Some(held) => anchor.insert(held),
            None if Instant::now() < *not_before => {
                let reason = self.outlook.lock().last_error.clone();
                return Err(unavailable(reason.unwrap_or_else(|| "it does not answer".to_owned())).into());
            }
            None => anchor.insert(self.cast(entered)?),
        };
        if anchor.session.get_session_info()?.session_state() != SessionState::RwUser {
            self.login(entered, anchor, refused)?;
        }
        Ok(anchor.slot)
    }

    fn cast(&self, entered: &Entered) -> Result<Anchor, Fault> {
        let (slot, info) = self.locate(entered)?;
        let session = entered.pkcs11().open_rw_session_no_drop(slot)?;
        let mut outlook = self.outlook.lock();
        outlook.label = info.label().to_owned();
        outlook.serial = info.serial_number().to_owned();
        Ok(Anchor { generation: entered.generation(), slot, session })
    }

    /// A session of its own for the caller, who closes it.
    pub fn open_session(&self, entered: &Entered) -> Result<Session, Fault> {
        let slot = self.slot(entered)?;
        Ok(entered.pkcs11().open_rw_session_no_drop(slot)?)
    }

    /// Whether the token still answers for itself; a search that finds nothing does not tell.
    pub fn answers(&self, entered: &Entered) -> Result<(), Fault> {
        let slot = self.slot(entered)?;
        if self.fits(&entered.token_info(slot)?) {
            return Ok(());
        }
        Err(Fault::Sick("another token is in its slot".to_owned()))
    }

    /// Whether KEKs may be kept in it though it lets them be copied.
    pub fn accepts_copies(&self) -> bool {
        self.uri.accepts_copies()
    }

    fn fits(&self, info: &TokenInfo) -> bool {
        self.uri.selects(info.label(), info.manufacturer_id(), info.serial_number(), info.model())
    }

    fn locate(&self, entered: &Entered) -> Result<(Slot, TokenInfo), Fault> {
        let mut there = Vec::new();
        let mut hits = Vec::new();
        for slot in entered.pkcs11().get_slots_with_token()? {
            match entered.token_info(slot) {
                Ok(info) if !info.token_initialized() => {}
                Ok(info) => {
                    there.push(format!("token={} (serial {})", info.label(), info.serial_number()));
                    if self.fits(&info) {
                        hits.push((slot, info));
                    }
                }
                Err(error) => there.push(format!("one that does not answer ({error})")),
            }
        }
        let uri = &self.uri;
        let there = if there.is_empty() { "no token at all".to_owned() } else { there.join(", ") };
        match hits.len() {
            0 => Err(Fault::Sick(format!(
                "no token fits {uri}; the module shows {there}: correct the URI, or initialize the token"
            ))),
            1 => Ok(hits.remove(0)),
            _ => Err(configuration(format!("several tokens fit {uri}: {there}; add serial= to the URI")).into()),
        }
    }

    fn login(&self, entered: &Entered, anchor: &Anchor, refused: &mut Option<String>) -> Result<(), Fault> {
        let info = entered.token_info(anchor.slot)?;
        if !info.login_required() {
            return Ok(());
        }
        let refusal = if !info.user_pin_initialized() {
            let label = info.label();
            return Err(configuration(format!("token {label} has no user PIN: set one with its vendor's tool")).into());
        } else if info.user_pin_locked() {
            "the token has locked it; unlock it as the security officer".to_owned()
        } else if info.user_pin_final_try() {
            "one more wrong PIN would lock it, so it is not tried; log in once by hand".to_owned()
        } else {
            count(&self.counters.logins);
            match anchor.session.login_with_raw(UserType::User, &self.pin.lock().for_login()) {
                Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => return Ok(()),
                Err(Error::Pkcs11(
                    code @ (RvError::PinIncorrect
                    | RvError::PinInvalid
                    | RvError::PinLenRange
                    | RvError::PinExpired
                    | RvError::PinLocked),
                    _,
                )) => format!("{code}; it is not tried again: correct the PIN source, then start again"),
                Err(other) => return Err(other.into()),
            }
        };
        *refused = Some(refusal.clone());
        Err(KeyError::PinRefused(refusal).into())
    }

    /// Changes the token's PIN; a token that refuses changes nothing.
    pub fn set_pin(&self, session: &Session, new: &Arc<Pin>) -> Result<(), Fault> {
        // Held, so that nobody logs in with the old PIN meanwhile.
        let mut pin = self.pin.lock();
        match session.set_pin(&pin.for_change()?, &new.for_change()?) {
            Ok(()) => {
                *pin = new.clone();
                Ok(())
            }
            Err(error @ Error::Pkcs11(RvError::PinIncorrect | RvError::PinLocked | RvError::PinExpired, _)) => {
                Err(KeyError::PinRefused(format!("{error}: it was changed by somebody else")).into())
            }
            Err(error @ Error::Pkcs11(RvError::PinInvalid | RvError::PinLenRange, _)) => {
                Err(configuration(format!("the token does not take the new PIN ({error}): choose another")).into())
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Finalizes and initializes the module once the generation `seen` has failed for `reason`, and logs in.
    ///
    /// At most one at a time and one each [`INTERVAL`]. The caller must not be inside the module.
    pub fn recover(&self, seen: u64, reason: &str) -> Result<(), KeyError> {
        let mut pause = self.recovery.lock();
        if self.module.enter()?.generation() != seen {
            return Ok(());
        }
        if Instant::now() < self.gate.lock().not_before {
            return Err(unavailable(reason));
        }
        count(&self.counters.recoveries);
        let again = self.module.reload(seen).map_err(Fault::Final).and_then(|()| self.slot(&self.module.enter()?));
        let error = match again {
            Ok(_) => {
                *pause = FIRST_PAUSE;
                self.gate.lock().not_before = Instant::now() + INTERVAL;
                return Ok(());
            }
            Err(Fault::Final(error)) => error,
            Err(Fault::Refused(reason) | Fault::Sick(reason)) => unavailable(reason),
        };
        self.gate.lock().not_before = Instant::now() + *pause;
        *pause = (*pause * 2).min(INTERVAL);
        Err(error)
    }

    /// What the token can do; only once it was probed is it asked for anything.
    pub fn ability(&self) -> Result<&Ability, KeyError> {
        self.ability.get().ok_or_else(|| unavailable("it was not probed yet"))
    }

    pub fn probed(&self, ability: Ability) {
        // Two probes of one token find the same.
        let _ = self.ability.set(ability);
    }

    pub fn known_key(&self, kek: &KekRef, generation: u64) -> Option<Key> {
        self.keys.lock().get(kek).filter(|(found_in, _)| *found_in == generation).map(|(_, key)| *key)
    }

    pub fn remember_key(&self, kek: KekRef, generation: u64, key: Key) {
        self.keys.lock().insert(kek, (generation, key));
    }

    pub fn forget_key(&self, kek: &KekRef) {
        self.keys.lock().remove(kek);
    }

    /// Keeps for the operator what an answer says of the token.
    pub fn note<T>(&self, answer: &Result<T, KeyError>) {
        let mut outlook = self.outlook.lock();
        let (state, reason) = match answer {
            Ok(_) => {
                outlook.state = "active";
                return;
            }
            Err(KeyError::Unavailable(reason)) => ("unavailable", reason),
            Err(KeyError::PinRefused(reason)) => ("pin refused", reason),
            Err(_) => return,
        };
        (outlook.state, outlook.last_error) = (state, Some(reason.clone()));
    }

    /// The error with the token's URI, if it does not say that yet.
    pub fn named(&self, error: KeyError) -> KeyError {
        let uri = self.uri.to_string();
        let named = |why: String| if why.contains(&uri) { why } else { format!("{uri}: {why}") };
        match error {
            KeyError::Unavailable(why) => KeyError::Unavailable(named(why)),
            KeyError::PinRefused(why) => KeyError::PinRefused(named(why)),
            other => other,
        }
    }

    pub fn outlook(&self) -> Outlook {
        self.outlook.lock().clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Nobody asks any more, so closing the last session, which logs out, harms nobody of this keyring.
        if let Some(anchor) = self.gate.get_mut().anchor.take()
            && let Ok(entered) = self.module.enter()
            && entered.generation() == anchor.generation
        {
            let _ = anchor.session.close();
        }
    }
}
