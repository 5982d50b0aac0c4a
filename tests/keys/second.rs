//! A second SoftHSM token beside the test's own, reached through a module of its own: one that an organization brings.

use super::token::SOFTHSM;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use vaultfs::keys::TokenPlace;
use vaultfs::vault::Residency;

pub struct Second {
    label: String,
    pin: String,
    /// Where SoftHSM keeps it, and where it is when it is away.
    files: PathBuf,
    away: PathBuf,
    module: PathBuf,
    pin_file: PathBuf,
}

impl Second {
    /// Makes the token. With `apart`, a copy of the module serves it, which knows nothing of what the other does.
    pub fn make(label: &str, apart: bool) -> Second {
        let configuration = PathBuf::from(std::env::var_os("SOFTHSM2_CONF").expect("an isolated test"));
        let home = configuration.parent().unwrap();
        let before = tokens(home);
        let (label, pin) = (label.to_owned(), "4321".to_owned());
        let options = ["--init-token", "--free", "--label", &label, "--so-pin", "8765", "--pin", &pin];
        assert!(Command::new("softhsm2-util").args(options).output().unwrap().status.success());
        let files = tokens(home).difference(&before).next().unwrap().clone();
        let module = match apart {
            true => home.join(format!("{label}.so")),
            false => PathBuf::from(SOFTHSM),
        };
        if apart {
            std::fs::copy(SOFTHSM, &module).unwrap();
        }
        let (away, pin_file) = (home.join(format!("{label}-away")), home.join(format!("{label}-pin")));
        let second = Second { label, pin, files, away, module, pin_file };
        second.write_pin(&second.pin);
        second
    }

    pub fn uri(&self) -> String {
        format!("pkcs11:token={}?module-path={}", self.label, self.module.display())
    }

    pub fn pin_source(&self) -> String {
        format!("file:{}", self.pin_file.display())
    }

    pub fn residency(&self) -> Residency {
        let (uri, pin) = (self.uri().parse().unwrap(), self.pin_source().parse().unwrap());
        Residency::External(Box::new(TokenPlace { uri, pin }))
    }

    pub fn write_pin(&self, pin: &str) {
        std::fs::write(&self.pin_file, pin).unwrap();
        std::fs::set_permissions(&self.pin_file, PermissionsExt::from_mode(0o600)).unwrap();
    }

    pub fn take_away(&self) {
        std::fs::rename(&self.files, &self.away).unwrap();
    }

    pub fn bring_back(&self) {
        std::fs::rename(&self.away, &self.files).unwrap();
    }

    /// Keys that a new process sees on it.
    pub fn keys(&self) -> usize {
        let tool = ["--module", SOFTHSM, "--token-label", &self.label, "--login", "--pin", &self.pin];
        let list = ["--list-objects", "--type", "secrkey"];
        let listed = Command::new("pkcs11-tool").args(tool).args(list).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8_lossy(&listed.stdout).lines().filter(|line| line.starts_with("Secret Key Object")).count()
    }
}

fn tokens(home: &Path) -> BTreeSet<PathBuf> {
    std::fs::read_dir(home.join("tokens")).unwrap().map(|entry| entry.unwrap().path()).collect()
}
