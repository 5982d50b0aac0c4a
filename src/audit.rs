//! The audit log: one JSON line for each event, in `STATE/audit/audit.jsonl`.
//!
//! It names ids, never a value, and of a process its uid, pid and command name, never its arguments. What the hosted
//! vault has an event for has the hosted vault's name. Files are rotated by size; an operator who needs more history
//! collects them.

use crate::vault::{AuditEvent, Caller, Time};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A file that has grown to this many bytes is put aside.
const FILE_LIMIT: u64 = 64 << 20;
/// Files that were put aside and are kept: `audit.jsonl.1` is the youngest.
const KEPT: u32 = 10;
/// How long a process counts as known: it may begin another program, or end and leave its number to another.
const KNOWN: Duration = Duration::from_secs(1);

pub struct Audit {
    path: PathBuf,
    limit: u64,
    file: Mutex<Open>,
    /// The process of the last event: one that writes many files is looked up once a second, and not for each.
    last: Mutex<Option<Process>>,
    /// Told the first time that an event could not be written: the vault goes on without its log.
    on_failure: Box<dyn Fn(String) + Send + Sync>,
}

struct Process {
    pid: u32,
    comm: Option<String>,
    seen: Instant,
}

struct Open {
    file: File,
    size: u64,
    failed: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    id: String,
    time: String,
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<Actor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    organization: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
}

/// Who did it.
#[derive(Serialize, Deserialize, Debug, Default)]
pub struct Actor {
    pub uid: u32,
    pub pid: u32,
    /// The command's name, as far as the process is still there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comm: Option<String>,
    /// The API key's id and name, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A part of the log, by the id of the event that it lies next to.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// The oldest after it; of all if `None`, or if it is not in the log any more.
    From(Option<&'a str>),
    /// The youngest before it; of all if `None`.
    UpTo(Option<&'a str>),
}

/// A line that was read again.
#[derive(Deserialize, Debug)]
pub struct Record {
    #[serde(default)]
    pub id: String,
    pub time: String,
    pub event: String,
    pub actor: Option<Actor>,
    pub organization: Option<String>,
    pub object: Option<String>,
    pub version: Option<String>,
    pub detail: Option<String>,
}

impl Audit {
    pub fn open(state: &Path, on_failure: Box<dyn Fn(String) + Send + Sync>) -> io::Result<Self> {
        let directory = state.join("audit");
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let path = directory.join("audit.jsonl");
        let file = Mutex::new(Open::at(&path)?);
        Ok(Audit { path, limit: FILE_LIMIT, file, last: Mutex::default(), on_failure })
    }

    pub fn record(&self, event: &AuditEvent) {
        let line = Line {
            id: format!("event_{}", ulid::Ulid::generate()),
            time: Time::now().rfc3339(),
            event: named(event.event),
            actor: event.caller.as_ref().map(|caller| self.actor(caller)),
            organization: event.organization.as_deref(),
            object: event.object.as_deref(),
            version: event.version.as_deref(),
            detail: event.detail.as_deref(),
        };
        let mut text = serde_json::to_vec(&line).expect("an event is plain data");
        text.push(b'\n');
        let mut open = self.file.lock();
        match self.append(&mut open, &text) {
            Ok(()) => open.failed = false,
            Err(error) if !open.failed => {
                open.failed = true;
                (self.on_failure)(format!(
                    "cannot write the audit log {}: {error}; events are lost until it can be written again",
                    self.path.display()
                ));
            }
            Err(_) => {}
        }
    }

    fn actor(&self, caller: &Caller) -> Actor {
        let (uid, pid) = (caller.uid, caller.pid);
        match &caller.key {
            Some(key) => Actor { uid, pid, comm: None, key: Some(key.id.to_string()), name: Some(key.name.clone()) },
            None => Actor { uid, pid, comm: self.command_of(pid), key: None, name: None },
        }
    }

    fn command_of(&self, pid: u32) -> Option<String> {
        let mut last = self.last.lock();
        if let Some(last) = last.as_ref().filter(|last| last.pid == pid && last.seen.elapsed() < KNOWN) {
            return last.comm.clone();
        }
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok().map(|comm| comm.trim_end().to_owned());
        *last = Some(Process { pid, comm: comm.clone(), seen: Instant::now() });
        comm
    }

    /// At most `limit` events that are `wanted`, oldest first, of that part of the log.
    pub fn read(&self, part: Part, limit: usize, wanted: &mut dyn FnMut(&Record) -> bool) -> io::Result<Vec<Record>> {
        let files = self.files()?;
        match part {
            Part::From(after) => {
                let found = first(&files, after, limit, wanted)?;
                // The place is not in the log any more: what follows it begins with the oldest that is left.
                found.map_or_else(|| first(&files, None, limit, wanted).map(Option::unwrap_or_default), Ok)
            }
            Part::UpTo(before) => last(&files, before, limit, wanted),
        }
    }

    /// The files of one moment, oldest first.
    fn files(&self) -> io::Result<Vec<File>> {
        let _not_put_aside_now = self.file.lock();
        let paths = (1..=KEPT).rev().map(|number| self.aside(number)).chain([self.path.clone()]);
        let opened = paths.filter_map(|path| match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened),
        });
        opened.collect()
    }

