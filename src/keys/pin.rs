//! Where the token's PIN comes from, and how it is held: in locked memory, never on a command line.

use super::{KeyError, configuration};
use crate::crypto::{CryptoError, LockedKey};
use cryptoki::types::{AuthPin, RawAuthPin};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::RawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use zeroize::{Zeroize, Zeroizing};

/// Longer than any token's PIN; bounds what is read from a wrong file.
const LONGEST: u64 = 1024;

/// Where to read the PIN. Written `file:PATH`, `fd:N`, `credential:NAME`, `prompt` or `env:NAME`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PinSource {
    /// A file that its owner alone may read.
    File(PathBuf),
    /// An inherited descriptor, opened as `/proc/self/fd/N` (a pipe or a file, not a socket).
    Fd(RawFd),
    /// A credential of the systemd unit: `LoadCredentialEncrypted=NAME:…`.
    Credential(String),
    /// The terminal.
    Prompt,
    /// An environment variable: for tests only, since every child process inherits it.
    Environment(String),
}

impl PinSource {
    /// Whether another process than the one it was given to reads something else from it.
    pub fn is_private(&self) -> bool {
        matches!(self, PinSource::Fd(_) | PinSource::Prompt | PinSource::Environment(_))
    }

    /// Reads the PIN once; one newline at its end does not belong to it.
    pub fn read(&self) -> Result<Pin, KeyError> {
        let text = match self {
            PinSource::File(path) => read_private(path)?,
            PinSource::Fd(number) => read_all(Path::new(&format!("/proc/self/fd/{number}")))?,
            PinSource::Credential(name) => read_all(&credential(name)?)?,
            PinSource::Prompt => rpassword::prompt_password("PIN of the token: ")
                .map(|pin| Zeroizing::new(pin.into_bytes()))
                .map_err(|error| configuration(format!("cannot ask for the PIN on the terminal: {error}")))?,
            PinSource::Environment(name) => std::env::var(name)
                .map(|pin| Zeroizing::new(pin.into_bytes()))
                .map_err(|_| configuration(format!("the environment variable {name} holds no PIN")))?,
        };
        let pin = text.strip_suffix(b"\n").unwrap_or(&text);
        if pin.is_empty() {
            return Err(configuration(format!("the PIN from {self} is empty")));
        }
        Ok(Pin::lock(pin)?)
    }
}

fn read_private(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let file = open(path)?;
    let mode = file.metadata().map_err(|error| unreadable(path, &error))?.permissions().mode();
    if mode & 0o077 != 0 {
        let path = path.display();
        let mode = mode & 0o7777;
        return Err(configuration(format!("others may read the PIN file {path} (mode {mode:04o}): chmod 0400 {path}")));
    }
    read_from(file, path)
}

/// Without a look at the mode: systemd keeps its credentials readable by an ACL, which shows as a group mode.
fn read_all(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    read_from(open(path)?, path)
}

fn open(path: &Path) -> Result<File, KeyError> {
    File::open(path).map_err(|error| unreadable(path, &error))
}

fn read_from(file: File, path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    // All the room at once, so that growing leaves no copy behind.
    let mut pin = Zeroizing::new(Vec::with_capacity(LONGEST as usize + 1));
    file.take(LONGEST + 1).read_to_end(&mut pin).map_err(|error| unreadable(path, &error))?;
    if pin.len() as u64 > LONGEST {
        return Err(configuration(format!("{} is longer than any PIN: is it the right file?", path.display())));
    }
    Ok(pin)
}

fn unreadable(path: &Path, error: &std::io::Error) -> KeyError {
    configuration(format!("cannot read the PIN file {}: {error}", path.display()))
}

fn credential(name: &str) -> Result<PathBuf, KeyError> {
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        configuration(format!(
            "there is no credential {name} outside of a systemd service: put LoadCredentialEncrypted={name}:/etc/credstore.encrypted/{name} \
             into the unit, or name another PIN source"
        ))
    })?;
    Ok(Path::new(&directory).join(name))
}

impl FromStr for PinSource {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let unknown = || {
            // The text is not repeated: somebody may have put the PIN itself here.
            configuration("a PIN source is file:PATH, fd:N, credential:NAME, prompt or env:NAME; never the PIN itself")
        };
        if text == "prompt" {
            return Ok(PinSource::Prompt);
        }
        let (kind, rest) = text.split_once(':').filter(|(_, rest)| !rest.is_empty()).ok_or_else(unknown)?;
        match kind {
            "file" => Ok(PinSource::File(rest.into())),
            "fd" => rest.parse().ok().filter(|fd| *fd >= 0).map(PinSource::Fd).ok_or_else(unknown),
            "credential" if !rest.contains('/') && !rest.starts_with('.') => Ok(PinSource::Credential(rest.into())),
            "env" => Ok(PinSource::Environment(rest.into())),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PinSource::File(path) => write!(f, "file:{}", path.display()),
            PinSource::Fd(number) => write!(f, "fd:{number}"),
            PinSource::Credential(name) => write!(f, "credential:{name}"),
            PinSource::Prompt => f.write_str("prompt"),
            PinSource::Environment(name) => write!(f, "env:{name}"),
        }
    }
}

