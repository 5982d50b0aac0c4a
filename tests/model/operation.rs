//! What the generator may ask of a vault.

use proptest::prelude::*;
use vaultfs::vault::RenameMode;

pub const ORGANIZATIONS: [&str; 2] = ["alpha", "beta"];
pub const SLOTS: usize = 3;
/// Few, so that operations meet: the first two are mostly files, the others mostly folders.
const FILES: [&str; 4] = ["a", "b", "a", "d"];
const FOLDERS: [&str; 4] = ["d", "e", "d", "a"];

/// A name in an organization, or in a folder of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    pub organization: usize,
    pub parts: Vec<&'static str>,
}

/// A version to name, as it stands when the operation comes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    Anything,
    /// The current version of the object at a path.
    Current(Path),
    /// The oldest one that is kept.
    Oldest(Path),
}

#[derive(Clone, Debug)]
pub enum Op {
    Create {
        slot: usize,
        path: Path,
    },
    Open {
        slot: usize,
        path: Path,
        truncate: bool,
        append: bool,
    },
    Write {
        slot: usize,
        at: usize,
        len: usize,
        fill: u8,
    },
    Punch {
        slot: usize,
        at: usize,
        len: usize,
    },
    Zero {
        slot: usize,
        at: usize,
        len: usize,
    },
    Allocate {
        slot: usize,
        at: usize,
        len: usize,
    },
    /// `copy_file_range`, also inside one file.
    Copy {
        from: usize,
        at: usize,
        to: usize,
        to_at: usize,
        len: usize,
    },
    Resize {
        slot: usize,
        size: usize,
    },
    Truncate {
        path: Path,
        size: usize,
    },
    Flush {
        slot: usize,
    },
    Close {
        slot: usize,
    },
    Fsync {
        slot: usize,
    },
    /// Create or truncate, write, close.
    Save {
        path: Path,
        len: usize,
        fill: u8,
    },
    Rename {
        from: Path,
        to: Path,
        mode: RenameMode,
    },
    Link {
        from: Path,
        to: Path,
    },
    Unlink {
        path: Path,
    },
    MakeFolder {
        path: Path,
    },
    RemoveFolder {
        path: Path,
    },
    Symlink {
        path: Path,
        target: &'static str,
    },
    Mode {
        path: Path,
        mode: u32,
    },
    SetAttribute {
        path: Path,
        name: &'static str,
        value: u8,
    },
    RemoveAttribute {
        path: Path,
        name: &'static str,
    },
    Guard {
        path: Path,
        expect: Expect,
    },
    Put {
        path: Path,
        len: usize,
        fill: u8,
        expect: Expect,
    },
    /// Of the tombstones in the order of their listing.
    Restore {
        organization: usize,
        index: usize,
        to: Option<Path>,
    },
    Purge {
        organization: usize,
        index: usize,
    },
    Sync,
    /// Every handle closed, the vault closed and opened again.
    Remount,
    /// After so many more changes of the disk nothing reaches it any more; some operations later the vault is
    /// opened again from what is there.
    Kill {
        changes: usize,
    },
}

/// What the bytes of one write look like: no two fills and no two positions alike, so that a misplaced byte shows.
pub fn bytes(fill: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| fill ^ (i as u8) ^ ((i >> 8) as u8).wrapping_mul(37) | 1).collect()
}

fn path() -> impl Strategy<Value = Path> {
    let file = || proptest::sample::select(&FILES[..]);
    let folder = || proptest::sample::select(&FOLDERS[..]);
    let parts = prop_oneof![
        12 => file().prop_map(|a| vec![a]),
        4 => (folder(), file()).prop_map(|(a, b)| vec![a, b]),
        1 => (folder(), folder(), file()).prop_map(|(a, b, c)| vec![a, b, c]),
    ];
    (prop_oneof![12 => Just(0usize), 1 => Just(1usize)], parts)
        .prop_map(|(organization, parts)| Path { organization, parts })
}

fn folder() -> impl Strategy<Value = Path> {
    let folder = || proptest::sample::select(&FOLDERS[..]);
    let parts = prop_oneof![
        2 => folder().prop_map(|a| vec![a]),
        1 => (folder(), folder()).prop_map(|(a, b)| vec![a, b]),
    ];
    (prop_oneof![12 => Just(0usize), 1 => Just(1usize)], parts)
        .prop_map(|(organization, parts)| Path { organization, parts })
}

fn place() -> impl Strategy<Value = Path> {
    prop_oneof![5 => path(), 1 => folder()]
}

