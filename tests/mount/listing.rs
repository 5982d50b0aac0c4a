//! Listings: the types in them; `telldir`, `seekdir` and `rewinddir` on a directory of 100,000 entries that changes meanwhile.

use crate::kernel::{Listing, mknod};
use crate::vault::Vault;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;

const STAYS: usize = 100_000;

#[test]
fn positions_in_a_directory_of_100000_entries_outlive_its_changes() {
    let vault = Vault::up();
    let a = vault.org("a");
    let goes = |n: usize| a.join(format!("goes{n}"));
    for n in 0..STAYS {
        mknod(a.join(format!("stays{n}")), libc::S_IFREG | 0o600, 0).unwrap();
    }
    for n in 0..1000 {
        fs::write(goes(n), "x").unwrap();
    }
    let mut listing = Listing::open(&a);
    let (mut seen, mut marks) = (BTreeMap::new(), Vec::new());
    let mut marked = None;
    for n in 0.. {
        let position = listing.tell();
        let Some(name) = listing.next() else { break };
        assert!(n < 2 * STAYS, "a listing without an end");
        if n % 500 == 0 {
            marked = Some(position);
        }
        // A position is followed by the entry that followed it, whatever else comes and goes.
        if name.starts_with("stays")
            && let Some(position) = marked.take()
        {
            marks.push((position, name.clone()));
        }
        if n % 50 == 0 {
            fs::write(a.join(format!("new{n}")), "").unwrap();
        }
        if n % 100 == 0 {
            let _ = fs::remove_file(goes(n / 100));
        }
        *seen.entry(name).or_insert(0) += 1;
    }
    let staying = seen.iter().filter(|(name, _)| name.starts_with("stays"));
    assert_eq!(staying.map(|(_, times)| *times).collect::<Vec<_>>(), vec![1; STAYS], "each once");
    assert!(seen.values().all(|times| *times == 1), "an entry twice");

    assert!(marks.len() > 190, "{}", marks.len());
    for (position, name) in marks.iter().rev().chain(&marks) {
        listing.seek(*position);
        let next = std::iter::from_fn(|| listing.next()).find(|name| name.starts_with("stays"));
        assert_eq!(next.as_ref(), Some(name));
    }

    listing.rewind();
    let again: Vec<String> = std::iter::from_fn(|| listing.next()).collect();
    let there: BTreeSet<String> =
        fs::read_dir(&a).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(again.len(), there.len() + 2, "and the dots");
    let listed: BTreeSet<String> = again.into_iter().filter(|name| name != "." && name != "..").collect();
    assert_eq!(listed, there);
    assert!(!listed.contains("goes0") && listed.contains("new0"));
}

#[test]
fn a_listing_says_of_each_entry_what_it_is() {
    let vault = Vault::up();
    let a = vault.org("a");
    fs::create_dir(a.join("folder")).unwrap();
    fs::write(a.join("file"), "").unwrap();
    symlink("nowhere", a.join("link")).unwrap();
    for (name, kind) in
        [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK), ("char", libc::S_IFCHR), ("block", libc::S_IFBLK)]
    {
        mknod(a.join(name), kind | 0o600, libc::makedev(1, 3)).unwrap();
    }
    let expected = [
        (".", libc::DT_DIR),
        ("..", libc::DT_DIR),
        ("block", libc::DT_BLK),
        ("char", libc::DT_CHR),
        ("fifo", libc::DT_FIFO),
        ("file", libc::DT_REG),
        ("folder", libc::DT_DIR),
        ("link", libc::DT_LNK),
        ("socket", libc::DT_SOCK),
    ];
    let expected: BTreeMap<String, u8> = expected.map(|(name, kind)| (name.to_owned(), kind)).into();
    for _ in 0..2 {
        let mut listing = Listing::open(&a);
        assert_eq!(std::iter::from_fn(|| listing.next_typed()).collect::<BTreeMap<_, _>>(), expected);
        drop(listing);
        vault.remount();
    }
}
