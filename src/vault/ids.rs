//! Names of things: inode numbers, organizations, objects, versions.

use crate::crypto;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The number of an organization inside one vault: 1 to 2²⁴ − 1, never used again. 0 stands for the vault itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct OrgNo(pub u32);

impl OrgNo {
    pub const VAULT: OrgNo = OrgNo(0);
    pub const MAX: u32 = (1 << 24) - 1;
}

/// A stable inode number: the organization's number above 40 bits of its own count. Never used again, and
/// for a regular file also the id of its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Ino(pub u64);

impl Ino {
    const LOCAL_BITS: u32 = 40;
    const TOP: u64 = 1;
    const GRAVES: u64 = 2;
    const VERSIONS_OF_ALL: u64 = 3;
    /// Set in the number of a folder as `.versions` shows it; no organization counts that far.
    const SHOWN: u64 = 1 << 39;
    /// Set also in the numbers of objects and versions in there, which are given out as they are asked for.
    const GIVEN: u64 = 1 << 38;
    /// The first number given to something that a user makes.
    pub const FIRST_LOCAL: u64 = 16;

    /// `/vault`
    pub const ROOT: Ino = Ino(Self::TOP);
    /// `/vault/.tombstones`
    pub const GRAVEYARD: Ino = Ino(Self::GRAVES);

    /// `/vault/.versions`
    pub const VERSIONS: Ino = Ino(Self::VERSIONS_OF_ALL);

    pub fn new(organization: OrgNo, local: u64) -> Self {
        Ino(u64::from(organization.0) << Self::LOCAL_BITS | local)
    }

    /// `/vault/ORG`
    pub fn top_of(organization: OrgNo) -> Self {
        Self::new(organization, Self::TOP)
    }

    /// `/vault/.tombstones/ORG`
    pub fn graveyard_of(organization: OrgNo) -> Self {
        Self::new(organization, Self::GRAVES)
    }

    /// A folder as `.versions` shows it.
    pub fn versions_of(folder: Ino) -> Self {
        Ino(folder.0 | Self::SHOWN)
    }

    /// An object or a version as `.versions` shows it.
    pub fn given(organization: OrgNo, number: u64) -> Self {
        Self::new(organization, Self::SHOWN | Self::GIVEN | number)
    }

    /// Whether this is `.versions` or something in it.
    pub fn is_in_versions(self) -> bool {
        self == Self::VERSIONS || self.0 & Self::SHOWN != 0
    }

    /// The folder that this shows the versions of.
    pub fn shown_folder(self) -> Option<Ino> {
        (self.0 & (Self::SHOWN | Self::GIVEN) == Self::SHOWN).then_some(Ino(self.0 & !Self::SHOWN))
    }

    pub fn organization(self) -> OrgNo {
        OrgNo((self.0 >> Self::LOCAL_BITS) as u32 & OrgNo::MAX)
    }

    /// The organization's own count.
    pub fn local(self) -> u64 {
        self.0 & ((1 << Self::LOCAL_BITS) - 1)
    }

    /// Whether this is an organization's own directory.
    pub fn is_top(self) -> bool {
        self.local() == Self::TOP && self.organization() != OrgNo::VAULT
    }

    /// Whether this is `.tombstones` or an organization's directory in it.
    pub fn is_graveyard(self) -> bool {
        self.local() == Self::GRAVES
    }
}

macro_rules! prefixed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl $name {
            pub fn fresh() -> Self {
                $name(u128::from_be_bytes(crypto::random()))
            }
        }

        prefixed_id!(@text $name, $prefix, $format);
    };
    (@text $name:ident, $prefix:literal, $format:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, $format), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                let digits = text.strip_prefix($prefix).filter(|d| d.len() == 32).ok_or(())?;
                let id = u128::from_str_radix(digits, 16).map($name).map_err(|_| ())?;
                if id.to_string() == text { Ok(id) } else { Err(()) }
            }
        }
    };
}

prefixed_id!(
    /// An object's id: `secret_` and 32 upper-case hex digits. Stays with the name.
    ObjectId, "secret_", "{:032X}"
);
/// A version's id: 32 lower-case hex digits, the first half its object's, so that it is known whose it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VersionId(pub u128);

impl VersionId {
    pub fn fresh(object: ObjectId) -> Self {
        VersionId(object.0 >> 64 << 64 | u128::from(u64::from_be_bytes(crypto::random())))
    }

    pub fn belongs_to(self, object: ObjectId) -> bool {
        self.0 >> 64 == object.0 >> 64
    }

    /// The lowest and the first impossible id of an object that this can belong to.
    pub fn owners(self) -> (u128, u128) {
        let first = self.0 >> 64 << 64;
        (first, first.saturating_add(1 << 64))
    }
}

prefixed_id!(@text VersionId, "", "{:032x}");

prefixed_id!(
    /// A vault's id: `vault_` and 32 lower-case hex digits.
    VaultId, "vault_", "{:032x}"
);

macro_rules! ulid_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u128);

        impl $name {
            pub fn fresh() -> Self {
                $name(ulid::Ulid::generate().into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), ulid::Ulid::from(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                let ulid = text.strip_prefix($prefix).and_then(|t| ulid::Ulid::from_string(t).ok());
                let id = ulid.map(|ulid| $name(ulid.into())).ok_or(())?;
                if id.to_string() == text { Ok(id) } else { Err(()) }
            }
        }
    };
}

ulid_id!(
    /// An organization's id: `org_` and a ULID.
    OrgId, "org_"
);
ulid_id!(
    /// An API key's id: `key_` and a ULID. No secret.
    ApiKeyId, "key_"
);

impl OrgId {
    /// The 16 bytes that bind keys and records to this organization.
    pub fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_and_refuse_other_spellings() {
        let id = ObjectId::fresh();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(ObjectId(0xAB).to_string().to_lowercase().parse::<ObjectId>().is_err());
        assert!("secret_12".parse::<ObjectId>().is_err());
        let org = OrgId::fresh();
        assert_eq!(org.to_string().parse(), Ok(org));
    }

    #[test]
    fn an_inode_names_its_organization() {
        let ino = Ino::new(OrgNo(7), 99);
        assert_eq!(ino.organization(), OrgNo(7));
        assert!(Ino::top_of(OrgNo(7)).is_top() && !Ino::ROOT.is_top());
        let shown = Ino::versions_of(ino);
        assert!(shown.is_in_versions() && shown.organization() == OrgNo(7) && shown.shown_folder() == Some(ino));
        let given = Ino::given(OrgNo(7), 5);
        assert!(given.is_in_versions() && given.organization() == OrgNo(7) && given.shown_folder().is_none());
        assert!(!ino.is_in_versions() && Ino::VERSIONS.is_in_versions() && Ino::VERSIONS.shown_folder().is_none());
        assert!(Ino::graveyard_of(OrgNo(7)).is_graveyard() && Ino::GRAVEYARD.is_graveyard());
    }
}
