//! A token in a directory of its own, a process of its own for each test, and what an operator or an attacker does to
//! the token from outside.
//!
//! `VAULTFS_TEST_MODULE` says through what the token is reached: `softhsm` (or nothing), `p11-kit` (a server process in
//! front of SoftHSM), `kryoptic=PATH` of the module, `opencryptoki`, or `shim=LINE` (SoftHSM behind
//! `../support/shim.rs`).

#[path = "../support/shimmed.rs"]
mod shimmed;

use cryptoki::context::Pkcs11;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use vaultfs::keys::{CacheLimits, KekRef, KeyError, Keyring, KeyringConfig, Patience, PinSource, TokenUri, WrappedDek};

pub const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
const P11_KIT: &str = "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so";
const OPENCRYPTOKI: &str = "/usr/lib/x86_64-linux-gnu/pkcs11/libopencryptoki.so";
const DIRECTORY: &str = "VAULTFS_TEST_TOKEN";
pub const PIN: &str = "12345678";
const SO_PIN: &str = "87654321";

/// Through what the tests reach the token.
enum Way {
    SoftHsm,
    P11Kit,
    Kryoptic(PathBuf),
    OpenCryptoki,
    Shim(String),
}

impl Way {
    fn chosen() -> Way {
        let text = std::env::var("VAULTFS_TEST_MODULE").unwrap_or_default();
        match text.split_once('=') {
            None if text.is_empty() || text == "softhsm" => Way::SoftHsm,
            None if text == "p11-kit" => Way::P11Kit,
            None if text == "opencryptoki" => Way::OpenCryptoki,
            Some(("kryoptic", path)) => Way::Kryoptic(path.into()),
            Some(("shim", line)) => Way::Shim(line.to_owned()),
            _ => panic!("VAULTFS_TEST_MODULE={text}"),
        }
    }
}

/// Runs `test` in a child process with a new token; the parent cleans up, however the child ends.
pub fn isolated(name: &str, test: impl FnOnce(&Token)) {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return test(&Token { directory: directory.into() });
    }
    let directory = tempfile::tempdir().unwrap();
    let token = Token { directory: directory.path().to_owned() };
    token.make();
    let mut server = matches!(Way::chosen(), Way::P11Kit).then(|| token.serve());
    let binary = std::env::current_exe().unwrap();
    let mut child = match Way::chosen() {
        Way::OpenCryptoki => on_a_machine_of_its_own(&binary),
        _ => Command::new(binary),
    };
    let child = token
        .environment(&mut child)
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(DIRECTORY, directory.path())
        // Strategies of workloads nest deeply; without optimization their frames are large.
        .env("RUST_MIN_STACK", (16 << 20).to_string())
        .output()
        .unwrap();
    if let Some(server) = &mut server {
        server.kill().and_then(|()| server.wait()).unwrap();
    }
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && out.contains("1 passed"), "{name}: {}\n{out}\n{err}", child.status);
}

/// opencryptoki has one token for the whole machine, and a daemon: namespaces make every test its own.
fn on_a_machine_of_its_own(binary: &Path) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/keys/opencryptoki");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc", script, SO_PIN, PIN]);
    command.arg(binary);
    command
}

pub struct Token {
    directory: PathBuf,
}

impl Token {
    fn make(&self) {
        std::fs::create_dir(self.tokens()).unwrap();
        let tokens = self.tokens();
        let configuration = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
        std::fs::write(self.configuration(), configuration).unwrap();
        self.shim(&[]);
        match Way::chosen() {
            Way::Kryoptic(module) => self.kryoptic(&module),
            // Its namespaces end with the test, so it is made in them.
            Way::OpenCryptoki => {}
            _ => self.softhsm(&["--init-token", "--free", "--label", "vault", "--so-pin", SO_PIN, "--pin", PIN]),
        }
    }

