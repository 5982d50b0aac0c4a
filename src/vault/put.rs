//! Values that come whole, from a command or a service: each is a new content, installed under a name at once.

use super::context::{OWN_PAIR_ALIAS, Rewraps};
use super::error::{Error, Result};
use super::file::OpenFile;
use super::ids::{Ino, ObjectId, VersionId};
use super::organization::OWN_PAIR;
use super::reading::Reading;
use super::records::Tx;
use super::row::{Attributes, ContentRecord, Context, Entry, Kind, Node, Object, Pending, Task};
use super::time::Time;
use super::{Access, Caller, Handle, ObjectInfo, Vault};
use crate::crypto::Plain;
use std::collections::BTreeMap;
use std::io::Read;

/// How much of a value is read at once: first what most values fit into.
const FIRST_PART: usize = 16 << 10;
const PART: usize = 1 << 20;

/// What may stand where a value is to go.
#[derive(Clone, Copy)]
enum Standing {
    Anything,
    Nothing,
    This(ObjectId),
}

impl Vault {
    /// The organization that a key context names by its id, external id or name; without such a pair the default one.
    /// `None`: there is none. With `organizations=just-in-time` it is made for who may do so.
    pub fn organization_of_context(
        &self,
        caller: &Caller,
        context: &BTreeMap<String, String>,
        may_make: bool,
    ) -> Result<Option<super::OrganizationInfo>> {
        let default = self.settings.default_organization.as_ref();
        let named = context.get(OWN_PAIR).or_else(|| context.get(OWN_PAIR_ALIAS)).or(default);
        let Some(which) = named else { return Ok(None) };
        match self.organization(which) {
            Err(error) if error.errno() == libc::ENOENT && !(self.settings.just_in_time && may_make) => Ok(None),
            Err(error) if error.errno() == libc::ENOENT => {
                match self.create_organization(caller, which, None, None) {
                    // Another request that needs it was first.
                    Err(Error::Exists) => self.organization(which).map(Some),
                    made => made.map(Some),
                }
            }
            found => found.map(Some),
        }
    }

    /// Stores a new object at `ORG/PATH`, which must be free, under a key context that is its own for ever: these pairs, and
    /// those of its folders. Folders are made as needed. Durable when it returns, and the mount shows it.
    pub fn create_object(
        &self,
        caller: &Caller,
        place: &[u8],
        context: &BTreeMap<String, String>,
        input: &mut dyn Read,
    ) -> Result<ObjectInfo> {
        let (folder, name) = self.walk(caller, place, true)?;
        let context = self.context_in(folder, context)?;
        if self.find_entry(folder, &name)?.is_some() {
            return Err(Error::Exists);
        }
        self.put(caller, (folder, &name), context, Standing::Nothing, None, input)
    }

    /// Gives `ORG/PATH` or an id the value that `input` holds, as a new content; folders are made as needed.
    /// Durable when it returns, and the mount shows it. `if_version`: the id or ordinal that must be current.
    pub fn put_object(
        &self,
        caller: &Caller,
        reference: &[u8],
        if_version: Option<&str>,
        input: &mut dyn Read,
    ) -> Result<ObjectInfo> {
        let ((folder, name), standing) = match std::str::from_utf8(reference).ok().and_then(|t| t.parse().ok()) {
            Some(id) => (self.place_of(id)?.1, Standing::This(id)),
            None => (self.walk(caller, reference, true)?, Standing::Anything),
        };
        // Before the value is read, so that a lost check costs nothing; checked again when it counts.
        self.expected_version(standing, (folder, &name), if_version)?;
        let context = match standing {
            Standing::This(id) => self.living_object(id)?.1.context.clone(),
            _ => self.context_at(folder, &name)?,
        };
        self.put(caller, (folder, &name), context, standing, if_version, input)
    }

    fn put(
        &self,
        caller: &Caller,
        (folder, name): (Ino, &[u8]),
        context: Context,
        standing: Standing,
        if_version: Option<&str>,
        input: &mut dyn Read,
    ) -> Result<ObjectInfo> {
        self.check_writable_folder(folder)?;
        self.end_moments();
        let (ino, handle) = self.make_nameless(caller, folder, name, context)?;
        let filled = self.fill(caller, handle, input);
        let install = |rewraps: &Rewraps| self.install(caller, rewraps, ino, (folder, name), standing, if_version);
        let installed = filled.and_then(|()| self.across_contexts(caller, install));
        self.release(handle)?;
        let (info, (folder, name)) = installed?;
        self.name_changed(folder, &name);
        self.sync()?;
        self.kernel_knows();
        Ok(info)
    }

    /// The key context of the object with this name, or of one that is made there now.
    fn context_at(&self, folder: Ino, name: &[u8]) -> Result<Context> {
        let entry = self.find_entry(folder, name)?;
        let node = entry.map_or(Ok(None), |entry| self.records.get::<Node>(entry.ino))?;
        let object = node.and_then(|node| node.object());
        match object.map_or(Ok(None), |id| self.records.get::<Object>((folder.organization(), id)))? {
            Some(object) => Ok(object.context.clone()),
            None => self.context_below(folder),
        }
    }

