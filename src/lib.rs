//! vaultfs: organizations as directories, encrypted objects as files, every key under a PKCS#11 token.
//!
//! ```text
//! cli   fs   api        adapters: translate, decide nothing
//!   \    |    /
//!      vault            organizations, objects, versions, tombstones; knows no kernel and no HTTP
//!     /     \
//!  keys     store       the token and the key hierarchy | sealed records and segments
//!     \     /
//!      crypto           sealing, labels, nonces as types
//! ```
//! Arrows go down only.

pub mod api;
pub mod audit;
pub mod cli;
pub mod crypto;
pub mod daemon;
pub mod fs;
pub mod keys;
pub mod store;
pub mod vault;

// The tests' token is shared with the tests beside the library.
#[cfg(test)]
extern crate self as vaultfs;
