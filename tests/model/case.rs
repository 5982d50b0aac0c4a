//! One case: the same operations on the vault and on the reference, everything compared after each of them.

use super::operation::{Expect, Op};
use super::reference::Reference;
use super::view::{Bindings, compare};
use super::world::World;
use std::path::Path;

/// Operations after a kill was announced until it has come at the latest.
const DOOMED: usize = 5;

/// Says which operation led to which difference.
pub fn run(template: &Path, ops: &[Op], values: bool) -> Result<(), String> {
    let mut case = Case {
        world: World::new(template),
        reference: Reference::new(),
        bindings: Bindings::default(),
        since_sync: vec![Reference::new()],
        doomed: None,
        values,
    };
    for (number, op) in ops.iter().enumerate() {
        case.step(op).map_err(|message| format!("after operation {number}, {op:?}: {message}"))?;
    }
    if case.doomed.is_some() {
        case.die().map_err(|message| format!("after the last kill: {message}"))?;
    }
    case.values = true;
    case.compare().map_err(|message| format!("at the end: {message}"))?;
    case.step(&Op::Remount).map_err(|message| format!("after the last remount: {message}"))?;
    let mut findings = Vec::new();
    case.world.vault().fsck(&mut |finding| findings.push(finding), &mut |_, _| ()).map_err(|e| e.to_string())?;
    if findings.is_empty() { Ok(()) } else { Err(format!("fsck: {findings:?}")) }
}

struct Case {
    world: World,
    reference: Reference,
    bindings: Bindings,
    /// What a kill may go back to: every state since the last one that is known to be on the disk.
    since_sync: Vec<Reference>,
    /// How many operations are left until the kill.
    doomed: Option<usize>,
    values: bool,
}

impl Case {
    fn step(&mut self, op: &Op) -> Result<(), String> {
        if let Op::Kill { changes } = op {
            if self.doomed.is_none() {
                self.world.disk.stop_after(*changes);
                self.doomed = Some(DOOMED);
            }
            return Ok(());
        }
        let expected = match op {
            Op::Guard { expect, .. } | Op::Put { expect, .. } if *expect != Expect::Anything => {
                self.reference.expected(expect)
            }
            _ => None,
        };
        let version = match expected {
            None => None,
            Some(symbol) => match self.bindings.real(&symbol.name()) {
                Some(real) => Some(real.to_owned()),
                // Not looked at since it was made, because a kill is near.
                None => return Ok(()),
            },
        };
        if self.doomed.is_some() && matches!(op, Op::Remount) {
            return self.die();
        }
        self.since_sync.extend(self.reference.between(op));
        let meant = self.reference.apply(op);
        self.since_sync.push(self.reference.clone());
        let done = self.world.apply(op, version.as_deref());
        if self.doomed.is_some() && done == Err(libc::EIO) {
            return self.die();
        }
        if done != meant {
            return Err(format!("the vault answered {done:?}, the reference {meant:?}"));
        }
        let synced = matches!(
            op,
            Op::Sync | Op::Fsync { .. } | Op::Put { .. } | Op::Purge { .. } | Op::Restore { .. } | Op::Remount
        );
        if synced && done.is_ok() {
            self.since_sync = vec![self.reference.clone()];
        }
        match &mut self.doomed {
            None => self.compare(),
            Some(0) => self.die(),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn compare(&mut self) -> Result<(), String> {
        compare(&self.world.view(self.values), &self.reference.view(self.values), &mut self.bindings)
    }

    /// The kill: what is found must be one of the states since the last sync, with every open file closed.
    fn die(&mut self) -> Result<(), String> {
        self.doomed = None;
        self.world.kill();
        let found = self.world.view(true);
        let mut differences = Vec::new();
        for candidate in self.since_sync.iter().rev() {
            let mut state = candidate.clone();
            state.crash();
            let (meant, mut bindings) = (state.view(true), self.bindings.clone());
            match compare(&found, &meant, &mut bindings) {
                Ok(()) => {
                    bindings.only_of(&meant);
                    state.forget_nothing_of(&self.reference);
                    (self.reference, self.bindings) = (state, bindings);
                    self.since_sync = vec![self.reference.clone()];
                    return Ok(());
                }
                Err(difference) => differences.push(difference),
            }
        }
        Err(format!(
            "after a kill none of the states since the last sync is there; newest first:\n{}",
            differences.join("\n")
        ))
    }
}
