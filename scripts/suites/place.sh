# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is used by the suites
# Sourced by every suite: a directory to run in, the cases' counts, and the end.
#
#   scripts/suites/NAME [--fast] [DIR]   runs in an organization of a vault of its own, or below DIR on any other file
#                                        system, to compare. MOUNT_OPTIONS=writeback mounts the vault with -o writeback
#
# A suite calls `begin "$@"`, then `passes` or `fails` for each case, then `finish`. It may use $here (an empty directory
# on the file system in question), $work (one elsewhere), $fast, $vault (empty when DIR is given) and `afresh`.
# Needs root. Whatever happens, its mount, daemon and directories are gone at the end.
set -euo pipefail
export LC_ALL=C
suites=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
harness=$suites/../harness
passed=0
failed=0
memory_limit=1024 # MiB that a daemon may have held at most

begin() {
    fast='' vault='' here='' dir=''
    if [ "${1:-}" = --fast ]; then fast=yes; shift; fi
    if [ $# -gt 1 ] || [[ ${1:-} == -* ]]; then echo "usage: $0 [--fast] [DIR]" >&2; exit 2; fi
    [ "$(id -u)" = 0 ] || { echo "$0: needs root: the suites change users, mount, and drop caches" >&2; exit 2; }
    work=$(mktemp -d /tmp/vaultfs-suite-XXXXXX)
    chmod 0755 "$work"
    trap clean_up EXIT
    if [ $# = 1 ]; then
        here=$(mktemp -d "$1/suite-XXXXXX")
        chmod 0755 "$here"
        return
    fi
    vault=$work/vault
    "$suites/../packages"
    mount_vault
    dir=$vault/mnt/acme
    mkdir -m 0755 "$dir"
    here=$dir/suite
    mkdir -m 0755 "$here"
}

mount_vault() {
    local options=()
    [ -z "${MOUNT_OPTIONS:-}" ] || options=(-- -o "$MOUNT_OPTIONS")
    "$harness" up "$vault" "${options[@]}" >"$work/harness" 2>"$work/harness.log" || { cat "$work/harness.log"; exit 1; }
    daemon=$(sed -n "s/^export VAULTFS_PID='\(.*\)'/\1/p" "$work/harness")
}

# Nothing is remembered: the vault mounted anew, or else the kernel's caches dropped.
afresh() {
    if [ -n "$vault" ]; then
        check_daemon
        "$harness" down "$vault" 2>>"$work/harness.log"
        mount_vault
    fi
    drop_caches
}

drop_caches() { sync; echo 3 >/proc/sys/vm/drop_caches; }

passes() { passed=$((passed + 1)); }
fails() { # NAME [LOG]
    failed=$((failed + 1))
    echo "FAILED: $1"
    [ -z "${2:-}" ] || tail -n "${3:-15}" "$2" | sed 's/^/    /'
}

# Runs a command as one case, at most so many seconds; its output goes to $work/NAME.log.
try() { # SECONDS NAME COMMAND…
    local seconds=$1 name=$2 status=0
    shift 2
    timeout -k 10 "$seconds" "$@" >"$work/$name.log" 2>&1 </dev/null || status=$?
    if [ $status = 0 ]; then passes; return; fi
    fails "$name (exit code $status)" "$work/$name.log"
}

check_daemon() {
    local peak
    peak=$(awk '/^VmHWM:/ { print int($2 / 1024) }' "/proc/$daemon/status" 2>/dev/null || true)
    if [ -z "$peak" ]; then fails "the daemon has died" "$vault/mount.log"; return; fi
    [ "$peak" -le $memory_limit ] || fails "the daemon held $peak MiB"
}

# The verdict; of a vault also that its daemon lives, within bounds, and that fsck finds nothing.
finish() {
    if [ -n "$vault" ]; then
        check_daemon
        "$harness" down "$vault" 2>>"$work/harness.log" || fails "unmounting" "$work/harness.log"
        # shellcheck disable=SC1091
        . "$work/harness"
        timeout 600 "$VAULTFS_BIN" fsck --vault "$vault/state" >"$work/fsck.log" 2>&1 || fails fsck "$work/fsck.log"
    fi
    echo "$passed passed, $failed failed"
    [ "$failed" = 0 ]
}

clean_up() {
    if [ -n "$vault" ]; then
        timeout 60 "$harness" down "$vault" >/dev/null 2>&1 || {
            umount -l "$vault/mnt" 2>/dev/null || true
            kill -9 "$daemon" 2>/dev/null || true
        }
    elif [ -n "$here" ]; then
        rm -rf --one-file-system "$here"
    fi
    rm -rf --one-file-system "$work"
}

# Installs what is missing.
needs_package() { # PROGRAM PACKAGE
    command -v "$1" >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$2" >/dev/null; } >&2
}
needs_crate() { # PROGRAM VERSION
    export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    [ "$("$1" --version 2>/dev/null)" = "$1 $2" ] || nice cargo install --quiet --locked --force "$1@$2" >&2
}
