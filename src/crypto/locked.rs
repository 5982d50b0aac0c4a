//! Memory for keys: locked into RAM, left out of core dumps, gone in a forked child, wiped when given back.
//!
//! A key is 32 bytes and a page is 4096, so keys share pages: an arena hands out slots.

use super::CryptoError;
use parking_lot::Mutex;
use std::ptr::NonNull;
use zeroize::Zeroize;

const SLOT: usize = 32;
const REGION: usize = 64 * 1024;

/// Free slots of every region; regions live as long as the process.
static FREE: Mutex<Vec<Slot>> = Mutex::new(Vec::new());

#[derive(Clone, Copy)]
struct Slot(NonNull<[u8; SLOT]>);

// SAFETY: a slot is owned by exactly one `LockedKey`, or by the free list behind its mutex.
unsafe impl Send for Slot {}
// SAFETY: shared access only reads the bytes; they change in `fill` (before sharing) and in `drop`.
unsafe impl Sync for Slot {}

/// A 256-bit secret in locked memory.
pub struct LockedKey(Slot);

impl LockedKey {
    /// A fresh random key.
    pub fn generate() -> Result<Self, CryptoError> {
        Self::fill(|bytes| getrandom::fill(bytes).expect("getrandom(2) does not fail on Linux"))
    }

    /// Takes the bytes over and wipes the caller's copy.
    pub fn take(bytes: &mut [u8; 32]) -> Result<Self, CryptoError> {
        let key = Self::fill(|slot| slot.copy_from_slice(bytes));
        bytes.zeroize();
        key
    }

    fn fill(write: impl FnOnce(&mut [u8; 32])) -> Result<Self, CryptoError> {
        let mut slot = take_slot()?;
        // SAFETY: the slot left the free list, so nobody else refers to its bytes.
        write(unsafe { slot.0.as_mut() });
        Ok(LockedKey(slot))
    }

    /// The key itself, for a cipher or the token's interface; do not copy it elsewhere.
    pub fn expose(&self) -> &[u8; 32] {
        // SAFETY: the slot belongs to `self` and its region is never unmapped.
        unsafe { self.0.0.as_ref() }
    }
}

impl Drop for LockedKey {
    fn drop(&mut self) {
        // SAFETY: `self` owns the slot until it is pushed back.
        unsafe { self.0.0.as_mut() }.zeroize();
        FREE.lock().push(self.0);
    }
}

impl std::fmt::Debug for LockedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LockedKey(..)")
    }
}

fn take_slot() -> Result<Slot, CryptoError> {
    let mut free = FREE.lock();
    if free.is_empty() {
        let region = map_region().map_err(CryptoError::LockedMemory)?;
        // SAFETY: every offset lies inside the region that was just mapped.
        free.extend((0..REGION / SLOT).map(|i| Slot(unsafe { region.add(i) })));
    }
    Ok(free.pop().expect("a region has slots"))
}

fn map_region() -> std::io::Result<NonNull<[u8; SLOT]>> {
    let check = |rc: libc::c_int| if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    // SAFETY: an anonymous private mapping at an address of the kernel's choice touches no other memory.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            REGION,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: `at` is a mapping of REGION bytes made above.
    let locked = check(unsafe { libc::mlock(at, REGION) })
        // SAFETY: as above.
        .and_then(|()| check(unsafe { libc::madvise(at, REGION, libc::MADV_DONTDUMP) }))
        // SAFETY: as above.
        .and_then(|()| check(unsafe { libc::madvise(at, REGION, libc::MADV_WIPEONFORK) }));
    if let Err(error) = locked {
        // SAFETY: nobody else knows the mapping yet.
        unsafe { libc::munmap(at, REGION) };
        return Err(error);
    }
    Ok(NonNull::new(at.cast()).expect("mmap does not return null"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_wipes_the_source() {
        let mut source = [5u8; 32];
        let key = LockedKey::take(&mut source).unwrap();
        assert_eq!(source, [0; 32]);
        assert_eq!(key.expose(), &[5; 32]);
    }

    #[test]
    fn keys_do_not_share_slots() {
        let keys: Vec<_> = (0..5000).map(|_| LockedKey::generate().unwrap()).collect();
        let distinct: std::collections::HashSet<_> = keys.iter().map(|k| *k.expose()).collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
