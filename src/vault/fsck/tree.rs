//! The judgement on the tree: names, inodes, objects, versions, tombstones and tasks have to fit together.

use super::census::{Census, KindSeen, NodeSeen};
use super::finding::{FindingCode as Code, FindingPlace};
use super::repair::Fix;
use super::{Check, Subject};
use crate::vault::ids::{Ino, OrgNo};
use crate::vault::row::{Attributes, Buried, ContentRecord, Node, Object, OrgRecord, Record, Task, Tombstone};
use std::collections::{BTreeSet, HashMap, HashSet};

impl Check<'_> {
    pub fn judge_tree(&mut self, c: &Census) {
        self.judge_keys_only(c);
        let mut inodes: Vec<Ino> = c.nodes.keys().copied().collect();
        inodes.sort();
        // What is missing first: where something is, counts cannot be right and say nothing more.
        let circles = circles(c);
        for ino in &inodes {
            if let Some(Some(node)) = c.nodes.get(ino) {
                self.judge_node(c, &circles, *ino, node);
            }
        }
        self.judge_objects(c);
        self.judge_tombstones(c);
        for ino in &inodes {
            if let Some(Some(node)) = c.nodes.get(ino) {
                self.judge_counts_of(c, *ino, node);
            }
        }
        self.judge_tasks(c);
        self.judge_organizations(c);
    }

    /// What the keys of the rows say, without any of them being opened.
    fn judge_keys_only(&mut self, c: &Census) {
        for ino in c.attributes.iter().filter(|ino| !c.nodes.contains_key(ino)) {
            if !self.trusts(ino.organization()) {
                continue;
            }
            let message = format!("extended attributes of inode {}, which is missing", ino.0);
            let fix = Fix::DropAttributes(*ino);
            self.find(Code::OrphanedAttributes, Subject::Inode(*ino), row::<Attributes>(*ino), message, Some(fix));
        }
        let mut contents: Vec<Ino> = c.stored.keys().copied().collect();
        contents.sort();
        for ino in contents {
            let reclaimed = c.tasks.contains(&(ino, Task::Reclaim));
            if c.contents.contains_key(&ino) || reclaimed || !self.trusts(ino.organization()) {
                continue;
            }
            let needed = c.named.contains_key(&ino) || c.nodes.contains_key(&ino);
            if needed || !self.opens(ino.organization()) {
                let message = format!("the bytes of content {} are there, and their key is not", ino.0);
                self.find(Code::WrappedKeyMissing, Subject::Inode(ino), row::<ContentRecord>(ino), message, None);
                self.all_is_gone(ino);
            } else {
                let message = format!("extents of content {}, which has no key and which nothing names", ino.0);
                let fix = Some(Fix::Task(ino, Task::Reclaim));
                self.find(Code::OrphanedExtents, Subject::Inode(ino), row::<ContentRecord>(ino), message, fix);
            }
        }
    }

    fn judge_node(&mut self, c: &Census, circles: &HashSet<Ino>, ino: Ino, node: &NodeSeen) {
        // The directory of an organization opens without the organization's key, and nothing in it does.
        if !self.opens(ino.organization()) {
            return;
        }
        let place = row::<Node>(ino);
        let names = c.names.get(&ino).copied().unwrap_or(0);
        let nameless = ino == Ino::ROOT || node.grave.is_some() || node.links == 0;
        if names == 0 && !nameless && self.trusts(named_by(ino)) {
            let message = format!("inode {} has {} name(s), and none leads to it", ino.0, node.links);
            // A directory has one name, and a file with one link had the one that it remembers.
            let remembers = match node.kind {
                KindSeen::File(_) => node.links == 1,
                KindSeen::Directory { .. } => true,
                KindSeen::Other => false,
            };
            let fix = remembers.then_some(Fix::PutEntry(ino));
            self.find(Code::EntryMissing, Subject::Inode(ino), place.clone(), message, fix);
        }
        if let KindSeen::Directory { parent } = node.kind
            && ino != Ino::ROOT
        {
            if !c.nodes.contains_key(&parent) {
                let message = format!("the folder that it is in, inode {}, is missing", parent.0);
                self.find(Code::FolderMissing, Subject::Inode(ino), place.clone(), message, None);
            } else if circles.contains(&ino) {
                let message = format!("the way up from folder {} leads back to itself", ino.0);
                self.find(Code::FolderCycle, Subject::Organization(ino.organization()), place.clone(), message, None);
            }
        }
        if node.attributes && !c.attributes.contains(&ino) {
            let message = "its extended attributes are missing".to_owned();
            self.find(Code::AttributesMissing, Subject::Inode(ino), row::<Attributes>(ino), message, None);
        }
        if let Some(number) = node.grave {
            let org = if ino.is_top() { OrgNo::VAULT } else { ino.organization() };
            if !c.graves.contains_key(&(org, number)) {
                let message = format!("it is deleted, and its tombstone {number} is missing");
                self.find(Code::TombstoneMissing, Subject::Inode(ino), row::<Tombstone>((org, number)), message, None);
            }
        }
        if let KindSeen::File(id) = node.kind
            && node.links > 0
            && node.size > 0
            && !node.changed
            && !c.objects.contains_key(&id)
            && self.opens(ino.organization())
        {
            let place = row::<Object>((ino.organization(), id));
            self.find(Code::ObjectMissing, Subject::Inode(ino), place, "its versions are missing".into(), None);
        }
    }

    fn judge_objects(&mut self, c: &Census) {
        for (id, (org, ino)) in &c.objects {
            if let Some(ino) = ino.filter(|ino| !c.nodes.contains_key(ino)) {
                let message = format!("its inode {} is missing", ino.0);
                self.find(Code::ObjectInode, Subject::Object(*org, *id), row::<Object>((*org, *id)), message, None);
            }
        }
        for (content, objects) in &c.named {
            let Some(Some(owners)) = c.contents.get(content) else { continue };
            for id in objects.iter().filter(|id| !owners.contains(id)) {
                let message = format!("a version of {id} names content {}, which does not know it", content.0);
                let subject = Subject::Object(content.organization(), *id);
                let fix = Fix::Owner(*content, *id);
                self.find(Code::ContentOwner, subject, row::<ContentRecord>(*content), message, Some(fix));
            }
        }
        for (content, owners) in &c.contents {
            let unneeded = !c.nodes.contains_key(content) && !c.named.contains_key(content);
            if unneeded && owners.is_some() && self.trusts(content.organization()) {
                let message = format!("a wrapped key of content {}, which nothing names", content.0);
                let fix = Fix::DestroyContent(*content);
                self.find(
                    Code::OrphanedKey,
                    Subject::Inode(*content),
                    row::<ContentRecord>(*content),
                    message,
                    Some(fix),
                );
            }
        }
    }

    fn judge_tombstones(&mut self, c: &Census) {
        let mut listed: HashMap<(OrgNo, [u8; 16]), BTreeSet<u64>> = HashMap::new();
        for ((org, number), grave) in &c.graves {
            let Some((ino, hash)) = grave else { continue };
            let fits = match c.nodes.get(ino) {
                Some(Some(node)) => node.grave == Some(*number),
                other => other.is_some(),
            };
            if !fits {
                let message = format!("the inode {} that it keeps is missing or not deleted", ino.0);
                let subject = Subject::organization(*org);
                self.find(Code::TombstoneInode, subject, row::<Tombstone>((*org, *number)), message, None);
            }
            if *org != OrgNo::VAULT {
                listed.entry((*org, *hash)).or_default().insert(*number);
            }
        }
        for at in listed.keys().chain(c.buried.keys()).collect::<BTreeSet<_>>() {
            if !self.trusts(at.0) || !self.opens(at.0) || matches!(c.buried.get(at), Some(None)) {
                continue;
            }
            let right: Vec<u64> = listed.get(at).into_iter().flatten().copied().collect();
            let mut known = c.buried.get(at).cloned().flatten().unwrap_or_default();
            known.sort_unstable();
            if known != right {
                let message = format!("the index of a path's tombstones has {} of {}", known.len(), right.len());
                let fix = Fix::Buried(at.0, at.1, right);
                self.find(Code::TombstoneIndex, Subject::organization(at.0), row::<Buried>(*at), message, Some(fix));
            }
        }
    }

    fn judge_counts_of(&mut self, c: &Census, ino: Ino, node: &NodeSeen) {
        let org = ino.organization();
        if !self.opens(org) || !self.trusts(org) || !self.trusts(named_by(ino)) {
            return;
        }
        let place = row::<Node>(ino);
        let names = c.names.get(&ino).copied().unwrap_or(0);
        let links = match node.kind {
            KindSeen::Directory { .. } if node.links > 0 => 2 + c.subfolders.get(&ino).copied().unwrap_or(0),
            KindSeen::Directory { .. } => 0,
            _ if names == 0 => node.links,
            _ => names,
        };
        if links != node.links {
            let message = format!("it counts {} links, and has {links}", node.links);
            self.find(Code::LinkCount, Subject::Inode(ino), place.clone(), message, Some(Fix::Links(ino, links)));
        }
        if node.links == 0 && node.grave.is_none() && !c.tasks.contains(&(ino, Task::Orphan)) {
            let message = "it has no name, and no task to end it".to_owned();
            let fix = Fix::Task(ino, Task::Orphan);
            self.find(Code::TaskMissing, Subject::Inode(ino), place.clone(), message, Some(fix));
        }
        if node.changed && node.links > 0 && !c.tasks.contains(&(ino, Task::Commit)) {
            let message = "its value is in no version, and there is no task to commit it".to_owned();
            let fix = Fix::Task(ino, Task::Commit);
            self.find(Code::TaskMissing, Subject::Inode(ino), place.clone(), message, Some(fix));
        }
        if !matches!(node.kind, KindSeen::File(_)) || !c.contents.contains_key(&ino) {
            return;
        }
        let stored = c.stored.get(&ino).copied().unwrap_or(0);
        if stored < node.stored {
            let message = format!("{stored} bytes of it are in the store, where {} should be", node.stored);
            self.find(Code::ExtentMissing, Subject::Inode(ino), place, message, None);
        } else if stored > node.stored {
            let message = format!("it counts {} bytes in the store, and takes {stored}", node.stored);
            self.find(Code::StoredCount, Subject::Inode(ino), place, message, Some(Fix::Stored(ino, stored)));
        }
    }

    fn judge_tasks(&mut self, c: &Census) {
        for (ino, task) in &c.tasks {
            let over = match task {
                Task::Commit | Task::Orphan => !c.nodes.contains_key(ino),
                Task::Prune => !c.contents.contains_key(ino),
                Task::Reclaim => false,
            };
            if over && self.trusts(ino.organization()) {
                let message = format!("a task of inode {}, which is missing", ino.0);
                let place = row::<crate::vault::row::Pending>((*ino, *task));
                let fix = Fix::DropTask(*ino, *task);
                self.find(Code::TaskStale, Subject::Inode(*ino), place, message, Some(fix));
            }
        }
    }

    fn judge_organizations(&mut self, c: &Census) {
        #[derive(Default)]
        struct Sum {
            objects: u64,
            bytes: u128,
            tombstones: u64,
            last_local: u64,
            last_grave: u64,
        }
        let mut sums: HashMap<OrgNo, Sum> = HashMap::new();
        for (ino, node) in &c.nodes {
            let sum = sums.entry(ino.organization()).or_default();
            sum.last_local = sum.last_local.max(ino.local());
            if let Some(NodeSeen { kind: KindSeen::File(_), links: 1.., size, .. }) = node {
                (sum.objects, sum.bytes) = (sum.objects + 1, sum.bytes + u128::from(*size));
            }
        }
        for (org, number) in c.graves.keys() {
            let sum = sums.entry(*org).or_default();
            (sum.tombstones, sum.last_grave) = (sum.tombstones + 1, sum.last_grave.max(*number));
        }
        let vault = sums.remove(&OrgNo::VAULT).unwrap_or_default();
        let last_org = c.organizations.keys().last().map_or(0, |org| org.0);
        if let Some(own) = c.own.as_ref().filter(|own| own.next_org <= last_org || own.next_grave <= vault.last_grave) {
            let message = format!("the next organization would be {}, and {last_org} is there", own.next_org);
            let fix = Fix::VaultNumbers(last_org + 1, vault.last_grave + 1);
            let place = row::<OrgRecord>(OrgNo::VAULT);
            self.find(Code::NumberReused, Subject::Vault, place, message, Some(fix));
        }
        for (org, record) in &c.organizations {
            let Some(record) = record.as_ref().filter(|_| self.opens(*org) && self.trusts(*org)) else { continue };
            let sum = sums.remove(org).unwrap_or_default();
            let place = row::<OrgRecord>(*org);
            if record.next_local <= sum.last_local || record.next_grave <= sum.last_grave {
                let message = "it would give out a number that is taken".to_owned();
                let fix = Fix::Numbers(*org, sum.last_local + 1, sum.last_grave + 1);
                self.find(Code::NumberReused, Subject::Organization(*org), place.clone(), message, Some(fix));
            }
            let counted = (record.objects, record.bytes, record.tombstones);
            let right = (sum.objects, sum.bytes, sum.tombstones);
            if counted != right {
                let message = format!("it counts {counted:?} objects, bytes and tombstones, and has {right:?}");
                let fix = Fix::Counts(*org, sum.objects, sum.bytes, sum.tombstones);
                self.find(Code::OrganizationCount, Subject::Organization(*org), place, message, Some(fix));
            }
        }
    }
}

fn row<R: Record>(id: R::Id) -> FindingPlace {
    FindingPlace::row(R::TABLE, &R::at(id).key)
}

/// Whose damage may hide the name of an inode: names of organizations are the vault's own.
fn named_by(ino: Ino) -> OrgNo {
    if ino.is_top() { OrgNo::VAULT } else { ino.organization() }
}

/// The folders from which the way up comes by them again. Each is passed once, however deep the tree is.
fn circles(c: &Census) -> HashSet<Ino> {
    let (mut passed, mut found) = (HashSet::new(), HashSet::new());
    for start in c.nodes.keys() {
        let (mut at, mut way) = (*start, Vec::new());
        while at != Ino::ROOT
            && !at.is_top()
            && let Some(Some(NodeSeen { kind: KindSeen::Directory { parent }, .. })) = c.nodes.get(&at)
            && passed.insert(at)
        {
            way.push(at);
            at = *parent;
        }
        // Back on this same way, and not on an earlier one.
        if let Some(first) = way.iter().position(|folder| *folder == at) {
            found.extend(&way[first..]);
        }
    }
    found
}
