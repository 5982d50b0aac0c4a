//! How the vault is: `/healthz` for a probe, `/status` for a person, `/fsck` for certainty.

use super::access::Who;
use super::openapi::{Keys, Refusals};
use super::percent::Query;
use super::shape::{FsckLine, Status};
use super::stream::pieces;
use super::{Api, Problem};
use crate::vault::Permission;
use axum::body::Body;
use axum::extract::State;
use axum::http::Uri;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use std::sync::Arc;
use std::time::{Duration, Instant};

#[utoipa::path(get, path = "/healthz", tag = "vault", security(()),
    responses((status = 200, body = String, content_type = "text/plain")))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

#[utoipa::path(get, path = "/status", tag = "vault",
    description = "What `vaultfs status --json` prints: the vault, its token, and the daemon that serves it.",
    responses((status = 200, body = serde_json::Value), Refusals))]
pub async fn status(State(api): State<Arc<Api>>, Extension(who): Who) -> Result<Json<Status>, Problem> {
    who.may_in_vault(&api, Permission::Admin)?;
    api.run(|api| Ok(Json(Status { vault: api.vault.status(), daemon: api.daemon.clone() }))).await
}

#[utoipa::path(post, path = "/fsck", tag = "vault",
    description = "Checks the vault as it is served: one JSON line for each finding as it is found, and some that tell the \
        progress; the last is \"done\" or the failure.",
    params(("keys" = Option<Keys>, Query, description = "no: nothing is opened, and no key is asked for")),
    responses((status = 200, body = String, content_type = "application/x-ndjson"), Refusals))]
pub async fn fsck(State(api): State<Arc<Api>>, Extension(who): Who, uri: Uri) -> Result<impl IntoResponse, Problem> {
    who.may_in_vault(&api, Permission::Admin)?;
    let with_keys = match Query::of(&uri)?.text("keys")? {
        None | Some("yes") => true,
        Some("no") => false,
        Some(_) => return Err(Problem::invalid("keys: yes or no")),
    };
    const BETWEEN_PROGRESS: Duration = Duration::from_millis(200);
    let (lines, body) = pieces(false);
    tokio::task::spawn_blocking(move || {
        let send = |line: FsckLine| {
            let mut text = serde_json::to_vec(&line).expect("a line is plain data");
            text.push(b'\n');
            // A client that went away is not told any more; the check has no way to stop early.
            let _ = lines.blocking_send(Ok(text.into()));
        };
        let mut told = Instant::now();
        let found = &mut |finding| send(FsckLine::Finding(Box::new(finding)));
        let progress = &mut |done, total| {
            if told.elapsed() >= BETWEEN_PROGRESS {
                told = Instant::now();
                send(FsckLine::Progress { done, total });
            }
        };
        let checked = match with_keys {
            false => api.vault.fsck_without_keys(found, progress).map(|()| Vec::new()),
            true => api.vault.fsck(found, progress),
        };
        match checked {
            Ok(lost) => {
                lost.into_iter().for_each(|lost| send(FsckLine::Lost(lost)));
                send(FsckLine::Done);
            }
            Err(error) => send(FsckLine::Failed(error.into())),
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::new(body)))
}
