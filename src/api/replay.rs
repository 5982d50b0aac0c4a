//! `Idempotency-Key`: a POST that is sent again with the same key is answered as the first one was, and done once.
//!
//! Kept in memory for a day; whoever repeats a request after the daemon has ended meets the conflict of its first effect.

use super::access::Principal;
use super::error::{Code, Problem};
use crate::crypto;
use axum::Json;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const HEADER: &str = "idempotency-key";
const KEPT: Duration = Duration::from_secs(24 * 3600);
const ANSWERS: usize = 10_000;
const KEY_MAX: usize = 255;

/// Which request of whom it is.
pub struct Once {
    key: String,
    request: [u8; 32],
}

impl Once {
    /// `None` without the header.
    pub fn of(who: &Principal, headers: &HeaderMap, route: &str, body: &[u8]) -> Result<Option<Once>, Problem> {
        let Some(key) = headers.get(HEADER) else { return Ok(None) };
        let key = key.to_str().ok().filter(|key| !key.is_empty() && key.len() <= KEY_MAX);
        let key = key.ok_or_else(|| Problem::invalid("Idempotency-Key: 1 to 255 visible characters"))?;
        let request = crypto::digest(&[route.as_bytes(), b"\0", body].concat());
        Ok(Some(Once { key: format!("{} {key}", who.caller.actor()), request }))
    }
}

/// Answers that may be asked for again.
#[derive(Default)]
pub struct Replays(Mutex<HashMap<String, Arc<Slot>>>);

struct Slot {
    request: [u8; 32],
    since: Instant,
    /// Held while the first request is under way, so that its repetition waits for it.
    answer: Mutex<Option<(StatusCode, Value)>>,
}

impl Replays {
    /// Does the work, or answers as it was answered before. A refusal is not kept.
    pub fn answer(
        &self,
        once: Option<Once>,
        work: impl FnOnce() -> Result<(StatusCode, Value), Problem>,
    ) -> Result<Response, Problem> {
        let Some(once) = once else { return work().map(respond) };
        let slot = self.slot(&once);
        if slot.request != once.request {
            let why = "this Idempotency-Key was used for another request";
            return Err(Problem::new(Code::Unprocessable, why));
        }
        let mut answer = slot.answer.lock();
        if answer.is_none() {
            *answer = Some(work()?);
        }
        Ok(respond(answer.clone().expect("given above")))
    }

    fn slot(&self, once: &Once) -> Arc<Slot> {
        let mut slots = self.0.lock();
        if slots.len() >= ANSWERS {
            slots.retain(|_, slot| slot.since.elapsed() < KEPT);
        }
        if slots.len() >= ANSWERS
            && let Some(oldest) = slots.iter().min_by_key(|(_, slot)| slot.since).map(|(key, _)| key.clone())
        {
            slots.remove(&oldest);
        }
        let known = slots.get(&once.key).filter(|slot| slot.since.elapsed() < KEPT).cloned();
        known.unwrap_or_else(|| {
            let fresh = Slot { request: once.request, since: Instant::now(), answer: Mutex::default() };
            let fresh = Arc::new(fresh);
            slots.insert(once.key.clone(), fresh.clone());
            fresh
        })
    }
}

fn respond((status, value): (StatusCode, Value)) -> Response {
    (status, Json(value)).into_response()
}
