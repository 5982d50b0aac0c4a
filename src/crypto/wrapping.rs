//! The host's half of suite 2: a token that only signs makes a key for one wrapping, and the host wraps with it.
//!
//! The key is one output of the counter-mode KDF of NIST SP 800-108r1 (section 4.1) with HMAC-SHA256 under the KEK as
//! its PRF, which the token evaluates in one C_Sign. Its input holds the AAD and a fresh 256-bit salt, so it encrypts
//! one message, under a constant nonce.

use super::{CryptoError, label};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit, array::Array};
use zeroize::Zeroizing;

/// Bytes of an AES-GCM tag.
pub const TAG: usize = 16;

/// What the KEK signs: counter 1 ‖ label ‖ 0 ‖ AAD ‖ salt ‖ 256, the numbers as 32 bits big-endian.
pub fn kdf_input(aad: &[u8; 32], salt: &[u8; 32]) -> Vec<u8> {
    [&1u32.to_be_bytes()[..], label::WRAPPING_KEY, &[0], aad, salt, &256u32.to_be_bytes()].concat()
}

/// The ciphertext and its tag, under a key for this one message.
pub fn wrap_once(key: Zeroizing<[u8; 32]>, aad: &[u8; 32], plaintext: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(plaintext.len() + TAG);
    out.extend_from_slice(plaintext);
    let tag = Aes256Gcm::new((&*key).into())
        .encrypt_inout_detached(&Array::default(), aad, out.as_mut_slice().into())
        .expect("a wrapped key is far below GCM's length limit");
    out.extend_from_slice(&tag);
    out
}

/// What `wrap_once` wrapped.
pub fn unwrap_once(
    key: Zeroizing<[u8; 32]>,
    aad: &[u8; 32],
    wrapped: &[u8],
) -> Result<Zeroizing<Vec<u8>>, CryptoError> {
    let (ciphertext, tag) = wrapped.split_last_chunk::<TAG>().ok_or(CryptoError::Authentication)?;
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    Aes256Gcm::new((&*key).into())
        .decrypt_inout_detached(&Array::default(), aad, plaintext.as_mut_slice().into(), tag.into())
        .map_err(|_| CryptoError::Authentication)?;
    Ok(plaintext)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_wrapped_opens_whole_or_not_at_all() {
        let key = |byte| Zeroizing::new([byte; 32]);
        let wrapped = wrap_once(key(1), &[2; 32], b"a key");
        assert_eq!(&**unwrap_once(key(1), &[2; 32], &wrapped).unwrap(), b"a key");
        assert!(unwrap_once(key(9), &[2; 32], &wrapped).is_err());
        assert!(unwrap_once(key(1), &[9; 32], &wrapped).is_err());
        for at in 0..wrapped.len() {
            let mut flipped = wrapped.clone();
            flipped[at] ^= 1;
            assert!(unwrap_once(key(1), &[2; 32], &flipped).is_err());
            assert!(unwrap_once(key(1), &[2; 32], &wrapped[..at]).is_err());
        }
    }
}
