//! What is mounted where: `/proc/self/mountinfo`, proc_pid_mountinfo(5).

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type of our mounts.
pub const TYPE: &str = "fuse.vaultfs";

#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    pub point: PathBuf,
    /// Which file system it is, however often it is mounted: `major:minor`.
    pub device: String,
    pub kind: String,
    /// Of a vault: the canonical path of its state directory.
    pub source: PathBuf,
}

/// Every mount that this process sees, later ones over earlier ones. None are seen without /proc.
pub fn all() -> Vec<Mount> {
    seen_by("self")
}

fn seen_by(process: &str) -> Vec<Mount> {
    let text = std::fs::read(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    text.split(|b| *b == b'\n').filter_map(parse).collect()
}

/// A process of another mount namespace in which the file system is mounted, where its processes can be seen.
pub fn elsewhere(device: &str) -> Option<u32> {
    let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    let mut looked_at = HashSet::from([namespace("self")?]);
    let processes = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let other = |process: &String| {
        let other = process.parse::<u32>().is_ok() && namespace(process).is_some_and(|found| looked_at.insert(found));
        other && seen_by(process).iter().any(|mount| mount.kind == TYPE && mount.device == device)
    };
    processes.into_iter().find(other)?.parse().ok()
}

/// The vault that is mounted on `point`, if what lies on top there is one.
pub fn vault_on(point: &Path) -> Option<Mount> {
    all().into_iter().rev().find(|mount| mount.point == point).filter(|mount| mount.kind == TYPE)
}

/// Lets the kernel read further ahead in our mount on `point` than FUSE's 128 KiB: fewer requests for the same stream.
/// Not much further, because a page fault in a mapping reads as much. Only root may say so; for others streams are slower.
pub fn read_further_ahead(point: &Path) {
    const KIB: &str = "256";
    if let Some(mount) = vault_on(point) {
        let _ = std::fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", mount.device), KIB);
    }
}

/// Where the vault of a state directory is mounted.
pub fn of_state(state: &Path) -> Option<Mount> {
    all().into_iter().rev().find(|mount| mount.kind == TYPE && mount.source == state)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let device = String::from_utf8(fields.nth(2)?.to_vec()).ok()?;
    let point = fields.nth(1)?;
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8(after.next()?.to_vec()).ok()?;
    Some(Mount { point: unescape(point), device, kind, source: unescape(after.next()?) })
}

/// Space, tab, newline and backslash stand as three octal digits after a backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match octal.filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_point_type_and_source() {
        let line =
            br"412 29 0:61 / /mnt/my\040vault rw,nosuid shared:7 - fuse.vaultfs /var/lib/a\134b\011 rw,user_id=0";
        let mount = parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/mnt/my vault"));
        assert_eq!((mount.device.as_str(), mount.kind.as_str()), ("0:61", TYPE));
        assert_eq!(mount.source, Path::new("/var/lib/a\\b\t"));
    }

    #[test]
    fn optional_fields_may_be_missing_and_lines_may_be_short() {
        assert_eq!(parse(b"1 0 8:1 / / rw - ext4 /dev/sda1 rw").unwrap().kind, "ext4");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 0 8:1 / / rw"), None);
    }

    #[test]
    fn the_root_is_mounted_and_is_no_vault() {
        assert!(all().iter().any(|mount| mount.point == Path::new("/")));
        assert_eq!(vault_on(Path::new("/")), None);
    }
}