    fn fill(&self, caller: &Caller, handle: Handle, input: &mut dyn Read) -> Result<()> {
        let mut part = Plain::zeroed(FIRST_PART);
        let mut offset = 0;
        loop {
            let mut filled = 0;
            while filled < part.len() {
                match input.read(&mut part[filled..]) {
                    Ok(0) => break,
                    Ok(more) => filled += more,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => return Err(Error::Invalid("the value could not be read to its end")),
                }
            }
            if filled > 0 {
                self.write(caller, handle, offset, &part[..filled])?;
                offset += filled as u64;
            }
            if filled < part.len() {
                return Ok(());
            }
            if part.len() < PART {
                part = Plain::zeroed(PART);
            }
        }
    }

    /// A new open file that has no name yet; after a crash it is gone.
    pub(super) fn make_nameless(
        &self,
        caller: &Caller,
        folder: Ino,
        name: &[u8],
        context: Context,
    ) -> Result<(Ino, Handle)> {
        let (birth, mut tx) = loop {
            let birth = self.birth_with(folder.organization(), context.clone(), caller.patience)?;
            let tx = self.begin()?;
            if self.wraps_still(&tx, &birth, folder.organization())? {
                break (birth, tx);
            }
        };
        let parent = self.folder(&tx, folder)?;
        let made = self.inherit(&tx, caller, (folder, &parent), 0o666, false)?;
        let ino = self.next_ino(&mut tx, folder.organization())?;
        let (uid, gid) = caller.owner_in(&parent);
        let node = Node {
            kind: Kind::File { object: ObjectId::fresh(), parent: folder, name: name.to_vec() },
            mode: made.mode,
            uid,
            gid: if parent.mode & libc::S_ISGID != 0 { parent.gid } else { gid },
            links: 0,
            attributes: made.attributes.is_some(),
            ..Node::new(Time::now())
        };
        self.bear(&mut tx, birth, ino, &node)?;
        tx.put_new(ino, node);
        if let Some(attributes) = made.attributes {
            tx.put_new(ino, attributes);
        }
        tx.put_new((ino, Task::Orphan), Pending { epoch: 0 });
        let access = Access { read: true, write: true, ..Access::default() };
        let content = self.contents.get(ino);
        content.is_new();
        let handle = self.handles.lock().add(OpenFile::nameless(ino, access, content));
        self.finish(tx);
        Ok((ino, handle))
    }

    /// Gives the nameless file its name, over what stands there: where an object that is given by its id is now. Says what
    /// the object is with this value, whatever becomes of it next, and where.
    fn install(
        &self,
        caller: &Caller,
        rewraps: &Rewraps,
        ino: Ino,
        at: (Ino, &[u8]),
        wanted: Standing,
        if_version: Option<&str>,
    ) -> Result<(ObjectInfo, (Ino, Vec<u8>))> {
        let expected = self.expected_version(wanted, at, if_version)?;
        let org = ino.organization();
        let mut tx = self.begin()?;
        let (folder, name) = match wanted {
            Standing::This(id) => self.place_now(id)?.1,
            _ => (at.0, at.1.to_vec()),
        };
        let at = (folder, &name[..]);
        self.folder(&tx, at.0)?;
        let hash = self.check_name(at.0, at.1)?;
        let standing = tx.get::<Entry>((at.0, hash))?;
        let mut node = (*tx.need::<Node>(ino)?).clone();
        let own = node.object().expect("it was made as a file");
        (node.links, node.guard) = (1, expected);
        tx.delete::<Pending>((ino, Task::Orphan));
        tx.put((at.0, hash), Entry { name: at.1.to_vec(), ino, kind: libc::S_IFREG });
        self.touch_folder(&mut tx, at.0, 0, Time::now())?;
        let size = node.size;
        let Some(standing) = standing else {
            self.check_quota(org, 1, size)?;
            tx.put(ino, node);
            self.commit_version(&mut tx, caller, ino, true)?;
            self.count_one(&mut tx, org, size)?;
            let info = self.info_in(&tx, own, at)?;
            self.finish(tx);
            return Ok((info, (folder, name)));
        };
        let old = tx.need::<Node>(standing.ino)?;
        match (old.object(), wanted) {
            (_, Standing::Nothing) => return Err(Error::Exists),
            (Some(_), _) => {}
            (None, _) => return Err(Error::Invalid("something else than an object has this name")),
        }
        if old.links > 1 {
            return Err(Error::NotPermitted("this object has several names: write it through the mount"));
        }
        self.check_quota(org, 0, size.saturating_sub(old.size))?;
        (node.mode, node.uid, node.gid, node.attributes) = (old.mode, old.uid, old.gid, old.attributes);
        match self.attributes_in(&tx, standing.ino, &old)? {
            Some(attributes) => tx.put(ino, (*attributes).clone()),
            None => tx.delete::<Attributes>(ino),
        }
        tx.put(ino, node);
        // `replace` counts one object and its bytes less.
        self.count_one(&mut tx, org, size)?;
        let open = self.handles.lock();
        let id = self.replace_file(&mut tx, &open, caller, rewraps, standing.ino, ino)?;
        let info = self.info_in(&tx, id, at)?;
        self.finish(tx);
        Ok((info, (folder, name)))
    }

