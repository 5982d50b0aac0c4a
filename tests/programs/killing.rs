//! Databases whose writer, or whose file system, is killed: what they had acknowledged is there, and they find no damage.

use crate::Stage;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Writes rows 1, 2, 3 … each in a transaction of its own, and prints each number after its commit.
const SQLITE: &str = r#"
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute("pragma mmap_size = " + sys.argv[3])
db.execute("pragma journal_mode = " + sys.argv[2])
# `extra`: `full` does not sync the removal of a rollback journal, on no file system.
db.execute("pragma synchronous = extra")
db.execute("create table if not exists t(n integer primary key, v)")
n = db.execute("select coalesce(max(n), 0) from t").fetchone()[0]
while True:
    n += 1
    db.execute("insert into t values(?, ?)", (n, os.urandom(2000).hex()))
    os.write(1, b"%d\n" % n)
"#;

const LMDB: &str = r#"
import lmdb, os, sys
with lmdb.open(sys.argv[1], map_size=1 << 28, writemap=sys.argv[2] == "writemap") as env:
    n = env.stat()["entries"]
    while True:
        n += 1
        with env.begin(write=True) as t:
            t.put(b"%09d" % n, os.urandom(2000))
        os.write(1, b"%d\n" % n)
"#;

/// Prints how many there are; fails if there is a gap or damage.
const COUNT_SQLITE: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
found = db.execute("pragma integrity_check").fetchall()
assert found == [("ok",)], found
count, most, short = db.execute("select count(*), max(n), count(*) filter (where length(v) != 4000) from t").fetchone()
assert count == most and short == 0, (count, most, short)
print(count)
"#;

const COUNT_LMDB: &str = r#"
import lmdb, sys
with lmdb.open(sys.argv[1], map_size=1 << 28) as env, env.begin() as t:
    found = [(int(k), len(v)) for k, v in t.cursor()]
assert found == [(n + 1, 2000) for n in range(len(found))]
print(len(found))
"#;

fn python(program: &str, arguments: &[&str], directory: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "120", "/usr/bin/python3", "-c", program]).args(arguments).current_dir(directory);
    command
}

/// What the writer has acknowledged: its last whole line.
fn acknowledged(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap();
    text.rsplit_once('\n').and_then(|(lines, _)| lines.lines().last()).map_or(0, |line| line.parse().unwrap())
}

/// Waits until the writer has acknowledged this many.
#[track_caller]
fn wait_for(log: &Path, number: u64, writer: &mut Child) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while acknowledged(log) < number {
        assert!(Instant::now() < deadline, "{} of {number} commits in a minute", acknowledged(log));
        assert!(writer.try_wait().unwrap().is_none(), "the writer has ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
fn survives(writer: &str, arguments: &[&str], counter: &str) {
    let stage = Stage::new();
    let log = stage.work.join("acknowledged");
    let mut last = 0;
    for daemon_too in [false, true, true] {
        let errors = File::create(stage.work.join("errors")).unwrap();
        let mut command = python(writer, arguments, &stage.organization);
        let mut child =
            command.stdout(File::create(&log).unwrap()).stderr(errors).stdin(Stdio::null()).spawn().unwrap();
        wait_for(&log, last + 25, &mut child);
        if daemon_too {
            stage.vault.kill();
            // It meets an error, as after the loss of a disk.
            child.wait().unwrap();
            stage.vault.mount(&[]);
        } else {
            // `timeout` passes no SIGKILL on, so the writer is killed as a group of processes would be.
            let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
            crate::vault::run("kill", &[&"-9", &children.trim()]);
            child.wait().unwrap();
        }
        let acknowledged = acknowledged(&log);
        let counted = crate::vault::Done::of(&mut python(counter, arguments, &stage.organization), b"").good();
        let found: u64 = counted.text().trim().parse().unwrap();
        assert!(
            found == acknowledged || found == acknowledged + 1,
            "{found} found, {acknowledged} acknowledged; the daemon killed: {daemon_too}"
        );
        last = found;
    }
    stage.vault.command(&["fsck"]).good();
}

#[test]
fn sqlite_with_a_rollback_journal_loses_nothing_when_writer_or_daemon_is_killed() {
    survives(SQLITE, &["db", "delete", "0"], COUNT_SQLITE);
}

#[test]
fn sqlite_with_a_truncated_journal_and_mmap_loses_nothing_when_writer_or_daemon_is_killed() {
    survives(SQLITE, &["db", "truncate", "100000000"], COUNT_SQLITE);
}

#[test]
fn sqlite_with_a_persistent_journal_loses_nothing_when_writer_or_daemon_is_killed() {
    survives(SQLITE, &["db", "persist", "0"], COUNT_SQLITE);
}

#[test]
fn sqlite_with_a_write_ahead_log_loses_nothing_when_writer_or_daemon_is_killed() {
    survives(SQLITE, &["db", "wal", "0"], COUNT_SQLITE);
}

#[test]
fn sqlite_with_a_write_ahead_log_and_mmap_loses_nothing_when_writer_or_daemon_is_killed() {
    survives(SQLITE, &["db", "wal", "100000000"], COUNT_SQLITE);
}

#[test]
fn lmdb_loses_nothing_when_writer_or_daemon_is_killed() {
    survives(LMDB, &["env", "pwrite"], COUNT_LMDB);
}

#[test]
fn lmdb_through_a_mapping_loses_nothing_when_writer_or_daemon_is_killed() {
    survives(LMDB, &["env", "writemap"], COUNT_LMDB);
}
