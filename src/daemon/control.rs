//! The control socket, `STATE/control.sock`: where commands reach the daemon.
//!
//! A socket's address has 108 bytes, a path up to 4096. So both ends open the state directory and name the
//! socket through it: `/proc/self/fd/N/control.sock`.

use crate::api::{self, Api, Peer};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

pub const SOCKET: &str = "control.sock";

/// To be called on a runtime, by the owner of the state directory: a socket that is there was left by a dead
/// daemon.
pub(super) fn listen(state: &Path) -> io::Result<UnixListener> {
    remove(state);
    let directory = File::open(state)?;
    let listener = UnixListener::bind(short_path(&directory))?;
    // For an instant it has the umask's mode; the directory's 0700 and the check of each peer stand before it.
    fs::set_permissions(short_path(&directory), Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub async fn connect(state: &Path) -> io::Result<UnixStream> {
    let directory = File::open(state)?;
    UnixStream::connect(short_path(&directory)).await
}

pub(super) fn remove(state: &Path) {
    // If it stays, a command finds nobody behind it and opens the vault itself.
    let _ = fs::remove_file(state.join(SOCKET));
}

/// Answers requests until it is told to stop, and those that are under way then.
pub(super) async fn answer(listener: UnixListener, api: Arc<Api>, stopped: oneshot::Receiver<()>) {
    let routes = api::router(api).into_make_service_with_connect_info::<Peer>();
    let until = async { drop(stopped.await) };
    // It ends without an error: failed accepts are tried again.
    let _ = axum::serve(listener, routes).with_graceful_shutdown(until).await;
}

fn short_path(directory: &File) -> PathBuf {
    format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_state_directory_may_have_a_long_path() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("s".repeat(200));
        fs::create_dir(&state).unwrap();
        assert_eq!(connect(&state).await.unwrap_err().kind(), io::ErrorKind::NotFound);
        let _listener = listen(&state).unwrap();
        connect(&state).await.unwrap();
        assert_eq!(fs::metadata(state.join(SOCKET)).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listen(&state).unwrap());
        assert_eq!(connect(&state).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
