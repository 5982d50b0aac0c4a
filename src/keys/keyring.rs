//! The keyring: KEKs by name, DEKs opened and made, with the token asked as seldom as can be.

mod tokens;

use super::cache::{Cache, CacheLimits, Claim};
use super::flight::Flights;
use super::home::{Home, Homes, Lodging, LookUp, TokenPlace, WrappedKek};
use super::pool::{Order, Pool, Recipe};
use super::token::{Key, Seat, Token};
use super::{KekRef, KekState, KeyError, Patience, PinSource};
use super::{TokenCheck, TokenStatus, TokenUri, WrapLayer, WrappedDek, configuration};
use crate::crypto::{LockedKey, context_digest, kek_aad, random, wrap_aad};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokens::{Beside, Own};
use zeroize::Zeroizing;

/// Wraps done in one go before others get their turn.
const BATCH: usize = 8;

/// What a keyring is opened with.
#[derive(Clone, Debug)]
pub struct KeyringConfig {
    pub uri: TokenUri,
    pub pin: PinSource,
    /// How long a caller waits for the token, at most (`key_timeout`, 5 s).
    pub timeout: Duration,
    pub cache: CacheLimits,
    /// DEKs wrapped ahead of need for each KEK and key context; 0 for none.
    pub pool: usize,
}

/// A new DEK and the form to store it in.
#[derive(Clone, Debug)]
pub struct FreshDek {
    pub key: Arc<LockedKey>,
    pub wrapped: WrappedDek,
}

/// The keys of one vault.
pub struct Keyring {
    memory: Arc<Memory>,
    flights: Flights,
    own: RwLock<Own>,
    /// Tokens of organizations' own, and the one that the vault moves to or has just left.
    others: Mutex<HashMap<TokenPlace, Beside>>,
    homes: Homes,
    timeout: Duration,
    /// Its end ends the sweeper.
    _sweeper: mpsc::Sender<()>,
}

type UnwrapHook = Box<dyn Fn(u32, &[u8; 16]) + Send + Sync>;

/// What questions under way may outlive the keyring with.
struct Memory {
    cache: Cache,
    pool: Pool,
    on_unwrap: RwLock<Option<UnwrapHook>>,
}

impl Keyring {
    /// Reads the PIN, loads the module, finds the token, logs in, and probes what the token can do.
    pub fn open(config: KeyringConfig) -> Result<Keyring, KeyError> {
        let place = TokenPlace { uri: config.uri, pin: config.pin };
        let token = Arc::new(Token::open(place.uri.clone(), place.pin.read()?, config.timeout)?);
        let memory = Arc::new(Memory {
            cache: Cache::new(config.cache),
            pool: Pool::new(config.pool, config.cache.hard),
            on_unwrap: RwLock::new(None),
        });
        let sweeper = spawn_sweeper(&memory, config.cache.hard)?;
        Ok(Keyring {
            memory,
            flights: Flights::default(),
            own: RwLock::new(Own { number: 0, token, place, other: None }),
            others: Mutex::default(),
            homes: Homes::new(),
            timeout: config.timeout,
            _sweeper: sweeper,
        })
    }

    /// Who says where KEKs live; without it they are all on the vault's token.
    pub fn ask_for_homes(&self, look_up: LookUp) {
        self.homes.ask(look_up);
    }

    /// Makes a KEK on the vault's token: it encrypts and decrypts there, and cannot be read, copied or changed.
    ///
    /// After [`KeyError::Unavailable`] the token has no such key, or destroys it as soon as it answers again.
    pub fn create_kek(&self, kek: KekRef) -> Result<(), KeyError> {
        make(&self.token(), move |seat, claim| seat.create(kek, claim))
    }

    /// As [`Keyring::create_kek`], on the token that is to be its home.
    pub fn create(&self, home: &Home, kek: KekRef, pair: &(String, String)) -> Result<(), KeyError> {
        // It is needed before whoever keeps homes has stored it.
        self.homes.note(kek, Lodging { home: home.clone(), pair: pair.clone() });
        let token = self.token_of(home)?;
        make(&token, move |seat, claim| seat.create(kek, claim))
    }

