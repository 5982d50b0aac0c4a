//! The one way in: a request to the daemon's socket, or to the same routes in this process.
//!
//! Without a daemon the command owns the state directory while it lasts. If another command owns it, or a
//! daemon that is starting or ending, this one waits for a moment.

use super::exit::Failure;
use crate::api::{self, Api, Code, Peer, Problem, stream};
use crate::audit::Audit;
use crate::daemon::{control, log, process};
use crate::store::StateLock;
use crate::vault::{AuditHook, Options, Vault};
use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::header::HOST;
use axum::http::{Method, Request, Response};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tower::ServiceExt;

/// How long another owner of the state directory is waited for, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

pub struct Client {
    runtime: Runtime,
    way: Option<Way>,
}

enum Way {
    Daemon(SendRequest<Body>, JoinHandle<()>),
    InProcess(Router, Arc<Vault>),
}

impl Client {
    /// The daemon, or else the vault in this process.
    pub fn new(state: &Path) -> Result<Client, Failure> {
        let runtime = runtime()?;
        let way = match wait_for_daemon(&runtime, state)? {
            Some(daemon) => daemon,
            None => open(state)?,
        };
        Ok(Client { runtime, way: Some(way) })
    }

    /// The daemon, if there is one.
    pub fn of_daemon(state: &Path) -> Result<Option<Client>, Failure> {
        let runtime = runtime()?;
        let way = wait_for_daemon(&runtime, state)?;
        Ok(way.map(|way| Client { runtime, way: Some(way) }))
    }

    /// An answer in JSON.
    pub fn ask<T: DeserializeOwned>(&mut self, method: Method, path: &str) -> Result<T, Failure> {
        self.send(Request::builder().method(method).uri(path), Body::empty())?.json()
    }

    /// A body of raw bytes in, an answer in JSON out.
    pub fn put<T: DeserializeOwned>(&mut self, path: &str, body: Body) -> Result<T, Failure> {
        let request =
            Request::builder().method(Method::PUT).uri(path).header("content-type", "application/octet-stream");
        self.send(request, body)?.json()
    }

    pub fn post<T: DeserializeOwned>(&mut self, path: &str, body: &impl serde::Serialize) -> Result<T, Failure> {
        self.send_json(Method::POST, path, body)
    }

    pub fn send_json<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).expect("a request is plain data");
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        self.send(request, body.into())?.json()
    }

    /// Something to do that has no answer but that it is done, or begun.
    pub fn order(&mut self, path: &str, body: &impl serde::Serialize) -> Result<(), Failure> {
        let body = serde_json::to_vec(body).expect("a request is plain data");
        let request = Request::builder().method(Method::POST).uri(path).header("content-type", "application/json");
        self.send(request, body.into()).map(drop)
    }

    /// Raw bytes, as they come.
    pub fn stream(
        &mut self,
        method: Method,
        path: &str,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let request = Request::builder().method(method).uri(path);
        let request = request.header("accept", "application/octet-stream").header("te", "trailers");
        let mut answer = self.send(request, Body::empty())?;
        while let Some(piece) = answer.next()? {
            each(&piece)?;
        }
        Ok(())
    }

    fn send(&mut self, request: axum::http::request::Builder, body: Body) -> Result<Answer<'_>, Failure> {
        let mut request = request.header(HOST, "vaultfs").body(body).expect("paths are percent-encoded");
        let way = self.way.as_mut().expect("there until the client is dropped");
        let response = self.runtime.block_on(async {
            match way {
                Way::Daemon(daemon, _) => match daemon.send_request(request).await {
                    Ok(response) => Ok(response.map(Body::new)),
                    Err(e) => Err(Failure::new(Code::Failure, format!("the daemon broke off: {e}; see its log"))),
                },
                Way::InProcess(routes, _) => {
                    request.extensions_mut().insert(ConnectInfo(Peer::this_process()));
                    Ok(routes.clone().oneshot(request).await.unwrap_or_else(|never| match never {}))
                }
            }
        })?;
        let refused = !response.status().is_success();
        let answer = Answer { runtime: &self.runtime, response };
        if refused { Err(answer.json::<Problem>()?.into()) } else { Ok(answer) }
    }
}

impl Drop for Client {
    /// What a command changed is durable by now; closing gives the state directory back in good order.
    fn drop(&mut self) {
        match self.way.take() {
            Some(Way::InProcess(_, vault)) => {
                if let Err(error) = vault.close() {
                    log::error(&format!("closing the vault: {error}"));
                }
            }
            Some(Way::Daemon(_, connection)) => connection.abort(),
            None => {}
        }
    }
}

struct Answer<'a> {
    runtime: &'a Runtime,
    response: Response<Body>,
}

impl Answer<'_> {
    fn next(&mut self) -> Result<Option<axum::body::Bytes>, Failure> {
        Ok(self.runtime.block_on(stream::next(self.response.body_mut()))?)
    }

    fn json<T: DeserializeOwned>(mut self) -> Result<T, Failure> {
        let mut text = Vec::new();
        while let Some(piece) = self.next()? {
            text.extend_from_slice(&piece);
        }
        serde_json::from_slice(&text).map_err(|_| {
            let status = self.response.status();
            let text = String::from_utf8_lossy(&text);
            Failure::new(Code::Failure, format!("the daemon gave an answer that is not understood ({status}): {text}"))
        })
    }
}

fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Failure::io("cannot start", e))
}

/// Waits as long as somebody who does not listen, or not yet, owns the state directory.
fn wait_for_daemon(runtime: &Runtime, state: &Path) -> Result<Option<Way>, Failure> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(daemon) = runtime.block_on(reach(state))? {
            return Ok(Some(daemon));
        }
        match StateLock::holder(state) {
            Some(_) if Instant::now() < deadline => std::thread::sleep(BETWEEN_LOOKS),
            _ => return Ok(None),
        }
    }
}

/// The daemon, if one listens.
async fn reach(state: &Path) -> Result<Option<Way>, Failure> {
    let socket = match control::connect(state).await {
        Ok(socket) => socket,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => return Ok(None),
        Err(e) => return Err(Failure::io(state.join(control::SOCKET).display(), e)),
    };
    let broken = |e| Failure::new(Code::Failure, format!("the daemon does not speak HTTP: {e}"));
    let (daemon, connection) = http1::handshake(TokioIo::new(socket)).await.map_err(broken)?;
    // What breaks a connection is told to whoever waits for an answer on it.
    let connection = tokio::spawn(async { drop(connection.await) });
    Ok(Some(Way::Daemon(daemon, connection)))
}

/// How this process opens a vault itself, and the log that it then writes.
pub fn options(state: &Path) -> Result<(Options, Arc<Audit>), Failure> {
    process::keep_secrets();
    let (owner, group) = api::user();
    let audit = Audit::open(state, Box::new(|why| log::error(&why)));
    let audit = Arc::new(audit.map_err(|e| Failure::io(state.join("audit").display(), e))?);
    let record = audit.clone();
    let options = Options {
        owner_uid: owner,
        owner_gid: group,
        audit: AuditHook::new(move |event| record.record(event)),
        ..Options::default()
    };
    Ok((options, audit))
}

/// The vault itself, in this process.
fn open(state: &Path) -> Result<Way, Failure> {
    Vault::check(state).map_err(|e| Failure::from(Problem::from(e)))?;
    let (options, audit) = options(state)?;
    let owner = options.owner_uid;
    let vault = Vault::open(state, options).map_err(|e| Failure::from(Problem::from(e)))?;
    Ok(Way::InProcess(api::router(Api::new(vault.clone(), audit, owner, None)), vault))
}
