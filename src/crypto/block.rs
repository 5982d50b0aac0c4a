//! Sealing of an extent: a run of file bytes cut into blocks, one key for the extent, the block number as nonce.

use super::{CryptoError, LockedKey, Salt, derive, label};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::ops::Range;

/// The authentication tag of one block.
pub type Tag = [u8; 16];

/// The unit of authenticated encryption inside one extent, a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BlockSize(u8);

impl BlockSize {
    /// 4 KiB, a page: what is read at random is read in pages. Vaults from before have 16 KiB in long extents.
    pub const OF_NEW_EXTENTS: BlockSize = BlockSize(12);

    /// Bytes of a block.
    pub fn bytes(self) -> usize {
        1 << self.0
    }

    /// Blocks of an extent of `len` bytes; the last may be short.
    pub fn count(self, len: usize) -> usize {
        len.div_ceil(self.bytes())
    }

    /// The blocks that hold the bytes `range` of an extent.
    pub fn covering(self, range: Range<usize>) -> Range<usize> {
        range.start / self.bytes()..self.count(range.end)
    }
}

/// The key of one extent, derived for it alone.
pub struct ExtentKey {
    cipher: LessSafeKey,
    binding: [u8; 24],
    block: BlockSize,
    len: usize,
}

impl ExtentKey {
    /// `len` is the whole extent's length in bytes; organization and content id go into every block's AAD.
    pub fn new(
        dek: &LockedKey,
        salt: &Salt,
        organization: &[u8; 16],
        content: u64,
        block: BlockSize,
        len: usize,
    ) -> Self {
        let key = derive(dek, Some(salt), label::EXTENT);
        let mut binding = [0; 24];
        binding[..16].copy_from_slice(organization);
        binding[16..].copy_from_slice(&content.to_be_bytes());
        let cipher = UnboundKey::new(&AES_256_GCM, &*key).expect("32 bytes is an AES-256 key");
        ExtentKey { cipher: LessSafeKey::new(cipher), binding, block, len }
    }

    /// Encrypts a whole extent in place; a tag for each block.
    pub fn seal(&self, data: &mut [u8]) -> Vec<Tag> {
        assert_eq!(data.len(), self.len, "an extent is sealed whole");
        let tag_of = |(number, block): (usize, &mut [u8])| {
            let (nonce, aad) = self.nonce_and_aad(number);
            let tag = self.cipher.seal_in_place_separate_tag(nonce, aad, block);
            tag.expect("a block is far below GCM's length limit").as_ref().try_into().expect("a tag of 16 bytes")
        };
        data.chunks_mut(self.block.bytes()).enumerate().map(tag_of).collect()
    }

    /// Decrypts the blocks from number `first` on in place; `data` ends at a block's or the extent's end. After an error it
    /// holds nothing of use.
    pub fn open(&self, first: usize, tags: &[Tag], data: &mut [u8]) -> Result<(), CryptoError> {
        if tags.len() != self.block.count(data.len()) {
            return Err(CryptoError::Authentication);
        }
        let blocks = data.chunks_mut(self.block.bytes());
        for ((number, block), tag) in (first..).zip(blocks).zip(tags) {
            let (nonce, aad) = self.nonce_and_aad(number);
            let opened = self.cipher.open_in_place_separate_tag(nonce, aad, tag, block);
            opened.map_err(|_| CryptoError::Authentication)?;
        }
        Ok(())
    }

    fn nonce_and_aad(&self, number: usize) -> (Nonce, Aad<[u8; 33]>) {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&(number as u64).to_be_bytes());
        let mut aad = [0; 33];
        aad[..24].copy_from_slice(&self.binding);
        aad[24..32].copy_from_slice(&(number as u64).to_be_bytes());
        aad[32] = u8::from(number + 1 == self.block.count(self.len));
        (Nonce::assume_unique_for_key(nonce), Aad::from(aad))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(len: usize, block: BlockSize) -> (LockedKey, Salt, Vec<u8>, Vec<Tag>, Vec<u8>) {
        let dek = LockedKey::generate().unwrap();
        let salt = Salt::fresh();
        let plain: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
        let mut data = plain.clone();
        let tags = ExtentKey::new(&dek, &salt, &[1; 16], 9, block, len).seal(&mut data);
        (dek, salt, data, tags, plain)
    }

    #[test]
    fn any_run_of_blocks_opens_alone() {
        let lengths = [1, 4095, 4096, 4097, 65536, 100_000, 1 << 20];
        for (len, block) in lengths.into_iter().flat_map(|len| [(len, BlockSize(12)), (len, BlockSize(14))]) {
            let (dek, salt, data, tags, plain) = sealed(len, block);
            let key = ExtentKey::new(&dek, &salt, &[1; 16], 9, block, len);
            for first in 0..block.count(len) {
                let mut part = data[first * block.bytes()..].to_vec();
                key.open(first, &tags[first..], &mut part).unwrap();
                assert_eq!(part, plain[first * block.bytes()..]);
            }
        }
    }

    /// The ciphers of blocks and of records are two implementations of one algorithm.
    #[test]
    fn another_implementation_opens_a_block() {
        use aes_gcm::aead::{AeadInOut, KeyInit};
        let (dek, salt, mut data, tags, plain) = sealed(20_000, BlockSize::OF_NEW_EXTENTS);
        let derived = derive(&dek, Some(&salt), label::EXTENT);
        let other = aes_gcm::Aes256Gcm::new((&*derived).into());
        let key = ExtentKey::new(&dek, &salt, &[1; 16], 9, BlockSize::OF_NEW_EXTENTS, 20_000);
        for ((number, block), tag) in data.chunks_mut(4096).enumerate().zip(&tags) {
            let (nonce, aad) = key.nonce_and_aad(number);
            other.decrypt_inout_detached(nonce.as_ref().into(), aad.as_ref(), block.into(), tag.into()).unwrap();
        }
        assert_eq!(data, plain);
    }

    #[test]
    fn every_change_is_noticed() {
        let len = 20_000;
        let block = BlockSize::OF_NEW_EXTENTS;
        let (dek, salt, data, tags, _) = sealed(len, block);
        let open = |org: u8, content, len, first: usize, data: &[u8], tags: &[Tag]| {
            let key = ExtentKey::new(&dek, &salt, &[org; 16], content, block, len);
            key.open(first, tags, &mut data.to_vec())
        };
        assert!(open(1, 9, len, 0, &data, &tags).is_ok());
        assert!(open(2, 9, len, 0, &data, &tags).is_err(), "another organization");
        assert!(open(1, 8, len, 0, &data, &tags).is_err(), "another content");
        assert!(open(1, 9, len, 1, &data[..4096], &tags[..1]).is_err(), "another place");
        assert!(open(1, 9, 16384, 0, &data[..16384], &tags[..4]).is_err(), "truncated at a block");
        assert!(open(1, 9, len, 0, &data, &tags[..4]).is_err(), "a tag missing");
        for at in [0, 5000, len - 1] {
            let mut flipped = data.clone();
            flipped[at] ^= 1;
            assert!(open(1, 9, len, 0, &flipped, &tags).is_err());
        }
        let mut swapped = tags.clone();
        swapped.swap(0, 1);
        assert!(open(1, 9, len, 0, &data, &swapped).is_err());
    }
}
