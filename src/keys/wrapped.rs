//! What the store keeps of a key: the name of a KEK, and a DEK as the token wrapped it.

use crate::crypto::random;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Suite 1: the token's AES-256-GCM over the 32 bytes of the DEK, the IV drawn by the host.
pub const SUITE_TOKEN_GCM: u8 = 1;

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

/// A DEK under the KEKs of its key context.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrappedDek {
    /// How each layer is made: [`SUITE_TOKEN_GCM`].
    pub suite: u8,
    /// Random; part of what every layer authenticates.
    pub dek_id: [u8; 16],
    /// One for each context pair with a KEK of its own, in the order of the pairs; exactly one now.
    pub layers: Vec<WrapLayer>,
}

/// One wrapping: `ciphertext` is 32 bytes and the 128-bit tag.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WrapLayer {
    pub kek: KekRef,
    pub iv: [u8; 12],
    #[serde(with = "serde_bytes")]
    pub ciphertext: [u8; 48],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_dek_survives_the_store() {
        let kek = KekRef { id: [0xab; 16], version: 7 };
        let layer = WrapLayer { kek, iv: [1; 12], ciphertext: [2; 48] };
        let wrapped = WrappedDek { suite: SUITE_TOKEN_GCM, dek_id: [3; 16], layers: vec![layer] };
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
