"""Generated system calls in a directory, by several users: what each answers, and what it leaves behind.

beside.py DIRECTORY SEED ROUNDS    as root. Run on two file systems, it prints the same lines where they behave the same.

What may differ on purpose is not asked for: extents (SEEK_DATA finds, and blocks), O_TMPFILE and O_DIRECT, fallocate that
moves data, attributes beyond 4 KiB, and the vault's own attributes.
"""

import ctypes
import errno
import hashlib
import os
import random
import socket
import stat
import struct
import sys
import time

C = ctypes.CDLL(None, use_errno=True)
CALLS = 60
FOLDERS = ["", "plain", "sticky", "setgid", "private", "plain/in"]
NAMES = ["f", "g", "h", "d", "l", "dangling", "loop", "p", "s", "null"]
ODD = [".", "..", "f/", "d/", "d/.", "d/..", "f/x", "l/", "", "n" * 255, "n" * 256, "\udcff\udcfe", "missing/x", "l/f"]
USERS = [(0, 0, []), (0, 0, []), (0, 0, []), (1000, 1000, [3000]), (1000, 1000, [3000]), (1001, 1001, []), (1001, 1001, [1000])]
MODES = [0, 0o400, 0o444, 0o600, 0o644, 0o666, 0o700, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o6777, 0o2644, 0o200, 0o070]
SIZES = [0, 1, 100, 4095, 4096, 4097, 10000, 70000]
AT_FDCWD = -100
CLOCK_REALTIME_COARSE = 5
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


def call(function, *arguments):
    """A function of the C library that says -1 and an errno."""
    ctypes.set_errno(0)
    result = function(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result


def raw(path):
    return os.fsencode(path)


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_int64), ("nanos", ctypes.c_int64)]


def utimensat(fd, path, times, flags):
    both = (Timespec * 2)(*times) if times else None
    call(C.utimensat, fd, path, both, flags)


def acl(*entries):
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACLS = [
    acl((1, 6, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY)),
    acl((1, 7, NOBODY), (2, 7, 1001), (4, 5, NOBODY), (16, 7, NOBODY), (32, 5, NOBODY)),
    acl((1, 6, NOBODY), (4, 6, NOBODY), (8, 6, 3000), (16, 4, NOBODY), (32, 0, NOBODY)),
    acl((1, 6, NOBODY), (4, 6, NOBODY)),
    b"",
    b"\x01\x00\x00\x00",
]


