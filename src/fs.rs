//! The vault as a file system: what the kernel asks through FUSE, put to the vault, and its answers put to the kernel.
//!
//! This layer translates and decides nothing. What a path, an object or a tombstone is, the vault knows; who may do
//! what by mode and ACL, the kernel checks (`default_permissions`); `flock` and `fcntl` locks never leave the kernel.
//! What is this layer's own is how the kernel is kept both fast and right: which thread waits ([`dispatch`]), how long
//! the kernel may remember an answer ([`lifetime`]) and how it is told that one has become wrong ([`invalidation`]).
//!
//! ```text
//! mount          mounts a vault, waits for its end, unmounts it
//! negotiation    what kernel and vaultfs agree on when the mount begins
//! transport      the FUSE requests, each a few lines: fuser's types in, the vault's call, fuser's reply out
//! dispatch       answers on the thread that read the request, or on a pool where the vault has to wait
//! replies        how each kind of reply carries what the vault returned
//! names          lookup, and everything that makes a name
//! listing        readdir and readdirplus: offsets, and filling a buffer of the kernel's size
//! translate      flags, times, attributes
//! lifetime       how long the kernel may believe an answer
//! invalidation   what changed behind the kernel's back
//! ```
//! Another transport (FUSE over io_uring) would stand beside `transport` and use the rest.

mod dispatch;
mod invalidation;
mod lifetime;
mod listing;
mod mount;
mod names;
mod negotiation;
mod pool;
mod replies;
mod translate;
mod transport;

pub use mount::{MountOptions, Mounted};