    /// Makes sure of a KEK that is already on its token and that nothing is wrapped under yet: a try to make it was
    /// cut short. One that does not work is made anew.
    pub fn adopt(&self, home: &Home, kek: KekRef) -> Result<(), KeyError> {
        let token = self.token_of(home)?;
        make(&token, move |seat, claim| seat.adopt(kek, claim))
    }

    /// As [`Keyring::adopt`], on the vault's token.
    pub fn adopt_kek(&self, kek: KekRef) -> Result<(), KeyError> {
        self.adopt(&self.own_home(), kek)
    }

    /// Makes a root key on the vault's token: it wraps and unwraps KEKs there and does nothing else.
    pub fn create_root(&self, root: KekRef) -> Result<(), KeyError> {
        self.create_root_at(&self.own_home(), root)
    }

    /// As [`Keyring::create_root`], on the token that is to be its home.
    pub fn create_root_at(&self, home: &Home, root: KekRef) -> Result<(), KeyError> {
        self.token_of(home)?.ask(move |seat| seat.create_root(root))
    }

    /// Makes a KEK under a root key on this token of the vault's: what is to be stored of it. The token keeps nothing.
    pub fn create_wrapped_kek(
        &self,
        number: u32,
        kek: KekRef,
        root: KekRef,
        pair: (String, String),
    ) -> Result<WrappedKek, KeyError> {
        let aad = kek_aad(&context_digest(std::slice::from_ref(&pair)), kek.version, &kek.id);
        let token = self.token_of(&Home::Token(number))?;
        let wrapped = token.ask(move |seat| seat.bear(kek, root, &aad))?;
        // It is needed before whoever keeps homes has stored it.
        self.homes.note(kek, Lodging { home: Home::Wrapped(number, wrapped.clone()), pair });
        Ok(wrapped)
    }

    /// What the token of such KEKs is, does and lets others do, tried anew.
    pub fn check(&self, home: &Home) -> Result<TokenCheck, KeyError> {
        self.token_of(home)?.check()
    }

    /// The same of a token that nothing is kept in yet, and that may be of no use.
    pub fn check_token(uri: TokenUri, pin: &PinSource) -> Result<TokenCheck, KeyError> {
        Token::examine(uri, pin.read()?)
    }

    /// Gives the token the PIN that is read from here; this keyring presents it from now on.
    pub fn set_pin(&self, new: &PinSource) -> Result<(), KeyError> {
        self.token().set_pin(new.read()?)?;
        self.own.write().place.pin = new.clone();
        Ok(())
    }

    /// Destroys a KEK or a root key of the vault's token for good, and forgets every DEK under it.
    /// [`KeyError::NoSuchKey`] when it is gone already.
    pub fn destroy_kek(&self, kek: KekRef) -> Result<(), KeyError> {
        self.destroy(&self.own_home(), kek)
    }

    /// As [`Keyring::destroy_kek`], wherever it lives; what is stored of a wrapped one is the caller's affair.
    pub fn destroy(&self, home: &Home, kek: KekRef) -> Result<(), KeyError> {
        let forget = |memory: &Memory| {
            memory.pool.forget_where(|recipe| recipe.keks.contains(&kek));
            memory.cache.forget_where(|claim| claim.wrapped.layers.iter().any(|layer| layer.kek == kek));
        };
        forget(&self.memory);
        self.homes.forget(kek);
        let destroyed = match home {
            Home::Token(_) | Home::External(_) => {
                self.token_of(home).and_then(|token| token.ask(move |seat| seat.destroy(kek)))
            }
            Home::Wrapped(..) => {
                // A token that is away has lost it by itself.
                if let Ok(token) = self.token_of(home) {
                    token.later(move |seat| drop(seat.unload(kek)));
                }
                Ok(())
            }
        };
        // Once more for what came in while the key still worked.
        forget(&self.memory);
        destroyed
    }