    fn kryoptic(&self, module: &Path) {
        let slot = |number: u32| {
            let database = self.tokens().join(format!("{number}.sql"));
            format!("[[slots]]\nslot = {number}\ndbtype = \"sqlite\"\ndbargs = \"{}\"\n", database.display())
        };
        // The token, and a slot for another.
        std::fs::write(self.directory.join("kryoptic.conf"), slot(42) + &slot(43)).unwrap();
        let tool = |arguments: &[&str]| {
            let mut tool = Command::new("pkcs11-tool");
            run(self.environment(&mut tool).arg("--module").arg(module).args(["--slot", "42"]).args(arguments));
        };
        tool(&["--init-token", "--label", "vault", "--so-pin", SO_PIN]);
        tool(&["--init-pin", "--login", "--login-type", "so", "--so-pin", SO_PIN, "--new-pin", PIN]);
    }

    /// A server process in front of SoftHSM; it listens when this returns.
    pub fn serve(&self) -> std::process::Child {
        let socket = self.directory.join("socket");
        let _ = std::fs::remove_file(&socket);
        let mut server = Command::new("p11-kit");
        let server =
            server.args(["server", "-f", "-n"]).arg(&socket).args(["--provider", SOFTHSM, "pkcs11:token=vault"]);
        let server = self.environment(server).stdout(std::process::Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !socket.exists() {
            assert!(Instant::now() < deadline, "p11-kit's server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("SOFTHSM2_CONF", self.configuration())
            .env("KRYOPTIC_CONF", self.directory.join("kryoptic.conf"))
            .env("P11_KIT_SERVER_ADDRESS", format!("unix:path={}", self.directory.join("socket").display()))
            .env("VAULTFS_SHIM", self.directory.join("shim"))
    }

    /// The module's path.
    pub fn module(&self) -> PathBuf {
        match Way::chosen() {
            Way::SoftHsm => SOFTHSM.into(),
            Way::P11Kit => P11_KIT.into(),
            Way::Kryoptic(path) => path,
            Way::OpenCryptoki => OPENCRYPTOKI.into(),
            Way::Shim(_) => shimmed::path(),
        }
    }

    /// The module behind what stands in front of the token.
    fn real(&self) -> PathBuf {
        match Way::chosen() {
            Way::Kryoptic(_) | Way::OpenCryptoki => self.module(),
            Way::SoftHsm | Way::P11Kit | Way::Shim(_) => SOFTHSM.into(),
        }
    }

    /// How the shim behaves from now on.
    pub fn shim(&self, lines: &[&str]) {
        let always = if let Way::Shim(line) = Way::chosen() { line } else { String::new() };
        let text = format!("module={}\n{}\n{always}\n", self.real().display(), lines.join("\n"));
        let (new, path) = (self.directory.join("shim.new"), self.directory.join("shim"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// The token behind the shim, which behaves so from now on.
    pub fn config_with_shim(&self, lines: &[&str]) -> KeyringConfig {
        self.shim(lines);
        KeyringConfig { uri: uri(&shimmed::path()), ..self.config() }
    }

    fn tokens(&self) -> PathBuf {
        self.directory.join("tokens")
    }

    fn configuration(&self) -> PathBuf {
        self.directory.join("softhsm2.conf")
    }

    pub fn config(&self) -> KeyringConfig {
        self.config_with_pin(PIN)
    }

    pub fn config_with_pin(&self, pin: &str) -> KeyringConfig {
        let path = self.directory.join(format!("pin-{pin}"));
        std::fs::write(&path, format!("{pin}\n")).unwrap();
        set_mode(&path, 0o600);
        KeyringConfig {
            uri: uri(&self.module()),
            pin: PinSource::File(path),
            timeout: Duration::from_secs(5),
            cache: CacheLimits { entries: 10_000, soft: Duration::from_secs(300), hard: Duration::from_secs(900) },
            pool: 0,
        }
    }

    pub fn open(&self) -> Keyring {
        Keyring::open(self.config()).unwrap()
    }

    pub fn pin_file_with_mode(&self, mode: u32) -> PinSource {
        let path = self.directory.join("pin-readable");
        std::fs::write(&path, PIN).unwrap();
        set_mode(&path, mode);
        PinSource::File(path)
    }

    pub fn take_away(&self) {
        std::fs::rename(self.tokens(), self.directory.join("away")).unwrap();
    }

    pub fn bring_back(&self) {
        std::fs::rename(self.directory.join("away"), self.tokens()).unwrap();
    }

    /// Whether it keeps what is wrapped under a root key from being read.
    pub fn guards_wrapped_keys(&self) -> bool {
        match Way::chosen() {
            Way::SoftHsm | Way::Kryoptic(_) => true,
            Way::Shim(line) => !["gcm=none", "gcm=appended", "weak=yes"].contains(&line.as_str()),
            // Neither has AES-GCM.
            Way::P11Kit | Way::OpenCryptoki => false,
        }
    }

    /// A second token that nobody can log in to.
    pub fn without_user_pin(&self, label: &str) {
        self.beside(|pkcs11| {
            let slots = pkcs11.get_all_slots().unwrap();
            let free = |slot: &&Slot| !pkcs11.get_token_info(**slot).unwrap().token_initialized();
            let slot = *slots.iter().find(free).unwrap();
            pkcs11.init_token(slot, &AuthPin::from(SO_PIN.to_owned()), label).unwrap();
        });
    }

    /// As another user of the module in this process would.
    pub fn log_everybody_out(&self) {
        self.beside(|pkcs11| session(pkcs11).logout().unwrap());
    }

    pub fn change_pin(&self, new: &str) {
        let [old, new] = [PIN, new].map(|pin| AuthPin::from(pin.to_owned()));
        self.beside(|pkcs11| session(pkcs11).set_pin(&old, &new).unwrap());
    }

    /// Keys that a new process sees on the token.
    pub fn keys(&self) -> usize {
        let listed = self.pkcs11_tool(&["--list-objects", "--type", "secrkey"]);
        listed.lines().filter(|line| line.starts_with("Secret Key Object")).count()
    }

    pub fn destroy_elsewhere(&self, kek: KekRef) {
        self.pkcs11_tool(&["--delete-object", "--type", "secrkey", "--id", &hex(kek)]);
    }

    /// A KEK whose value is known, as an operator might bring one.
    pub fn import(&self, kek: KekRef, suite: u8, value: &[u8; 32]) {
        let (key_type, rights) = match suite {
            1 => (KeyType::AES, [Attribute::Encrypt(true), Attribute::Decrypt(true)]),
            _ => (KeyType::GENERIC_SECRET, [Attribute::Sign(true), Attribute::Verify(false)]),
        };
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(key_type),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Id([&kek.id[..], &kek.version.to_be_bytes()].concat()),
            Attribute::Value(value.to_vec()),
        ];
        template.extend(rights);
        self.beside(|pkcs11| {
            session(pkcs11).create_object(&template).unwrap();
        });
    }

    /// What a kill inside C_GenerateKey leaves of the key that is not among `others`: SoftHSM writes a key's
    /// attributes first, then its value.
    pub fn cut_value(&self, others: &[PathBuf]) {
        const VALUE: u64 = 0x11;
        let paths: Vec<_> = self.object_files().into_iter().filter(|path| !others.contains(path)).collect();
        let [path] = &paths[..] else { panic!("one key expected: {paths:?}") };
        let file = std::fs::read(path).unwrap();
        // A generation, then attributes: type, kind, and a bool (kind 1), a number (2), bytes (3, 4) or mechanisms (5)
        // behind how many they are.
        let number = |at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap());
        // The next generation, so that who has read the file reads it again.
        let (mut kept, mut at) = ((number(0) + 1).to_be_bytes().to_vec(), 8);
        while at < file.len() {
            let end = at
                + match number(at + 8) {
                    1 => 17,
                    2 => 24,
                    3 | 4 => 24 + number(at + 16) as usize,
                    5 => 24 + 8 * number(at + 16) as usize,
                    kind => panic!("attributes of kind {kind} are not known here"),
                };
            if number(at) != VALUE {
                kept.extend(&file[at..end]);
            }
            at = end;
        }
        assert!(kept.len() < file.len(), "it had no value");
        std::fs::write(path, kept).unwrap();
    }

    pub fn object_files(&self) -> Vec<PathBuf> {
        let tokens = std::fs::read_dir(self.tokens()).unwrap();
        let files = tokens.flat_map(|token| std::fs::read_dir(token.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "object")).collect()
    }

    /// Tries what would make a KEK readable or give it rights it was not made with.
    pub fn assert_kek_is_shut(&self, kek: KekRef) {
        self.beside(|pkcs11| {
            let session = session(pkcs11);
            let id = Attribute::Id([&kek.id[..], &kek.version.to_be_bytes()].concat());
            let found = session.find_objects(&[Attribute::Class(ObjectClass::SECRET_KEY), id]).unwrap();
            let [key] = found[..] else { panic!("{} keys", found.len()) };
            assert!(session.get_attributes(key, &[AttributeType::Value]).unwrap().is_empty(), "readable");
            for more in [
                Attribute::Wrap(true),
                Attribute::Derive(true),
                Attribute::Extractable(true),
                Attribute::Sensitive(false),
                Attribute::Modifiable(true),
                Attribute::Label(b"other".to_vec()),
            ] {
                let more = [more];
                assert!(session.update_attributes(key, &more).is_err(), "changed: {more:?}");
                assert!(session.copy_object(key, &more).is_err(), "copied: {more:?}");
            }
            assert!(wrap_out(&session, key).is_err(), "wrapped out");
        });
    }

    fn beside(&self, act: impl FnOnce(&Pkcs11)) {
        // The keyring of this process has initialized the module already.
        act(&Pkcs11::new(self.module()).unwrap());
    }

    fn softhsm(&self, arguments: &[&str]) {
        run(self.environment(Command::new("softhsm2-util").args(arguments)));
    }

    /// As another process, and past what stands in front of the token.
    fn pkcs11_tool(&self, arguments: &[&str]) -> String {
        let mut tool = Command::new("pkcs11-tool");
        tool.arg("--module").arg(self.real()).args(["--token-label", "vault", "--login", "--pin", PIN]).args(arguments);
        run(self.environment(&mut tool))
    }
}

fn wrap_out(session: &Session, key: ObjectHandle) -> cryptoki::error::Result<Vec<u8>> {
    use cryptoki::mechanism::Mechanism;
    let template = [Attribute::Token(false), Attribute::ValueLen(32.into()), Attribute::Wrap(true)];
    let wrapping = session.generate_key(&Mechanism::AesKeyGen, &template)?;
    session.wrap_key(&Mechanism::AesKeyWrap, wrapping, key)
}

/// The slot of the token.
pub fn slot(pkcs11: &Pkcs11) -> Slot {
    // `cryptoki` cannot read opencryptoki's clock, and refuses to say anything of its token.
    let initialized = |slot: &Slot| pkcs11.get_token_info(*slot).map_or(true, |info| info.token_initialized());
    pkcs11.get_slots_with_token().unwrap().into_iter().find(initialized).unwrap()
}

fn session(pkcs11: &Pkcs11) -> Session {
    let session = pkcs11.open_rw_session(slot(pkcs11)).unwrap();
    // The keyring has logged the process in.
    let _ = session.login(UserType::User, Some(&AuthPin::from(PIN.to_owned())));
    session
}

fn uri(module: &Path) -> TokenUri {
    // It is older than the attribute that keeps keys from being copied.
    let copies = if let Way::OpenCryptoki = Way::chosen() { "&copies=accepted" } else { "" };
    format!("pkcs11:token=vault?module-path={}{copies}", module.display()).parse().unwrap()
}

fn hex(kek: KekRef) -> String {
    format!("{:032x}{:08x}", u128::from_be_bytes(kek.id), kek.version)
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

pub fn refusal(opened: Result<Keyring, KeyError>) -> KeyError {
    match opened {
        Ok(_) => panic!("opened"),
        Err(error) => error,
    }
}

pub fn eventually(within: Duration, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {within:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn context(organization: &str) -> Vec<(String, String)> {
    vec![("organizationId".to_owned(), organization.to_owned())]
}

pub fn kek(keyring: &Keyring) -> KekRef {
    let kek = KekRef::fresh();
    keyring.create_kek(kek).unwrap();
    kek
}

/// A wrapped DEK that the cache does not hold.
pub fn wrapped(keyring: &Keyring, kek: KekRef) -> WrappedDek {
    let wrapped = keyring.fresh(1, &[kek], &context("a"), Patience::Wait).unwrap().wrapped;
    keyring.forget(&wrapped.dek_id);
    wrapped
}
