//! Mount options, `-o a,b=c`: mount(8)'s own, the vault's, and none other.

use super::exit::Failure;
use crate::daemon::Listen;
use crate::fs::MountOptions;
use std::path::PathBuf;

/// Everything that `-o` can say, sorted by who wants to know it.
pub struct Options {
    pub mount: MountOptions,
    pub token: Option<String>,
    pub pin_source: Option<String>,
    pub show_hidden: bool,
    pub listen: Option<String>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// `name=value`, for the vault to judge.
    pub settings: Vec<(String, String)>,
}

/// Said to mount(8), fstab(5) or systemd, or what happens anyway.
const FOR_OTHERS: [&str; 11] =
    ["defaults", "nofail", "_netdev", "auto", "noauto", "user", "nouser", "users", "owner", "group", "async"];

impl Options {
    /// `owner_uid`: who mounts; root shares the mount with everybody unless told otherwise.
    pub fn parse<'a>(options: impl IntoIterator<Item = &'a str>, owner_uid: u32) -> Result<Options, Failure> {
        let mut parsed = Options {
            mount: MountOptions::new(String::new(), owner_uid),
            token: None,
            pin_source: None,
            show_hidden: false,
            listen: None,
            tls_cert: None,
            tls_key: None,
            settings: Vec::new(),
        };
        for option in options.into_iter().flat_map(split) {
            parsed.take(&option)?;
        }
        Ok(parsed)
    }

    /// Where the API is to be answered over the network. The daemon leaves the working directory: paths are absolute.
    pub fn listen(&self) -> Result<Option<Listen>, Failure> {
        let Some(address) = &self.listen else { return Ok(None) };
        let absolute = |path: &PathBuf| super::canonical(path);
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(chain), Some(key)) => Some((absolute(chain)?, absolute(key)?)),
            (None, None) => None,
            _ => return Err(Failure::usage("TLS needs both a certificate and its key")),
        };
        Listen::parse(address, tls).map(Some).map_err(Failure::usage)
    }

    fn take(&mut self, option: &str) -> Result<(), Failure> {
        match option {
            "noallow_other" => self.mount.allow_other = false,
            "relatime" => self.mount.atime = true,
            "show_hidden" => self.show_hidden = true,
            _ if FOR_OTHERS.contains(&option) || option.starts_with("x-") || option.starts_with("X-") => {}
            _ if self.mount.apply(option) => {}
            _ => return self.take_pair(option),
        }
        Ok(())
    }

    fn take_pair(&mut self, option: &str) -> Result<(), Failure> {
        match option.split_once('=') {
            Some(("token", uri)) => self.token = Some(uri.into()),
            Some(("pin_source", source)) => self.pin_source = Some(source.into()),
            Some(("listen", address)) => self.listen = Some(address.into()),
            Some(("tls_cert", path)) => self.tls_cert = Some(path.into()),
            Some(("tls_key", path)) => self.tls_key = Some(path.into()),
            Some(("comment", _)) => {}
            Some((name, value)) => self.settings.push((name.into(), value.into())),
            None if option == "remount" => {
                let how = "remount: a daemon cannot do it by itself; use `mount -o remount,… MOUNTPOINT`";
                return Err(Failure::usage(how));
            }
            None => return Err(Failure::usage(format!("there is no mount option {option}"))),
        }
        Ok(())
    }
}

/// Options are separated by commas; `\,` is a comma inside one, as in fuse(8).
fn split(options: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut characters = options.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\\' if characters.peek() == Some(&',') => {
                found.last_mut().expect("never empty").push(characters.next().expect("peeked"))
            }
            ',' => found.push(String::new()),
            _ => found.last_mut().expect("never empty").push(c),
        }
    }
    found.retain(|option| !option.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_find_who_wants_them() {
        let text = "rw,ro,nosuid,noatime,x-systemd.automount,nofail,show_hidden,keep_versions=3,pin_source=file:/a\\,b";
        let options = Options::parse([text, "token=pkcs11:token=t;id=%01"], 0).unwrap();
        assert!(options.mount.read_only && !options.mount.suid && !options.mount.atime && options.mount.allow_other);
        assert!(options.mount.dev && options.show_hidden);
        assert_eq!(options.token.as_deref(), Some("pkcs11:token=t;id=%01"));
        assert_eq!(options.pin_source.as_deref(), Some("file:/a,b"));
        assert_eq!(options.settings, [("keep_versions".to_owned(), "3".to_owned())]);
    }

    #[test]
    fn the_last_word_counts_and_others_are_named() {
        let options = Options::parse(["ro,noexec", "rw,exec"], 1000).unwrap();
        assert!(!options.mount.read_only && options.mount.exec && !options.mount.allow_other);
        let failure = Options::parse(["ro,nosiud"], 1000).err().unwrap();
        assert!(failure.to_string().contains("nosiud"));
        assert_eq!(failure.exit(), 2);
        assert!(Options::parse(["remount,ro"], 1000).err().unwrap().to_string().contains("mount -o remount"));
    }
}