    /// Whether a KEK of the vault's token can be used; asks it.
    pub fn kek_state(&self, kek: KekRef) -> KekState {
        self.token().kek_state(Key { kek, lodging: None })
    }

    /// Whether a KEK of an organization can be used; asks the token it lives on.
    pub fn state_of(&self, organization: u32, kek: KekRef) -> KekState {
        match self.located(organization, kek) {
            Ok((token, key)) => token.kek_state(key),
            Err(error) => KekState::Unavailable(error.to_string()),
        }
    }

    /// A KEK, and the token that it can be used on.
    fn located(&self, organization: u32, kek: KekRef) -> Result<(Arc<Token>, Key), KeyError> {
        let lodging = self.homes.find(organization, kek);
        let token = match &lodging {
            Some(lodging) => self.token_of(&lodging.home)?,
            None => self.token(),
        };
        Ok((token, Key { kek, lodging }))
    }

    /// The way through the KEKs of a wrapping: on one token, unless an organization is just moving to another.
    fn route(&self, organization: u32, keks: impl IntoIterator<Item = KekRef>) -> Result<Vec<Leg>, KeyError> {
        let mut legs: Vec<Leg> = Vec::new();
        for (number, kek) in keks.into_iter().enumerate() {
            let (token, key) = self.located(organization, kek)?;
            match legs.last_mut().filter(|leg| Arc::ptr_eq(&leg.token, &token)) {
                Some(leg) => {
                    leg.run.keys.push(key);
                    leg.run.layers.end += 1;
                }
                None => legs.push(Leg { token, run: Run { keys: vec![key], layers: number..number + 1 } }),
            }
        }
        Ok(legs)
    }

    /// Opens a wrapped DEK, with no call to the token when it was opened a short while ago.
    ///
    /// `context` holds the pairs of the key context in the order of their keys. Whether the DEK belongs to
    /// the content at hand is not known here: check [`crate::crypto::commitment`] before its first use.
    pub fn unwrap(
        &self,
        organization: u32,
        wrapped: &WrappedDek,
        context: &[(String, String)],
        patience: Patience,
    ) -> Result<Arc<LockedKey>, KeyError> {
        if wrapped.layers.is_empty() || wrapped.layers.len() != context.len() {
            return Err(KeyError::Authentication);
        }
        let claim = Claim { organization, context: context_digest(context), wrapped: wrapped.clone() };
        if let Some(key) = self.cached(&claim) {
            return Ok(key);
        }
        if patience == Patience::Never {
            return Err(KeyError::WouldWait);
        }
        self.flights.ask(&claim, self.timeout, || {
            // Whoever was asking may have just got it.
            if let Some(key) = self.cached(&claim) {
                return Ok(key);
            }
            let (memory, ours) = (self.memory.clone(), claim.clone());
            let asked = memory.cache.epoch();
            // On the token's thread, so that a slow token's answer serves the next caller when this one has left.
            self.open_layers(organization, &claim.wrapped, claim.context, move |key| {
                memory.opened(&ours);
                memory.cache.insert(ours, key.clone(), asked);
            })
        })
    }

    /// Takes the layers off, the outermost first, each on its token; `then` is done on the last one's thread.
    fn open_layers(
        &self,
        organization: u32,
        wrapped: &WrappedDek,
        context: [u8; 32],
        then: impl FnOnce(&Arc<LockedKey>) + Send + 'static,
    ) -> Result<Arc<LockedKey>, KeyError> {
        let mut legs = self.route(organization, wrapped.layers.iter().map(|layer| layer.kek))?;
        let innermost = match legs.is_empty() {
            true => return Err(KeyError::Authentication),
            false => legs.remove(0),
        };
        let mut outer = Zeroizing::new(wrapped.ciphertext.clone());
        for Leg { token, run } in legs.into_iter().rev() {
            let wrapped = wrapped.clone();
            outer = token.ask(move |seat| run.take_off(seat, &wrapped, &context, outer))?;
        }
        let (wrapped, Leg { token, run }) = (wrapped.clone(), innermost);
        token.ask(move |seat| {
            let key = Arc::new(dek(&run.take_off(seat, &wrapped, &context, outer)?)?);
            then(&key);
            Ok(key)
        })
    }

