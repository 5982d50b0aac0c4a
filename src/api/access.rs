//! Who is answered: on the socket uid 0 and the mount's owner, known by the credentials of its other end; over the
//! network whoever sends an API key. Each refusal is an audit event.

use super::slowing::Failure;
use super::{Api, Code, Problem};
use crate::vault::{AuditEvent, Caller, KeyIdentity, OrgId, OrganizationInfo, Patience, Permission, Scope};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Extension, Request, State};
use axum::http::header::{AUTHORIZATION, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::net::UnixListener;

/// Routes that are answered to anybody: they say nothing about the vault.
const PUBLIC: [&str; 2] = ["/healthz", "/openapi.json"];

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Peer {
    /// A process, by `SO_PEERCRED`; no uid where the kernel does not tell: nobody is let in then.
    Local {
        uid: Option<u32>,
        gid: u32,
        pid: u32,
    },
    Remote(IpAddr),
}

impl Peer {
    /// A command that answers its own requests.
    pub fn this_process() -> Self {
        let (uid, gid) = user();
        Peer::Local { uid: Some(uid), gid, pid: std::process::id() }
    }
}

/// The user of this process: uid and gid.
pub fn user() -> (u32, u32) {
    // SAFETY: neither call takes an argument or can fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        match stream.io().peer_cred() {
            Ok(peer) => Peer::Local { uid: Some(peer.uid()), gid: peer.gid(), pid: peer.pid().unwrap_or(0) as u32 },
            Err(_) => Peer::Local { uid: None, gid: 0, pid: 0 },
        }
    }
}

/// Who asks, and what they may.
#[derive(Clone, Debug)]
pub struct Principal {
    pub caller: Caller,
    scope: Scope,
    permission: Permission,
}

/// How a handler takes the principal that [`known`] let through.
pub type Who = Extension<Principal>;

impl Principal {
    /// Whether this may be done at all, in whatever organization.
    pub fn may(&self, api: &Api, what: Permission) -> Result<(), Problem> {
        if self.permission >= what {
            return Ok(());
        }
        let needed = word(what);
        Err(self.refused(api, format!("this API key has no {needed} permission")))
    }

    /// Whether this may be done to the vault as a whole.
    pub fn may_in_vault(&self, api: &Api, what: Permission) -> Result<(), Problem> {
        match self.scope {
            Scope::Vault => self.may(api, what),
            Scope::Organizations(_) => Err(self.refused(api, "this API key is for organizations, not for the vault")),
        }
    }

    /// Whether this may be done in an organization, by its id.
    pub fn may_in(&self, api: &Api, what: Permission, organization: &str) -> Result<(), Problem> {
        self.may(api, what)?;
        let within = self.scope == Scope::Vault || organization.parse().is_ok_and(|id: OrgId| self.scope.holds(id));
        if within { Ok(()) } else { Err(self.elsewhere(api)) }
    }

    /// An organization, by its id, name or external id, in which this may be done. Who is for some of them does not
    /// learn which others there are.
    pub fn organization(&self, api: &Api, what: Permission, which: &str) -> Result<OrganizationInfo, Problem> {
        self.may(api, what)?;
        match api.vault.organization(which) {
            Ok(found) => self.may_in(api, what, &found.id).map(|()| found),
            Err(_) if self.scope != Scope::Vault => Err(self.elsewhere(api)),
            Err(error) => Err(error.into()),
        }
    }

