//! A detached daemon has no terminal: what it has to say goes to syslog.

use crate::kernel::errno;
use crate::vault::Vault;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// A `/dev` whose `log` is the test's, in a mount namespace of its own, and there the mount.
const ELSEWHERE: &str = r#"
mkdir "$1/devices"
mount --bind /dev "$1/devices"
mount -t tmpfs none /dev
for device in fuse null urandom; do
    touch "/dev/$device"
    mount --bind "$1/devices/$device" "/dev/$device"
done
ln -s "$1/log" /dev/log
shift
exec "$@"
"#;

#[test]
fn a_detached_daemon_tells_syslog_what_is_wrong() {
    let vault = Vault::up();
    fs::write(vault.org("acme").join("f"), [7; 20_000]).unwrap();
    vault.umount();
    let segment = vault.state().join("segments/00000001/00000000");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[100] ^= 1;
    fs::write(&segment, bytes).unwrap();

    let log = UnixDatagram::bind(vault.directory().join("log")).unwrap();
    log.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut mount = vault.in_environment("unshare");
    mount.args(["--mount", "sh", "-euc", ELSEWHERE, "sh"]).arg(vault.directory());
    mount.args([crate::vault::PROGRAM, "mount"]).args([vault.state(), vault.point()]);
    crate::vault::Done::of(&mut mount, b"").good();
    let daemon = vault.daemon().expect("it is mounted");
    let inside = format!("/proc/{daemon}/root{}", vault.at("acme/f").display());
    assert_eq!(errno(fs::read(inside)), libc::EIO);

    let mut line = [0; 4096];
    let said = std::iter::repeat_with(|| {
        let length = log.recv(&mut line).expect("syslog hears of it");
        String::from_utf8_lossy(&line[..length]).into_owned()
    });
    let about = said.into_iter().find(|line| line.contains("authentication failed")).unwrap();
    assert!(about.contains("<28>") && about.contains("vaultfs[") && about.contains(" of secret_"), "{about}");
}
