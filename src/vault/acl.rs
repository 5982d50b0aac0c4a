//! POSIX access control lists: what they say beyond a mode, how the two follow each other, and what is inherited.
//!
//! A list is kept as the value that Linux gives to `system.posix_acl_access` and `system.posix_acl_default`
//! (`linux/posix_acl_xattr.h`): 2 as a u32, then for each entry tag u16, permissions u16, id u32, all little-endian.
//! The rules are those of acl(5) and of `fs/posix_acl.c`. Who may do what the kernel decides; here the lists are kept.

use super::error::{Error, Result};
use super::ids::Ino;
use super::records::Tx;
use super::row::{Attributes, Kind, Node};
use super::tree::Made;
use super::{Caller, Vault};
use serde_bytes::ByteBuf;

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";
const VERSION: [u8; 4] = 2u32.to_le_bytes();
const INVALID: Error = Error::Invalid("not an access control list");

/// Whom an entry is about, in the order in which they stand in a list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Tag {
    Owner,
    User,
    OwningGroup,
    Group,
    Mask,
    Other,
}

const TAGS: [(Tag, u16); 6] = [
    (Tag::Owner, 0x01),
    (Tag::User, 0x02),
    (Tag::OwningGroup, 0x04),
    (Tag::Group, 0x08),
    (Tag::Mask, 0x10),
    (Tag::Other, 0x20),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    tag: Tag,
    /// 4 read, 2 write, 1 execute.
    permissions: u16,
    id: u32,
}

/// A valid list: each tag in its order, owner, owning group and others once, and a mask where somebody is named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl(Vec<Entry>);

impl Acl {
    pub fn decode(value: &[u8]) -> Result<Acl> {
        let (entries, rest) = value.strip_prefix(&VERSION).ok_or(INVALID)?.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(INVALID);
        }
        let entries: Vec<Entry> = entries.iter().map(Entry::decode).collect::<Result<_>>()?;
        let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
        let names = count(Tag::User) + count(Tag::Group) > 0;
        let whole = [Tag::Owner, Tag::OwningGroup, Tag::Other].into_iter().all(|tag| count(tag) == 1);
        let masked = count(Tag::Mask) == 1 || count(Tag::Mask) == 0 && !names;
        let ordered = entries.is_sorted_by_key(|entry| entry.tag);
        if whole && masked && ordered { Ok(Acl(entries)) } else { Err(INVALID) }
    }

    pub fn encode(&self) -> Vec<u8> {
        VERSION.into_iter().chain(self.0.iter().flat_map(|entry| entry.encode())).collect()
    }

    /// The nine bits of the mode that goes with the list: where there is a mask, the group's bits are the mask.
    pub fn mode(&self) -> u32 {
        let bits = |tag| self.0.iter().find(|entry| entry.tag == tag).map(|entry| u32::from(entry.permissions));
        let always = |tag| bits(tag).expect("each valid list has it");
        always(Tag::Owner) << 6 | bits(Tag::Mask).unwrap_or_else(|| always(Tag::OwningGroup)) << 3 | always(Tag::Other)
    }

    /// Whether a mode says all that the list says.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The list after `chmod`.
    pub fn with_mode(self, mode: u32) -> Acl {
        self.change(|class, _| (mode >> class & 7) as u16)
    }

    /// What a default list gives to something made with `mode`: at most what both allow.
    pub fn inherited(self, mode: u32) -> Acl {
        self.change(|class, permissions| permissions & (mode >> class & 7) as u16)
    }

    /// Whoever may read may also search: the list of a folder that stands for a file.
    pub fn searchable(mut self) -> Acl {
        for entry in &mut self.0 {
            entry.permissions = searchable(u32::from(entry.permissions)) as u16;
        }
        self
    }

    /// Changes the entries that stand for the mode's three classes, each found by the place of its bits.
    fn change(mut self, permissions: impl Fn(u32, u16) -> u16) -> Acl {
        let group = if self.0.iter().any(|entry| entry.tag == Tag::Mask) { Tag::Mask } else { Tag::OwningGroup };
        for entry in &mut self.0 {
            let class = match entry.tag {
                Tag::Owner => 6,
                Tag::Other => 0,
                tag if tag == group => 3,
                _ => continue,
            };
            entry.permissions = permissions(class, entry.permissions);
        }
        self
    }
}

/// Three bits with leave to search where there is leave to read, and only there.
pub fn searchable(permissions: u32) -> u32 {
    permissions & 6 | permissions >> 2 & 1
}

impl Entry {
    fn decode(bytes: &[u8; 8]) -> Result<Entry> {
        let [tag, permissions] = [0, 2].map(|at| u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        let id = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let (tag, _) = *TAGS.iter().find(|(_, number)| *number == tag).ok_or(INVALID)?;
        let named = matches!(tag, Tag::User | Tag::Group);
        if permissions > 7 || named && id == u32::MAX {
            return Err(INVALID);
        }
        Ok(Entry { tag, permissions, id })
    }

    fn encode(&self) -> [u8; 8] {
        let (_, tag) = TAGS.iter().find(|(tag, _)| *tag == self.tag).expect("every tag has a number");
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&tag.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.permissions.to_le_bytes());
        bytes[4..].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }
}

pub fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