    /// Puts a layer of each KEK over a DEK, each on its token.
    fn wrap(&self, recipe: &Recipe, key: &LockedKey, dek_id: [u8; 16]) -> Result<WrappedDek, KeyError> {
        let context = context_digest(&recipe.context);
        let mut layers = Vec::with_capacity(recipe.keks.len());
        let mut inner = Zeroizing::new(key.expose().to_vec());
        for Leg { token, run } in self.route(recipe.organization, recipe.keks.iter().copied())? {
            let (more, outer) = token.ask(move |seat| run.put_on(seat, &context, &dek_id, inner))?;
            layers.extend(more);
            inner = outer;
        }
        Ok(WrappedDek { dek_id, layers, ciphertext: std::mem::take(&mut inner) })
    }

    /// Opens a wrapped DEK for a look that nobody else shall profit from: it is neither kept nor told to the hook.
    /// Waits for the token; `context` as for [`Keyring::unwrap`].
    pub fn unwrap_once(
        &self,
        organization: u32,
        wrapped: &WrappedDek,
        context: &[(String, String)],
    ) -> Result<Arc<LockedKey>, KeyError> {
        if wrapped.layers.is_empty() || wrapped.layers.len() != context.len() {
            return Err(KeyError::Authentication);
        }
        self.open_layers(organization, wrapped, context_digest(context), |_| ())
    }

    fn cached(&self, claim: &Claim) -> Option<Arc<LockedKey>> {
        let hit = self.memory.cache.get(claim)?;
        if hit.refresh {
            self.refresh(claim);
        }
        Some(hit.key)
    }

    fn refresh(&self, claim: &Claim) {
        let keks = claim.wrapped.layers.iter().map(|layer| layer.kek);
        // Between two tokens, or without one, the entry serves on until its hard age.
        if let Ok([leg]) = self.route(claim.organization, keks).as_deref() {
            let (memory, claim, run) = (self.memory.clone(), claim.clone(), leg.run.clone());
            leg.token.later(move |seat| memory.refresh(seat, &run, &claim));
        }
    }

    /// A new DEK, from the pool when there is one; it is in the cache as well.
    ///
    /// `context` as for [`Keyring::unwrap`], and `keks` the KEK of each of its pairs.
    pub fn fresh(
        &self,
        organization: u32,
        keks: &[KekRef],
        context: &[(String, String)],
        patience: Patience,
    ) -> Result<FreshDek, KeyError> {
        let recipe = Recipe { organization, keks: keks.to_vec(), context: context.to_vec() };
        let asked = self.memory.cache.epoch();
        let (ready, order) = self.memory.pool.take(&recipe);
        order.into_iter().for_each(|order| self.fulfil(order));
        let dek = match ready {
            Some(dek) => dek,
            None if patience == Patience::Never => return Err(KeyError::WouldWait),
            None => {
                let key = Arc::new(LockedKey::generate()?);
                let wrapped = self.wrap(&recipe, &key, random())?;
                FreshDek { key, wrapped }
            }
        };
        let claim = Claim { organization, context: context_digest(context), wrapped: dek.wrapped.clone() };
        self.memory.cache.insert(claim, dek.key.clone(), asked);
        Ok(dek)
    }

