//! What an operation on a vault can refuse, and the one table that turns it into an errno.

use crate::crypto::CryptoError;
use crate::keys::KeyError;
use crate::store::StoreError;
use crate::vault::{Ino, ObjectId, VersionId};

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not found")]
    NotFound,
    #[error("{0}")]
    Absent(&'static str),
    #[error("already exists")]
    Exists,
    /// Something that was found by its name a moment ago, and is gone: the kernel looks the name up again.
    #[error("{0}")]
    Stale(&'static str),
    #[error("not a directory")]
    NotADirectory,
    #[error("is a directory")]
    IsADirectory,
    #[error("directory not empty")]
    NotEmpty,
    #[error("{0}")]
    Invalid(&'static str),
    #[error("{0}")]
    NotPermitted(&'static str),
    #[error("{0}")]
    Denied(&'static str),
    #[error("{0}")]
    ReadOnly(&'static str),
    #[error("an object cannot be linked or renamed into another organization")]
    OtherOrganization,
    #[error("name longer than 255 bytes")]
    NameTooLong,
    #[error("too many links")]
    TooManyLinks,
    #[error("no such attribute")]
    NoAttribute,
    #[error("the attributes of a file may take 256 KiB, their names 56 KiB")]
    AttributesFull,
    #[error("beyond the largest file offset")]
    TooBig,
    #[error("no data beyond this offset")]
    NoSuchOffset,
    #[error("not open for this")]
    BadHandle,
    #[error("{0}")]
    Busy(&'static str),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("the object is at version {current}, not at {expected}")]
    VersionLost { expected: VersionId, current: VersionId },
    #[error("{0}")]
    Key(KeyError),
    #[error("the organization is locked: `vaultfs org unlock` opens it")]
    Locked,
    #[error("the KEK of a pair of this key context was revoked")]
    Revoked,
    /// Inside the vault only: the content has to be wrapped under this key context first.
    #[error("the content is under another key context")]
    OtherContext { content: Ino, context: Vec<(String, String)> },
    /// Only with `Patience::Never`: ask again from a thread that may wait for the token.
    #[error("the token would have to be asked")]
    WouldWait,
    #[error("authentication failed at {0}")]
    Corrupt(Place),
    #[error("no space left in the vault's state directory")]
    NoSpace,
    #[error("{0}")]
    Quota(&'static str),
    #[error(
        "the vault stopped writing after a failure of the state directory's disk; unmount, check the disk, mount again"
    )]
    Stopped,
    #[error(transparent)]
    Store(StoreError),
    /// The header or the vault's own record was changed.
    #[error("{0}")]
    Edited(String),
    /// What the caller asked for is not understood.
    #[error("{0}")]
    Setting(String),
    /// The state directory has to be put right first.
    #[error("{0}")]
    Header(String),
}

/// Where something that could not be authenticated stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What kind of thing: a table's name, `block`, `wrapped key`, `commitment`.
    pub what: &'static str,
    pub ino: Option<Ino>,
    pub object: Option<ObjectId>,
    /// The row's key in hex, or the byte offset in the file.
    pub at: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.what, self.at)?;
        if let Some(object) = self.object {
            write!(f, " of {object}")?;
        }
        if let Some(ino) = self.ino {
            write!(f, " (inode {})", ino.0)?;
        }
        Ok(())
    }
}

impl Error {
    /// The errno an application sees (`mount.md`, "Errors").
    pub fn errno(&self) -> i32 {
        match self {
            Error::NotFound | Error::Absent(_) => libc::ENOENT,
            Error::Exists => libc::EEXIST,
            Error::NotADirectory => libc::ENOTDIR,
            Error::IsADirectory => libc::EISDIR,
            Error::NotEmpty => libc::ENOTEMPTY,
            Error::Invalid(_) | Error::Setting(_) => libc::EINVAL,
            Error::NotPermitted(_) => libc::EPERM,
            Error::Denied(_) => libc::EACCES,
            Error::ReadOnly(_) => libc::EROFS,
            Error::OtherOrganization => libc::EXDEV,
            Error::NameTooLong => libc::ENAMETOOLONG,
            Error::TooManyLinks => libc::EMLINK,
            Error::NoAttribute => libc::ENODATA,
            Error::AttributesFull => libc::ENOSPC,
            Error::TooBig => libc::EFBIG,
            Error::NoSuchOffset => libc::ENXIO,
            Error::BadHandle => libc::EBADF,
            Error::Busy(_) => libc::EBUSY,
            Error::Unsupported(_) => libc::EOPNOTSUPP,
            Error::VersionLost { .. } | Error::Stale(_) => libc::ESTALE,
            Error::Key(KeyError::Authentication) | Error::Corrupt(_) => libc::EIO,
            Error::Key(_) | Error::Revoked | Error::Locked => libc::ENOKEY,
            Error::NoSpace | Error::Store(StoreError::Full(_)) => libc::ENOSPC,
            Error::Quota(_) => libc::EDQUOT,
            Error::WouldWait | Error::OtherContext { .. } => libc::EAGAIN,
            Error::Stopped | Error::Store(_) | Error::Edited(_) | Error::Header(_) => libc::EIO,
        }
    }
}

impl From<KeyError> for Error {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::WouldWait => Error::WouldWait,
            other => Error::Key(other),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Error::Store(error)
    }
}

impl From<CryptoError> for Error {
    fn from(error: CryptoError) -> Self {
        Error::Key(KeyError::Memory(error))
    }
}
