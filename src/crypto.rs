//! The only user of `aes-gcm`, `aws-lc-rs`, `hkdf` and `hmac`: sealing, labels, and nonces that cannot be reused.
//!
//! Every sealing draws a fresh 128-bit salt; its key is `HKDF-SHA256(secret, salt, label)` (RFC 5869)
//! and encrypts one message, or the numbered blocks of one extent, so no counter has to survive a
//! crash. AES-256-GCM follows NIST SP 800-38D with 96-bit nonces and 128-bit tags.

mod block;
mod locked;
mod plain;
mod record;
mod wrapping;

pub use block::{BlockSize, ExtentKey, Tag};
pub use locked::LockedKey;
pub use plain::Plain;
pub use record::{NameKey, RecordKey, RecordPlace};
pub use wrapping::{TAG, kdf_input, unwrap_once, wrap_once};

use hkdf::Hkdf;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use zeroize::Zeroizing;

/// What can go wrong below every other layer.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// The tag, the commitment or the shape of a sealed value does not fit: it was changed or moved.
    #[error("authentication failed")]
    Authentication,
    /// Keys may only live in memory that is never swapped out.
    #[error("cannot lock memory for keys ({0}): raise RLIMIT_MEMLOCK, or lower key_cache")]
    LockedMemory(std::io::Error),
}

/// Domain separation: one label for each purpose a key is derived or hashed for (`docs/format.md`).
mod label {
    pub const EXTENT: &[u8] = b"vaultfs/1/extent";
    pub const RECORD: &[u8] = b"vaultfs/1/record";
    pub const NAMES: &[u8] = b"vaultfs/1/names";
    pub const HEADER: &[u8] = b"vaultfs/1/header";
    pub const COMMITMENT: &[u8] = b"vaultfs/1/commitment";
    pub const CONTEXT: &[u8] = b"vaultfs/1/context";
    pub const WRAP: &[u8] = b"vaultfs/1/wrap";
    pub const KEK: &[u8] = b"vaultfs/1/kek";
    pub const WRAPPING_KEY: &[u8] = b"vaultfs/1/wrapping-key";
    pub const DATA_KEYS: &[u8] = b"vaultfs/1/data-keys";
}

/// 128 random bits drawn anew for each sealing and stored beside it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Salt([u8; 16]);

impl Salt {
    pub fn fresh() -> Self {
        Salt(random())
    }
}

impl std::fmt::Debug for Salt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Salt({:032x})", u128::from_be_bytes(self.0))
    }
}

/// `N` bytes from the kernel's generator.
///
/// # Panics
/// When the kernel has no randomness to give, which no caller could survive.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("getrandom(2) does not fail on Linux");
    bytes
}

/// Wipes what calls with secrets that have just returned left on this thread's stack.
#[inline(never)]
pub fn burn_stack() {
    // Nobody knows what `black_box` reads, so the zeros are written; `zeroize` would write them byte by byte, once more.
    std::hint::black_box(&mut [0u8; 8192]);
}

fn derive(secret: &LockedKey, salt: Option<&Salt>, label: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(salt.map(|s| &s.0[..]), secret.expose())
        .expand(label, key.as_mut())
        .expect("32 bytes is a valid HKDF-SHA256 length");
    burn_stack();
    key
}

/// The value that ties a DEK to the content it belongs to; GCM alone does not commit to a key.
///
/// `HKDF(DEK, "commitment" ‖ organization id ‖ content id ‖ DEK id)`, 32 bytes.
pub fn commitment(dek: &LockedKey, organization: &[u8; 16], content: u64, dek_id: &[u8; 16]) -> [u8; 32] {
    let mut out = [0; 32];
    Hkdf::<Sha256>::new(None, dek.expose())
        .expand_multi_info(&[label::COMMITMENT, organization, &content.to_be_bytes(), dek_id], &mut out)
        .expect("32 bytes is a valid HKDF-SHA256 length");
    burn_stack();
    out
}

/// A key context in 32 bytes: SHA-256(label ‖ number of pairs ‖ each key and value behind its length).
///
/// `context` holds the pairs in the order of their keys; since each string is preceded by its length, no
/// two contexts have one encoding.
pub fn context_digest(context: &[(String, String)]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(label::CONTEXT);
    hash.update((context.len() as u32).to_be_bytes());
    for text in context.iter().flat_map(|(key, value)| [key, value]) {
        hash.update((text.len() as u32).to_be_bytes());
        hash.update(text.as_bytes());
    }
    hash.finalize().into()
}

