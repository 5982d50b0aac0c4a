//! Where KEKs live. Residency is what was chosen for a vault or an organization; a home is where one version of a KEK is.

use super::{KekRef, KeyError, PinSource, TokenUri, configuration};
use crate::crypto::{context_digest, kek_aad};
use parking_lot::RwLock;
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Homes kept in memory.
const KNOWN: usize = 4096;

/// Where new versions of KEKs are to live.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Residency {
    /// As objects of the vault's token.
    #[default]
    Token,
    /// In the store, wrapped under the vault's root key: the token holds as many as are in use.
    Wrapped,
    /// As objects of a token of the organization's own.
    External(Box<TokenPlace>),
}

/// A token that is not the vault's, and where its PIN is.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct TokenPlace {
    pub uri: TokenUri,
    pub pin: PinSource,
}

/// Where one version of a KEK is. The vault's tokens are numbered in the order in which it had them, the first is 0.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "StoredHome", into = "StoredHome")]
pub enum Home {
    Token(u32),
    /// Under a root key on this token.
    Wrapped(u32, WrappedKek),
    External(Box<TokenPlace>),
}

/// As homes were stored before vaults could move to another token; what the first one holds is still.
#[derive(Serialize, Deserialize)]
enum StoredHome {
    Token,
    Wrapped(WrappedKek),
    External(Box<TokenPlace>),
    OnToken(u32),
    WrappedOn(u32, WrappedKek),
}

impl From<StoredHome> for Home {
    fn from(stored: StoredHome) -> Home {
        match stored {
            StoredHome::Token => Home::Token(0),
            StoredHome::Wrapped(wrapped) => Home::Wrapped(0, wrapped),
            StoredHome::External(place) => Home::External(place),
            StoredHome::OnToken(number) => Home::Token(number),
            StoredHome::WrappedOn(number, wrapped) => Home::Wrapped(number, wrapped),
        }
    }
}

impl From<Home> for StoredHome {
    fn from(home: Home) -> StoredHome {
        match home {
            Home::Token(0) => StoredHome::Token,
            Home::Wrapped(0, wrapped) => StoredHome::Wrapped(wrapped),
            Home::External(place) => StoredHome::External(place),
            Home::Token(number) => StoredHome::OnToken(number),
            Home::Wrapped(number, wrapped) => StoredHome::WrappedOn(number, wrapped),
        }
    }
}

/// A KEK under a root key (AES Key Wrap, RFC 3394), and what confirms that it is the right one: 32 zero bytes under it,
/// AES-256-GCM with an AAD that names its pair, version and id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrappedKek {
    pub root: KekRef,
    /// 40 bytes.
    #[serde(with = "serde_bytes")]
    pub blob: Vec<u8>,
    pub iv: [u8; 12],
    /// 48 bytes.
    #[serde(with = "serde_bytes")]
    pub confirmation: Vec<u8>,
}

impl Home {
    pub fn residency(&self) -> Residency {
        match self {
            Home::Token(_) => Residency::Token,
            Home::Wrapped(..) => Residency::Wrapped,
            Home::External(place) => Residency::External(place.clone()),
        }
    }

    /// Which of the vault's own tokens it needs; none for an organization's own.
    pub fn number(&self) -> Option<u32> {
        match self {
            Home::Token(number) | Home::Wrapped(number, _) => Some(*number),
            Home::External(_) => None,
        }
    }
}

impl Residency {
    /// `token`, `wrapped`, or the URI of another token, whose PIN is then needed.
    pub fn parse(text: &str, pin_source: Option<&str>) -> Result<Residency, KeyError> {
        match (text, pin_source) {
            ("token", None) => Ok(Residency::Token),
            ("wrapped", None) => Ok(Residency::Wrapped),
            ("token" | "wrapped", Some(_)) => {
                Err(configuration("a PIN source belongs to a token that is named by its pkcs11: URI"))
            }
            (uri, pin) => {
                let uri: TokenUri = uri.parse()?;
                let pin = pin.map(str::parse).transpose()?.or_else(|| uri.pin_source().cloned());
                let pin = pin.ok_or_else(|| configuration("another token needs the source of its PIN (pin_source)"))?;
                Ok(Residency::External(Box::new(TokenPlace { uri, pin })))
            }
        }
    }
}

impl fmt::Display for Residency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Residency::Token => f.write_str("token"),
            Residency::Wrapped => f.write_str("wrapped"),
            Residency::External(place) => write!(f, "external {}", place.uri),
        }
    }
}

/// A home, and the pair whose KEK lives there.
#[derive(Clone, Debug)]
pub struct Lodging {
    pub home: Home,
    pub pair: (String, String),
}

impl Lodging {
    /// What the confirmation of a wrapped KEK is bound to.
    pub(super) fn aad(&self, kek: KekRef) -> [u8; 32] {
        kek_aad(&context_digest(std::slice::from_ref(&self.pair)), kek.version, &kek.id)
    }
}

/// Tells where a KEK of an organization lives; `None` for one that nobody knows of.
pub type LookUp = Box<dyn Fn(u32, KekRef) -> Option<Lodging> + Send + Sync>;

/// The homes of KEKs: asked of whoever keeps them, and remembered, since a KEK version never moves.
pub(super) struct Homes {
    known: Cache<KekRef, Arc<Lodging>>,
    look_up: RwLock<Option<LookUp>>,
}

impl Homes {
    pub fn new() -> Self {
        Homes { known: Cache::new(KNOWN), look_up: RwLock::default() }
    }

    pub fn ask(&self, look_up: LookUp) {
        *self.look_up.write() = Some(look_up);
    }

    pub fn note(&self, kek: KekRef, lodging: Lodging) {
        self.known.insert(kek, Arc::new(lodging));
    }

    pub fn forget(&self, kek: KekRef) {
        self.known.remove(&kek);
    }

    /// `None`: the vault's own token, if anywhere.
    pub fn find(&self, organization: u32, kek: KekRef) -> Option<Arc<Lodging>> {
        if let Some(known) = self.known.get(&kek) {
            return Some(known);
        }
        let found = Arc::new((self.look_up.read().as_ref()?)(organization, kek)?);
        self.known.insert(kek, found.clone());
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_first_token_holds_is_stored_as_ever() {
        assert_eq!(postcard::to_stdvec(&Home::Token(0)).unwrap(), [0]);
        assert_eq!(postcard::to_stdvec(&Home::Token(2)).unwrap(), [3, 2]);
        let wrapped = WrappedKek { root: KekRef::fresh(), blob: vec![1; 40], iv: [2; 12], confirmation: vec![3; 48] };
        for (home, variant) in [(Home::Wrapped(0, wrapped.clone()), 1), (Home::Wrapped(7, wrapped), 4)] {
            let stored = postcard::to_stdvec(&home).unwrap();
            assert_eq!(stored[0], variant);
            assert_eq!(postcard::from_bytes::<Home>(&stored).unwrap(), home);
        }
    }
}
