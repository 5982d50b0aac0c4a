//! `vault.json`, the header of a state directory: what is needed to reach the vault's own key.
//!
//! Everything but the token's URI and the source of its PIN (which `mount` may override) is sealed: a tag
//! under the vault's metadata key covers it, so an edit is noticed.

use super::error::{Error, Result};
use super::ids::VaultId;
use super::records::hex;
use super::time::Time;
use crate::crypto::{self, LockedKey, RecordKey};
use crate::keys::{FreshDek, KekRef, Keyring, Patience, PinSource, Residency, TokenPlace, TokenUri, WrappedDek};
use crate::store::{Disk, Op};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The format that this version reads and writes.
pub const FORMAT: u32 = 1;
const NAME: &str = "vault.json";

#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub token: TokenUri,
    pub pin_source: PinSource,
    sealed: Sealed,
    /// HMAC-SHA256 over `sealed`, hex.
    seal: String,
}

#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct Sealed {
    format: u32,
    vault: String,
    created: String,
    /// The KEK that wraps the vault's metadata key.
    kek: KekRef,
    metadata_key: WrappedDek,
    metadata_commitment: String,
    /// The root key under which wrapped KEKs are; none before the first of them. Left out of JSON and tag when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<KekRef>,
    /// Where the KEKs of new organizations live, if not on the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    residency: Option<Residency>,
    /// Since the vault began to move to another token than `init` was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tokens: Option<Tokens>,
}

/// The vault's tokens are numbered in the order in which it had them, the first is 0. Its own KEK is on the one that the
/// header names, its root key on the youngest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Numbers {
    pub own: u32,
    /// A higher number: the vault moves there. A lower one: it has left, and old keys are destroyed there.
    pub other: Option<u32>,
}

#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct Tokens {
    number: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    other: Option<Other>,
}

/// Under the seal: whoever could name it here would have the keys made there.
#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
struct Other {
    number: u32,
    token: TokenUri,
    pin_source: PinSource,
}

impl Numbers {
    /// Where keys are made.
    pub fn youngest(&self) -> u32 {
        self.own.max(self.other.unwrap_or(0))
    }

    pub fn oldest(&self) -> u32 {
        self.own.min(self.other.unwrap_or(self.own))
    }

    /// Whether keys are still to be made on the other one.
    pub fn moves(&self) -> bool {
        self.other.is_some_and(|other| other > self.own)
    }
}

impl Header {
    /// Makes the header of a new vault, and its key in the token.
    pub fn create(
        keyring: &Keyring,
        token: TokenUri,
        pin_source: PinSource,
        residency: Residency,
    ) -> Result<(Header, RecordKey)> {
        let vault = VaultId::fresh();
        let (kek, root) = (KekRef::fresh(), (residency == Residency::Wrapped).then(KekRef::fresh));
        // A token that cannot keep them safe is refused before anything else is made.
        root.map_or(Ok(()), |root| keyring.create_root(root))?;
        keyring.create_kek(kek)?;
        let FreshDek { key, wrapped } = keyring.fresh(0, &[kek], &context(vault), Patience::Wait)?;
        let sealed = Sealed {
            format: FORMAT,
            vault: vault.to_string(),
            created: Time::now().rfc3339(),
            kek,
            metadata_commitment: hex(&commitment(&key, vault, &wrapped)),
            metadata_key: wrapped,
            root,
            residency: (residency != Residency::Token).then_some(residency),
            tokens: None,
        };
        let records = RecordKey::new(LockedKey::take(&mut key.expose().to_owned())?);
        let seal = hex(&records.header_tag(&sealed.bytes()));
        Ok((Header { token, pin_source, sealed, seal }, records))
    }

