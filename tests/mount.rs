//! The mount contract (`mount.md`) through a real mount, with real system calls and programs. Each test has a token, a
//! vault and a mount of its own.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/vault.rs"]
mod vault;

#[path = "mount/organizations.rs"]
mod organizations;
#[path = "mount/saving.rs"]
mod saving;
