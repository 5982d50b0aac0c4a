//! Programs at work in a directory of the mount until it goes away, and what they were told was durable.

use crate::vault::{Vault, run, try_run};
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// Syncs of its own often fall between those that are asked for.
pub const OPTIONS: [&str; 2] = ["-o", "commit_interval=200ms"];
const LINE: usize = 61;

/// What had been acknowledged when the end came.
pub struct Acknowledged {
    at: PathBuf,
    files: Vec<(PathBuf, usize)>,
    save: usize,
    lines: usize,
    rows: usize,
    commits: usize,
}

/// Runs everything in a new directory; `end` makes the mount go away.
pub fn until(at: &Path, round: usize, end: impl FnOnce()) -> Acknowledged {
    fs::create_dir(at).unwrap();
    prepare_git(at);
    fio(at, &["--rw=write", "--do_verify=0", "--end_fsync=1"]).wait().unwrap();
    File::open(at).unwrap().sync_all().unwrap();
    let modes = ["DELETE", "WAL", "TRUNCATE", "PERSIST"];
    thread::scope(|scope| {
        let mut over = fio(at, &["--rw=randwrite", "--do_verify=0", "--fsync=16", "--time_based", "--runtime=60"]);
        let files = [0, 1].map(|writer| scope.spawn(move || files(at, writer)));
        let save = scope.spawn(|| saves(at));
        let lines = scope.spawn(|| lines(at));
        let rows = scope.spawn(|| rows(at, modes[round % modes.len()]));
        let commits = scope.spawn(|| commits(at));
        end();
        let _ = over.kill();
        let _ = over.wait();
        Acknowledged {
            at: at.to_owned(),
            files: files.into_iter().flat_map(|writer| writer.join().unwrap()).collect(),
            save: save.join().unwrap(),
            lines: lines.join().unwrap(),
            rows: rows.join().unwrap(),
            commits: commits.join().unwrap(),
        }
    })
}

/// Mounts what the crash left, and looks.
pub fn recovered(vault: &Vault, done: &Acknowledged) -> Result<(), String> {
    let mounted = vault.try_mount(&OPTIONS);
    expect(mounted.code == 0, format!("it does not mount: {}", mounted.err))?;
    done.check()?;
    vault.is_sound()
}

impl Acknowledged {
    /// Looks whether all of it is there, and nothing that is neither old nor new.
    fn check(&self) -> Result<(), String> {
        for (path, n) in &self.files {
            let value = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
            expect(value == content(*n), format!("{} is not what was synced", path.display()))?;
        }
        self.check_save()?;
        let log = fs::read(self.at.join("log")).unwrap_or_default();
        let meant: Vec<u8> = (0..log.len().div_ceil(LINE)).flat_map(line).collect();
        expect(log.len() >= self.lines * LINE, format!("{} bytes of {} lines", log.len(), self.lines))?;
        expect(log == meant[..log.len()], "a line of the log is not what was written")?;
        self.check_rows()?;
        self.check_commits()?;
        let read = fio(&self.at, &["--rw=read", "--verify_fatal=1"]).wait_with_output().unwrap();
        expect(read.status.success(), format!("fio: {}", String::from_utf8_lossy(&read.stderr)))
    }

    fn check_save(&self) -> Result<(), String> {
        let value = match fs::read(self.at.join("saved")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.save == 0 => return Ok(()),
            value => value.map_err(|e| format!("saved: {e}"))?,
        };
        let n = value.get(..8).map_or(0, |n| u64::from_le_bytes(n.try_into().unwrap()) as usize);
        expect(n >= self.save, format!("save {} was acknowledged, {n} is there", self.save))?;
        expect(value == saved(n), format!("save {n} is not whole"))
    }

    fn check_rows(&self) -> Result<(), String> {
        let sql = "PRAGMA integrity_check; SELECT count(*), coalesce(max(n), 0) FROM t;";
        let asked = try_run("sqlite3", &[&self.at.join("db"), &sql]);
        let text = asked.text();
        if self.rows == 0 && (asked.code != 0 || asked.err.contains("no such table")) {
            return Ok(());
        }
        let numbers = text.strip_prefix("ok\n").and_then(|rest| rest.trim().split_once('|'));
        let (count, last) = numbers.ok_or_else(|| format!("SQLite: {text}{}", asked.err))?;
        let last: usize = last.parse().map_err(|_| format!("SQLite: {text}"))?;
        expect(
            count == last.to_string() && last >= self.rows,
            format!("SQLite: {} rows were committed: {text}", self.rows),
        )
    }

    fn check_commits(&self) -> Result<(), String> {
        let repository = self.at.join("git");
        // What anybody does after a crash.
        for lock in ["index.lock", "HEAD.lock", "refs/heads/main.lock"] {
            let _ = fs::remove_file(repository.join(".git").join(lock));
        }
        let checked = try_run("git", &[&"-C", &repository, &"fsck", &"--full", &"--strict"]);
        expect(checked.code == 0, format!("git fsck: {}{}", checked.text(), checked.err))?;
        if self.commits == 0 {
            return Ok(());
        }
        let log = try_run("git", &[&"-C", &repository, &"log", &"--format=%s"]);
        let there = log.text().lines().any(|subject| subject == self.commits.to_string());
        expect(there, format!("git: commit {} is not there: {}{}", self.commits, log.text(), log.err))?;
        let shown = try_run("git", &[&"-C", &repository, &"show", &"HEAD:file"]);
        expect(shown.code == 0, format!("git show: {}", shown.err))
    }
}