    /// The same DEK, with the same id, under other KEKs or another key context; always asks the token.
    pub fn rewrap(
        &self,
        organization: u32,
        wrapped: &WrappedDek,
        context: &[(String, String)],
        keks: &[KekRef],
        new_context: &[(String, String)],
    ) -> Result<WrappedDek, KeyError> {
        let old = Claim { organization, context: context_digest(context), wrapped: wrapped.clone() };
        let cached = self.memory.cache.get(&old).map(|hit| hit.key);
        if cached.is_none() && wrapped.layers.len() != context.len() {
            return Err(KeyError::Authentication);
        }
        let recipe = Recipe { organization, keks: keks.to_vec(), context: new_context.to_vec() };
        let key = match cached {
            Some(key) => key,
            None => {
                let (memory, ours) = (self.memory.clone(), old.clone());
                self.open_layers(organization, wrapped, old.context, move |_| memory.opened(&ours))?
            }
        };
        let wrapped = self.wrap(&recipe, &key, wrapped.dek_id)?;
        let context = context_digest(&recipe.context);
        self.memory.cache.rewrapped(Claim { organization, context, wrapped: wrapped.clone() });
        Ok(wrapped)
    }

    fn fulfil(&self, order: Order) {
        let order = Arc::new(order);
        let route = self.route(order.recipe.organization, order.recipe.keks.iter().copied());
        for first in (0..order.wraps).step_by(BATCH) {
            let (memory, order) = (self.memory.clone(), order.clone());
            let batch = Batch { memory, wraps: BATCH.min(order.wraps - first), order };
            // What is between two tokens, or without one, is wrapped when it is needed: the batch is taken off its order.
            if let Ok([leg]) = route.as_deref() {
                let run = leg.run.clone();
                leg.token.later(move |seat| batch.run(seat, &run));
            }
        }
    }

    /// Drops a DEK from memory at once: its content is purged.
    pub fn forget(&self, dek_id: &[u8; 16]) {
        self.memory.cache.forget(dek_id);
    }

    /// Drops every DEK of an organization from memory: it is locked or deleted.
    pub fn forget_organization(&self, organization: u32) {
        self.memory.pool.forget_where(|recipe| recipe.organization == organization);
        self.memory.cache.forget_where(|claim| claim.organization == organization);
    }

    /// Asks nobody and waits for nobody.
    pub fn status(&self) -> TokenStatus {
        TokenStatus { cached: self.memory.cache.len(), pooled: self.memory.pool.len(), ..self.token().status() }
    }

    /// Encryptions, decryptions and searches of the token so far: what a hot path is measured by.
    pub fn token_calls(&self) -> u64 {
        self.token().calls()
    }

    /// Calls `hook` with organization and DEK id after each unwrap by the token, on the token's thread.
    pub fn on_unwrap(&self, hook: UnwrapHook) {
        *self.memory.on_unwrap.write() = Some(hook);
    }
}

impl Memory {
    /// The token opened it.
    fn opened(&self, claim: &Claim) {
        if let Some(hook) = &*self.on_unwrap.read() {
            hook(claim.organization, &claim.wrapped.dek_id);
        }
    }

    fn refresh(&self, seat: &mut Seat, run: &Run, claim: &Claim) {
        let outer = Zeroizing::new(claim.wrapped.ciphertext.clone());
        match run.take_off(seat, &claim.wrapped, &claim.context, outer) {
            Ok(_) => {
                self.opened(claim);
                self.cache.refreshed(claim);
            }
            Err(KeyError::NoSuchKey(_) | KeyError::Authentication) => self.cache.forget(&claim.wrapped.dek_id),
            // The token is away, and the entry serves on until its hard age.
            Err(_) => {}
        }
    }
}

/// Asks for a key. Either the caller learns that it is there, or the token's thread that the caller has left.
fn make(
    token: &Token,
    question: impl FnOnce(&mut Seat, &dyn Fn() -> bool) -> Result<(), KeyError> + Send + 'static,
) -> Result<(), KeyError> {
    // Whoever is first says whether the key counts.
    let counts = Arc::new(OnceLock::new());
    let theirs = counts.clone();
    let answer = token.ask(move |seat| question(seat, &|| *theirs.get_or_init(|| true)));
    if matches!(answer, Err(KeyError::Unavailable(_))) && *counts.get_or_init(|| false) {
        return Ok(());
    }
    answer
}

