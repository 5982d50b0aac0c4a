//! Who is answered: uid 0 and the mount's owner, known by the credentials of the socket's other end.

use super::{Api, Code, Problem};
use crate::vault::{AuditEvent, Caller, Patience};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Extension, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use std::sync::Arc;
use tokio::net::UnixListener;

/// The process at the other end of a connection (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// None where the kernel does not tell: nobody is let in then.
    pub uid: Option<u32>,
    pub gid: u32,
    pub pid: u32,
}

impl Peer {
    /// A command that answers its own requests.
    pub fn this_process() -> Self {
        // SAFETY: neither call takes an argument or can fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        Peer { uid: Some(uid), gid, pid: std::process::id() }
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        match stream.io().peer_cred() {
            Ok(peer) => Peer { uid: Some(peer.uid()), gid: peer.gid(), pid: peer.pid().unwrap_or(0) as u32 },
            Err(_) => Peer { uid: None, gid: 0, pid: 0 },
        }
    }
}

/// Lets the owner's requests through, each with its [`Caller`]; others are refused and put on record.
pub async fn only_owner(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let uid = peer.uid.filter(|uid| *uid == 0 || *uid == api.owner);
    let as_caller =
        |uid| Caller { uid, gid: peer.gid, pid: peer.pid, umask: 0o077, groups: Vec::new(), patience: Patience::Wait };
    match uid {
        Some(uid) => {
            request.extensions_mut().insert(as_caller(uid));
            next.run(request).await
        }
        None => {
            api.audit.record(&AuditEvent {
                event: "access.denied",
                caller: peer.uid.map(as_caller),
                organization: None,
                object: None,
                version: None,
                detail: Some(format!("{} on the control socket", request.method())),
            });
            let who = "only root and the owner of the mount may use this vault's control socket";
            Problem::new(Code::Denied, who).into_response()
        }
    }
}

/// How a handler takes the caller that [`only_owner`] let through.
pub type From = Extension<Caller>;
