//! The PKCS#11 modules of this process: each is loaded and initialized once, whoever asks for it.
//!
//! Their state is global to the process: a second C_Initialize fails, C_Finalize ends every session of
//! every user, and a forked child must not call in at all. So there is one registry by path, everybody
//! calls under a shared lock, and whoever finalizes takes it alone and begins a new generation.

use super::hot::Hot;
use crate::keys::{KeyError, TokenUri, configuration, unavailable};
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::slot::{Slot, TokenInfo};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

static LOADED: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

/// How long to wait for the calls of others to end; new ones wait meanwhile.
const QUIESCENCE: Duration = Duration::from_millis(250);

/// A loaded module.
pub struct Module {
    path: PathBuf,
    pid: u32,
    pkcs11: Pkcs11,
    /// `None`: the module can be called through `cryptoki` alone.
    hot: Option<Hot>,
    generation: RwLock<Generation>,
}

/// The time between C_Initialize and C_Finalize: handles of one mean nothing in the next.
#[derive(Clone, Copy)]
struct Generation {
    number: u64,
    since: Instant,
}

/// The right to call into the module, while it lives.
pub struct Entered<'a> {
    module: &'a Module,
    generation: RwLockReadGuard<'a, Generation>,
}

impl Module {
    /// The module that the URI names, loaded and initialized at its first use.
    pub fn load(uri: &TokenUri) -> Result<Arc<Module>, KeyError> {
        let named = uri.module_path().ok_or_else(|| {
            configuration(format!(
                "{uri} does not say which PKCS#11 module to load: add ?module-path=/path/to/module.so"
            ))
        })?;
        let path = named.canonicalize().map_err(|error| {
            let named = named.display();
            configuration(format!(
                "cannot load the PKCS#11 module {named} ({error}): install it, or correct module-path"
            ))
        })?;
        let mut loaded = LOADED.lock();
        if let Some(module) = loaded.get(&path) {
            module.same_process()?;
            return Ok(module.clone());
        }
        let foreign = |error: String| {
            let path = path.display();
            configuration(format!("{path} is not a usable PKCS#11 module ({error}): correct module-path"))
        };
        let pkcs11 = Pkcs11::new(&path).map_err(|error| foreign(error.to_string()))?;
        let hot = Hot::load(&path).map_err(foreign)?;
        initialize(&pkcs11).map_err(|error| foreign(error.to_string()))?;
        let generation = RwLock::new(Generation { number: 1, since: Instant::now() });
        let module = Arc::new(Module { path: path.clone(), pid: std::process::id(), pkcs11, hot, generation });
        loaded.insert(path, module.clone());
        Ok(module)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits while somebody initializes the module again.
    pub fn enter(&self) -> Result<Entered<'_>, KeyError> {
        self.same_process()?;
        Ok(Entered { module: self, generation: self.generation.read() })
    }

    /// C_Finalize and C_Initialize, unless the generation `seen` to fail is already over.
    ///
    /// Gives up when a call of somebody else does not come back: finalizing under it is undefined.
    pub fn reload(&self, seen: u64) -> Result<(), KeyError> {
        self.same_process()?;
        let Some(mut generation) = self.generation.try_write_for(QUIESCENCE) else {
            return Err(unavailable("a call to it does not return, so it cannot be initialized again"));
        };
        if generation.number != seen {
            return Ok(());
        }
        generation.number += 1;
        // It fails when the last initialization did, and then there is nothing to finalize.
        let _ = self.pkcs11.clone().finalize();
        initialize(&self.pkcs11).map_err(unavailable)?;
        generation.since = Instant::now();
        Ok(())
    }

    /// Fails in a forked child: what a module does there is undefined.
    pub fn same_process(&self) -> Result<(), KeyError> {
        if std::process::id() == self.pid {
            return Ok(());
        }
        Err(configuration(
            "the PKCS#11 module was loaded before a fork and cannot be used after it: open the keyring in the child",
        ))
    }
}

fn initialize(pkcs11: &Pkcs11) -> Result<(), Error> {
    match pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        other => other,
    }
}

impl Entered<'_> {
    pub fn pkcs11(&self) -> &Pkcs11 {
        &self.module.pkcs11
    }

    pub fn hot(&self) -> Option<&Hot> {
        self.module.hot.as_ref()
    }

    /// What the token in a slot says of itself.
    pub fn token_info(&self, slot: Slot) -> Result<TokenInfo, Error> {
        match self.hot() {
            Some(hot) => hot.token_info(slot),
            None => self.pkcs11().get_token_info(slot),
        }
    }

    pub fn generation(&self) -> u64 {
        self.generation.number
    }

    /// Time since the module was initialized.
    pub fn age(&self) -> Duration {
        self.generation.since.elapsed()
    }
}