    fn info_in(&self, tx: &Tx, id: ObjectId, at: (Ino, &[u8])) -> Result<ObjectInfo> {
        let org = at.0.organization();
        let object = tx.need::<Object>((org, id))?;
        let (node, content) = (tx.need::<Node>(object.ino)?, tx.get::<ContentRecord>(object.ino)?);
        let organization = self.organizations.find(org).ok_or(Error::NotFound)?;
        let path = self.path_of(tx, at.0, at.1)?;
        Ok(Self::object_info(&organization, id, &object, (&node, &path), content.as_deref()))
    }

    /// The version that `if_version` asks for, which must be current.
    fn expected_version(
        &self,
        standing: Standing,
        (folder, name): (Ino, &[u8]),
        if_version: Option<&str>,
    ) -> Result<Option<VersionId>> {
        let Some(wanted) = if_version else { return Ok(None) };
        let id = match standing {
            Standing::This(id) => id,
            _ => {
                let node = self.node_named(folder, name)?;
                node.object().ok_or(Error::Invalid("not an object: only regular files are"))?
            }
        };
        let object = self.records.get::<Object>((folder.organization(), id))?;
        self.check_version(object.as_deref(), wanted).map(Some)
    }

    pub(super) fn check_version(&self, object: Option<&Object>, wanted: &str) -> Result<VersionId> {
        let current = object.and_then(|o| o.current());
        let lost = |expected| Error::VersionLost { expected, current: current.map_or(VersionId(0), |v| v.id) };
        let ordinal = wanted.parse::<u64>().ok().filter(|_| wanted.len() < 32);
        let expected: VersionId = match ordinal {
            Some(ordinal) => {
                let known = object.and_then(|o| o.versions.iter().find(|v| v.ordinal == ordinal));
                known.map(|v| v.id).ok_or_else(|| lost(VersionId(0)))?
            }
            None => wanted.parse().map_err(|()| Error::Invalid("not a version id or ordinal"))?,
        };
        if current.map(|v| v.id) == Some(expected) { Ok(expected) } else { Err(lost(expected)) }
    }

    /// Gives an object the value of one of its earlier versions, as a new version.
    pub fn revert_object(
        &self,
        caller: &Caller,
        id: ObjectId,
        version: u64,
        if_version: Option<&str>,
    ) -> Result<ObjectInfo> {
        let (object, (folder, name)) = self.place_of(id)?;
        let reading = self.begin_reading(folder.organization(), id, |object| object.version(version))?;
        self.expected_version(Standing::This(id), (folder, &name), if_version)?;
        let mut reader = ValueReader { vault: self, reading, at: 0, part: Plain::zeroed(0), failed: None };
        let context = object.context.clone();
        let stored = self.put(caller, (folder, &name), context, Standing::This(id), if_version, &mut reader);
        match reader.failed {
            Some(error) => Err(error),
            None => stored,
        }
    }

    /// Whether the object's current value was put by `caller` on top of version `on`, and is `value`: an answer was
    /// lost, and the request came again.
    pub fn is_retry(&self, caller: &Caller, id: ObjectId, on: &str, value: &[u8]) -> Result<bool> {
        let (organization, object, _) = self.living_object(id)?;
        let [.., before, current] = &object.versions[..] else { return Ok(false) };
        let named = before.id.to_string() == on || before.ordinal.to_string() == on;
        if !named || current.by != caller.author() || current.size != value.len() as u64 {
            return Ok(false);
        }
        let reading = self.begin_reading(organization.no, id, |object| object.version(current.ordinal))?;
        let mut same = true;
        self.read_value(&reading, &mut |at, part| {
            same &= crate::crypto::same_tag(part, &value[at as usize..][..part.len()]);
            Ok(())
        })?;
        Ok(same)
    }
}

/// A committed value as something to read from.
struct ValueReader<'a> {
    vault: &'a Vault,
    reading: Reading<'a>,
    at: u64,
    part: Plain,
    failed: Option<Error>,
}

impl Read for ValueReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let left = self.reading.of.version.size - self.at;
        let len = (out.len() as u64).min(left) as usize;
        if len == 0 {
            return Ok(0);
        }
        match self.vault.read_part(&self.reading, self.at, len) {
            Ok(part) => self.part = part.into(),
            Err(error) => {
                let told = std::io::Error::other(error.to_string());
                self.failed = Some(error);
                return Err(told);
            }
        }
        out[..len].copy_from_slice(&self.part);
        self.at += len as u64;
        Ok(len)
    }
}