    fn append(&self, open: &mut Open, line: &[u8]) -> io::Result<()> {
        if open.size > 0 && open.size + line.len() as u64 > self.limit {
            self.rotate()?;
            *open = Open { failed: open.failed, ..Open::at(&self.path)? };
        }
        // One write for one line: another process that appends never lands inside it.
        if let Err(error) = open.file.write_all(line) {
            // Part of the line may be there: it is ended before the next one.
            *open = Open { failed: open.failed, ..Open::at(&self.path)? };
            return Err(error);
        }
        open.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        for number in (1..KEPT).rev() {
            match fs::rename(self.aside(number), self.aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, self.aside(1))
    }

    fn aside(&self, number: u32) -> PathBuf {
        self.path.with_extension(format!("jsonl.{number}"))
    }
}

/// The hosted vault's name for what the vault calls by its own, where it has one.
fn named(event: &str) -> &str {
    match event {
        "key.created" => "vault.kek.created",
        "key.destroyed" => "vault.kek.deleted",
        "object.deleted" => "vault.data.deleted",
        own => own,
    }
}

fn lines(mut file: &File) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    // Somebody may have read in it before.
    let failed = file.rewind().err().map(Err);
    failed.into_iter().chain(BufReader::new(file).split(b'\n'))
}

/// A line that is being written is read the next time.
fn parsed(line: &[u8]) -> Option<Record> {
    serde_json::from_slice(line).ok()
}

/// Whether it is the line of this event. Not parsed: most of the log lies before a place.
fn is_event(line: &[u8], id: &str) -> bool {
    line.strip_prefix(b"{\"id\":\"").is_some_and(|rest| rest.starts_with(id.as_bytes()))
}

/// `None` if the place is not there.
fn first(
    files: &[File],
    after: Option<&str>,
    limit: usize,
    wanted: &mut dyn FnMut(&Record) -> bool,
) -> io::Result<Option<Vec<Record>>> {
    let mut found = Vec::new();
    let mut passed = after.is_none();
    for line in files.iter().flat_map(lines) {
        let line = line?;
        if let (false, Some(id)) = (passed, after) {
            passed = is_event(&line, id);
            continue;
        }
        found.extend(parsed(&line).filter(|record| wanted(record)));
        if found.len() >= limit {
            break;
        }
    }
    Ok(passed.then_some(found))
}

/// The youngest ones, from the youngest file on back.
fn last(
    files: &[File],
    before: Option<&str>,
    limit: usize,
    wanted: &mut dyn FnMut(&Record) -> bool,
) -> io::Result<Vec<Record>> {
    let mut found = VecDeque::new();
    let mut passed = before.is_none();
    for file in files.iter().rev() {
        let mut here = VecDeque::new();
        for line in lines(file) {
            let line = line?;
            if !passed && before.is_some_and(|id| is_event(&line, id)) {
                // What was gathered of younger files lies behind the place.
                (passed, found) = (true, VecDeque::new());
                break;
            }
            here.extend(parsed(&line).filter(|record| wanted(record)));
            if here.len() > limit {
                here.pop_front();
            }
        }
        here.append(&mut found);
        found = here;
        if passed && found.len() >= limit {
            break;
        }
    }
    Ok(found.into_iter().rev().take(limit).rev().collect())
}