/// A part of the way, on one token.
struct Leg {
    token: Arc<Token>,
    run: Run,
}

/// Layers of a wrapping that lie on one another and that one token makes and opens.
#[derive(Clone)]
struct Run {
    keys: Vec<Key>,
    /// Their numbers in the wrapping.
    layers: Range<usize>,
}

impl Run {
    fn take_off(
        &self,
        seat: &mut Seat,
        wrapped: &WrappedDek,
        context: &[u8; 32],
        mut outer: Zeroizing<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        for (key, layer) in self.keys.iter().zip(&wrapped.layers[self.layers.clone()]).rev() {
            let aad = wrap_aad(context, layer.kek.version, &wrapped.dek_id);
            outer = seat.with(key, |seat| seat.unwrap(layer, &aad, &outer))?;
        }
        Ok(outer)
    }

    fn put_on(
        &self,
        seat: &mut Seat,
        context: &[u8; 32],
        dek_id: &[u8; 16],
        mut inner: Zeroizing<Vec<u8>>,
    ) -> Result<(Vec<WrapLayer>, Zeroizing<Vec<u8>>), KeyError> {
        let mut layers = Vec::with_capacity(self.keys.len());
        for key in &self.keys {
            let aad = wrap_aad(context, key.kek.version, dek_id);
            let (layer, outer) = seat.with(key, |seat| seat.wrap(key.kek, &aad, &inner))?;
            layers.push(layer);
            inner = Zeroizing::new(outer);
        }
        Ok((layers, inner))
    }
}

/// Some wraps of an order. What is not done when it goes is taken off the order, so that it is placed again.
struct Batch {
    memory: Arc<Memory>,
    order: Arc<Order>,
    wraps: usize,
}

impl Batch {
    fn run(mut self, seat: &mut Seat, run: &Run) {
        while self.wraps > 0
            && let Ok(dek) = wrap_new(seat, run, &self.order.recipe)
        {
            self.memory.pool.deliver(&self.order, Some(dek));
            self.wraps -= 1;
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        (0..self.wraps).for_each(|_| self.memory.pool.deliver(&self.order, None));
    }
}

fn wrap_new(seat: &mut Seat, run: &Run, recipe: &Recipe) -> Result<FreshDek, KeyError> {
    let (key, dek_id) = (LockedKey::generate()?, random());
    let inner = Zeroizing::new(key.expose().to_vec());
    let (layers, mut outer) = run.put_on(seat, &context_digest(&recipe.context), &dek_id, inner)?;
    let wrapped = WrappedDek { dek_id, layers, ciphertext: std::mem::take(&mut outer) };
    Ok(FreshDek { key: Arc::new(key), wrapped })
}

fn dek(bytes: &[u8]) -> Result<LockedKey, KeyError> {
    let mut dek = Zeroizing::new(<[u8; 32]>::try_from(bytes).map_err(|_| KeyError::Authentication)?);
    Ok(LockedKey::take(&mut dek)?)
}

/// Takes keys past their age out of memory when nobody asks for them any more.
fn spawn_sweeper(memory: &Arc<Memory>, hard: Duration) -> Result<mpsc::Sender<()>, KeyError> {
    let pause = (hard / 10).clamp(Duration::from_millis(100), Duration::from_secs(30));
    let (keep, ended) = mpsc::channel::<()>();
    let memory: Weak<Memory> = Arc::downgrade(memory);
    let sweep = move || {
        while ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout)
            && let Some(memory) = memory.upgrade()
        {
            memory.cache.sweep();
            memory.pool.sweep();
        }
    };
    let thread = std::thread::Builder::new().name("keys-sweep".to_owned()).spawn(sweep);
    thread.map_err(|error| configuration(format!("cannot start a thread for the keys: {error}")))?;
    Ok(keep)
}