impl Display for Acknowledged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Acknowledged { files, save, lines, rows, commits, .. } = self;
        write!(f, "{} files, save {save}, {lines} lines, {rows} rows, {commits} commits", files.len())
    }
}

fn expect(holds: bool, otherwise: impl Display) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_string()) }
}

fn content(n: usize) -> Vec<u8> {
    let len = [0, 1, 100, 4096, 4097, 70_000, 300_000][n % 7] + n;
    (0..len).map(|i| (i.wrapping_mul(31) ^ n.wrapping_mul(7) ^ (i >> 9)) as u8).collect()
}

/// New files, each in a new directory now and then, with everything synced that leads to them.
fn files(at: &Path, writer: usize) -> Vec<(PathBuf, usize)> {
    let mut synced = Vec::new();
    let mut folder = at.to_owned();
    for n in writer.. {
        let written = (|| {
            if n % 5 == 0 {
                folder = at.join(format!("d{writer}-{n}"));
                fs::create_dir(&folder)?;
                File::open(at)?.sync_all()?;
            }
            let path = folder.join(format!("f{writer}-{n}"));
            let mut file = File::create(&path)?;
            file.write_all(&content(n))?;
            file.sync_all()?;
            File::open(&folder)?.sync_all()?;
            io::Result::Ok(path)
        })();
        match written {
            Ok(path) => synced.push((path, n)),
            Err(_) => break,
        }
    }
    synced
}

fn saved(n: usize) -> Vec<u8> {
    let mut value = (n as u64).to_le_bytes().to_vec();
    value.extend(content(n));
    value
}

/// An editor's saves; the number of the last.
fn saves(at: &Path) -> usize {
    for n in 1.. {
        let saved = (|| {
            let mut file = File::create(at.join("saved.new"))?;
            file.write_all(&saved(n))?;
            file.sync_all()?;
            fs::rename(at.join("saved.new"), at.join("saved"))?;
            File::open(at)?.sync_all()
        })();
        if saved.is_err() {
            return n - 1;
        }
    }
    unreachable!("the mount goes away")
}

fn line(n: usize) -> Vec<u8> {
    format!("{n:0>width$}\n", width = LINE - 1).into_bytes()
}

/// A log, each line synced; how many.
fn lines(at: &Path) -> usize {
    let Ok(mut log) = OpenOptions::new().append(true).create(true).open(at.join("log")) else { return 0 };
    (0..).find(|n| log.write_all(&line(*n)).and_then(|()| log.sync_data()).is_err()).unwrap()
}

/// One row for each transaction; how many were committed. `EXTRA`: also the end of a journal is made durable.
fn rows(at: &Path, mode: &str) -> usize {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "120", "sqlite3", "-batch"]).arg(at.join("db"));
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = piped.spawn().unwrap();
    let (mut ask, mut answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let mut next = |sql: String| -> Option<String> {
        writeln!(ask, "{sql}").ok()?;
        answers.next()?.ok()
    };
    let make = "CREATE TABLE t(n INTEGER PRIMARY KEY, filling TEXT);";
    let mut committed = 0;
    if next(format!(".bail on\nPRAGMA synchronous=EXTRA; PRAGMA journal_mode={mode};")).is_some()
        && next(format!("{make} SELECT 0;")).is_some()
    {
        while next(format!("INSERT INTO t VALUES({0}, hex(randomblob(400))); SELECT {0};", committed + 1)).is_some() {
            committed += 1;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
    committed
}

fn git(at: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", "60", "git", "-C"]).arg(at.join("git")).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn prepare_git(at: &Path) {
    let repository = at.join("git");
    run("git", &[&"init", &"-q", &"-b", &"main", &repository]);
    for (name, value) in [("core.fsync", "all"), ("user.name", "n"), ("user.email", "n@localhost"), ("gc.auto", "0")] {
        run("git", &[&"-C", &repository, &"config", &name, &value]);
    }
}

/// Commits; how many were made.
fn commits(at: &Path) -> usize {
    for n in 1.. {
        let made = fs::write(at.join("git/file"), content(n)).is_ok()
            && git(at).args(["add", "file"]).status().is_ok_and(|status| status.success())
            && git(at).args(["commit", "-q", "-m", &n.to_string()]).status().is_ok_and(|status| status.success())
            // It syncs what it writes, and not the rename that makes it count.
            && File::open(at.join("git/.git/refs/heads")).is_ok_and(|names| names.sync_all().is_ok());
        if !made {
            return n - 1;
        }
    }
    unreachable!("the mount goes away")
}

/// Blocks that each say where they belong and what they hold.
fn fio(at: &Path, arguments: &[&str]) -> std::process::Child {
    let mut command = Command::new("fio");
    command.arg(format!("--filename={}", at.join("blocks").display())).args(arguments).current_dir("/");
    command.args([
        "--name=blocks",
        "--size=1M",
        "--bs=4k",
        "--verify=crc32c",
        "--randrepeat=0",
        "--allow_file_create=1",
    ]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("fio is installed: scripts/packages")
}