impl Open {
    fn at(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let size = file.metadata()?.len();
        let mut last = [b'\n'];
        if size > 0 {
            file.read_exact_at(&mut last, size - 1)?;
        }
        if last != [b'\n'] {
            // A kill or a full disk cut a line short: it does not swallow the next one.
            file.write_all(b"\n")?;
        }
        Ok(Open { file, size: size + u64::from(last != [b'\n']), failed: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vault::Patience;
    use std::os::unix::fs::PermissionsExt;

    fn event(event: &'static str) -> AuditEvent {
        let pid = std::process::id();
        let caller = Some(Caller {
            uid: 7,
            gid: 7,
            pid,
            umask: 0,
            groups: |_| Vec::new(),
            patience: Patience::Never,
            kernel: true,
            key: None,
        });
        AuditEvent { event, caller, organization: Some("org_1".into()), object: None, version: None, detail: None }
    }

    #[test]
    fn an_event_is_one_line_that_names_who() {
        let state = tempfile::tempdir().unwrap();
        Audit::open(state.path(), Box::new(|why| panic!("{why}"))).unwrap().record(&event("key.created"));
        let path = state.path().join("audit/audit.jsonl");
        let line: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(line["event"], "vault.kek.created");
        assert_eq!(line["actor"]["uid"], 7);
        assert!(line["actor"]["comm"].is_string());
        assert_eq!(line["organization"], "org_1");
        assert!(line.get("object").is_none());
        assert_eq!(line["time"].as_str().unwrap().len(), "2026-11-23T16:41:00.123456Z".len());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(state.path().join("audit")).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_line_that_was_cut_short_swallows_no_other() {
        let state = tempfile::tempdir().unwrap();
        let open = || Audit::open(state.path(), Box::new(|why| panic!("{why}"))).unwrap();
        open().record(&event("key.created"));
        let path = state.path().join("audit/audit.jsonl");
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], &whole[..40]].concat()).unwrap();
        let audit = open();
        audit.record(&event("key.destroyed"));
        let read = audit.read(Part::From(None), 10, &mut |_| true).unwrap();
        let events: Vec<_> = read.into_iter().map(|r| r.event).collect();
        assert_eq!(events, ["vault.kek.created", "vault.kek.deleted"]);
    }

    #[test]
    fn full_files_are_put_aside_and_the_oldest_go() {
        let state = tempfile::tempdir().unwrap();
        let mut audit = Audit::open(state.path(), Box::new(|why| panic!("{why}"))).unwrap();
        audit.limit = 1;
        for _ in 0..KEPT + 5 {
            audit.record(&event("object.deleted"));
        }
        assert_eq!(fs::read_dir(state.path().join("audit")).unwrap().count() as u32, KEPT + 1);
        for number in 1..=KEPT {
            assert_eq!(fs::read_to_string(audit.aside(number)).unwrap().lines().count(), 1);
        }
    }

    #[test]
    fn both_ends_of_the_log_are_read_across_files_that_were_put_aside() {
        let state = tempfile::tempdir().unwrap();
        let mut audit = Audit::open(state.path(), Box::new(|why| panic!("{why}"))).unwrap();
        audit.limit = 2000;
        let details = |found: &[Record]| found.iter().filter_map(|r| r.detail.clone()).collect::<Vec<_>>();
        let numbers = |range: std::ops::Range<u32>| range.map(|n| n.to_string()).collect::<Vec<_>>();
        for n in 0..20 {
            audit.record(&AuditEvent { detail: Some(n.to_string()), ..event("access.denied") });
            audit.record(&event("key.unwrapped"));
        }
        assert!(audit.aside(3).exists());
        let read = |part, limit| audit.read(part, limit, &mut |record| record.event == "access.denied").unwrap();
        let all = read(Part::From(None), 100);
        assert_eq!(details(&all), numbers(0..20));
        assert_eq!(details(&read(Part::From(None), 7)), numbers(0..7));
        assert_eq!(details(&read(Part::UpTo(None), 7)), numbers(13..20));
        for (at, record) in (0u32..).zip(&all) {
            assert_eq!(details(&read(Part::From(Some(&record.id)), 7)), numbers(at + 1..(at + 8).min(20)));
            assert_eq!(details(&read(Part::UpTo(Some(&record.id)), 7)), numbers(at.saturating_sub(7)..at));
        }
        assert_eq!(details(&read(Part::From(Some("event_gone")), 2)), numbers(0..2));
    }
}
