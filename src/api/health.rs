//! How the vault is: `/healthz` for a probe, `/status` for a person, `/fsck` for certainty.

use super::shape::{FsckLine, Status};
use super::stream::pieces;
use super::{Api, Problem};
use axum::Json;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub async fn healthz() -> &'static str {
    "ok\n"
}

pub async fn status(State(api): State<Arc<Api>>) -> Result<Json<Status>, Problem> {
    api.run(|api| Ok(Json(Status { vault: api.vault.status(), daemon: api.daemon.clone() }))).await
}

#[derive(Deserialize)]
pub struct How {
    /// `no`: nothing is opened.
    #[serde(default)]
    keys: String,
}

/// Answers with one JSON line for each finding, as they are found, and some that tell the progress.
pub async fn fsck(State(api): State<Arc<Api>>, Query(how): Query<How>) -> impl IntoResponse {
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
        let checked = match how.keys.as_str() {
            "no" => api.vault.fsck_without_keys(found, progress).map(|()| Vec::new()),
            _ => api.vault.fsck(found, progress),
        };
        match checked {
            Ok(lost) => {
                lost.into_iter().for_each(|lost| send(FsckLine::Lost(lost)));
                send(FsckLine::Done);
            }
            Err(error) => send(FsckLine::Failed(error.into())),
        }
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], Body::new(body))
}
