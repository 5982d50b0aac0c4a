//! A vault of its own for each test: a private directory with a SoftHSM token, a state directory and a mount. Whatever
//! becomes of the test, dropping it unmounts, ends the daemon and removes the directory.
//!
//! `SOFTHSM2_CONF` stands only in the environment of the commands that are run.

// Each test binary uses its own part of this.
#![allow(dead_code)]

#[path = "shimmed.rs"]
mod shimmed;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vaultfs");
const PIN: &str = "1234";
/// Seconds after which a command counts as hanging.
const HANGS: &str = "60";

pub struct Vault {
    directory: TempDir,
    /// The PKCS#11 module that commands are told of.
    module: PathBuf,
}

/// A p11-kit server, in front of the token until it is dropped.
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Its own, and those of its children that serve a client each.
        // SAFETY: kill takes two numbers and touches no memory of ours.
        unsafe { libc::kill(-(self.0.id() as i32), libc::SIGKILL) };
        let _ = self.0.wait();
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Vault {
    /// A new vault, mounted.
    pub fn up() -> Vault {
        Self::up_with(&[])
    }

    /// A new vault, mounted with `-o` options and others.
    pub fn up_with(arguments: &[&str]) -> Vault {
        let vault = Self::new();
        vault.mount(arguments);
        vault
    }

    /// A new vault that is not mounted.
    pub fn new() -> Vault {
        assert!(
            Path::new("/dev/fuse").exists(),
            "there is no /dev/fuse: nothing can be mounted, and this test needs it"
        );
        let vault = Self::without_state();
        vault.init();
        vault
    }

    /// Makes the vault.
    pub fn init(&self) {
        let (state, uri, pin) = (self.state(), self.uri(), self.pin());
        self.command(&["init", state.to_str().unwrap(), "--token", &uri, "--pin-source", &pin]).good();
    }

    /// What `fsck` says against it.
    pub fn is_sound(&self) -> Result<(), String> {
        let checked = self.command(&["fsck"]);
        // 124 is `timeout`: it hangs, or the machine has much else to do.
        let said = || format!("fsck ended with {}: {}{}", checked.code, checked.text(), checked.err);
        if checked.code == 0 { Ok(()) } else { Err(said()) }
    }

    /// A directory with a token and no vault yet.
    pub fn without_state() -> Vault {
        let vault = Vault {
            directory: tempfile::Builder::new().prefix("vaultfs-").tempdir().unwrap(),
            module: module().into(),
        };
        for directory in [vault.token(), vault.token().join("tokens"), vault.point()] {
            fs::create_dir(directory).unwrap();
        }
        let tokens = vault.token().join("tokens");
        let configuration = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        fs::write(vault.token().join("softhsm2.conf"), configuration).unwrap();
        vault.write_pin(PIN);
        let arguments = ["--init-token", "--free", "--label", "vault", "--so-pin", "5678", "--pin", PIN];
        Done::of(vault.in_environment("softhsm2-util").args(arguments), b"").good();
        vault
    }

    /// All of it: the token, the state directory, the mount point.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn state(&self) -> PathBuf {
        self.directory().join("state")
    }

    pub fn token(&self) -> PathBuf {
        self.directory().join("token")
    }

    pub fn point(&self) -> PathBuf {
        self.directory().join("mnt")
    }

    /// A path in the mount.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.point().join(path)
    }

    /// Makes an organization; its directory.
    pub fn org(&self, name: &str) -> PathBuf {
        fs::create_dir(self.at(name)).unwrap();
        self.at(name)
    }

    /// The tombstones of an organization, or with "" the graveyards.
    pub fn tombstones(&self, organization: &str) -> Vec<PathBuf> {
        let listed = fs::read_dir(self.at(".tombstones").join(organization)).unwrap();
        let mut found: Vec<PathBuf> = listed.take(1000).map(|entry| entry.unwrap().path()).collect();
        assert!(found.len() < 1000, "a listing without an end");
        found.sort();
        found
    }

    /// The one tombstone of an organization.
    pub fn tombstone(&self, organization: &str) -> PathBuf {
        let found = self.tombstones(organization);
        let [only] = &found[..] else { panic!("one tombstone expected: {found:?}") };
        only.clone()
    }

    pub fn uri(&self) -> String {
        format!("pkcs11:token=vault?module-path={}", self.module.display())
    }

    /// The token is reached through the shim (`shim.rs`), which behaves like this.
    pub fn behind_shim(&mut self, lines: &[&str]) {
        self.module = shimmed::path();
        self.shim(lines);
    }

    /// How the shim behaves from now on.
    pub fn shim(&self, lines: &[&str]) {
        let text = format!("module={}\n{}\n", module(), lines.join("\n"));
        let new = self.token().join("shim.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.token().join("shim")).unwrap();
    }

    /// The token is reached through a process of its own, as one in the network is.
    pub fn behind_server(&mut self) -> Server {
        self.module = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so".into();
        assert!(self.module.exists(), "p11-kit is missing: run scripts/packages");
        self.serve_token()
    }

    /// Starts that process again; it listens when this returns.
    pub fn serve_token(&self) -> Server {
        let socket = self.token().join("socket");
        let _ = fs::remove_file(&socket);
        let mut server = self.in_environment("p11-kit");
        server.args(["server", "-f", "-n"]).arg(&socket).args(["--provider", module(), "pkcs11:token=vault"]);
        let server = Server(server.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "p11-kit's server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Somebody else gives the token another PIN.
    pub fn change_pin_elsewhere(&self, new: &str) {
        let tool = ["--module", module(), "--token-label", "vault", "--login", "--pin", PIN, "--change-pin"];
        Done::of(self.in_environment("pkcs11-tool").args(tool).args(["--new-pin", new]), b"").good();
    }

    pub fn pin(&self) -> String {
        format!("file:{}", self.token().join("pin").display())
    }

    pub fn write_pin(&self, pin: &str) {
        let path = self.token().join("pin");
        fs::write(&path, format!("{pin}\n")).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    }

    pub fn take_token_away(&self) {
        fs::rename(self.token().join("tokens"), self.token().join("away")).unwrap();
    }

    pub fn bring_token_back(&self) {
        fs::rename(self.token().join("away"), self.token().join("tokens")).unwrap();
    }

    /// Does something while the token lacks one KEK (`kek_…:vN`).
    pub fn without_kek(&self, kek: &str, act: impl FnOnce()) {
        let (id, version) = kek.strip_prefix("kek_").and_then(|kek| kek.split_once(":v")).expect("a KEK's name");
        let id = format!("{id}{:08x}", version.parse::<u32>().unwrap());
        let kept = self.directory().join("token-kept");
        run("cp", &[&"-a", &self.token(), &kept]);
        let tool = ["--module", module(), "--token-label", "vault", "--login", "--pin", PIN, "--delete-object"];
        let mut tool = {
            let mut c = self.in_environment("pkcs11-tool");
            c.args(tool);
            c
        };
        Done::of(tool.args(["--type", "secrkey", "--id", &id]), b"").good();
        act();
        fs::remove_dir_all(self.token()).unwrap();
        fs::rename(kept, self.token()).unwrap();
    }

    /// What `/metrics` answers on the control socket.
    pub fn metrics(&self) -> String {
        let mut socket = UnixStream::connect(self.state().join("control.sock")).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: vaultfs\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        answer
    }

    /// Keys in the token. A kill while SoftHSM makes or destroys one leaves files that are none.
    pub fn token_keys(&self) -> usize {
        let tool = ["--module", module(), "--token-label", "vault", "--login", "--pin", PIN];
        let mut command = self.in_environment("pkcs11-tool");
        let listed = Done::of(command.args(tool).args(["--list-objects", "--type", "secrkey"]), b"").good();
        listed.text().lines().filter(|line| line.trim_start().starts_with("ID:")).count()
    }

    /// Files that the token keeps: one for each object in it, and few others.
    pub fn token_files(&self) -> usize {
        let listed = Done::of(Command::new("find").arg(self.token()).args(["-name", "*.object"]), b"").good();
        listed.out.iter().filter(|b| **b == b'\n').count()
    }

    pub fn mount(&self, arguments: &[&str]) {
        self.try_mount(arguments).good();
    }

    pub fn try_mount(&self, arguments: &[&str]) -> Done {
        let (state, point) = (self.state(), self.point());
        let places = ["mount", state.to_str().unwrap(), point.to_str().unwrap()];
        self.command(&[&places, arguments].concat())
    }

    /// Serves the API without a mount.
    pub fn serve(&self, arguments: &[&str]) {
        let state = self.state();
        self.command(&[&["serve", state.to_str().unwrap()], arguments].concat()).good();
    }

    /// Ends the daemon that serves without a mount.
    pub fn stop(&self) {
        let pid = self.daemon().expect("a daemon to stop");
        signal(pid, libc::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while runs(pid) {
            assert!(Instant::now() < deadline, "the daemon survives SIGTERM");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What this process has closed, a child that another test has just forked may hold until it starts its program.
    pub fn umount(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let done = self.command(&["umount", self.point().to_str().unwrap()]);
            if !done.err.contains("in use") || Instant::now() >= deadline {
                done.good();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn remount(&self) {
        self.umount();
        self.mount(&[]);
    }

    /// `kill -9` of the daemon, and the dead mount cleared.
    pub fn kill(&self) {
        let pid = self.daemon().expect("a daemon to kill");
        let headers = self.token_headers();
        signal(pid, libc::SIGKILL);
        let deadline = Instant::now() + Duration::from_secs(10);
        while runs(pid) {
            assert!(Instant::now() < deadline, "the daemon survives SIGKILL");
            std::thread::sleep(Duration::from_millis(5));
        }
        // SoftHSM loses a token by itself when it is killed while it logs in (docs/tokens.md).
        let lost = headers.iter().filter(|(path, _)| fs::metadata(path).is_ok_and(|file| file.len() == 0));
        lost.for_each(|(path, header)| fs::write(path, header).unwrap());
        unmount_lazily(&self.point());
    }

    /// The file of each SoftHSM token that says its label and holds its PINs. At a login SoftHSM empties it and writes it anew.
    fn token_headers(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let tokens = fs::read_dir(self.token().join("tokens")).into_iter().flatten().flatten();
        let headers = tokens.map(|token| token.path().join("token.object"));
        let whole = |path: &PathBuf| loop {
            let header = fs::read(path).unwrap();
            if !header.is_empty() {
                return header;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        headers.map(|path| (path.clone(), whole(&path))).collect()
    }

    /// The daemon's pid, if there is one.
    pub fn daemon(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.state().join("lock")).ok()?.trim().parse().ok()?;
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = self.directory().as_os_str().as_encoded_bytes();
        (arguments.windows(ours.len()).any(|part| part == ours) && runs(pid)).then_some(pid)
    }

    /// Runs `vaultfs` with this vault and no input.
    pub fn command(&self, arguments: &[&str]) -> Done {
        self.command_with(arguments, b"")
    }

    pub fn command_with(&self, arguments: &[&str], input: &[u8]) -> Done {
        Done::of(self.in_environment("timeout").args(["-k", "5", HANGS, PROGRAM]).args(arguments), input)
    }

    /// A command as a user of this vault would run it.
    pub fn in_environment(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.token().join("softhsm2.conf")).env("VAULTFS_STATE", self.state());
        command.env("VAULTFS_SHIM", self.token().join("shim"));
        command.env("P11_KIT_SERVER_ADDRESS", format!("unix:path={}", self.token().join("socket").display()));
        command.env("LC_ALL", "C");
        command
    }

    /// Lets other users reach the mount point.
    pub fn open_to_others(&self) {
        fs::set_permissions(self.directory(), PermissionsExt::from_mode(0o711)).unwrap();
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let pid = self.daemon();
        unmount_lazily(&self.point());
        let Some(pid) = pid else { return };
        // Where it serves without a mount, this ends it.
        signal(pid, libc::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(10);
        while runs(pid) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.daemon() == Some(pid) {
            signal(pid, libc::SIGKILL);
        }
    }
}

impl Done {
    pub fn of(command: &mut Command, input: &[u8]) -> Done {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        // A command that does not want its input closes the pipe.
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        feeder.join().unwrap();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        Done { code: output.status.code().unwrap_or(-1), out: output.stdout, err }
    }

    /// It did what it should.
    #[track_caller]
    pub fn good(self) -> Done {
        assert_eq!(self.code, 0, "{}{}", self.text(), self.err);
        self
    }

    /// It refused with this exit code, and said something.
    #[track_caller]
    pub fn refused(self, code: i32) -> Done {
        assert_eq!(self.code, code, "{}{}", self.text(), self.err);
        assert!(!self.err.trim().is_empty(), "refused without a word");
        self
    }

    /// It said this on standard error.
    #[track_caller]
    pub fn saying(self, what: &str) -> Done {
        assert!(self.err.contains(what), "{what:?} expected in: {}", self.err);
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }
}

/// Runs a program that has to end well; its standard output.
#[track_caller]
pub fn run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> String {
    try_run(program, arguments).good().text()
}

pub fn try_run(program: &str, arguments: &[&dyn AsRef<OsStr>]) -> Done {
    let mut command = Command::new("timeout");
    command.args(["-k", "5", HANGS, program]).args(arguments.iter().map(|a| a.as_ref())).env("LC_ALL", "C");
    Done::of(&mut command, b"")
}

fn module() -> &'static str {
    let places = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"];
    places.into_iter().find(|path| Path::new(path).exists()).expect("libsofthsm2.so is missing: run scripts/packages")
}

/// Whether any thread of a process is left: its lock is free when the last has ended, not the first.
fn runs(pid: u32) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.any(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, after)| !after.starts_with(['Z', 'X']))
    })
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    unsafe { libc::kill(pid as i32, signal) };
}

fn unmount_lazily(point: &Path) {
    // SAFETY: geteuid has no arguments and never fails.
    let root = unsafe { libc::geteuid() } == 0;
    let mut command = if root { Command::new("umount") } else { Command::new("fusermount3") };
    let command = if root { command.arg("-l") } else { command.arg("-uz") };
    // Not mounted at all is as good.
    let _ = command.arg(point).stdout(Stdio::null()).stderr(Stdio::null()).status();
}
