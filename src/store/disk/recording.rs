//! A disk for tests: it writes down what happens to it and fails when told to.

use super::{Disk, Op};
use parking_lot::Mutex;
use std::io;
use std::path::Path;
use std::sync::Arc;

type Rule = Box<dyn FnMut(&str) -> Option<i32> + Send>;

#[derive(Default)]
pub struct RecordingDisk {
    lines: Mutex<Vec<String>>,
    rule: Mutex<Option<Rule>>,
}

impl RecordingDisk {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// `rule` sees each operation as a line ("sync records.db-wal") and may answer with an errno.
    pub fn fail_when(&self, rule: impl FnMut(&str) -> Option<i32> + Send + 'static) {
        *self.rule.lock() = Some(Box::new(rule));
    }

    pub fn fail_never(&self) {
        *self.rule.lock() = None;
    }

    /// What happened since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock())
    }
}

impl Disk for RecordingDisk {
    fn before(&self, op: &Op<'_>) -> io::Result<()> {
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let line = match op {
            Op::Create { path } => format!("create {}", name(path)),
            Op::CreateDirectory { path } => format!("create directory {}", name(path)),
            Op::Write { path, offset, parts } => {
                format!("write {} {offset}+{}", name(path), parts.iter().map(|part| part.len()).sum::<usize>())
            }
            Op::Truncate { path, len } => format!("truncate {} {len}", name(path)),
            Op::Punch { path, offset, len } => format!("punch {} {offset}+{len}", name(path)),
            Op::Rename { from, to } => format!("rename {} {}", name(from), name(to)),
            Op::Sync { path } => format!("sync {}", name(path)),
            Op::SyncDirectory { path } => format!("sync directory {}", name(path)),
            Op::Remove { path } => format!("remove {}", name(path)),
        };
        if let Some(errno) = self.rule.lock().as_mut().and_then(|rule| rule(&line)) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.lines.lock().push(line);
        Ok(())
    }
}