class Walk:
    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.open = []

    def pick(self, choices):
        return self.dice.choice(choices)

    def path(self):
        folder = self.pick(FOLDERS)
        name = self.pick(ODD) if self.dice.random() < 0.12 else self.pick(NAMES)
        return os.path.join(folder, name) if name else folder

    def some(self, flags, chance=0.3):
        return sum(value for _, value in self.named(flags, chance))

    def named(self, flags, chance):
        return [(flag, getattr(os, flag)) for flag in flags if self.dice.random() < chance]

    # Calls: each gives its description and what does it.

    def call_open(self):
        path = self.path()
        access = self.pick(["O_RDONLY", "O_WRONLY", "O_RDWR"])
        flags = self.named(["O_CREAT", "O_TRUNC"], 0.4)
        flags += self.named(["O_EXCL", "O_APPEND", "O_DIRECTORY", "O_NOFOLLOW", "O_SYNC", "O_NOATIME", "O_PATH"], 0.1)
        mode, slot = self.pick(MODES), self.dice.randrange(len(self.open))
        names = "|".join([access] + [name for name, _ in flags])
        bits = getattr(os, access) | sum(value for _, value in flags) | os.O_NONBLOCK

        def do():
            if self.open[slot] is not None:
                os.close(self.open[slot])
                self.open[slot] = None
            self.open[slot] = os.open(path, bits, mode)
            return f"slot {slot}"

        return f"open {path!r} {names} {mode:o}", do, [path]

    def descriptor(self, what, act):
        slot = self.dice.randrange(len(self.open))

        def do():
            if self.open[slot] is None:
                return "nothing open"
            found = act(self.open[slot])
            known = os.fstat(self.open[slot])
            return f"{found}; {known.st_size if stat.S_ISREG(known.st_mode) else '-'} {known.st_mode:o} {known.st_nlink}"

        return f"{what} in {slot}", do, []

    def call_read(self):
        at, size = self.pick(SIZES + [-1]), self.pick(SIZES)
        return self.descriptor(f"pread {at} {size}", lambda fd: digest(os.pread(fd, size, at)))

    def call_write(self):
        at, size = self.pick(SIZES), self.pick(SIZES)
        byte = bytes([self.dice.randrange(1, 256)])
        if self.dice.random() < 0.5:
            return self.descriptor(f"pwrite {at} {size}", lambda fd: os.pwrite(fd, byte * size, at))
        return self.descriptor(f"write {size}", lambda fd: (os.write(fd, byte * size), os.lseek(fd, 0, os.SEEK_CUR)))

    def call_ftruncate(self):
        size = self.pick(SIZES + [-1])
        return self.descriptor(f"ftruncate {size}", lambda fd: os.ftruncate(fd, size))

    def call_fallocate(self):
        mode = self.pick([0, 0, 1, 2, 3, 3, 0x10, 0x11, 0x12, 0x13, 0x40, 0x80])
        at, size = self.pick(SIZES + [-1]), self.pick(SIZES + [-1])
        act = lambda fd: call(C.fallocate, fd, mode, ctypes.c_int64(at), ctypes.c_int64(size))
        return self.descriptor(f"fallocate {mode:#x} {at} {size}", act)

    def call_lseek(self):
        whence = self.pick(["SEEK_SET", "SEEK_CUR", "SEEK_END", "SEEK_DATA", "SEEK_HOLE", "9"])
        at = self.pick(SIZES + [-1, -5000, 1 << 40])
        number = getattr(os, whence, 9)

        def act(fd):
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                return "positions in a directory are the file system's affair"
            found = os.lseek(fd, at, number)
            # Where data begins in a file with holes is the file system's affair.
            return "found" if whence in ("SEEK_DATA", "SEEK_HOLE") else found

        return self.descriptor(f"lseek {at} {whence}", act)

    def call_sync(self):
        return self.descriptor("fsync", os.fsync)

    def call_setfl(self):
        import fcntl

        flags = self.pick([0, os.O_APPEND, os.O_NONBLOCK, os.O_NOATIME])
        return self.descriptor(f"F_SETFL {flags:o}", lambda fd: fcntl.fcntl(fd, fcntl.F_SETFL, flags))

    def call_copy(self):
        other, at, to, size = self.dice.randrange(len(self.open)), self.pick(SIZES), self.pick(SIZES), self.pick(SIZES)

        def act(fd):
            source = self.open[other]
            return "no source" if source is None else os.copy_file_range(source, fd, size, at, to)

        return self.descriptor(f"copy_file_range {size} from {other} at {at} to {to}", act)

    def call_list(self):
        return self.descriptor("list", lambda fd: sorted(os.listdir(fd)))

    def call_fchmod(self):
        mode = self.pick(MODES)
        return self.descriptor(f"fchmod {mode:o}", lambda fd: os.fchmod(fd, mode))

    def call_fchown(self):
        uid, gid = self.owner()
        # -1 for both while somebody may write is said of in docs/semantics.md.
        uid = 0 if uid == gid else uid
        return self.descriptor(f"fchown {uid} {gid}", lambda fd: os.fchown(fd, uid, gid))

    def call_fsetxattr(self):
        return self.descriptor("fsetxattr", lambda fd: os.setxattr(fd, "user.x", b"by descriptor"))

    def call_fstatvfs(self):
        return self.descriptor("fstatvfs", lambda fd: os.fstatvfs(fd).f_namemax)

    def call_reopen(self):
        access = self.pick(["O_RDONLY", "O_WRONLY", "O_RDWR"])

        def act(fd):
            os.close(os.open(f"/proc/self/fd/{fd}", getattr(os, access) | os.O_NONBLOCK))

        return self.descriptor(f"reopen {access}", act)

    def call_linkat(self):
        to = self.path()
        act = lambda fd: call(C.linkat, AT_FDCWD, raw(f"/proc/self/fd/{fd}"), AT_FDCWD, raw(to), 0x400)
        what, do, _ = self.descriptor(f"link it to {to!r}", act)
        return what, do, [to]

    def owner(self):
        return self.pick([-1, -1, 0, 1000, 1001]), self.pick([-1, -1, 0, 1000, 1001, 3000])

    def call_stat(self):
        path = self.path()
        return f"stat {path!r}", lambda: shown(os.stat(path)), [path]

    def call_access(self):
        path, mode = self.path(), self.dice.randrange(8)
        return f"access {path!r} {mode}", lambda: os.access(path, mode, effective_ids=True), [path]

    def call_chmod(self):
        path, mode = self.path(), self.pick(MODES)
        return f"chmod {path!r} {mode:o}", lambda: os.chmod(path, mode), [path]

    def call_chown(self):
        path, (uid, gid), follow = self.path(), self.owner(), self.dice.random() < 0.6
        what = "chown" if follow else "lchown"
        return f"{what} {path!r} {uid} {gid}", lambda: os.chown(path, uid, gid, follow_symlinks=follow), [path]

    def call_utimens(self):
        path = self.path()
        times = None
        if self.dice.random() < 0.7:
            nanos = [UTIME_NOW, UTIME_OMIT, 0, 999999999, 1000000000, -1]
            times = [(self.pick([0, -1, 1 << 31, 1 << 33, 77]), self.pick(nanos)) for _ in range(2)]
        flags = self.pick([0, 0x100])
        return f"utimensat {path!r} {times} {flags:#x}", lambda: utimensat(AT_FDCWD, raw(path), times, flags), [path]

    def call_truncate(self):
        path, size = self.path(), self.pick(SIZES + [-1])
        return f"truncate {path!r} {size}", lambda: os.truncate(path, size), [path]

    def call_link(self):
        one, two, follow = self.path(), self.path(), self.dice.random() < 0.3
        do = lambda: os.link(one, two, follow_symlinks=follow)
        return f"link {one!r} {two!r} {follow}", do, [one, two]

    def call_symlink(self):
        target, path = self.pick(["f", "nowhere", "../plain/f", "d", "", "x" * 4095, "x" * 4096]), self.path()
        return f"symlink {target[:20]!r} {path!r}", lambda: os.symlink(target, path), [path]

    def call_readlink(self):
        path = self.path()
        return f"readlink {path!r}", lambda: os.readlink(path)[:20], [path]

    def call_unlink(self):
        path = self.path()
        return f"unlink {path!r}", lambda: os.unlink(path), [path]

    def call_rmdir(self):
        path = self.path()
        return f"rmdir {path!r}", lambda: os.rmdir(path), [path]

    def call_mkdir(self):
        path, mode = self.path(), self.pick(MODES)
        return f"mkdir {path!r} {mode:o}", lambda: os.mkdir(path, mode), [path]

    def call_mknod(self):
        path, mode = self.path(), self.pick(MODES)
        kind = self.pick(["S_IFREG", "S_IFIFO", "S_IFSOCK", "S_IFCHR", "S_IFBLK", "S_IFDIR", "S_IFLNK"])
        do = lambda: os.mknod(path, mode | getattr(stat, kind), os.makedev(1, 3))
        return f"mknod {path!r} {kind} {mode:o}", do, [path]

    def call_rename(self):
        one, two = self.path(), self.path()
        flags = self.pick([0, 0, 0, 0, 1, 2, 2, 3, 4, 5, 6, 8])
        do = lambda: call(C.renameat2, AT_FDCWD, raw(one), AT_FDCWD, raw(two), flags)
        return f"rename {one!r} {two!r} {flags}", do, [one, two]

    def attribute(self):
        names = ["user.x", "user.y", "trusted.x", "security.x", "nonsense.x", "user.", "x", "user." + "n" * 250]
        lists = ["system.posix_acl_access", "system.posix_acl_default", "system.x"]
        return self.pick(names + lists + ["user.x"] * 4 + lists)

    def call_setxattr(self):
        path, name, flags = self.path(), self.attribute(), self.pick([0, 0, 0, 1, 2, 3, 4])
        value = self.pick(ACLS) if name.startswith("system.") else b"v" * self.pick([0, 1, 10, 900])
        follow = self.dice.random() < 0.5
        do = lambda: os.setxattr(path, name, value, flags, follow_symlinks=follow)
        return f"setxattr {path!r} {name[:30]} {value[:9]!r} {flags} {follow}", do, [path]

    def call_getxattr(self):
        path, name, follow = self.path(), self.attribute(), self.dice.random() < 0.5
        do = lambda: digest(os.getxattr(path, name, follow_symlinks=follow))
        return f"getxattr {path!r} {name[:30]} {follow}", do, [path]

    def call_removexattr(self):
        path, name, follow = self.path(), self.attribute(), self.dice.random() < 0.5
        do = lambda: os.removexattr(path, name, follow_symlinks=follow)
        return f"removexattr {path!r} {name[:30]} {follow}", do, [path]

    def call_listdir(self):
        path = self.path()
        return f"listdir {path!r}", lambda: sorted(os.listdir(path)), [path]

    def call_bind(self):
        path = self.path()

        def do():
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(path)

        return f"bind {path[:20]!r}", do, [path[:100]]

    def calls(self):
        named = [getattr(self, name) for name in sorted(dir(self)) if name.startswith("call_")]
        often = [self.call_open] * 5 + [self.call_write] * 2 + [self.call_rename] * 3 + [self.call_chown] * 2
        return named + often + [self.call_setxattr, self.call_chmod, self.call_link, self.call_unlink]

    def round(self, number):
        flags = [os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDONLY, os.O_RDONLY, os.O_PATH | os.O_NOFOLLOW, os.O_WRONLY]
        self.open = [os.open(f"plain/{name}", flags) for name, flags in zip("fghdlf", flags)]
        calls = self.calls()
        for n in range(CALLS):
            what, do, paths = self.pick(calls)()
            uid, gid, groups = self.pick(USERS)
            umask = self.pick([0, 0o022, 0o077])
            before = states(paths)
            tick()
            os.umask(umask)
            os.setgroups(groups)
            os.setresgid(-1, gid, -1)
            os.setresuid(-1, uid, -1)
            try:
                answer = do()
            except OSError as error:
                answer = errno.errorcode.get(error.errno, type(error).__name__)
            except (ValueError, OverflowError, UnicodeError) as error:
                answer = type(error).__name__
            os.setresuid(-1, 0, -1)
            os.setresgid(-1, 0, -1)
            os.setgroups([])
            os.umask(0o022)
            print(f"{number}.{n} {uid}/{umask:o} {what} -> {answer}")
            for path, (state, known) in states(paths).items():
                old, moved = before[path][1], ""
                if old and known and old.st_ino == known.st_ino:
                    moved += "m" if old.st_mtime_ns != known.st_mtime_ns else ""
                    moved += "c" if old.st_ctime_ns != known.st_ctime_ns else ""
                print(f"    {path[:40]!r}: {state} {moved}")
        for fd in self.open:
            if fd is not None:
                os.close(fd)


