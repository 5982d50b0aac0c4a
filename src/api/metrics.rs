//! `/metrics` for Prometheus (text exposition format 0.0.4).

use super::access::Who;
use super::openapi::Refusals;
use super::{Api, Problem};
use crate::vault::{Permission, Status};
use axum::Extension;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Requests answered, by method and status.
#[derive(Default)]
pub struct Requests(Mutex<BTreeMap<Kind, Counted>>);

/// Method and status.
type Kind = (&'static str, u16);
/// How many, and how long they took together.
type Counted = (u64, Duration);

impl Requests {
    fn count(&self, method: &'static str, status: StatusCode, took: Duration) {
        let mut counts = self.0.lock();
        let (requests, time) = counts.entry((method, status.as_u16())).or_default();
        (*requests, *time) = (*requests + 1, *time + took);
    }
}

/// Counts each request, and gives its answer an id.
pub async fn counted(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let method = match request.method().as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        _ => "other",
    };
    let begun = Instant::now();
    let mut response = next.run(request).await;
    api.requests.count(method, response.status(), begun.elapsed());
    let id = format!("req_{}", ulid::Ulid::generate());
    response.headers_mut().insert(REQUEST_ID, HeaderValue::from_str(&id).expect("a ULID is ASCII"));
    response
}

#[utoipa::path(get, path = "/metrics", tag = "vault",
    description = "Counters and gauges in Prometheus' text format.",
    responses((status = 200, body = String, content_type = "text/plain"), Refusals))]
pub async fn metrics(State(api): State<Arc<Api>>, Extension(who): Who) -> Result<impl IntoResponse, Problem> {
    who.may_in_vault(&api, Permission::Admin)?;
    let text = api.run(|api| Ok(text(api))).await?;
    Ok(([(CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// The tokens of organizations' own that were asked since the vault was opened. A URI has no quote and no backslash.
fn own_tokens(text: &mut String, status: &Status) {
    for (name, help, state) in [
        ("up", "1 while the organization's own token serves.", "active"),
        ("pin_refused", "1 once the organization's own token has refused the PIN.", "pin refused"),
    ] {
        let name = format!("vaultfs_organization_token_{name}");
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge").expect("a string takes everything");
        for token in status.own_tokens.iter().filter(|token| token.state != "not asked") {
            for organization in &token.organizations {
                let (id, uri, value) = (&organization.id, &token.uri, u64::from(token.state == state));
                writeln!(text, "{name}{{organization=\"{id}\",token=\"{uri}\"}} {value}")
                    .expect("a string takes everything");
            }
        }
    }
}

fn text(api: &Api) -> String {
    let status = api.vault.status();
    let mut text = String::new();
    let mut line = |name: &str, kind: &str, help: &str, value: u64| {
        let written =
            writeln!(text, "# HELP vaultfs_{name} {help}\n# TYPE vaultfs_{name} {kind}\nvaultfs_{name} {value}");
        written.expect("a string takes everything");
    };
    line("organizations", "gauge", "Organizations.", status.organizations);
    line("objects", "gauge", "Objects.", status.objects);
    line("bytes", "gauge", "Plaintext bytes of current versions.", status.bytes);
    line("tombstones", "gauge", "Tombstones.", status.tombstones);
    line("pending_bytes", "gauge", "Bytes answered and not stored yet.", status.pending_bytes);
    line("writing", "gauge", "1 while what is answered can be stored.", u64::from(status.writing == "ok"));
    line("token_up", "gauge", "1 while the token serves.", u64::from(status.token.state == "active"));
    line(
        "token_pin_refused",
        "gauge",
        "1 once the token has refused the PIN.",
        u64::from(status.token.state == "pin refused"),
    );
    line("token_logins_total", "counter", "PINs presented to the token.", status.token.logins);
    line("token_recoveries_total", "counter", "Times the token's module was started over.", status.token.recoveries);
    line("token_calls_total", "counter", "Calls of the token.", status.token.calls);
    line("token_keys_cached", "gauge", "Keys in memory.", status.token.cached_keys);
    own_tokens(&mut text, &status);
    let mut requests = |kind: &str, unit: &str, value: &dyn Fn(&Counted) -> String| {
        writeln!(text, "# TYPE vaultfs_{kind} counter").expect("a string takes everything");
        for ((method, status), counted) in &*api.requests.0.lock() {
            let value = value(counted);
            writeln!(text, "vaultfs_{kind}{{method=\"{method}\",status=\"{status}\"}} {value}{unit}")
                .expect("a string takes everything");
        }
    };
    requests("requests_total", "", &|(count, _)| count.to_string());
    requests("request_seconds_total", "", &|(_, time)| time.as_secs_f64().to_string());
    text
}