/// The AAD under which a KEK makes its layer of a wrapped DEK: SHA-256(label ‖ context digest ‖ KEK version ‖ DEK id).
pub fn wrap_aad(context: &[u8; 32], kek_version: u32, dek_id: &[u8; 16]) -> [u8; 32] {
    under_version(label::WRAP, context, kek_version, dek_id)
}

/// The AAD of what confirms a wrapped KEK: SHA-256(label ‖ digest of its pair alone ‖ its version ‖ its id).
pub fn kek_aad(pair: &[u8; 32], version: u32, id: &[u8; 16]) -> [u8; 32] {
    under_version(label::KEK, pair, version, id)
}

fn under_version(label: &[u8], context: &[u8; 32], version: u32, id: &[u8; 16]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(label);
    hash.update(context);
    hash.update(version.to_be_bytes());
    hash.update(id);
    hash.finalize().into()
}

/// What data keys of a context are sealed under: HKDF(the keys of all pairs in their order, no salt, label ‖ context
/// digest). Every one of them is needed.
pub fn joint_key(keys: &[Arc<LockedKey>], context: &[u8; 32]) -> Result<LockedKey, CryptoError> {
    let all = Zeroizing::new(keys.iter().flat_map(|key| *key.expose()).collect::<Vec<u8>>());
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, &all)
        .expand_multi_info(&[label::DATA_KEYS, context], key.as_mut())
        .expect("32 bytes is a valid HKDF-SHA256 length");
    burn_stack();
    LockedKey::take(&mut key)
}

/// The tag over a vault's header (`vault.json`): HMAC-SHA256 under a key derived from the vault's metadata key.
pub fn header_tag(vault_key: &LockedKey, header: &[u8]) -> [u8; 32] {
    hmac(&derive(vault_key, None, label::HEADER), &[header])
}

/// SHA-256 of a secret that is random enough to need no salt: what is stored of an API key.
pub fn digest(secret: &[u8]) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Whether two tags are equal, in constant time.
pub fn same_tag(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

fn hmac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    use hmac::{KeyInit, Mac};
    let mut mac = hmac::Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_key_needs_every_key_in_its_place_and_the_context() {
        let key = |byte| Arc::new(LockedKey::take(&mut [byte; 32]).unwrap());
        let joint = |keys: &[u8], context| {
            let keys: Vec<_> = keys.iter().map(|byte| key(*byte)).collect();
            *joint_key(&keys, &[context; 32]).unwrap().expose()
        };
        let whole = joint(&[1, 2], 0);
        assert_eq!(whole, joint(&[1, 2], 0));
        for other in [joint(&[1], 0), joint(&[2], 0), joint(&[2, 1], 0), joint(&[1, 3], 0), joint(&[1, 2], 1)] {
            assert_ne!(whole, other);
        }
    }

    #[test]
    fn contexts_have_one_encoding_each() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let id = [7; 16];
        let aad = |context: &[(String, String)], version| wrap_aad(&context_digest(context), version, &id);
        let shifted = aad(&[pair("ab", "c")], 1);
        assert_ne!(shifted, aad(&[pair("a", "bc")], 1));
        assert_ne!(shifted, aad(&[pair("ab", "c")], 2));
        assert_ne!(shifted, aad(&[pair("ab", "c"), pair("d", "")], 1));
        assert_eq!(shifted, aad(&[pair("ab", "c")], 1));
    }

    #[test]
    fn commitment_names_organization_content_and_key() {
        let dek = LockedKey::generate().unwrap();
        let one = commitment(&dek, &[1; 16], 5, &[9; 16]);
        assert_ne!(one, commitment(&dek, &[2; 16], 5, &[9; 16]));
        assert_ne!(one, commitment(&dek, &[1; 16], 6, &[9; 16]));
        assert_ne!(one, commitment(&dek, &[1; 16], 5, &[8; 16]));
        assert_ne!(one, commitment(&LockedKey::generate().unwrap(), &[1; 16], 5, &[9; 16]));
    }
}
