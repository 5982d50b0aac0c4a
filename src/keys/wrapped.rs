//! What the store keeps of a key: the name of a KEK, and a DEK as the token wrapped it.

use crate::crypto::random;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Suite 1: the token's AES-256-GCM over the 32 bytes of the DEK.
pub const SUITE_TOKEN_GCM: u8 = 1;

/// Suite 2: AES-256-GCM on the host, under a key that the token's HMAC-SHA256 makes for this one wrapping.
pub const SUITE_HMAC_KDF: u8 = 2;

/// Names one version of one KEK. On the token it is CKA_ID: the id, then the version big-endian.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KekRef {
    pub id: [u8; 16],
    pub version: u32,
}

impl KekRef {
    /// A name that no other KEK has: a random id, version 1.
    pub fn fresh() -> Self {
        KekRef { id: random(), version: 1 }
    }

    /// The name in a key of 20 bytes: the id, then the version.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let (id, version) = key.split_first_chunk::<16>()?;
        Some(KekRef { id: *id, version: u32::from_be_bytes(version.try_into().ok()?) })
    }

    /// CKA_ID, 20 bytes.
    pub(super) fn object_id(&self) -> Vec<u8> {
        [&self.id[..], &self.version.to_be_bytes()].concat()
    }

    /// CKA_LABEL. Labels of token objects are readable in listings, so they are ids and nothing else.
    pub(super) fn label(&self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.id))
    }
}

impl fmt::Display for KekRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kek_{}:v{}", self.label(), self.version)
    }
}

impl fmt::Debug for KekRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A DEK under the KEKs of its key context, one over another, so that every one of them is needed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrappedDek {
    /// Random; part of what every layer authenticates.
    pub dek_id: [u8; 16],
    /// One for each pair of the key context, in the order of the pairs, the innermost first.
    pub layers: Vec<WrapLayer>,
    /// What the last layer wrote: 32 bytes and a 128-bit tag for each layer.
    #[serde(with = "serde_bytes")]
    pub ciphertext: Vec<u8>,
}

/// How one layer was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrapLayer {
    /// [`SUITE_TOKEN_GCM`] or [`SUITE_HMAC_KDF`].
    pub suite: u8,
    pub kek: KekRef,
    /// Suite 1: the IV, 12 bytes from the host or up to 16 from the token. Suite 2: the 256-bit salt.
    #[serde(with = "serde_bytes")]
    pub iv: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_dek_survives_the_store() {
        let kek = KekRef { id: [0xab; 16], version: 7 };
        let layer = WrapLayer { suite: SUITE_TOKEN_GCM, kek, iv: vec![1; 12] };
        let wrapped = WrappedDek { dek_id: [3; 16], layers: vec![layer], ciphertext: vec![2; 48] };
        let stored = postcard::to_stdvec(&wrapped).unwrap();
        assert_eq!(postcard::from_bytes::<WrappedDek>(&stored).unwrap(), wrapped);
    }

    #[test]
    fn kek_names() {
        let kek = KekRef { id: [0xab; 16], version: 258 };
        assert_eq!(kek.to_string(), "kek_abababababababababababababababab:v258");
        assert_eq!(kek.object_id()[16..], [0, 0, 1, 2]);
        assert_eq!(KekRef::fresh().version, 1);
        assert_ne!(KekRef::fresh(), KekRef::fresh());
    }
}
