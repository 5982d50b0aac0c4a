//! Sealing of one record (a row of the store) and hashing of names, both under a metadata key.

use super::{CryptoError, LockedKey, Plain, Salt, derive, hmac, label};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit, array::Array};
use zeroize::Zeroizing;

const SALT: usize = 16;
const TAG: usize = 16;

/// Where a record stands; all of it is authenticated with the record.
pub struct RecordPlace<'a> {
    pub table: u8,
    /// The organization that the sealing key belongs to; zero for the vault's own rows.
    pub organization: &'a [u8; 16],
    pub key: &'a [u8],
    /// The number of the batch that wrote the record.
    pub version: u64,
}

impl RecordPlace<'_> {
    fn aad(&self) -> Vec<u8> {
        let mut aad = Vec::with_capacity(25 + self.key.len());
        aad.push(self.table);
        aad.extend_from_slice(self.organization);
        aad.extend_from_slice(&self.version.to_be_bytes());
        aad.extend_from_slice(self.key);
        aad
    }
}

/// Seals the records of one organization (or of the vault).
pub struct RecordKey(LockedKey);

impl RecordKey {
    pub fn new(metadata_key: LockedKey) -> Self {
        RecordKey(metadata_key)
    }

    /// The key for the names of the same organization.
    pub fn name_key(&self) -> NameKey {
        NameKey(derive(&self.0, None, label::NAMES))
    }

    /// The tag over the vault's header, where this is the vault's own metadata key.
    pub fn header_tag(&self, header: &[u8]) -> [u8; 32] {
        super::header_tag(&self.0, header)
    }

    /// Appends `salt ‖ ciphertext ‖ tag` to `out`: 32 bytes more than the plaintext.
    pub fn seal(&self, place: &RecordPlace, plaintext: &[u8], out: &mut Vec<u8>) {
        let salt = Salt::fresh();
        out.extend_from_slice(&salt.0);
        let start = out.len();
        out.extend_from_slice(plaintext);
        let tag = self
            .cipher(&salt)
            .encrypt_inout_detached(&Array::default(), &place.aad(), (&mut out[start..]).into())
            .expect("a record is far below GCM's length limit");
        out.extend_from_slice(&tag);
    }

    /// The plaintext of what `seal` appended.
    pub fn open(&self, place: &RecordPlace, sealed: &[u8]) -> Result<Plain, CryptoError> {
        let text = sealed.len().checked_sub(SALT + TAG).ok_or(CryptoError::Authentication)?;
        let (salt, rest) = sealed.split_at(SALT);
        let (ciphertext, tag) = rest.split_at(text);
        let salt = Salt(salt.try_into().expect("split at SALT"));
        let tag: &[u8; TAG] = tag.try_into().expect("the rest is a tag");
        let mut plaintext = Plain::from(ciphertext.to_vec());
        self.cipher(&salt)
            .decrypt_inout_detached(&Array::default(), &place.aad(), (&mut plaintext[..]).into(), tag.into())
            .map_err(|_| CryptoError::Authentication)?;
        Ok(plaintext)
    }

    fn cipher(&self, salt: &Salt) -> Aes256Gcm {
        // One message under each key, so the nonce is constant.
        Aes256Gcm::new((&*derive(&self.0, Some(salt), label::RECORD)).into())
    }
}

/// Hashes names so that an entry is found without a name in the store.
pub struct NameKey(Zeroizing<[u8; 32]>);

impl NameKey {
    /// The first 128 bits of HMAC-SHA256(parent ‖ name).
    pub fn hash(&self, parent: u64, name: &[u8]) -> [u8; 16] {
        let full = hmac(&self.0, &[&parent.to_be_bytes(), name]);
        full[..16].try_into().expect("half of the hash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_opens_only_where_it_was_put() {
        let key = RecordKey::new(LockedKey::generate().unwrap());
        let place = |table, org: &'static [u8; 16], at: &'static [u8], version| RecordPlace {
            table,
            organization: org,
            key: at,
            version,
        };
        let mut sealed = Vec::new();
        key.seal(&place(1, &[1; 16], b"row", 4), b"the attributes", &mut sealed);
        assert_eq!(&*key.open(&place(1, &[1; 16], b"row", 4), &sealed).unwrap(), b"the attributes");
        assert!(key.open(&place(2, &[1; 16], b"row", 4), &sealed).is_err());
        assert!(key.open(&place(1, &[2; 16], b"row", 4), &sealed).is_err());
        assert!(key.open(&place(1, &[1; 16], b"rov", 4), &sealed).is_err());
        assert!(key.open(&place(1, &[1; 16], b"row", 5), &sealed).is_err());
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 0x80;
            assert!(key.open(&place(1, &[1; 16], b"row", 4), &flipped).is_err());
            assert!(key.open(&place(1, &[1; 16], b"row", 4), &sealed[..at]).is_err());
        }
    }

    #[test]
    fn names_hash_by_parent_and_key() {
        let one = RecordKey::new(LockedKey::generate().unwrap()).name_key();
        let two = RecordKey::new(LockedKey::generate().unwrap()).name_key();
        assert_eq!(one.hash(1, b"a"), one.hash(1, b"a"));
        assert_ne!(one.hash(1, b"a"), one.hash(2, b"a"));
        assert_ne!(one.hash(1, b"a"), two.hash(1, b"a"));
    }
}
