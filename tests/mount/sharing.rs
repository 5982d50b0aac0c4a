//! Several processes on one mount: what one of them does or uses up is seen, or not felt, by the others as on a local file
//! system.

use crate::vault::{Vault, run};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;

/// Weakness 7 of `suites.md`.
#[test]
fn a_process_at_its_own_descriptor_limit_does_not_limit_others() {
    let vault = Vault::up();
    let a = vault.org("a");
    for n in 0..600 {
        fs::write(a.join(n.to_string()), n.to_string()).unwrap();
    }
    let script = r#"
import errno, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
try:
    while True: held.append(os.open(sys.argv[1] + "/0", os.O_RDWR))
except OSError as e:
    assert e.errno == errno.EMFILE, e
print(len(held), flush=True)
sys.stdin.read()
"#;
    let mut greedy = Command::new("/usr/bin/python3");
    greedy.args(["-c", script]).arg(&a).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut greedy = greedy.spawn().unwrap();
    let mut held = String::new();
    BufReader::new(greedy.stdout.take().unwrap()).read_line(&mut held).unwrap();
    let held: usize = held.trim().parse().unwrap();
    assert!((50..64).contains(&held), "{held}");
    let opened: Vec<File> = (0..600).map(|n| File::open(a.join(n.to_string())).unwrap()).collect();
    for (n, mut file) in opened.into_iter().enumerate() {
        let mut value = String::new();
        file.read_to_string(&mut value).unwrap();
        assert_eq!(value, n.to_string());
    }
    drop(greedy.stdin.take());
    assert!(greedy.wait().unwrap().success());
}

/// Weakness 4 of `suites.md`.
#[test]
fn a_link_has_the_size_of_its_file_at_once() {
    let vault = Vault::up();
    let a = vault.org("a");
    thread::scope(|scope| {
        for thread in 0..4 {
            let a = &a;
            scope.spawn(move || {
                for n in 1..150 {
                    let (file, link) = (a.join(format!("{thread}-{n}")), a.join(format!("link{thread}-{n}")));
                    let mut open = File::create(&file).unwrap();
                    open.write_all(&vec![1; n * 37]).unwrap();
                    if n % 2 == 0 {
                        drop(open);
                    }
                    fs::hard_link(&file, &link).unwrap();
                    let (one, two) = (fs::metadata(&file).unwrap(), fs::metadata(&link).unwrap());
                    assert_eq!((two.len(), two.nlink(), two.ino()), (n as u64 * 37, 2, one.ino()));
                    assert_eq!((one.len(), one.nlink()), (n as u64 * 37, 2));
                    assert_eq!(fs::read(&link).unwrap().len(), n * 37);
                }
            });
        }
    });
}

#[test]
fn inotify_tells_what_others_do() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::write(a.join("f"), "x").unwrap();
    let script = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
names = {2: "modify", 4: "attrib", 8: "written", 64: "from", 128: "to", 256: "create", 512: "delete"}
fd = libc.inotify_init()
assert libc.inotify_add_watch(fd, sys.argv[1].encode(), sum(names)) >= 0
print("ready", flush=True)
seen = b""
at = 0
while not names.get(0, "").startswith("written last"):
    while at == len(seen): seen += os.read(fd, 65536)
    _, mask, _, length = struct.unpack_from("iIII", seen, at)
    name = seen[at + 16:at + 16 + length].rstrip(b"\0").decode()
    names[0] = next((text for bit, text in names.items() if mask & bit), "%x" % mask) + " " + name
    print(names[0])
    at += 16 + length
"#;
    let elsewhere = vault.directory().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    fs::write(elsewhere.join("f"), "x").unwrap();
    let told = [&a, &elsewhere].map(|at| {
        let mut watcher = Command::new("timeout");
        watcher.args(["60", "/usr/bin/python3", "-c", script]).arg(at).stdout(Stdio::piped());
        let mut watcher = watcher.spawn().unwrap();
        let mut told = BufReader::new(watcher.stdout.take().unwrap());
        told.read_line(&mut String::new()).unwrap();
        let script =
            "cd \"$0\"; echo y >> f; chmod 600 f; mkdir d; ln f g; mv g h; rm h; rmdir d; mv f i; echo z > j; : > last";
        run("sh", &[&"-c", &script, at]);
        let mut text = String::new();
        told.read_to_string(&mut text).unwrap();
        assert!(watcher.wait().unwrap().success());
        text
    });
    assert_eq!(told[0], told[1], "as on the file system of the state directory");
    assert!(told[0].contains("create d\n"), "{}", told[0]);
}
