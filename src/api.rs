//! The HTTP API of a vault: the one way in for the command line, through a unix socket or in process.
//!
//! Routes and shapes are those of the hosted object vault as far as the commands need them. An `{object}` is
//! an id or `ORG/PATH`, percent-encoded as one segment. Values travel as `application/octet-stream`.

mod access;
mod error;
mod health;
mod objects;
mod organizations;
pub mod percent;
pub mod shape;
pub mod stream;
mod tombstones;

pub use access::Peer;
pub use error::{Code, Problem};

use crate::audit::Audit;
use crate::vault::{self, Vault};
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use std::sync::Arc;

/// What the routes answer from.
pub struct Api {
    vault: Arc<Vault>,
    /// Stands as `environment_id` in every object.
    vault_id: String,
    audit: Arc<Audit>,
    /// Who besides uid 0 is answered.
    owner: u32,
    daemon: Option<shape::Daemon>,
}

impl Api {
    pub fn new(vault: Arc<Vault>, audit: Arc<Audit>, owner: u32, daemon: Option<shape::Daemon>) -> Arc<Self> {
        let vault_id = vault.status().vault;
        Arc::new(Api { vault, vault_id, audit, owner, daemon })
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

    fn object(&self, info: vault::ObjectInfo) -> shape::Object {
        shape::Object::of(info, &self.vault_id)
    }
}

pub fn router(api: Arc<Api>) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/status", get(health::status))
        .route("/fsck", post(health::fsck))
        .route("/organizations", get(organizations::list).post(organizations::create))
        .route("/organizations/{organization}", get(organizations::show).delete(organizations::delete))
        .route("/vault/v1/kv", get(objects::list))
        .route("/vault/v1/kv/{object}", get(objects::read).put(objects::put).delete(objects::delete))
        .route("/vault/v1/kv/{object}/metadata", get(objects::describe))
        .route("/vault/v1/kv/{object}/versions", get(objects::versions))
        .route("/vault/v1/kv/{object}/versions/{version}", get(objects::read_version))
        .route("/vault/v1/kv/name/{*name}", get(objects::read_by_name).put(objects::put_by_name))
        .route("/vault/v1/tombstones", get(tombstones::list))
        .route("/vault/v1/tombstones/{tombstone}", delete(tombstones::purge))
        .route("/vault/v1/tombstones/{tombstone}/restore", post(tombstones::restore))
        .fallback(|| async { Problem::new(Code::NotFound, "there is no such route") })
        .method_not_allowed_fallback(|| async { Problem::invalid("this route does not take this method") })
        // Values are streamed and may be as long as files are.
        .layer(DefaultBodyLimit::disable())
        .layer(axum::middleware::from_fn_with_state(api.clone(), access::only_owner))
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
