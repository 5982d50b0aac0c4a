//! The keyring: KEKs by name, DEKs opened and made, with the token asked as seldom as can be.

use super::cache::{Cache, CacheLimits, Claim};
use super::configuration;
use super::flight::Flights;
use super::pool::{Order, Pool, Recipe};
use super::token::{Seat, Token};
use super::{KekRef, KekState, KeyError, Patience, PinSource, TokenStatus, TokenUri, WrappedDek};
use crate::crypto::{LockedKey, context_digest, random, wrap_aad};
use parking_lot::RwLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
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

/// The keys of one token.
pub struct Keyring {
    memory: Arc<Memory>,
    flights: Flights,
    token: Token,
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
        let token = Token::open(config.uri, config.pin.read()?, config.timeout)?;
        let memory = Arc::new(Memory {
            cache: Cache::new(config.cache),
            pool: Pool::new(config.pool, config.cache.hard),
            on_unwrap: RwLock::new(None),
        });
        let sweeper = spawn_sweeper(&memory, config.cache.hard)?;
        Ok(Keyring { memory, flights: Flights::default(), token, timeout: config.timeout, _sweeper: sweeper })
    }

    /// Makes a KEK on the token: it encrypts and decrypts there, and cannot be read, copied or changed.
    ///
    /// After [`KeyError::Unavailable`] the token has no such key, or destroys it as soon as it answers again.
    pub fn create_kek(&self, kek: KekRef) -> Result<(), KeyError> {
        self.make(move |seat, claim| seat.create(kek, claim))
    }

    /// Makes sure of a KEK that is already on the token and that nothing is wrapped under yet: a try to make it was
    /// cut short. One that does not work is made anew.
    pub fn adopt_kek(&self, kek: KekRef) -> Result<(), KeyError> {
        self.make(move |seat, claim| seat.adopt(kek, claim))
    }

    /// Asks for a key. Either the caller learns that it is there, or the token's thread that the caller has left.
    fn make(
        &self,
        question: impl FnOnce(&mut Seat, &dyn Fn() -> bool) -> Result<(), KeyError> + Send + 'static,
    ) -> Result<(), KeyError> {
        // Whoever is first says whether the key counts.
        let counts = Arc::new(OnceLock::new());
        let theirs = counts.clone();
        let answer = self.token.ask(move |seat| question(seat, &|| *theirs.get_or_init(|| true)));
        if matches!(answer, Err(KeyError::Unavailable(_))) && *counts.get_or_init(|| false) {
            return Ok(());
        }
        answer
    }

    /// Destroys a KEK for good, and forgets every DEK under it. [`KeyError::NoSuchKey`] when it is gone already.
    pub fn destroy_kek(&self, kek: KekRef) -> Result<(), KeyError> {
        let forget = |memory: &Memory| {
            memory.pool.forget_where(|recipe| recipe.keks.contains(&kek));
            memory.cache.forget_where(|claim| claim.wrapped.layers.iter().any(|layer| layer.kek == kek));
        };
        forget(&self.memory);
        let destroyed = self.token.ask(move |seat| seat.destroy(kek));
        // Once more for what came in while the key still worked.
        forget(&self.memory);
        destroyed
    }

    /// Whether a KEK can be used; asks the token.
    pub fn kek_state(&self, kek: KekRef) -> KekState {
        self.token.kek_state(kek)
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
            let (memory, claim) = (self.memory.clone(), claim.clone());
            let asked = memory.cache.epoch();
            self.token.ask(move |seat| {
                let key = Arc::new(memory.open(seat, &claim)?);
                // In here, so that a slow token's answer serves the next caller when this one has left.
                memory.cache.insert(claim, key.clone(), asked);
                Ok(key)
            })
        })
    }

    /// Opens a wrapped DEK for a look that nobody else shall profit from: it is neither kept nor told to the hook.
    /// Waits for the token; `context` as for [`Keyring::unwrap`].
    pub fn unwrap_once(&self, wrapped: &WrappedDek, context: &[(String, String)]) -> Result<Arc<LockedKey>, KeyError> {
        if wrapped.layers.is_empty() || wrapped.layers.len() != context.len() {
            return Err(KeyError::Authentication);
        }
        let (wrapped, context) = (wrapped.clone(), context_digest(context));
        self.token.ask(move |seat| open_layers(seat, &wrapped, &context)).map(Arc::new)
    }

    fn cached(&self, claim: &Claim) -> Option<Arc<LockedKey>> {
        let hit = self.memory.cache.get(claim)?;
        if hit.refresh {
            let (memory, claim) = (self.memory.clone(), claim.clone());
            self.token.later(move |seat| memory.refresh(seat, &claim));
        }
        Some(hit.key)
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
        order.into_iter().for_each(|order| self.place(order));
        let dek = match ready {
            Some(dek) => dek,
            None if patience == Patience::Never => return Err(KeyError::WouldWait),
            None => {
                let recipe = recipe.clone();
                self.token.ask(move |seat| wrap_new(seat, &recipe))?
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
        let memory = self.memory.clone();
        self.token.ask(move |seat| {
            let key = match cached {
                Some(key) => key,
                None => Arc::new(memory.open(seat, &old)?),
            };
            let wrapped = wrap(seat, &recipe, &key, old.wrapped.dek_id)?;
            let context = context_digest(&recipe.context);
            memory.cache.rewrapped(Claim { organization, context, wrapped: wrapped.clone() });
            Ok(wrapped)
        })
    }

    fn place(&self, order: Order) {
        let order = Arc::new(order);
        for first in (0..order.wraps).step_by(BATCH) {
            let (memory, order) = (self.memory.clone(), order.clone());
            let batch = Batch { memory, wraps: BATCH.min(order.wraps - first), order };
            self.token.later(move |seat| batch.run(seat));
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
        TokenStatus { cached: self.memory.cache.len(), pooled: self.memory.pool.len(), ..self.token.status() }
    }

    /// Encryptions, decryptions and searches of the token so far: what a hot path is measured by.
    pub fn token_calls(&self) -> u64 {
        self.token.calls()
    }

    /// Calls `hook` with organization and DEK id after each unwrap by the token, on the token's thread.
    pub fn on_unwrap(&self, hook: UnwrapHook) {
        *self.memory.on_unwrap.write() = Some(hook);
    }
}

impl Memory {
    fn open(&self, seat: &mut Seat, claim: &Claim) -> Result<LockedKey, KeyError> {
        let key = open_layers(seat, &claim.wrapped, &claim.context)?;
        if let Some(hook) = &*self.on_unwrap.read() {
            hook(claim.organization, &claim.wrapped.dek_id);
        }
        Ok(key)
    }

    fn refresh(&self, seat: &mut Seat, claim: &Claim) {
        match self.open(seat, claim) {
            Ok(_) => self.cache.refreshed(claim),
            Err(KeyError::NoSuchKey(_) | KeyError::Authentication) => self.cache.forget(&claim.wrapped.dek_id),
            // The token is away, and the entry serves on until its hard age.
            Err(_) => {}
        }
    }
}

/// Some wraps of an order. What is not done when it goes is taken off the order, so that it is placed again.
struct Batch {
    memory: Arc<Memory>,
    order: Arc<Order>,
    wraps: usize,
}

impl Batch {
    fn run(mut self, seat: &mut Seat) {
        while self.wraps > 0
            && let Ok(dek) = wrap_new(seat, &self.order.recipe)
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

fn wrap_new(seat: &mut Seat, recipe: &Recipe) -> Result<FreshDek, KeyError> {
    let key = LockedKey::generate()?;
    let wrapped = wrap(seat, recipe, &key, random())?;
    Ok(FreshDek { key: Arc::new(key), wrapped })
}

/// The outermost layer first.
fn open_layers(seat: &mut Seat, wrapped: &WrappedDek, context: &[u8; 32]) -> Result<LockedKey, KeyError> {
    let WrappedDek { dek_id, layers, ciphertext } = wrapped;
    let mut inner = Zeroizing::new(ciphertext.clone());
    for layer in layers.iter().rev() {
        inner = seat.unwrap(layer, &wrap_aad(context, layer.kek.version, dek_id), &inner)?;
    }
    let mut dek = Zeroizing::new(<[u8; 32]>::try_from(&inner[..]).map_err(|_| KeyError::Authentication)?);
    Ok(LockedKey::take(&mut dek)?)
}

fn wrap(seat: &mut Seat, recipe: &Recipe, key: &LockedKey, dek_id: [u8; 16]) -> Result<WrappedDek, KeyError> {
    let context = context_digest(&recipe.context);
    let mut layers = Vec::with_capacity(recipe.keks.len());
    let mut inner = Zeroizing::new(key.expose().to_vec());
    for kek in &recipe.keks {
        let (layer, outer) = seat.wrap(*kek, &wrap_aad(&context, kek.version, &dek_id), &inner)?;
        layers.push(layer);
        inner = Zeroizing::new(outer);
    }
    Ok(WrappedDek { dek_id, layers, ciphertext: std::mem::take(&mut inner) })
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