impl TryFrom<String> for PinSource {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PinSource> for String {
    fn from(source: PinSource) -> Self {
        source.to_string()
    }
}

/// A PIN in the same locked memory as the keys, in pieces of their size: it is needed again after an outage. Each piece
/// is kept as two random halves, so that it stands nowhere for those who search memory for it.
pub struct Pin {
    pieces: Vec<[LockedKey; 2]>,
    len: usize,
}

impl Pin {
    fn lock(pin: &[u8]) -> Result<Self, CryptoError> {
        let lock = |piece: &[u8]| {
            let mask = LockedKey::generate()?;
            let mut masked = Zeroizing::new(*mask.expose());
            masked.iter_mut().zip(piece).for_each(|(masked, byte)| *masked ^= byte);
            Ok([LockedKey::take(&mut masked)?, mask])
        };
        Ok(Pin { pieces: pin.chunks(32).map(lock).collect::<Result<_, CryptoError>>()?, len: pin.len() })
    }

    /// A copy for the moment of the login, wiped when dropped.
    pub(super) fn for_login(&self) -> RawAuthPin {
        RawAuthPin::new(Box::new(self.copy()))
    }

    /// A copy for C_SetPIN, wiped when dropped.
    pub(super) fn for_change(&self) -> Result<AuthPin, KeyError> {
        let text = String::from_utf8(self.copy()).map_err(|not_text| {
            not_text.into_bytes().zeroize();
            configuration("a PIN that is to be changed, and a new one, are UTF-8")
        })?;
        Ok(AuthPin::from(text))
    }

    fn copy(&self) -> Vec<u8> {
        let bytes = |[masked, mask]: &[LockedKey; 2], at: usize| masked.expose()[at] ^ mask.expose()[at];
        // All the room at once, so that growing leaves no copy behind.
        let mut pin = Vec::with_capacity(self.len);
        pin.extend((0..self.len).map(|at| bytes(&self.pieces[at / 32], at % 32)));
        pin
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn bytes(pin: &Pin) -> Vec<u8> {
        pin.copy()
    }

    fn file(content: &[u8], mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn one_newline_is_stripped() {
        let long = [b'7'; 100];
        for (content, pin) in
            [(&b"1234\n"[..], &b"1234"[..]), (b"1234\n\n", b"1234\n"), (b"12 34", b"12 34"), (&long, &long)]
        {
            let file = file(content, 0o400);
            let read = PinSource::File(file.path().into()).read().unwrap();
            assert_eq!(bytes(&read), pin);
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        for mode in [0o440, 0o404, 0o644] {
            let file = file(b"1234", mode);
            let message = PinSource::File(file.path().into()).read().unwrap_err().to_string();
            assert!(
                message.contains("chmod 0400") && message.contains(&file.path().display().to_string()),
                "{message}"
            );
        }
    }

    #[test]
    fn a_descriptor_is_read() {
        let file = file(b"4711\n", 0o400);
        let open = File::open(file.path()).unwrap();
        assert_eq!(bytes(&PinSource::Fd(open.as_raw_fd()).read().unwrap()), b"4711");
    }

    #[test]
    fn empty_long_and_missing_pins_are_refused() {
        assert!(PinSource::File(file(b"\n", 0o400).path().into()).read().is_err());
        assert!(PinSource::File(file(&[b'1'; 5000], 0o400).path().into()).read().is_err());
        assert!(
            PinSource::File("/nonexistent/pin".into()).read().unwrap_err().to_string().contains("/nonexistent/pin")
        );
    }

    #[test]
    fn sources_are_written_as_they_are_read() {
        for text in ["file:/etc/pin", "fd:3", "credential:hsm-pin", "prompt", "env:VAULTFS_PIN"] {
            assert_eq!(text.parse::<PinSource>().unwrap().to_string(), text);
        }
        for text in ["", "1234", "file:", "fd:x", "fd:-1", "credential:../x", "pin:1234"] {
            let message = text.parse::<PinSource>().unwrap_err().to_string();
            assert!(!message.contains("1234"), "{message}");
        }
    }
}
