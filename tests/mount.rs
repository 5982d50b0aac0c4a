//! The mount contract (`mount.md`) through a real mount, with real system calls and programs. Each test has a token, a
//! vault and a mount of its own.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/vault.rs"]
mod vault;

#[path = "mount/acl.rs"]
mod acl;
#[path = "mount/attributes.rs"]
mod attributes;
#[path = "mount/contexts.rs"]
mod contexts;
#[path = "mount/copying.rs"]
mod copying;
#[path = "mount/exercise.rs"]
mod exercise;
#[path = "mount/files.rs"]
mod files;
#[path = "mount/full.rs"]
mod full;
#[path = "mount/lasting.rs"]
mod lasting;
#[path = "mount/links.rs"]
mod links;
#[path = "mount/locking.rs"]
mod locking;
#[path = "mount/logging.rs"]
mod logging;
#[path = "mount/opening.rs"]
mod opening;
#[path = "mount/organizations.rs"]
mod organizations;
#[path = "mount/outage.rs"]
mod outage;
#[path = "mount/rotation.rs"]
mod rotation;
#[path = "mount/saving.rs"]
mod saving;
#[path = "mount/secrecy.rs"]
mod secrecy;
#[path = "mount/set_id.rs"]
mod set_id;
#[path = "mount/space.rs"]
mod space;
#[path = "mount/tombstones.rs"]
mod tombstones;
#[path = "mount/unnamed.rs"]
mod unnamed;
#[path = "mount/version_check.rs"]
mod version_check;
#[path = "mount/versions.rs"]
mod versions;