def tick():
    """Waits for another time than that of the last change, as file systems count it."""
    now = time.clock_gettime(CLOCK_REALTIME_COARSE)
    while time.clock_gettime(CLOCK_REALTIME_COARSE) == now:
        time.sleep(0.001)


def digest(value):
    return f"{len(value)}:{hashlib.sha256(value).hexdigest()[:8]}"


def shown(known):
    size = "" if stat.S_ISDIR(known.st_mode) else known.st_size
    return f"{known.st_mode:o} {known.st_nlink} {known.st_uid}:{known.st_gid} {size} {known.st_rdev}"


def state(path):
    """What root sees at a path."""
    try:
        known = os.lstat(path)
    except OSError as error:
        return errno.errorcode[error.errno], None
    said = shown(known)
    if stat.S_ISLNK(known.st_mode):
        said += f" to {os.readlink(path)[:20]!r}"
    if stat.S_ISREG(known.st_mode):
        fd = os.open(path, os.O_RDONLY | os.O_NOATIME)
        said += " " + digest(os.pread(fd, 1 << 20, 0))
        os.close(fd)
    if not stat.S_ISLNK(known.st_mode):
        for name in sorted(os.listxattr(path)):
            if not name.startswith("user.vault."):
                said += f" {name[:30]}={digest(os.getxattr(path, name))}"
    for name, at in (("a", known.st_atime_ns), ("m", known.st_mtime_ns)):
        # Only what was set: one of them is what utimensat can say.
        if at // 10**9 in (0, -1, 1 << 31, 1 << 33, 77):
            said += f" {name}={at}"
    return said, known