    /// The same for whatever is named as `ORG/PATH`; an id is looked up by whoever asks.
    pub fn may_at(&self, api: &Api, what: Permission, place: &[u8]) -> Result<(), Problem> {
        self.may(api, what)?;
        match place.iter().position(|b| *b == b'/') {
            Some(slash) if self.scope != Scope::Vault => {
                let organization = String::from_utf8_lossy(&place[..slash]);
                self.organization(api, what, &organization).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Whether it may name a token: that loads a module into the daemon and reads a PIN from a file, so nobody over the
    /// network may.
    pub fn may_name_tokens(&self, api: &Api) -> Result<(), Problem> {
        match self.caller.key {
            None => Ok(()),
            Some(_) => Err(self.refused(api, "another token is named on the machine itself, not with an API key")),
        }
    }

    /// The organizations that this one sees, by their ids; all if `None`.
    pub fn organizations(&self) -> Option<Vec<String>> {
        match &self.scope {
            Scope::Vault => None,
            Scope::Organizations(some) => Some(some.iter().map(ToString::to_string).collect()),
        }
    }

    /// The refusal of what concerns an organization that this one is not for.
    pub fn elsewhere(&self, api: &Api) -> Problem {
        self.refused(api, "this API key is not for this organization, or there is none of this name")
    }

    fn refused(&self, api: &Api, why: impl Into<String>) -> Problem {
        let why = why.into();
        api.audit.record(&AuditEvent { detail: Some(why.clone()), ..AuditEvent::by(&self.caller, "access.denied") });
        Problem::new(Code::Denied, why)
    }
}

fn word(permission: Permission) -> &'static str {
    match permission {
        Permission::Read => "read",
        Permission::Write => "write",
        Permission::Admin => "admin",
    }
}

/// Lets those through who are known, each as a [`Principal`]; others are refused and put on record.
pub async fn known(
    State(api): State<Arc<Api>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    if PUBLIC.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    let principal = match peer {
        Peer::Local { uid, gid, pid } => local(&api, uid, gid, pid, request.method().as_str()),
        Peer::Remote(from) => remote(&api, from, request.headers()).await,
    };
    match principal {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(problem) => {
            let mut response = (&problem).into_response();
            if problem.code == Code::Unauthorized {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            } else if problem.code == Code::TooMany {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
            }
            response
        }
    }
}

fn local(api: &Api, uid: Option<u32>, gid: u32, pid: u32, method: &str) -> Result<Principal, Problem> {
    let caller = |uid| Caller {
        uid,
        gid,
        pid,
        umask: 0o077,
        groups: |_| Vec::new(),
        patience: Patience::Wait,
        kernel: false,
        key: None,
    };
    match uid.filter(|uid| *uid == 0 || *uid == api.owner) {
        Some(uid) => Ok(Principal { caller: caller(uid), scope: Scope::Vault, permission: Permission::Admin }),
        None => {
            api.audit.record(&AuditEvent {
                caller: uid.map(caller),
                detail: Some(format!("{method} on the control socket")),
                ..AuditEvent::new("access.denied")
            });
            let who = "only root and the owner of the mount may use this vault's control socket";
            Err(Problem::new(Code::Denied, who))
        }
    }
}

async fn remote(api: &Arc<Api>, from: IpAddr, headers: &HeaderMap) -> Result<Principal, Problem> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let secret = bearer.and_then(|value| {
        let (scheme, secret) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
    });
    if let Some((id, key)) = secret.and_then(|secret| api.vault.api_key(secret)) {
        let identity = Arc::new(KeyIdentity { id, name: key.name.clone() });
        let (uid, gid) = user();
        let caller = Caller {
            uid,
            gid,
            pid: std::process::id(),
            umask: 0o077,
            groups: |_| Vec::new(),
            patience: Patience::Wait,
            kernel: false,
            key: Some(identity),
        };
        return Ok(Principal { caller, scope: key.scope.clone(), permission: key.permission });
    }
    let (failure, why) = match secret {
        Some(_) => (Failure::WrongKey, "an API key that this vault does not have"),
        None => (Failure::NoKey, "no API key"),
    };
    let record = |why: &str| {
        let detail = Some(format!("{why}, from {from}"));
        api.audit.record(&AuditEvent { detail, ..AuditEvent::new("access.denied") });
    };
    let Some(pause) = api.failures.pause(from, failure) else {
        let why = "too many requests without a valid API key; try again later";
        if api.failures.is_told() {
            record(why);
        }
        return Err(Problem::new(Code::TooMany, why));
    };
    record(why);
    // Only after the pause: whoever tries keys waits longer each time.
    pause.over().await;
    let how =
        "the API key is missing or not valid: send `Authorization: Bearer sk_…` with a key that has not been revoked";
    Err(Problem::new(Code::Unauthorized, how))
}