fn slot() -> impl Strategy<Value = usize> {
    0..SLOTS
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1usize..200, 2 => 1usize..4200, 2 => 4000usize..20_000]
}

fn at() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(0usize), 2 => 0usize..300, 2 => 0usize..40_000]
}

fn expect() -> impl Strategy<Value = Expect> {
    prop_oneof![
        3 => Just(Expect::Anything),
        3 => path().prop_map(Expect::Current),
        1 => path().prop_map(Expect::Oldest),
    ]
}

pub fn operation() -> impl Strategy<Value = Op> {
    let files = prop_oneof![
        (slot(), path()).prop_map(|(slot, path)| Op::Create { slot, path }),
        (slot(), path(), any::<bool>(), any::<bool>()).prop_map(|(slot, path, truncate, append)| Op::Open {
            slot,
            path,
            truncate,
            append
        }),
        (slot(), at(), len(), any::<u8>()).prop_map(|(slot, at, len, fill)| Op::Write { slot, at, len, fill }),
        (slot(), at(), len(), any::<u8>()).prop_map(|(slot, at, len, fill)| Op::Write { slot, at, len, fill }),
        (slot(), at(), len()).prop_map(|(slot, at, len)| Op::Punch { slot, at, len }),
        (slot(), at(), len()).prop_map(|(slot, at, len)| Op::Zero { slot, at, len }),
        (slot(), at(), len()).prop_map(|(slot, at, len)| Op::Allocate { slot, at, len }),
        (slot(), at(), at(), len()).prop_map(|(slot, at, to_at, len)| Op::Copy {
            from: slot,
            at,
            to: slot,
            to_at,
            len
        }),
        (slot(), at(), slot(), at(), len()).prop_map(|(from, at, to, to_at, len)| Op::Copy {
            from,
            at,
            to,
            to_at,
            len
        }),
        (slot(), at()).prop_map(|(slot, size)| Op::Resize { slot, size }),
        (path(), at()).prop_map(|(path, size)| Op::Truncate { path, size }),
        slot().prop_map(|slot| Op::Flush { slot }),
        slot().prop_map(|slot| Op::Close { slot }),
        slot().prop_map(|slot| Op::Fsync { slot }),
    ];
    let save = (path(), len(), any::<u8>()).prop_map(|(path, len, fill)| Op::Save { path, len, fill });
    let mode = prop_oneof![
        3 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        1 => Just(RenameMode::Exchange),
    ];
    let rename = (place(), place(), mode).prop_map(|(from, to, mode)| Op::Rename { from, to, mode });
    let names = prop_oneof![
        (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
        path().prop_map(|path| Op::Unlink { path }),
        path().prop_map(|path| Op::Unlink { path }),
        path().prop_map(|path| Op::Unlink { path }),
        folder().prop_map(|path| Op::MakeFolder { path }),
        folder().prop_map(|path| Op::MakeFolder { path }),
        folder().prop_map(|path| Op::RemoveFolder { path }),
        path().prop_map(|path| Op::Symlink { path, target: "some/where" }),
    ];
    let name = || proptest::sample::select(&["user.x", "user.y"][..]);
    let attributes = prop_oneof![
        (path(), 0u32..0o1000).prop_map(|(path, mode)| Op::Mode { path, mode }),
        (path(), name(), any::<u8>()).prop_map(|(path, name, value)| Op::SetAttribute { path, name, value }),
        (path(), name()).prop_map(|(path, name)| Op::RemoveAttribute { path, name }),
    ];
    let versions = prop_oneof![
        (path(), expect()).prop_map(|(path, expect)| Op::Guard { path, expect }),
        (path(), len(), any::<u8>(), expect()).prop_map(|(path, len, fill, expect)| Op::Put {
            path,
            len,
            fill,
            expect
        }),
    ];
    let graves = prop_oneof![
        2 => (0..2usize, 0..4usize, proptest::option::of(path()))
            .prop_map(|(organization, index, to)| Op::Restore { organization, index, to }),
        1 => (0..2usize, 0..4usize).prop_map(|(organization, index)| Op::Purge { organization, index }),
    ];
    let whole = prop_oneof![
        2 => Just(Op::Sync),
        1 => Just(Op::Remount),
        2 => (0usize..40).prop_map(|changes| Op::Kill { changes }),
    ];
    prop_oneof![10 => files, 8 => save, 8 => rename, 8 => names, 2 => attributes, 4 => versions, 3 => graves, 2 => whole]
}

/// The generator's own copy of a name.
pub fn known_name(name: &str) -> &'static str {
    FILES.iter().chain(&FOLDERS).copied().find(|known| *known == name).expect("all names come from the generator")
}
