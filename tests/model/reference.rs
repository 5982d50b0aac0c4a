//! The reference: what a vault is, said as simply as possible. Ids are symbols; `view.rs` binds them to real ones.

use super::operation::{Expect, ORGANIZATIONS, Op, Path, SLOTS, bytes};
use super::view::{Fact, View, line};
use std::collections::BTreeMap;
use std::rc::Rc;
use vaultfs::vault::RenameMode;

pub const KEEP_VERSIONS: usize = 3;
pub const TOMBSTONES_PER_NAME: usize = 2;

pub type Outcome = Result<(), i32>;
type NodeId = u64;
type ObjectId = u64;

#[derive(Clone)]
enum Kind {
    File(ObjectId),
    Folder { parent: Option<NodeId>, entries: BTreeMap<String, NodeId> },
    Symlink(String),
}

#[derive(Clone)]
struct Node {
    organization: usize,
    kind: Kind,
    mode: u32,
    links: u32,
    data: Rc<Vec<u8>>,
    attributes: BTreeMap<String, u8>,
    /// The value differs from the last version.
    changed: bool,
    buried: bool,
    guard: Option<VersionId>,
    /// Made by a handle that is still open, and no version yet.
    created: bool,
}

/// A version's symbol, and whose it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VersionId {
    symbol: u64,
    owner: ObjectId,
}

impl VersionId {
    pub fn name(self) -> String {
        format!("v{}", self.symbol)
    }
}

#[derive(Clone)]
struct Version {
    ordinal: u64,
    id: VersionId,
    data: Rc<Vec<u8>>,
}

#[derive(Clone)]
struct Object {
    node: NodeId,
    versions: Vec<Version>,
}

#[derive(Clone)]
struct Grave {
    organization: usize,
    node: NodeId,
    /// `None`: the history of a file that replaced another.
    path: Option<String>,
}

#[derive(Clone)]
struct Slot {
    node: NodeId,
    append: bool,
    wrote: bool,
    /// Emptied, and neither written nor flushed since.
    emptied: bool,
    /// Flushed emptied: the version comes with the next flush, or the release.
    left: bool,
}

impl Slot {
    fn of(node: NodeId, append: bool) -> Self {
        Slot { node, append, wrote: false, emptied: false, left: false }
    }

    fn resized(&mut self, size: usize) {
        self.emptied = size == 0 && !self.wrote;
        self.wrote = true;
    }
}

#[derive(Clone)]
pub struct Reference {
    next: u64,
    tops: [NodeId; 2],
    nodes: BTreeMap<NodeId, Node>,
    objects: BTreeMap<ObjectId, Object>,
    graves: Vec<Grave>,
    slots: [Option<Slot>; SLOTS],
    /// Names that files were moved away from (`mount.md`: "as NTFS tunnels names").
    tunnels: BTreeMap<NodeId, (NodeId, String)>,
}

impl Reference {
    /// Two organizations with nothing in them.
    pub fn new() -> Self {
        let top = |organization| Node {
            organization,
            kind: Kind::Folder { parent: None, entries: BTreeMap::new() },
            ..Node::file(organization, 0, 0o700)
        };
        let nodes = BTreeMap::from([(1, Node { links: 2, ..top(0) }), (2, Node { links: 2, ..top(1) })]);
        Reference {
            next: 3,
            tops: [1, 2],
            nodes,
            objects: BTreeMap::new(),
            graves: Vec::new(),
            slots: [const { None }; SLOTS],
            tunnels: BTreeMap::new(),
        }
    }

    /// Symbols of a state that was lost are not used again.
    pub fn forget_nothing_of(&mut self, later: &Reference) {
        self.next = self.next.max(later.next);
    }

    pub fn apply(&mut self, op: &Op) -> Outcome {
        let before = self.clone();
        let outcome = self.try_apply(op);
        // A close that lost its version check closes all the same.
        if outcome.is_err() && !matches!(op, Op::Close { .. } | Op::Save { .. } | Op::Put { .. } | Op::Restore { .. }) {
            let next = self.next;
            *self = Reference { next, ..before };
        }
        outcome
    }

