//! The HTTP API over TCP, as client libraries use it. Each test has a token, a vault and a port of its own.

#[path = "support/http.rs"]
mod http;
#[path = "support/vault.rs"]
mod vault;

#[path = "api/events.rs"]
mod events;
#[path = "api/keys.rs"]
mod keys;
#[path = "api/limits.rs"]
mod limits;
#[path = "api/matrix.rs"]
mod matrix;
#[path = "api/objects.rs"]
mod objects;
#[path = "api/organizations.rs"]
mod organizations;
#[path = "api/serving.rs"]
mod serving;
#[path = "api/traps.rs"]
mod traps;
#[path = "api/truth.rs"]
mod truth;
