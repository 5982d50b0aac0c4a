//! Bodies in JSON: bounded in length, in time, and in the memory that all of them take together.

use super::error::{Code, Problem};
use super::stream;
use axum::body::Body;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest body, and the longest value that is answered in JSON. Longer values travel as `application/octet-stream`.
pub const LONGEST: usize = 8 << 20;
/// What all bodies and values in JSON may take at one time.
const ALL: usize = 256 << 20;
const UNIT: usize = 16 << 10;
/// How long the next piece of a body may take, and the wait for memory.
const NEXT_PIECE: Duration = Duration::from_secs(20);

/// Memory for bodies and values in JSON.
#[derive(Clone)]
pub struct Room(Arc<Semaphore>);

/// A part of it; given back when dropped.
pub struct Held(Option<OwnedSemaphorePermit>);

impl Default for Room {
    fn default() -> Self {
        Room(Arc::new(Semaphore::new(ALL / UNIT)))
    }
}

impl Room {
    pub async fn hold(&self, bytes: usize) -> Result<Held, Problem> {
        let units = bytes.div_ceil(UNIT).max(1) as u32;
        match tokio::time::timeout(NEXT_PIECE, self.0.clone().acquire_many_owned(units)).await {
            Ok(permit) => Ok(Held(permit.ok())),
            Err(_) => Err(Problem::new(Code::Busy, "too many long values are under way; try again")),
        }
    }
}

/// A body as it came.
pub struct Text {
    pub bytes: Vec<u8>,
    pub held: Held,
}

/// Reads a body. A client that is slow is refused as much as one that sends too much.
pub async fn read(room: &Room, mut body: Body) -> Result<Text, Problem> {
    let mut bytes = Vec::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    loop {
        let piece = tokio::time::timeout(NEXT_PIECE, stream::next(&mut body)).await;
        let piece = piece.map_err(|_| Problem::new(Code::Timeout, "the request's body did not come in time"))??;
        let Some(piece) = piece else { break };
        if bytes.len() + piece.len() > LONGEST {
            let why =
                format!("a body in JSON has at most {LONGEST} bytes; send a longer value as application/octet-stream");
            return Err(Problem::new(Code::TooLarge, why));
        }
        bytes.extend_from_slice(&piece);
        let more = bytes.len().div_ceil(UNIT) - held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if more > 0
            && let Held(Some(permit)) = room.hold(more * UNIT).await?
        {
            match &mut held {
                Some(held) => held.merge(permit),
                None => held = Some(permit),
            }
        }
    }
    Ok(Text { bytes, held: Held(held) })
}

impl Text {
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_json::from_slice(&self.bytes).map_err(|e| Problem::invalid(format!("the request's body: {e}")))
    }
}
