//! The mount contract (`mount.md`) through a real mount, with real system calls and programs. Each test has a token, a
//! vault and a mount of its own.

#[path = "support/dice.rs"]
mod dice;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/vault.rs"]
mod vault;

#[path = "mount/acl.rs"]
mod acl;
#[path = "mount/atime.rs"]
mod atime;
#[path = "mount/attributes.rs"]
mod attributes;
#[path = "mount/beside.rs"]
mod beside;
#[path = "mount/contexts.rs"]
mod contexts;
#[path = "mount/copying.rs"]
mod copying;
#[path = "mount/direct.rs"]
mod direct;
#[path = "mount/exercise.rs"]
mod exercise;
#[path = "mount/files.rs"]
mod files;
#[path = "mount/full.rs"]
mod full;
#[path = "mount/ladder.rs"]
mod ladder;
#[path = "mount/lasting.rs"]
mod lasting;
#[path = "mount/links.rs"]
mod links;
#[path = "mount/listing.rs"]
mod listing;
#[path = "mount/locking.rs"]
mod locking;
#[path = "mount/logging.rs"]
mod logging;
#[path = "mount/memory.rs"]
mod memory;
#[path = "mount/migration.rs"]
mod migration;
#[path = "mount/opening.rs"]
mod opening;
#[path = "mount/organizations.rs"]
mod organizations;
#[path = "mount/outage.rs"]
mod outage;
#[path = "mount/paths.rs"]
mod paths;
#[path = "mount/races.rs"]
mod races;
#[path = "mount/rotation.rs"]
mod rotation;
#[path = "mount/saving.rs"]
mod saving;
#[path = "mount/secrecy.rs"]
mod secrecy;
#[path = "mount/set_id.rs"]
mod set_id;
#[path = "mount/sharing.rs"]
mod sharing;
#[path = "mount/space.rs"]
mod space;
#[path = "mount/storms.rs"]
mod storms;
#[path = "mount/tombstones.rs"]
mod tombstones;
#[path = "mount/unnamed.rs"]
mod unnamed;
#[path = "mount/version_check.rs"]
mod version_check;
#[path = "mount/versions.rs"]
mod versions;