def states(paths):
    found = {}
    for path in paths:
        for each in (path, os.path.dirname(path.rstrip("/")) or "."):
            if each not in found:
                found[each] = state(each)
    return found


def build():
    """The tree that each round begins with."""
    for name, mode, uid, gid in [
        ("plain", 0o755, 1000, 1000),
        ("sticky", 0o1777, 0, 0),
        ("setgid", 0o2777, 0, 3000),
        ("private", 0o700, 1000, 1000),
        ("plain/in", 0o777, 1001, 1001),
    ]:
        os.mkdir(name)
        os.chown(name, uid, gid)
        os.chmod(name, mode)
    for folder in FOLDERS:
        for name, uid, mode in [("f", 1000, 0o644), ("g", 1001, 0o666), ("h", 0, 0o600)]:
            path = os.path.join(folder, name)
            with open(path, "wb") as file:
                file.write(name.encode() * 5000)
            os.chown(path, uid, uid)
            os.chmod(path, mode)
        os.mkdir(os.path.join(folder, "d"))
        os.symlink("f", os.path.join(folder, "l"))
        os.symlink("nowhere", os.path.join(folder, "dangling"))
        os.symlink("loop", os.path.join(folder, "loop"))
        os.mkfifo(os.path.join(folder, "p"), 0o666)
        os.mknod(os.path.join(folder, "s"), 0o666 | stat.S_IFSOCK)
        os.mknod(os.path.join(folder, "null"), 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def main(directory, seed, rounds):
    os.chdir(directory)
    os.umask(0o022)
    for number in range(int(rounds)):
        folder = f"r{number}"
        os.mkdir(folder)
        os.chmod(folder, 0o777)
        os.chdir(folder)
        build()
        Walk(f"{seed}.{number}").round(number)
        os.chdir("..")


main(*sys.argv[1:])