    /// Reads a state directory's header; its seal is not checked yet.
    pub fn read(state: &Path) -> Result<Header> {
        let path = state.join(NAME);
        let wrong = |why: String| Error::Header(format!("{}: {why}", path.display()));
        let text = fs::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                wrong("no such file: this is not a vault's state directory; make one with `vaultfs init`".into())
            }
            _ => wrong(error.to_string()),
        })?;
        let edited = |why: &str| {
            Error::Edited(format!("{}: it was edited or damaged: {why}; restore it from a copy", path.display()))
        };
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| edited(&e.to_string()))?;
        match value["sealed"]["format"].as_u64() {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => return Err(wrong(format!("format {format}; this version reads format {FORMAT}"))),
            None => return Err(edited("it names no format")),
        }
        serde_json::from_value(value).map_err(|e| edited(&e.to_string()))
    }

    /// Opens the vault's metadata key and checks the seal.
    pub fn unseal(&self, keyring: &Keyring) -> Result<RecordKey> {
        let edited =
            || Error::Edited("vault.json was edited or damaged: its seal does not fit; restore it from a copy".into());
        let vault = self.vault()?;
        let sealed = &self.sealed;
        let key = keyring.unwrap(0, &sealed.metadata_key, &context(vault), Patience::Wait).map_err(|e| match e {
            crate::keys::KeyError::Authentication => edited(),
            other => other.into(),
        })?;
        if hex(&commitment(&key, vault, &sealed.metadata_key)) != sealed.metadata_commitment {
            return Err(edited());
        }
        let records = RecordKey::new(LockedKey::take(&mut key.expose().to_owned())?);
        if !crypto::same_tag(hex(&records.header_tag(&sealed.bytes())).as_bytes(), self.seal.as_bytes()) {
            return Err(edited());
        }
        Ok(records)
    }

    /// The header with the vault's metadata key under another KEK.
    pub fn rewrap(mut self, keyring: &Keyring, kek: KekRef) -> Result<Header> {
        let records = self.unseal(keyring)?;
        let context = context(self.vault()?);
        self.sealed.metadata_key = keyring.rewrap(0, &self.sealed.metadata_key, &context, &[kek], &context)?;
        self.sealed.kek = kek;
        self.seal = hex(&records.header_tag(&self.sealed.bytes()));
        Ok(self)
    }

    /// The header with another root key.
    pub fn with_root(self, keyring: &Keyring, root: KekRef) -> Result<Header> {
        self.resealed(keyring, |sealed| sealed.root = Some(root))
    }

    /// The header of a vault that begins to move to another token, where this root key is, if it has one.
    pub fn moving_to(self, keyring: &Keyring, place: TokenPlace, root: Option<KekRef>) -> Result<Header> {
        let own = self.numbers().own;
        let other = Other { number: own + 1, token: place.uri, pin_source: place.pin };
        self.resealed(keyring, |sealed| {
            sealed.tokens = Some(Tokens { number: own, other: Some(other) });
            sealed.root = root;
        })
    }

    /// The header of a vault that is on its other token from now on, under this KEK there, and has left the one before.
    pub fn moved(self, keyring: &Keyring, kek: KekRef, left: TokenPlace) -> Result<Header> {
        let own = self.numbers().own;
        let Some(Other { number, token, pin_source }) = self.sealed.tokens.clone().and_then(|tokens| tokens.other)
        else {
            return Err(Error::Header("this vault moves to no other token".into()));
        };
        let mut header = self.rewrap(keyring, kek)?.resealed(keyring, |sealed| {
            let other = Other { number: own, token: left.uri, pin_source: left.pin };
            sealed.tokens = Some(Tokens { number, other: Some(other) });
        })?;
        (header.token, header.pin_source) = (token, pin_source);
        Ok(header)
    }

    /// The header of a vault that has nothing on another token any more.
    pub fn alone(self, keyring: &Keyring) -> Result<Header> {
        self.resealed(keyring, |sealed| {
            if let Some(tokens) = &mut sealed.tokens {
                tokens.other = None;
            }
        })
    }

    fn resealed(mut self, keyring: &Keyring, change: impl FnOnce(&mut Sealed)) -> Result<Header> {
        let records = self.unseal(keyring)?;
        change(&mut self.sealed);
        self.seal = hex(&records.header_tag(&self.sealed.bytes()));
        Ok(self)
    }

    pub fn numbers(&self) -> Numbers {
        let tokens = self.sealed.tokens.as_ref();
        Numbers {
            own: tokens.map_or(0, |tokens| tokens.number),
            other: tokens.and_then(|tokens| Some(tokens.other.as_ref()?.number)),
        }
    }

    /// The token that the vault moves to, or has just left.
    pub fn other(&self) -> Option<(u32, TokenPlace)> {
        let other = self.sealed.tokens.as_ref()?.other.as_ref()?;
        Some((other.number, TokenPlace { uri: other.token.clone(), pin: other.pin_source.clone() }))
    }

    pub fn root(&self) -> Option<KekRef> {
        self.sealed.root
    }

    /// Where the KEKs of new organizations live.
    pub fn residency(&self) -> Residency {
        self.sealed.residency.clone().unwrap_or_default()
    }

    pub fn vault(&self) -> Result<VaultId> {
        self.sealed.vault.parse().map_err(|()| Error::Edited("vault.json: the vault's id was edited or damaged".into()))
    }

    pub fn kek(&self) -> KekRef {
        self.sealed.kek
    }

    /// Puts the header into the state directory: whole or not at all, and durable.
    pub fn write(&self, state: &Path, disk: &dyn Disk) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("a header is plain data");
        let (new, path) = (state.join("vault.json.new"), state.join(NAME));
        let written = (|| {
            disk.before(&Op::Create { path: &new })?;
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            disk.before(&Op::Write { path: &new, offset: 0, parts: &[text.as_bytes()] })?;
            file.write_all(text.as_bytes())?;
            disk.before(&Op::Sync { path: &new })?;
            file.sync_all()?;
            disk.before(&Op::Rename { from: &new, to: &path })?;
            fs::rename(&new, &path)?;
            disk.before(&Op::SyncDirectory { path: state })?;
            File::open(state)?.sync_all()
        })();
        written.map_err(|e| Error::Header(format!("cannot write {}: {e}", path.display())))
    }

    /// Whether a directory holds a vault.
    pub fn exists(state: &Path) -> bool {
        state.join(NAME).exists()
    }
}

impl Sealed {
    fn bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a header is plain data")
    }
}

fn context(vault: VaultId) -> Vec<(String, String)> {
    vec![("vaultId".into(), vault.to_string())]
}

fn commitment(key: &LockedKey, vault: VaultId, wrapped: &WrappedDek) -> [u8; 32] {
    crypto::commitment(key, &vault.0.to_be_bytes(), 0, &wrapped.dek_id)
}
