//! What the kernel and this layer agree on when a mount begins.

use fuser::{InitFlags, KernelConfig};
use std::io;

/// All there since Linux 5.11, and each needed: POSIX_ACL for ACLs that the kernel applies; DONT_MASK because a directory's
/// default ACL takes the place of the umask, which therefore comes with each request for the vault to apply;
/// HANDLE_KILLPRIV_V2 because the vault clears set-id bits, and because only then the kernel remembers that a file has no
/// capabilities, instead of asking before every write.
/// POSIX_LOCKS and FLOCK_LOCKS are left out: locks stay in the kernel. ATOMIC_O_TRUNC is left out: with it an
/// `open(O_RDONLY | O_TRUNC)` of a running program truncates it, and only then is refused with ETXTBSY.
const CAPABILITIES: InitFlags = InitFlags::FUSE_DO_READDIRPLUS
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_DONT_MASK);

/// 1 MiB, which is also the kernel's limit (`fs.fuse.max_pages_limit`).
const MAX_WRITE: u32 = 1 << 20;

/// Readahead and asynchronous requests at a time.
const MAX_BACKGROUND: u16 = 64;

pub fn negotiate(config: &mut KernelConfig, writeback: bool) -> io::Result<()> {
    let writeback = if writeback { InitFlags::FUSE_WRITEBACK_CACHE } else { InitFlags::empty() };
    config.add_capabilities(CAPABILITIES | writeback).map_err(|lacking| {
        io::Error::new(io::ErrorKind::Unsupported, format!("this kernel's FUSE lacks {lacking:?}"))
    })?;
    let refused = |nearest| io::Error::other(format!("fuser takes no limit but {nearest}"));
    config.set_max_write(MAX_WRITE).map_err(refused)?;
    config.set_max_background(MAX_BACKGROUND).map_err(|nearest| refused(nearest.into()))?;
    Ok(())
}
