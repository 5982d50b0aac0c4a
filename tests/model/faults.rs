//! Calls of the disk that fail, each in its turn: what is seen then, and what is there afterwards (`storage.md`, "After a failure").

use super::dice::Dice;
use super::history::{Doing, check, in_memory, is_durable, opened};
use super::operation::{Op, Path as Name};
use super::template;
use super::token;
use super::view::{Bindings, compare};
use super::volatile::{Loss, Platter, VolatileDisk};
use super::world::{copy_tree, options};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use vaultfs::store::{Disk, Op as Change, RealDisk};
use vaultfs::vault::{RenameMode, Vault};

/// Cases at the same time: most of their time they wait.
const AT_ONCE: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Never,
    /// The call with this number fails.
    Once(usize, i32),
    /// From this call on whatever takes space finds none.
    FullFrom(usize),
}

/// What failed first.
#[derive(Clone, Debug)]
struct Hit {
    call: String,
    is_sync: bool,
}

struct FaultyDisk {
    beneath: Arc<dyn Disk>,
    calls: AtomicUsize,
    fault: Mutex<Fault>,
    hit: Mutex<Option<Hit>>,
}

impl FaultyDisk {
    fn new(beneath: Arc<dyn Disk>, fault: Fault) -> Arc<Self> {
        Arc::new(FaultyDisk { beneath, calls: AtomicUsize::new(0), fault: Mutex::new(fault), hit: Mutex::default() })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn heal(&self) {
        *self.fault.lock().unwrap() = Fault::Never;
    }

    fn hit(&self) -> Option<Hit> {
        self.hit.lock().unwrap().clone()
    }
}

impl Disk for FaultyDisk {
    fn before(&self, op: &Change<'_>) -> io::Result<()> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let takes_space = matches!(op, Change::Create { .. } | Change::CreateDirectory { .. } | Change::Write { .. });
        let errno = match *self.fault.lock().unwrap() {
            Fault::Once(number, errno) if number == call => errno,
            Fault::FullFrom(number) if number <= call && takes_space => libc::ENOSPC,
            _ => return self.beneath.before(op),
        };
        let is_sync = matches!(op, Change::Sync { .. } | Change::SyncDirectory { .. });
        let told = match op {
            Change::Write { path, offset, .. } => format!("write {} at {offset}", path.display()),
            other => format!("{other:?}"),
        };
        self.hit.lock().unwrap().get_or_insert(Hit { call: told, is_sync });
        Err(io::Error::from_raw_os_error(errno))
    }
}

fn at(path: &'static str) -> Name {
    Name { organization: 0, parts: path.split('/').collect() }
}

fn save(path: &'static str, len: usize, fill: u8) -> Op {
    Op::Save { path: at(path), len, fill }
}

/// A little of everything: inline values and segments, more than one; saves by rename, deletes, a purge, holes, folding.
fn script() -> Vec<Op> {
    let replace = |from, to| Op::Rename { from: at(from), to: at(to), mode: RenameMode::Replace };
    let write = |at, len, fill| Op::Write { slot: 0, at, len, fill };
    let mut ops = vec![Op::MakeFolder { path: at("d") }, save("a", 100, 1), save("d/a", 20_000, 2), Op::Sync];
    ops.push(Op::Open { slot: 0, path: at("d/a"), truncate: false, append: false });
    ops.extend([write(20_000, 90_000, 3), Op::Fsync { slot: 0 }, save("b", 300, 4), replace("b", "a"), Op::Sync]);
    ops.extend([save("b", 60_000, 5), replace("b", "d/b"), Op::Flush { slot: 0 }, Op::Unlink { path: at("d/b") }]);
    ops.extend([Op::Sync, Op::Purge { organization: 0, index: 0 }, Op::Punch { slot: 0, at: 4096, len: 9000 }]);
    ops.extend((0..70).map(|n| write(n * 300, 200, n as u8)));
    ops.extend([Op::Fsync { slot: 0 }, save("b", 5000, 6), Op::Truncate { path: at("b"), size: 10 }, Op::Sync]);
    ops
}

/// What an operation that changes something answers once writing has stopped.
fn assert_stopped(doing: &mut Doing) {
    for op in [save("e", 10, 9), Op::MakeFolder { path: at("f") }, Op::Unlink { path: at("a") }, Op::Sync] {
        assert_eq!(doing.world.apply(&op, None), Err(libc::EIO), "{op:?}");
    }
}

/// One run with one fault; false if the workload never came to it.
fn survives(template: &Path, fault: Fault) -> bool {
    let directory = in_memory();
    let state = directory.path().join("state");
    copy_tree(&template.join("state"), &state);
    let mut platter = Platter::of(&state);
    let mut faulty = None;
    let mut doing = Doing::through(&state, |disk| faulty.insert(FaultyDisk::new(disk, fault)).clone());
    let disk = faulty.expect("made with the world");
    let mut stopped = false;
    for op in script() {
        match doing.try_apply(&op) {
            (done, meant) if done == meant => {}
            (Err(libc::EIO), _) => stopped = true,
            // It is in memory, and not said to be anywhere else.
            (Err(libc::ENOSPC), Ok(())) if is_durable(&op) => {}
            (done, meant) => panic!("{fault:?}, {op:?}: {done:?}, {meant:?} expected"),
        }
        if stopped {
            break;
        }
    }
    let Some(hit) = disk.hit() else { return false };
    if hit.is_sync && !stopped {
        let _ = doing.try_apply(&save("e", 10, 8));
        let _ = doing.try_apply(&Op::Sync);
        stopped = true;
    }
    let full = matches!(fault, Fault::FullFrom(_) | Fault::Once(_, libc::ENOSPC)) && !hit.is_sync;
    assert!(!(full && stopped), "{fault:?}: writing stopped for want of space ({})", hit.call);
    if stopped {
        assert_stopped(&mut doing);
    } else {
        if let Fault::FullFrom(_) = fault {
            assert_eq!(doing.try_apply(&Op::Unlink { path: at("a") }), (Ok(()), Ok(())), "deleting");
        }
        let meant = doing.reference.view(false);
        compare(&doing.world.view(false), &meant, &mut Bindings::default())
            .unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        disk.heal();
        let deadline = Instant::now() + Duration::from_secs(10);
        while let (Err(error), _) = doing.try_apply(&Op::Sync) {
            assert!(error == libc::ENOSPC && Instant::now() < deadline, "{fault:?}: {error} with space again");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let end = doing.disk.len();
    disk.heal();
    let history = doing.ended();
    history.changes[..end].iter().for_each(|change| platter.apply(change));
    let possible = history.possible(end);
    for (how, image) in [
        ("a remount", platter.after_kill()),
        ("a loss of power", platter.after_power_loss(Loss::All, &mut Dice::new(1))),
    ] {
        let checked = check(&image, &directory.path().join("after"), &possible, None);
        checked.unwrap_or_else(|error| panic!("{fault:?} ({}), then {how}: {error}", hit.call));
    }
    true
}

/// Every one of the faults, several at a time, until the workload does not come to them.
fn all_survived(template: &Path, first: usize, step: usize, fault: impl Fn(usize) -> Fault + Sync) -> usize {
    let (next, hits) = (AtomicUsize::new(first), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while survives(template, fault(next.fetch_add(step, Ordering::SeqCst))) {
                    hits.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    hits.into_inner()
}

/// Calls that opening a vault makes.
fn calls_of_opening(template: &Path) -> usize {
    let directory = in_memory();
    copy_tree(&template.join("state"), directory.path());
    let disk = FaultyDisk::new(Arc::new(VolatileDisk::new(directory.path())), Fault::Never);
    let vault = Vault::open_on(directory.path(), options(), disk.clone()).unwrap();
    let calls = disk.calls();
    vault.close().unwrap();
    calls
}

fn injected(name: &str, sampled: usize, fault: impl Fn(usize) -> Fault + Sync) {
    token::isolated(&format!("faults::{name}"), |token| {
        let template = template(token);
        let step = if std::env::var_os("VAULTFS_CRASH_EVERYWHERE").is_some() { 1 } else { sampled };
        let hits = all_survived(template.path(), calls_of_opening(template.path()), step, fault);
        assert!(hits * step > 60, "only {hits} calls failed");
    });
}

#[test]
fn a_call_that_fails_stops_writing_or_changes_nothing() {
    injected("a_call_that_fails_stops_writing_or_changes_nothing", 1, |call| Fault::Once(call, libc::EIO));
}

#[test]
fn a_call_that_finds_no_space_is_tried_again() {
    injected("a_call_that_finds_no_space_is_tried_again", 6, |call| Fault::Once(call, libc::ENOSPC));
}

#[test]
fn on_a_full_disk_values_stay_whole_deleting_works_and_writing_goes_on_with_space() {
    let name = "on_a_full_disk_values_stay_whole_deleting_works_and_writing_goes_on_with_space";
    injected(name, 6, Fault::FullFrom);
}

#[test]
fn a_call_that_fails_while_a_vault_opens_costs_nothing() {
    token::isolated("faults::a_call_that_fails_while_a_vault_opens_costs_nothing", |token| {
        let template = template(token);
        let directory = in_memory();
        let state = directory.path().join("state");
        copy_tree(&template.path().join("state"), &state);
        let mut platter = Platter::of(&state);
        let mut doing = Doing::on(&state);
        script().into_iter().for_each(|op| doing.step(op));
        // Something to trim and something to finish: neither is synced.
        doing.step(save("e", 50_000, 7));
        let end = doing.disk.len();
        let history = doing.ended();
        history.changes[..end].iter().for_each(|change| platter.apply(change));
        let (image, possible) = (platter.after_kill(), history.possible(end));
        let mut tried = 0;
        for errno in [libc::EIO, libc::ENOSPC] {
            for call in 0.. {
                let state = directory.path().join(format!("{errno}-{call}"));
                image.write(&state);
                let mut platter = Platter::of(&state);
                let volatile = Arc::new(VolatileDisk::new(&state));
                let disk = FaultyDisk::new(volatile.clone(), Fault::Once(call, errno));
                // Refused, or not; closed, or not.
                let vault = Vault::open_on(&state, options(), disk.clone());
                if let Ok(vault) = &vault {
                    vault.on_report(Box::new(|_| ()));
                    let _ = vault.close();
                }
                drop(vault);
                let Some(hit) = disk.hit() else { break };
                volatile.changes().iter().for_each(|change| platter.apply(change));
                for image in [platter.after_kill(), platter.after_power_loss(Loss::All, &mut Dice::new(1))] {
                    let checked = check(&image, &directory.path().join("after"), &possible, None);
                    checked.unwrap_or_else(|error| panic!("{errno} at {}: {error}", hit.call));
                }
                // Nor does a process that goes on keep the state directory for itself.
                opened(&state, Arc::new(RealDisk), &possible).unwrap();
                tried += 1;
            }
        }
        assert!(tried > 10, "only {tried} calls");
    });
}
