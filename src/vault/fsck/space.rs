//! The judgement on segments: every byte that a piece needs is in a file, and every other is given back.

use super::census::{Census, SegmentUse};
use super::finding::{FindingCode as Code, FindingPlace};
use super::repair::Fix;
use super::{Check, Subject};
use crate::store::{Place, Table};
use crate::vault::error::Result;
use crate::vault::extents::{FreeRun, UNIT};
use crate::vault::ids::{Ino, OrgNo};
use crate::vault::row::{Freed, Record, Segment};
use std::collections::{BTreeMap, BTreeSet};

impl Check<'_> {
    pub fn judge_space(&mut self, c: &Census) -> Result<()> {
        let mut files: BTreeMap<(OrgNo, u32), u64> = BTreeMap::new();
        let mut remains = c.remains.clone();
        for org in self.segments.organizations()? {
            if !c.organizations.contains_key(&OrgNo(org)) {
                remains.insert(OrgNo(org));
                continue;
            }
            files.extend(self.segments.list(org)?.into_iter().map(|(number, size)| ((OrgNo(org), number), size)));
        }
        let none = SegmentUse::default();
        let all: BTreeSet<(OrgNo, u32)> = files.keys().chain(c.uses.keys()).chain(c.segments.keys()).copied().collect();
        let freed = freed_units(c);
        for at in all {
            let used = c.uses.get(&at).unwrap_or(&none);
            self.judge_segment(at, used, c.segments.get(&at), files.get(&at).copied());
            if !self.serving && self.opens(at.0) && self.trusts(at.0) && files.contains_key(&at) {
                let end = c.segments.get(&at).and_then(|s| s.as_ref()).map_or(0, |s| s.end);
                self.judge_leaks(at, used, freed.get(&at), end)?;
            }
        }
        self.judge_freed(c);
        if self.serving || self.everything_is_damaged {
            return Ok(());
        }
        for org in remains {
            let message = format!("rows or segments of organization {}, which is not there", org.0);
            let place = FindingPlace::file(&format!("segments/{:08x}", org.0));
            // If it is not gone but lost, other rows of it have been found, and nothing is removed.
            let fix = (self.trusts(org) && self.vault.is_some()).then_some(Fix::RemoveOrganization(org));
            self.find(Code::OrphanedSegment, Subject::Vault, place, message, fix);
        }
        Ok(())
    }

    fn judge_segment(
        &mut self,
        (org, number): (OrgNo, u32),
        used: &SegmentUse,
        record: Option<&Option<Segment>>,
        size: Option<u64>,
    ) {
        let subject = || Subject::organization(org);
        let place = FindingPlace::segment(org.0, number, None);
        let row = FindingPlace::row(Table::Segment, &Segment::at((org, number)).key);
        let live = used.live();
        let right = Segment { end: used.last.next_multiple_of(UNIT), live };
        match size {
            // What a mount removes while this looks, its records have forgotten first.
            None if live > 0 && !self.forgotten(org, number) => {
                let message = format!("the file is missing, and {live} bytes of values are in it");
                self.find(Code::SegmentMissing, subject(), place.clone(), message, None);
            }
            Some(size) if size < used.last => {
                let message = format!("the file is {size} bytes long, and values reach to byte {}", used.last);
                self.find(Code::SegmentShort, subject(), place.clone(), message, None);
            }
            _ => {}
        }
        if !self.opens(org) || !self.trusts(org) {
            return;
        }
        match record {
            Some(None) => {}
            None if live > 0 => {
                let message = format!("the record of a segment with {live} bytes of values is missing");
                self.find(Code::SegmentRecord, subject(), row, message, Some(Fix::Segment(org, number, right)));
            }
            None if !self.serving => {
                let message = "no record names this segment".to_owned();
                let fix = Some(Fix::RemoveSegment(org, number));
                self.find(Code::OrphanedSegment, subject(), place, message, fix);
            }
            None => {}
            Some(Some(segment)) => {
                if segment.live != live || segment.end < right.end {
                    let message = format!(
                        "it counts {} live bytes of {}, and has {live} of {}",
                        segment.live, segment.end, right.end
                    );
                    let fix = Segment { end: segment.end.max(right.end), live };
                    self.find(Code::SegmentCount, subject(), row, message, Some(Fix::Segment(org, number, fix)));
                }
                if let Some(size) = size.filter(|size| !self.serving && *size > segment.end.max(right.end)) {
                    let end = segment.end.max(right.end);
                    let message = format!("{} bytes behind its end, which no record names", size - end);
                    let place = FindingPlace { offset: Some(end), ..place };
                    let fix = Some(Fix::Trim(org, number, end));
                    self.find(Code::OrphanedBytes, subject(), place, message, fix);
                }
            }
        }
    }

    /// Whether the records, as they are now, have let go of a segment.
    fn forgotten(&self, org: OrgNo, number: u32) -> bool {
        let Some(vault) = self.vault.filter(|_| self.serving) else { return false };
        matches!(vault.records.get::<Segment>((org, number)), Ok(None))
    }

    /// Blocks of the disk that no piece needs and that are not on their way back.
    fn judge_leaks(
        &mut self,
        (org, number): (OrgNo, u32),
        used: &SegmentUse,
        freed: Option<&BTreeSet<u64>>,
        end: u64,
    ) -> Result<()> {
        let mut runs: Vec<FreeRun> = Vec::new();
        for data in self.segments.data(org.0, number)? {
            for unit in data.start / UNIT..data.end.min(end).div_ceil(UNIT) {
                if used.is_used(unit) || freed.is_some_and(|freed| freed.contains(&unit)) {
                    continue;
                }
                let at = Place { segment: number, offset: unit * UNIT };
                match runs.last_mut() {
                    Some(run) if run.at.offset + run.len == at.offset => run.len += UNIT,
                    _ => runs.push(FreeRun { at, len: UNIT }),
                }
            }
        }
        if let Some(first) = runs.first() {
            let bytes: u64 = runs.iter().map(|run| run.len).sum();
            let message = format!("{bytes} bytes that no record names take space");
            let place = FindingPlace::segment(org.0, number, Some(first.at.offset));
            self.find(Code::LeakedSpace, Subject::organization(org), place, message, Some(Fix::Punch(org, runs)));
        }
        Ok(())
    }

    /// What waits to be given back must be needed by nobody; where nobody serves the vault, nothing should wait.
    fn judge_freed(&mut self, c: &Census) {
        let mut waiting: BTreeMap<OrgNo, usize> = BTreeMap::new();
        for (org, place, len) in &c.freed {
            let units = place.offset / UNIT..(place.offset + len).div_ceil(UNIT);
            let used = c.uses.get(&(*org, place.segment));
            if used.is_some_and(|used| units.clone().any(|unit| used.is_used(unit))) {
                let message = format!("{len} bytes at {} wait to be given back, and a value needs them", place.offset);
                let row = FindingPlace::row(Table::Freed, &Freed::at((*org, *place)).key);
                let fix = Some(Fix::DropFreed(*org, *place));
                self.find(Code::FreedInUse, Subject::organization(*org), row, message, fix);
            } else {
                *waiting.entry(*org).or_default() += 1;
            }
        }
        for (ino, _) in &c.tasks {
            *waiting.entry(ino.organization()).or_default() += 1;
        }
        if self.serving {
            return;
        }
        for (org, count) in waiting {
            let message = format!("{count} piece(s) of work that a crash left wait to be finished");
            let place = FindingPlace::row(Table::Pending, &Ino::top_of(org).0.to_be_bytes());
            let fix = self.opens(org).then_some(Fix::Finish);
            let place = FindingPlace { row: None, ..place };
            self.find(Code::Unfinished, Subject::organization(org), place, message, fix);
        }
    }
}

/// Units of each segment that wait to be punched.
fn freed_units(c: &Census) -> BTreeMap<(OrgNo, u32), BTreeSet<u64>> {
    let mut units: BTreeMap<(OrgNo, u32), BTreeSet<u64>> = BTreeMap::new();
    for (org, place, len) in &c.freed {
        let run = place.offset / UNIT..(place.offset + len).div_ceil(UNIT);
        units.entry((*org, place.segment)).or_default().extend(run);
    }
    units
}
