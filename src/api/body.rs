//! Bodies: bounded in time, those in JSON also in length, and in the memory that all of them take together.

use super::error::{Code, Problem};
use super::stream;
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The longest body, and the longest value that is answered in JSON. Longer values travel as `application/octet-stream`.
pub const LONGEST: usize = 8 << 20;
/// What all bodies and values in JSON may take at one time.
const ALL: usize = 256 << 20;
const UNIT: usize = 16 << 10;
/// How long the next piece of a body may take, and the wait for memory.
const NEXT_PIECE: Duration = Duration::from_secs(20);
/// Bytes in a second, below which a body as a whole is too slow.
const SLOWEST: u64 = 1024;
/// Raw values that travel over the network at one time: each keeps a thread, and others need some too.
const STREAMS: usize = 64;

/// Memory for bodies and values in JSON, and threads for raw ones.
pub struct Room {
    memory: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// A part of it; given back when dropped.
pub struct Held(Option<OwnedSemaphorePermit>);

impl Default for Room {
    fn default() -> Self {
        Room { memory: Arc::new(Semaphore::new(ALL / UNIT)), streams: Arc::new(Semaphore::new(STREAMS)) }
    }
}

impl Room {
    pub async fn hold(&self, bytes: usize) -> Result<Held, Problem> {
        let units = bytes.div_ceil(UNIT).max(1) as u32;
        match tokio::time::timeout(NEXT_PIECE, self.memory.clone().acquire_many_owned(units)).await {
            Ok(permit) => Ok(Held(permit.ok())),
            Err(_) => Err(Problem::new(Code::Busy, "too many long values are under way; try again")),
        }
    }

    /// The same if nobody has to wait for it.
    pub fn hold_now(&self, bytes: usize) -> Option<Held> {
        let units = bytes.div_ceil(UNIT).max(1) as u32;
        self.memory.clone().try_acquire_many_owned(units).ok().map(|permit| Held(Some(permit)))
    }

    /// A place for a raw value on its way.
    pub async fn stream(&self) -> Result<Held, Problem> {
        match tokio::time::timeout(NEXT_PIECE, self.streams.clone().acquire_owned()).await {
            Ok(permit) => Ok(Held(permit.ok())),
            Err(_) => Err(Problem::new(Code::Busy, "too many raw values are under way; try again")),
        }
    }
}

/// How fast a body has to come: its next piece in time, and the whole of it not too slowly.
pub struct Pace {
    begun: Instant,
    received: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { begun: Instant::now(), received: 0 }
    }
}

impl Pace {
    pub async fn next(&mut self, body: &mut Body) -> Result<Option<Bytes>, Problem> {
        let piece = tokio::time::timeout_at(self.until(Instant::now()), stream::next(body)).await;
        let piece = piece.map_err(|_| Problem::new(Code::Timeout, "the request's body did not come in time"))??;
        self.received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        Ok(piece)
    }

    /// When the next piece is too late.
    fn until(&self, now: Instant) -> Instant {
        let whole = self.begun + NEXT_PIECE + Duration::from_secs(self.received / SLOWEST);
        whole.min(now + NEXT_PIECE)
    }
}

/// An answer in JSON, of about so many bytes, whose memory counts until the client has taken it.
pub fn answer(value: &impl Serialize, about: usize, held: Held) -> Response {
    struct Kept {
        text: Vec<u8>,
        _held: Held,
    }
    impl AsRef<[u8]> for Kept {
        fn as_ref(&self) -> &[u8] {
            &self.text
        }
    }
    let mut text = Vec::with_capacity(about);
    serde_json::to_writer(&mut text, value).expect("plain data");
    let body = Bytes::from_owner(Kept { text, _held: held });
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// A body as it came.
pub struct Text {
    pub bytes: Vec<u8>,
    pub held: Held,
}

/// Reads a body. A client that is slow is refused as much as one that sends too much.
pub async fn read(room: &Room, mut body: Body) -> Result<Text, Problem> {
    let (mut bytes, mut pace) = (Vec::new(), Pace::default());
    let mut held: Option<OwnedSemaphorePermit> = None;
    while let Some(piece) = pace.next(&mut body).await? {
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
        // A list of the fields' values would be taken as well.
        if self.bytes.iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Problem::invalid("the request's body: a JSON object is expected"));
        }
        serde_json::from_slice(&self.bytes).map_err(|e| Problem::invalid(format!("the request's body: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_piece_has_to_come_in_time_and_a_body_that_drips_is_too_slow_as_a_whole() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let pace = |received| Pace { begun, received };
        assert_eq!(pace(0).until(after(0)), after(20));
        assert_eq!(pace(100).until(after(19)), after(20), "a byte now and then");
        assert_eq!(pace(500 << 10).until(after(500)), after(520), "fast enough, for however long");
        assert_eq!(pace(8 << 20).until(after(1)), after(21), "fast, and then nothing");
    }

    #[tokio::test]
    async fn the_memory_of_an_answer_is_given_back_when_it_is_taken() {
        let room = Room::default();
        let answer = answer(&"text", 6, room.hold(5 * UNIT).await.unwrap());
        assert_eq!(room.memory.available_permits(), ALL / UNIT - 5);
        let mut body = answer.into_body();
        let piece = stream::next(&mut body).await.unwrap().unwrap();
        drop(body);
        assert_eq!((&piece[..], room.memory.available_permits()), (&b"\"text\""[..], ALL / UNIT - 5));
        drop(piece);
        assert_eq!(room.memory.available_permits(), ALL / UNIT);
    }
}
