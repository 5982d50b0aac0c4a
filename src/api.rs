//! The HTTP API of a vault: the one way in for services and for the command line, over TCP, through a unix socket or
//! in process.
//!
//! Routes and shapes are those of the hosted object vault, and some more; `openapi.rs` describes each. An
//! `{object}` is an id or `ORG/PATH`, percent-encoded as one segment. Values are JSON, or `application/octet-stream`.

mod access;
mod apikeys;
mod body;
mod datakeys;
mod error;
mod events;
mod health;
mod keys;
mod metrics;
mod objects;
mod openapi;
mod organizations;
pub mod percent;
mod replay;
pub mod shape;
mod slowing;
pub mod stream;
mod tombstones;
mod values;

pub use access::{Peer, user};
pub use error::{Code, Problem};

use crate::audit::Audit;
use crate::vault::{self, AuditEvent, OrganizationInfo, Permission, Vault};
use access::Principal;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the routes answer from.
pub struct Api {
    vault: Arc<Vault>,
    /// Stands as `environment_id` in every object.
    vault_id: String,
    audit: Arc<Audit>,
    /// Who besides uid 0 is answered on the socket.
    owner: u32,
    daemon: Option<shape::Daemon>,
    room: body::Room,
    replays: replay::Replays,
    failures: slowing::Failures,
    requests: metrics::Requests,
}

impl Api {
    pub fn new(vault: Arc<Vault>, audit: Arc<Audit>, owner: u32, daemon: Option<shape::Daemon>) -> Arc<Self> {
        let vault_id = vault.id().to_string();
        Arc::new(Api {
            vault,
            vault_id,
            audit,
            owner,
            daemon,
            room: Default::default(),
            replays: Default::default(),
            failures: Default::default(),
            requests: Default::default(),
        })
    }

    /// Runs what may wait for the disk or the token where waiting stops nobody else.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Api) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let api = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&api)).await;
        done.unwrap_or_else(|_| Err(Problem::new(Code::Failure, "the request crashed; the daemon's log says where")))
    }

    fn object(&self, info: vault::ObjectInfo) -> shape::VaultObject {
        shape::VaultObject::of(info, &self.vault_id)
    }

    /// Puts on record what somebody did through the API.
    fn note(&self, who: &Principal, event: &'static str, fill: impl FnOnce(&mut AuditEvent)) {
        let mut event = AuditEvent::by(&who.caller, event);
        fill(&mut event);
        self.audit.record(&event);
    }

    /// The organization that a key context names, in which the principal may do this.
    fn organization_of(
        &self,
        who: &Principal,
        what: Permission,
        context: &BTreeMap<String, String>,
    ) -> Result<OrganizationInfo, Problem> {
        who.may(self, what)?;
        let anywhere = who.organizations().is_none();
        match self.vault.organization_of_context(&who.caller, context, anywhere)? {
            Some(found) => who.may_in(self, what, &found.id).map(|()| found),
            // Refused as for one that is there and not theirs.
            None if !anywhere => Err(who.elsewhere(self)),
            None => Err(Problem::new(
                Code::Unprocessable,
                "the key context names no organization of this vault: `organizationId` is its id, external id or name",
            )),
        }
    }
}

pub fn router(api: Arc<Api>) -> Router {
    let known = axum::middleware::from_fn_with_state(api.clone(), access::known);
    let counted = axum::middleware::from_fn_with_state(api.clone(), metrics::counted);
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/events", get(events::list))
        .route("/metrics", get(metrics::metrics))
        .route("/openapi.json", get(openapi::document))
        .route("/status", get(health::status))
        .route("/fsck", post(health::fsck))
        .route("/api_keys", get(apikeys::list).post(apikeys::create))
        .route("/api_keys/{id}", delete(apikeys::revoke))
        .route("/organizations", get(organizations::list).post(organizations::create))
        .route("/organizations/external_id/{external_id}", get(organizations::by_external_id))
        .route(
            "/organizations/{organization}",
            get(organizations::show).put(organizations::change).delete(organizations::delete),
        )
        .route("/vault/v1/keys/data-key", post(datakeys::create))
        .route("/vault/v1/keys/decrypt", post(datakeys::decrypt))
        .route("/vault/v1/keys/rekey", post(datakeys::rekey))
        .route("/vault/v1/kv", get(objects::list).post(values::create))
        .route("/vault/v1/kv/{object}", get(values::read).put(values::put).delete(objects::delete))
        .route("/organizations/{organization}/lock", post(organizations::lock))
        .route("/organizations/{organization}/unlock", post(organizations::unlock))
        .route("/organizations/{organization}/rotate", post(keys::rotate))
        .route("/organizations/{organization}/revoke", post(keys::revoke))
        .route("/organizations/{organization}/move", post(keys::relocate))
        .route("/keys", get(keys::list))
        .route("/keys/check", get(keys::check))
        .route("/keys/migrate", post(keys::migrate))
        .route("/keys/pin", post(keys::set_pin))
        .route("/keys/rotations", get(keys::rotations))
        .route("/keys/rotate", post(keys::rotate_all))
        .route("/keys/root/rotate", post(keys::rotate_root))
        .route("/vault/v1/kv/{object}/metadata", get(objects::describe))
        .route("/vault/v1/kv/{object}/versions", get(objects::versions))
        .route("/vault/v1/kv/{object}/versions/{version}", get(values::read_version))
        .route("/vault/v1/kv/{object}/versions/{version}/restore", post(objects::revert))
        .route("/vault/v1/kv/name/{*name}", get(values::read_by_name))
        .route("/vault/v1/tombstones", get(tombstones::list))
        .route("/vault/v1/tombstones/{tombstone}", delete(tombstones::purge))
        .route("/vault/v1/tombstones/{tombstone}/restore", post(tombstones::restore))
        .fallback(|| async { Problem::new(Code::NotFound, "there is no such route") })
        .method_not_allowed_fallback(|| async { Problem::new(Code::Method, "this route does not take this method") })
        // Values are streamed and may be as long as files are; bodies in JSON have a limit of their own.
        .layer(DefaultBodyLimit::disable())
        .layer(known)
        .layer(counted)
        .with_state(api)
}

/// One segment of a request's path as bytes: a name need not be UTF-8.
fn segment(uri: &axum::http::Uri, number: usize) -> Result<Vec<u8>, Problem> {
    percent::decode(uri.path().split('/').nth(number + 1).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_keeps_its_encoded_slashes_and_bytes() {
        let uri = "/vault/v1/kv/acme%2Fa%20%FF%2Fversions/versions/3".parse().unwrap();
        assert_eq!(segment(&uri, 3).unwrap(), b"acme/a \xff/versions");
        assert_eq!(segment(&uri, 5).unwrap(), b"3");
    }
}