    fn try_apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Create { slot, path } => {
                self.free(*slot)?;
                let node = self.make_file(path)?;
                self.node(node).created = true;
                self.slots[*slot] = Some(Slot::of(node, false));
                Ok(())
            }
            Op::Open { slot, path, truncate, append } => {
                self.free(*slot)?;
                let node = self.file_at(path)?;
                self.slots[*slot] = Some(Slot::of(node, *append));
                if *truncate {
                    self.resize(*slot, 0);
                }
                Ok(())
            }
            Op::Write { slot, at, len, fill } => {
                let open = self.slot(*slot)?.clone();
                let at = if open.append { self.nodes[&open.node].data.len() } else { *at };
                self.change(*slot, |data| {
                    data.resize(data.len().max(at + len), 0);
                    data[at..at + len].copy_from_slice(&bytes(*fill, *len));
                })
            }
            Op::Punch { slot, at, len } => self.change(*slot, |data| {
                let end = data.len();
                data[(*at).min(end)..(at + len).min(end)].fill(0);
            }),
            Op::Zero { slot, at, len } => self.change(*slot, |data| {
                data.resize(data.len().max(at + len), 0);
                data[*at..at + len].fill(0);
            }),
            Op::Allocate { slot, at, len } => self.change(*slot, |data| data.resize(data.len().max(at + len), 0)),
            Op::Copy { from, at, to, to_at, len } => {
                let source = self.slot(*from)?.node;
                let target = self.slot(*to)?.clone();
                let data = self.nodes[&source].data.clone();
                let part = data.get((*at).min(data.len())..(at + len).min(data.len())).unwrap_or_default();
                if part.is_empty() {
                    return Ok(());
                }
                if source == target.node && *at < to_at + part.len() && *to_at < at + part.len() {
                    return Err(libc::EINVAL);
                }
                self.change(*to, |data| {
                    data.resize(data.len().max(to_at + part.len()), 0);
                    data[*to_at..to_at + part.len()].copy_from_slice(part);
                })
            }
            Op::Resize { slot, size } => {
                self.slot(*slot)?;
                self.resize(*slot, *size);
                Ok(())
            }
            Op::Truncate { path, size } => {
                let node = self.file_at(path)?;
                let file = self.node(node);
                if file.data.len() == *size {
                    return Ok(());
                }
                Rc::make_mut(&mut file.data).resize(*size, 0);
                file.changed = true;
                // Whoever has it open makes it a version of his.
                let mut writers = 0;
                for slot in self.slots.iter_mut().flatten().filter(|slot| slot.node == node) {
                    slot.resized(*size);
                    writers += 1;
                }
                if writers > 0 { Ok(()) } else { self.commit(node, false) }
            }
            Op::Flush { slot } => self.flush(*slot),
            Op::Close { slot } => {
                let flushed = self.flush(*slot);
                if self.slots[*slot].is_some() {
                    self.release(*slot);
                }
                flushed
            }
            Op::Fsync { slot } => {
                let node = self.slot(*slot)?.node;
                let node = (node, &self.nodes[&node]);
                let (Kind::File(id), true, Some(guard)) = (&node.1.kind, node.1.changed, node.1.guard) else {
                    return Ok(());
                };
                let lost = guard.owner == *id
                    && self
                        .objects
                        .get(id)
                        .is_some_and(|o| o.versions.last().is_some_and(|v| o.node != node.0 || v.id != guard));
                if lost { Err(libc::ESTALE) } else { Ok(()) }
            }
            Op::Save { path, len, fill } => self.save(path, &bytes(*fill, *len)),
            Op::Rename { from, to, mode } => self.rename(from, to, *mode),
            Op::Link { from, to } => {
                let node = self.at(from)?;
                let (folder, name) = self.parent(to)?;
                if from.organization != to.organization {
                    return Err(libc::EXDEV);
                }
                if self.entry(folder, &name).is_some() {
                    return Err(libc::EEXIST);
                }
                if matches!(self.nodes[&node].kind, Kind::Folder { .. }) {
                    return Err(libc::EPERM);
                }
                self.node(node).links += 1;
                self.entries(folder).insert(name, node);
                Ok(())
            }
            Op::Unlink { path } => {
                let (folder, name) = self.parent(path)?;
                let node = self.entry(folder, &name).ok_or(libc::ENOENT)?;
                if matches!(self.nodes[&node].kind, Kind::Folder { .. }) {
                    return Err(libc::EISDIR);
                }
                self.entries(folder).remove(&name);
                self.drop_link(node, path.parts.join("/"))
            }
            Op::MakeFolder { path } => self.make_folder(path, 0o755).map(drop),
            Op::RemoveFolder { path } => {
                let (folder, name) = self.parent(path)?;
                let node = self.entry(folder, &name).ok_or(libc::ENOENT)?;
                match &self.nodes[&node].kind {
                    Kind::Folder { entries, .. } if entries.is_empty() => {}
                    Kind::Folder { .. } => return Err(libc::ENOTEMPTY),
                    _ => return Err(libc::ENOTDIR),
                }
                self.entries(folder).remove(&name);
                self.nodes.remove(&node);
                self.node(folder).links -= 1;
                Ok(())
            }
            Op::Symlink { path, target } => {
                let (folder, name) = self.parent(path)?;
                if self.entry(folder, &name).is_some() {
                    return Err(libc::EEXIST);
                }
                let kind = Kind::Symlink((*target).to_owned());
                let node = self.add(Node { kind, ..Node::file(path.organization, 0, 0o777) });
                self.entries(folder).insert(name, node);
                Ok(())
            }
            Op::Mode { path, mode } => {
                let node = self.at(path)?;
                self.node(node).mode = *mode;
                Ok(())
            }
            Op::SetAttribute { path, name, value } => {
                let node = self.at(path)?;
                self.node(node).attributes.insert((*name).to_owned(), *value);
                Ok(())
            }
            Op::RemoveAttribute { path, name } => {
                let node = self.at(path)?;
                self.node(node).attributes.remove(*name).map(drop).ok_or(libc::ENODATA)
            }
            Op::Guard { path, expect } => {
                let node = self.at(path)?;
                let Kind::File(id) = self.nodes[&node].kind else { return Err(libc::EPERM) };
                let Some(expected) = self.expected(expect) else { return Err(libc::EINVAL) };
                if let Some(object) = self.objects.get(&id) {
                    let another = expected.owner != id && self.beside(node, expected.owner);
                    let itself = !another && (expected.owner == id || object.versions.len() > 1);
                    if itself && object.versions.last().map(|v| v.id) != Some(expected) {
                        return Err(libc::ESTALE);
                    }
                }
                self.node(node).guard = Some(expected);
                Ok(())
            }
            Op::Put { path, len, fill, expect } => self.put(path, bytes(*fill, *len), expect),
            Op::Restore { organization, index, to } => self.restore(*organization, *index, to.as_ref()),
            Op::Purge { organization, index } => {
                let grave = self.grave(*organization, *index).ok_or(libc::ENOENT)?;
                self.purge(grave);
                Ok(())
            }
            Op::Sync => Ok(()),
            Op::Remount => {
                for slot in 0..SLOTS {
                    if self.slots[slot].is_some() {
                        let _ = self.flush(slot);
                        self.release(slot);
                    }
                }
                self.tunnels.clear();
                Ok(())
            }
            Op::Kill { .. } => Ok(()),
        }
    }

    /// States between the transactions of one operation, which a kill may leave.
    pub fn between(&self, op: &Op) -> Vec<Reference> {
        let mut state = self.clone();
        let mut states = Vec::new();
        let (organization, folders) = match op {
            Op::Save { path, len, fill } => {
                let node = match state.at(path) {
                    Ok(node) => node,
                    Err(_) => match state.make_file(path) {
                        Ok(made) => made,
                        Err(_) => return states,
                    },
                };
                // Truncated; then written and not closed, which makes a version of its own after a crash.
                let file = state.node(node);
                file.changed |= !file.data.is_empty();
                file.data = Rc::default();
                states.push(state.clone());
                let file = state.node(node);
                (file.data, file.changed) = (Rc::new(bytes(*fill, *len)), true);
                states.push(state);
                return states;
            }
            Op::Put { path, .. } => (path.organization, path.parts.clone()),
            Op::Restore { organization, index, to } => {
                let Some(grave) = self.grave(*organization, *index) else { return states };
                let path = restored_path(*organization, self.graves[grave].path.as_deref(), to.as_ref());
                (*organization, path.parts)
            }
            _ => return states,
        };
        for end in 1..folders.len() {
            if state.make_way(organization, &folders[..end]).is_ok() {
                states.push(state.clone());
            }
        }
        states
    }

    /// What is there after the daemon died: open files are closed, and what was written is a version.
    pub fn crash(&mut self) {
        self.slots = [const { None }; SLOTS];
        self.tunnels.clear();
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            let node = self.node(id);
            if node.links == 0 && !node.buried {
                self.nodes.remove(&id);
                continue;
            }
            node.created = false;
            if node.changed {
                node.guard = None;
                self.commit(id, true).expect("nothing guards it");
            }
        }
    }

    /// The version that an operation names.
    pub fn expected(&self, expect: &Expect) -> Option<VersionId> {
        let of = |path: &Path| match self.at(path).ok().map(|n| &self.nodes[&n].kind) {
            Some(Kind::File(id)) => self.objects.get(id),
            _ => None,
        };
        match expect {
            Expect::Anything => None,
            Expect::Current(path) => of(path)?.versions.last().map(|v| v.id),
            Expect::Oldest(path) => of(path)?.versions.first().map(|v| v.id),
        }
    }

    // --- names ---

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("the reference knows its nodes")
    }

    fn entries(&mut self, folder: NodeId) -> &mut BTreeMap<String, NodeId> {
        match &mut self.node(folder).kind {
            Kind::Folder { entries, .. } => entries,
            _ => panic!("not a folder"),
        }
    }

    fn entry(&self, folder: NodeId, name: &str) -> Option<NodeId> {
        match &self.nodes[&folder].kind {
            Kind::Folder { entries, .. } => entries.get(name).copied(),
            _ => None,
        }
    }

    fn walk(&self, organization: usize, parts: &[&str]) -> Result<NodeId, i32> {
        let mut node = self.tops[organization];
        for part in parts {
            if !matches!(self.nodes[&node].kind, Kind::Folder { .. }) {
                return Err(libc::ENOTDIR);
            }
            node = self.entry(node, part).ok_or(libc::ENOENT)?;
        }
        Ok(node)
    }

    fn at(&self, path: &Path) -> Result<NodeId, i32> {
        self.walk(path.organization, &path.parts)
    }

    fn parent(&self, path: &Path) -> Result<(NodeId, String), i32> {
        let (name, folders) = path.parts.split_last().expect("a path has a name");
        let folder = self.walk(path.organization, folders)?;
        match self.nodes[&folder].kind {
            Kind::Folder { .. } => Ok((folder, (*name).to_owned())),
            _ => Err(libc::ENOTDIR),
        }
    }

    fn file_at(&self, path: &Path) -> Result<NodeId, i32> {
        let node = self.at(path)?;
        match self.nodes[&node].kind {
            Kind::File(_) => Ok(node),
            Kind::Folder { .. } => Err(libc::EISDIR),
            Kind::Symlink(_) => Err(libc::EINVAL),
        }
    }

    fn symbol(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    fn add(&mut self, node: Node) -> NodeId {
        let id = self.symbol();
        self.nodes.insert(id, node);
        id
    }

    /// Whether an object is in the organization of a file.
    fn beside(&self, file: NodeId, object: ObjectId) -> bool {
        let home = self.objects.get(&object).and_then(|object| self.nodes.get(&object.node));
        home.is_some_and(|home| home.organization == self.nodes[&file].organization)
    }

    fn make_file(&mut self, path: &Path) -> Result<NodeId, i32> {
        let (folder, name) = self.parent(path)?;
        if self.entry(folder, &name).is_some() {
            return Err(libc::EEXIST);
        }
        let object = self.symbol();
        let node = self.add(Node::file(path.organization, object, 0o644));
        self.entries(folder).insert(name, node);
        Ok(node)
    }

    fn make_folder(&mut self, path: &Path, mode: u32) -> Result<NodeId, i32> {
        let (folder, name) = self.parent(path)?;
        if self.entry(folder, &name).is_some() {
            return Err(libc::EEXIST);
        }
        let kind = Kind::Folder { parent: Some(folder), entries: BTreeMap::new() };
        let node = self.add(Node { kind, links: 2, ..Node::file(path.organization, 0, mode) });
        self.entries(folder).insert(name, node);
        self.node(folder).links += 1;
        Ok(node)
    }

    /// Makes the folders that a path needs.
    fn make_way(&mut self, organization: usize, folders: &[&'static str]) -> Result<(), i32> {
        for end in 1..=folders.len() {
            let path = Path { organization, parts: folders[..end].to_vec() };
            match self.at(&path) {
                Ok(node) if matches!(self.nodes[&node].kind, Kind::Folder { .. }) => {}
                Ok(_) => return Err(libc::ENOTDIR),
                Err(libc::ENOENT) => drop(self.make_folder(&path, 0o755)?),
                Err(other) => return Err(other),
            }
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path, mode: RenameMode) -> Outcome {
        let (old_folder, old_name) = self.parent(from)?;
        let (new_folder, new_name) = self.parent(to)?;
        if from.organization != to.organization {
            return Err(libc::EXDEV);
        }
        let source = self.entry(old_folder, &old_name).ok_or(libc::ENOENT)?;
        let target = self.entry(new_folder, &new_name);
        if mode == RenameMode::Exchange && target.is_none() {
            return Err(libc::ENOENT);
        }
        let is_folder = |this: &Self, id: NodeId| matches!(this.nodes[&id].kind, Kind::Folder { .. });
        let source_folder = is_folder(self, source);
        if source_folder && self.is_below(new_folder, source) {
            return Err(libc::EINVAL);
        }
        let Some(target) = target else {
            self.move_entry((old_folder, &old_name), (new_folder, &new_name), source);
            if !source_folder {
                self.tunnels.insert(source, (old_folder, old_name));
            }
            return Ok(());
        };
        if mode == RenameMode::NoReplace {
            return Err(libc::EEXIST);
        }
        if source == target {
            return Ok(());
        }
        let target_folder = is_folder(self, target);
        if mode == RenameMode::Exchange {
            if target_folder && self.is_below(old_folder, target) {
                return Err(libc::EINVAL);
            }
            self.entries(old_folder).insert(old_name, target);
            self.entries(new_folder).insert(new_name, source);
            for (moved, away, here) in [(source, old_folder, new_folder), (target, new_folder, old_folder)] {
                if let Kind::Folder { parent, .. } = &mut self.node(moved).kind {
                    *parent = Some(here);
                    self.node(away).links -= 1;
                    self.node(here).links += 1;
                }
            }
            return Ok(());
        }
        match (source_folder, target_folder) {
            (true, false) => return Err(libc::ENOTDIR),
            (false, true) => return Err(libc::EISDIR),
            (true, true) => {
                if !self.entries(target).is_empty() {
                    return Err(libc::ENOTEMPTY);
                }
                self.move_entry((old_folder, &old_name), (new_folder, &new_name), source);
                self.nodes.remove(&target);
                self.node(new_folder).links -= 1;
                return Ok(());
            }
            (false, false) => {}
        }
        self.move_entry((old_folder, &old_name), (new_folder, &new_name), source);
        self.replace(target, source, to.parts.join("/"))
    }

    fn is_below(&self, mut folder: NodeId, above: NodeId) -> bool {
        loop {
            if folder == above {
                return true;
            }
            match &self.nodes[&folder].kind {
                Kind::Folder { parent: Some(parent), .. } => folder = *parent,
                _ => return false,
            }
        }
    }

    fn move_entry(&mut self, from: (NodeId, &str), to: (NodeId, &str), node: NodeId) {
        self.entries(from.0).remove(from.1);
        self.entries(to.0).insert(to.1.to_owned(), node);
        if let Kind::Folder { parent, .. } = &mut self.node(node).kind {
            *parent = Some(to.0);
            self.node(from.0).links -= 1;
            self.node(to.0).links += 1;
        }
    }

    // --- handles and values ---

    fn free(&self, slot: usize) -> Outcome {
        if self.slots[slot].is_some() { Err(libc::EBUSY) } else { Ok(()) }
    }

    fn slot(&mut self, slot: usize) -> Result<&mut Slot, i32> {
        self.slots[slot].as_mut().ok_or(libc::EBADF)
    }

    fn is_open(&self, node: NodeId) -> bool {
        self.slots.iter().flatten().any(|slot| slot.node == node)
    }

    fn change(&mut self, slot: usize, change: impl FnOnce(&mut Vec<u8>)) -> Outcome {
        let open = self.slot(slot)?;
        (open.wrote, open.emptied) = (true, false);
        let id = open.node;
        let node = self.node(id);
        change(Rc::make_mut(&mut node.data));
        node.changed = true;
        Ok(())
    }

    /// `ftruncate`: to its own size it changes nothing.
    fn resize(&mut self, slot: usize, size: usize) {
        let id = self.slots[slot].as_ref().expect("the caller has looked").node;
        if self.nodes[&id].data.len() != size {
            let wrote = self.slots[slot].as_ref().is_some_and(|slot| slot.wrote);
            self.change(slot, |data| data.resize(size, 0)).expect("it is open");
            self.slots[slot].as_mut().expect("it is open").emptied = size == 0 && !wrote;
        }
    }

    fn flush(&mut self, slot: usize) -> Outcome {
        let Slot { node, wrote, emptied, .. } = *self.slot(slot)?;
        let file = &self.nodes[&node];
        if wrote && emptied && file.guard.is_none() {
            let open = self.slot(slot)?;
            (open.emptied, open.left) = (false, true);
            return Ok(());
        }
        let file = &self.nodes[&node];
        let orphan = file.links == 0 && !file.buried && file.guard.is_none();
        if wrote && !orphan {
            self.commit(node, false)?;
        }
        self.slot(slot)?.wrote = false;
        Ok(())
    }

    fn release(&mut self, slot: usize) {
        let Slot { node: id, wrote, left, .. } = self.slots[slot].take().expect("the caller has looked");
        let file = &self.nodes[&id];
        if wrote && left && (file.links > 0 || file.buried || file.guard.is_some()) {
            // A lost version check is met again below.
            let _ = self.commit(id, false);
        }
        if self.is_open(id) {
            return;
        }
        let node = self.node(id);
        if node.links == 0 && !node.buried {
            self.nodes.remove(&id);
            return;
        }
        let created = std::mem::take(&mut node.created);
        // A lost version check was reported by the flush.
        let _ = self.commit(id, created);
    }

    fn save(&mut self, path: &Path, value: &[u8]) -> Outcome {
        let node = match self.at(path) {
            Ok(_) => self.file_at(path)?,
            Err(libc::ENOENT) => {
                let node = self.make_file(path)?;
                self.node(node).created = true;
                node
            }
            Err(other) => return Err(other),
        };
        // A handle of its own, beside the slots.
        let file = self.node(node);
        (file.data, file.changed) = (Rc::new(value.to_vec()), true);
        let flushed = self.commit(node, false);
        if !self.is_open(node) {
            self.node(node).created = false;
        }
        flushed
    }

    // --- versions ---

    fn commit(&mut self, id: NodeId, created: bool) -> Outcome {
        let node = self.nodes[&id].clone();
        let Kind::File(object) = node.kind else { return Ok(()) };
        let known = self.objects.get(&object);
        let detached = known.is_some_and(|o| o.node != id);
        if let (true, Some(expected)) = (node.changed, node.guard) {
            let holds = if expected.owner == object {
                !detached && known.and_then(|o| o.versions.last()).map(|v| v.id) == Some(expected)
            } else {
                self.objects.contains_key(&expected.owner)
            };
            if !holds {
                return Err(libc::ESTALE);
            }
        }
        if detached || !(node.changed || (created && known.is_none())) {
            return Ok(());
        }
        self.objects.entry(object).or_insert(Object { node: id, versions: Vec::new() });
        self.push(object, node.data);
        let node = self.node(id);
        (node.changed, node.created) = (false, false);
        node.guard = node.guard.filter(|guard| guard.owner != object);
        Ok(())
    }

    fn push(&mut self, object: ObjectId, data: Rc<Vec<u8>>) {
        let id = VersionId { symbol: self.symbol(), owner: object };
        let versions = &mut self.objects.get_mut(&object).expect("the caller made it").versions;
        versions.push(Version { ordinal: versions.last().map_or(1, |v| v.ordinal + 1), id, data });
        if versions.len() > KEEP_VERSIONS {
            versions.remove(0);
        }
    }

    /// A name of `old` leads to `new` now.
    fn replace(&mut self, old: NodeId, new: NodeId, path: String) -> Outcome {
        match (&self.nodes[&old].kind, &self.nodes[&new].kind) {
            (Kind::File(id), Kind::File(_)) if self.nodes[&old].links == 1 => {
                let id = *id;
                self.node(old).links = 0;
                self.succeed(id, old, new)?;
                self.remove_if_closed(old);
                Ok(())
            }
            _ => self.drop_link(old, path),
        }
    }

    /// The object goes on in the file `new`, whose value is its next version.
    fn succeed(&mut self, id: ObjectId, old: NodeId, new: NodeId) -> Outcome {
        let Kind::File(replacing) = self.nodes[&new].kind else { return Err(libc::EINVAL) };
        let current = self.objects.get(&id).and_then(|o| o.versions.last()).map(|v| v.id);
        if self.nodes[&new].guard.is_some_and(|guard| current != Some(guard)) {
            return Err(libc::ESTALE);
        }
        self.objects.entry(id).or_insert(Object { node: old, versions: Vec::new() });
        if self.nodes[&old].changed {
            self.push(id, self.nodes[&old].data.clone());
            self.node(old).changed = false;
        }
        self.push(id, self.nodes[&new].data.clone());
        let node = self.node(new);
        (node.kind, node.changed, node.created, node.guard) = (Kind::File(id), false, false, None);
        self.objects.get_mut(&id).expect("made above").node = new;
        if let Some(history) = self.objects.remove(&replacing)
            && history.versions.len() > 1
        {
            let organization = self.nodes[&new].organization;
            let data = history.versions.last().expect("more than one").data.clone();
            let mode = self.nodes[&new].mode;
            let node = self.add(Node { links: 0, data, ..Node::file(organization, replacing, mode) });
            self.objects.insert(replacing, Object { node, ..history });
            self.dig(node, None);
        }
        Ok(())
    }

    /// A name was taken from a node.
    fn drop_link(&mut self, id: NodeId, path: String) -> Outcome {
        self.node(id).links -= 1;
        if self.nodes[&id].links > 0 {
            return Ok(());
        }
        let Kind::File(object) = self.nodes[&id].kind else {
            self.nodes.remove(&id);
            return Ok(());
        };
        let tunnel = self.tunnels.remove(&id).and_then(|(folder, name)| {
            let there = self.nodes.contains_key(&folder).then(|| self.entry(folder, &name)).flatten()?;
            let node = &self.nodes[&there];
            (matches!(node.kind, Kind::File(_)) && node.links == 1).then_some(there)
        });
        if let Some(successor) = tunnel {
            self.succeed(object, id, successor)?;
            self.remove_if_closed(id);
            return Ok(());
        }
        let known = self.objects.get(&object);
        let held =
            !self.nodes[&id].data.is_empty() || known.is_some_and(|o| o.versions.iter().any(|v| !v.data.is_empty()));
        if held {
            // Deleting is not a commit that could lose.
            self.node(id).guard = None;
            self.commit(id, true)?;
            self.dig(id, Some(path));
        } else {
            self.objects.remove(&object);
            self.remove_if_closed(id);
        }
        Ok(())
    }

    fn remove_if_closed(&mut self, id: NodeId) {
        if !self.is_open(id) {
            self.nodes.remove(&id);
        }
    }

    // --- tombstones ---

    fn dig(&mut self, node: NodeId, path: Option<String>) {
        self.node(node).buried = true;
        let organization = self.nodes[&node].organization;
        self.graves.push(Grave { organization, node, path: path.clone() });
        let same = |g: &Grave| g.organization == organization && path.is_some() && g.path == path;
        if self.graves.iter().filter(|g| same(g)).count() > TOMBSTONES_PER_NAME {
            let oldest = self.graves.iter().position(same).expect("counted above");
            self.purge(oldest);
        }
    }

    fn grave(&self, organization: usize, index: usize) -> Option<usize> {
        let mut own = (0..self.graves.len()).filter(|i| self.graves[*i].organization == organization);
        own.nth(index)
    }

    fn purge(&mut self, index: usize) {
        let Grave { node, .. } = self.graves.remove(index);
        if let Kind::File(object) = self.nodes[&node].kind {
            self.objects.remove(&object);
        }
        self.node(node).buried = false;
        self.remove_if_closed(node);
    }

    fn restore(&mut self, organization: usize, index: usize, to: Option<&Path>) -> Outcome {
        let index = self.grave(organization, index).ok_or(libc::ENOENT)?;
        let Grave { node, path, .. } = self.graves[index].clone();
        let to = restored_path(organization, path.as_deref(), to);
        self.make_way(organization, &to.parts[..to.parts.len() - 1])?;
        let (folder, name) = self.parent(&to)?;
        if self.entry(folder, &name).is_some() {
            return Err(libc::EEXIST);
        }
        self.graves.remove(index);
        let file = self.node(node);
        (file.buried, file.links) = (false, 1);
        self.entries(folder).insert(name, node);
        Ok(())
    }

    fn put(&mut self, path: &Path, value: Vec<u8>, expect: &Expect) -> Outcome {
        let expected = self.expected(expect);
        self.make_way(path.organization, &path.parts[..path.parts.len() - 1])?;
        let (folder, name) = self.parent(path)?;
        let standing = self.entry(folder, &name);
        if let Some(expected) = expected {
            let Kind::File(id) = self.nodes[&standing.ok_or(libc::ENOENT)?].kind else { return Err(libc::EINVAL) };
            let current = self.objects.get(&id).and_then(|o| o.versions.last());
            if current.map(|v| v.id) != Some(expected) {
                return Err(libc::ESTALE);
            }
        }
        let object = self.symbol();
        let node = Node { data: Rc::new(value), changed: true, ..Node::file(path.organization, object, 0o644) };
        let Some(standing) = standing else {
            let node = self.add(node);
            self.entries(folder).insert(name, node);
            return self.commit(node, true);
        };
        let old = self.nodes[&standing].clone();
        match old.kind {
            Kind::File(_) if old.links > 1 => return Err(libc::EPERM),
            Kind::File(_) => {}
            _ => return Err(libc::EINVAL),
        }
        let node = self.add(Node { mode: old.mode, attributes: old.attributes, ..node });
        self.entries(folder).insert(name, node);
        self.replace(standing, node, path.parts.join("/"))
    }

    // --- what is seen ---

    /// Everything that can be seen; `values`: of earlier versions too.
    pub fn view(&self, values: bool) -> View {
        let mut view = View::new();
        for (number, name) in ORGANIZATIONS.iter().enumerate() {
            let files = || {
                let own = self.nodes.values().filter(move |n| n.organization == number && n.links > 0);
                own.filter(|n| matches!(n.kind, Kind::File(_)))
            };
            let listed = files().filter(|n| matches!(n.kind, Kind::File(id) if self.objects.contains_key(&id)));
            let graves: Vec<_> = self.graves.iter().filter(|g| g.organization == number).collect();
            let facts = vec![
                ("objects", Fact::number(files().count())),
                ("bytes", Fact::number(files().map(|n| n.data.len()).sum())),
                ("tombstones", Fact::number(graves.len())),
                ("listed", Fact::number(listed.count())),
            ];
            view.push(line(format!("organization {name}"), facts));
            self.view_folder(self.tops[number], name, values, &mut view);
            for (number, grave) in graves.iter().enumerate() {
                let node = &self.nodes[&grave.node];
                let Kind::File(object) = node.kind else { panic!("a tombstone holds an object") };
                let facts = vec![
                    ("object", Fact::Named(format!("o{object}"))),
                    ("path", Fact::text(grave.path.as_deref().unwrap_or("a history"))),
                    ("size", Fact::number(node.data.len())),
                ];
                view.push(line(format!("tombstone {number} of {name}"), facts));
            }
        }
        for (number, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot {
                let facts = vec![("data", Fact::Is((*self.nodes[&slot.node].data).clone()))];
                view.push(line(format!("slot {number}"), facts));
            }
        }
        view
    }

    fn view_folder(&self, folder: NodeId, path: &str, values: bool, view: &mut View) {
        let Kind::Folder { entries, .. } = &self.nodes[&folder].kind else { panic!("not a folder") };
        for (name, id) in entries {
            let (path, node) = (format!("{path}/{name}"), &self.nodes[id]);
            let attributes: Vec<String> =
                node.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let mut facts = vec![
                ("inode", Fact::Named(format!("n{id}"))),
                ("links", Fact::number(node.links as usize)),
                ("mode", Fact::text(&format!("{:o}", node.mode))),
                ("attributes", Fact::text(&attributes.join(" "))),
            ];
            match &node.kind {
                Kind::Folder { .. } => {
                    view.push(line(path.clone(), facts));
                    self.view_folder(*id, &path, values, view);
                    continue;
                }
                Kind::Symlink(target) => facts.push(("target", Fact::text(target))),
                Kind::File(object) => {
                    facts.push(("object", Fact::Named(format!("o{object}"))));
                    facts.push(("size", Fact::number(node.data.len())));
                    facts.push(("data", Fact::Is((*node.data).clone())));
                    for version in self.objects.get(object).iter().flat_map(|o| &o.versions) {
                        facts.push(("version", Fact::number(version.ordinal as usize)));
                        facts.push(("version id", Fact::Named(version.id.name())));
                        facts.push(("version's size", Fact::number(version.data.len())));
                        if values {
                            facts.push(("version's value", Fact::Is((*version.data).clone())));
                        }
                    }
                }
            }
            view.push(line(path, facts));
        }
    }
}

/// Where a tombstone is restored to; a replaced history has no path of its own.
pub fn restored_path(organization: usize, original: Option<&str>, to: Option<&Path>) -> Path {
    let known = |part: &str| super::operation::known_name(part);
    match (to, original) {
        (Some(to), _) => Path { organization, parts: to.parts.clone() },
        (None, Some(original)) => Path { organization, parts: original.split('/').map(known).collect() },
        (None, None) => Path { organization, parts: vec!["d"] },
    }
}

impl Node {
    fn file(organization: usize, object: ObjectId, mode: u32) -> Node {
        Node {
            organization,
            kind: Kind::File(object),
            mode,
            links: 1,
            data: Rc::default(),
            attributes: BTreeMap::new(),
            changed: false,
            buried: false,
            guard: None,
            created: false,
        }
    }
}