/// Sets a list as `setxattr` does: an access list changes the mode, and one that says no more than a mode is not kept.
pub fn set(caller: &Caller, node: &mut Node, attributes: &mut Attributes, name: &[u8], value: &[u8]) -> Result<()> {
    if matches!(node.kind, Kind::Symlink { .. }) {
        return Err(Error::Unsupported("an access control list of a symbolic link"));
    }
    if name == DEFAULT && !node.kind.is_directory() {
        return Err(Error::Denied("only a directory has a default access control list"));
    }
    let acl = Acl::decode(value)?;
    if name == ACCESS {
        node.mode = node.mode & !0o777 | acl.mode();
        if !caller.keeps_set_gid(node.gid) {
            node.mode &= !libc::S_ISGID;
        }
        if acl.is_minimal() {
            attributes.0.remove(ACCESS);
            return Ok(());
        }
    }
    attributes.0.insert(name.to_vec(), ByteBuf::from(acl.encode()));
    Ok(())
}

impl Vault {
    /// The access list follows a `chmod` of its inode.
    pub(super) fn follow_mode(&self, tx: &mut Tx, ino: Ino, node: &Node) -> Result<()> {
        let Some(attributes) = self.attributes_in(tx, ino, node)? else { return Ok(()) };
        if let Some(acl) = self.acl(ino, &attributes, ACCESS)? {
            let mut attributes = (*attributes).clone();
            attributes.0.insert(ACCESS.to_vec(), ByteBuf::from(acl.with_mode(node.mode).encode()));
            tx.put(ino, attributes);
        }
        Ok(())
    }

    /// What is made in a folder: its mode, and the lists that it has from the folder's default list, which takes the
    /// place of the umask.
    pub(super) fn inherit(
        &self,
        tx: &Tx,
        caller: &Caller,
        folder: (Ino, &Node),
        mode: u32,
        directory: bool,
    ) -> Result<Made> {
        let (ino, node) = folder;
        let attributes = self.attributes_in(tx, ino, node)?;
        let default = attributes.map(|attributes| self.acl(ino, &attributes, DEFAULT)).transpose()?.flatten();
        let Some(default) = default else { return Ok(Made { mode: mode & !caller.umask, attributes: None }) };
        let mut inherited = Attributes::default();
        if directory {
            inherited.0.insert(DEFAULT.to_vec(), ByteBuf::from(default.encode()));
        }
        let access = default.inherited(mode);
        if !access.is_minimal() {
            inherited.0.insert(ACCESS.to_vec(), ByteBuf::from(access.encode()));
        }
        let attributes = Some(inherited).filter(|inherited| !inherited.0.is_empty());
        Ok(Made { mode: mode & !0o777 | access.mode(), attributes })
    }

    fn acl(&self, ino: Ino, attributes: &Attributes, name: &[u8]) -> Result<Option<Acl>> {
        let Some(value) = attributes.0.get(name) else { return Ok(None) };
        let acl = Acl::decode(value).map_err(|_| self.corrupt("access control list", ino, String::new()))?;
        Ok(Some(acl))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let bytes = |(tag, permissions, id): &(u16, u16, u32)| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        VERSION.into_iter().chain(entries.iter().flat_map(bytes)).collect()
    }

    const NOBODY: u32 = u32::MAX;
    const PLAIN: [(u16, u16, u32); 3] = [(1, 6, NOBODY), (4, 4, NOBODY), (0x20, 4, NOBODY)];
    const NAMING: [(u16, u16, u32); 5] =
        [(1, 7, NOBODY), (2, 6, 1000), (4, 5, NOBODY), (0x10, 6, NOBODY), (0x20, 1, NOBODY)];

    #[test]
    fn a_list_and_a_mode_follow_each_other() {
        let plain = Acl::decode(&acl(&PLAIN)).unwrap();
        assert_eq!((plain.mode(), plain.is_minimal()), (0o644, true));
        let naming = Acl::decode(&acl(&NAMING)).unwrap();
        assert_eq!((naming.mode(), naming.is_minimal()), (0o761, false));
        assert_eq!(naming.encode(), acl(&NAMING));
        let changed = naming.clone().with_mode(0o4640);
        assert_eq!(changed.mode(), 0o640);
        let [_, user, group, mask, _] = changed.0[..] else { panic!("{changed:?}") };
        assert_eq!((user.permissions, group.permissions, mask.permissions), (6, 5, 4));
        assert_eq!(naming.inherited(0o650).mode(), 0o640);
        assert_eq!(plain.inherited(0o777).mode(), 0o644);
    }

    #[test]
    fn what_the_kernel_would_not_take_is_refused() {
        assert!(Acl::decode(&acl(&NAMING)).is_ok());
        let without = |at: usize| {
            let mut entries = NAMING.to_vec();
            entries.remove(at);
            Acl::decode(&acl(&entries))
        };
        for at in [0, 2, 3, 4] {
            without(at).unwrap_err();
        }
        without(1).unwrap();
        let with = |at: usize, entry| {
            let mut entries = NAMING.to_vec();
            entries.insert(at, entry);
            Acl::decode(&acl(&entries))
        };
        with(1, (2, 7, 1001)).unwrap();
        for entry in [(2, 8, 1), (2, 7, NOBODY), (0x40, 7, 1), (8, 7, 1), (1, 7, NOBODY)] {
            with(1, entry).unwrap_err();
        }
        for value in [&b""[..], b"\x02\0\0", &acl(&NAMING)[..43], &VERSION, b"\x01\0\0\0"] {
            Acl::decode(value).unwrap_err();
        }
    }
}
