//! Values on their way: between the vault's blocking readers and writers and the pieces of an HTTP body.

use super::body::Pace;
use super::error::{Code, Problem};
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::Frame;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Pieces that wait for a slow reader. A piece has at most 1 MiB.
const AHEAD: usize = 2;
/// The trailer that says why a value ends before its end, for a client that sent `TE: trailers`.
const TRAILER: &str = "vault-problem";

pub type Piece = Result<Bytes, Problem>;

/// A body that is made piece by piece on a thread that may block.
pub struct Pieces {
    from: mpsc::Receiver<Piece>,
    /// Whether the client takes a problem as a trailer. Otherwise the connection breaks off, so that no
    /// client ever takes half of a value for the whole.
    trailers: bool,
}

/// Where the pieces of a body are put in.
pub fn pieces(trailers: bool) -> (mpsc::Sender<Piece>, Pieces) {
    let (to, from) = mpsc::channel(AHEAD);
    (to, Pieces { from, trailers })
}

impl Pieces {
    /// Waits for the beginning, so that what fails at once is still answered with a status.
    pub async fn begun(mut self) -> Result<Body, Problem> {
        let first = self.from.recv().await.transpose()?;
        Ok(match first {
            Some(first) => Body::new(Begun { first: Some(first), rest: self }),
            None => Body::empty(),
        })
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Problem;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Problem>>> {
        let trailers = self.trailers;
        self.from.poll_recv(context).map(|piece| {
            piece.map(|piece| match piece {
                Ok(bytes) => Ok(Frame::data(bytes)),
                Err(problem) if trailers => Ok(Frame::trailers(as_trailer(&problem))),
                Err(problem) => Err(problem),
            })
        })
    }
}

/// A body whose first piece is there already.
struct Begun {
    first: Option<Bytes>,
    rest: Pieces,
}

impl HttpBody for Begun {
    type Data = Bytes;
    type Error = Problem;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Problem>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(Frame::data(first)))),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }
}

pub fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get("te").is_some_and(|te| te.as_bytes().eq_ignore_ascii_case(b"trailers"))
}

/// The headers of an answer whose body may end in a problem.
pub fn trailer_header() -> [(&'static str, &'static str); 1] {
    [("trailer", TRAILER)]
}

fn as_trailer(problem: &Problem) -> HeaderMap {
    let text = serde_json::to_string(problem).expect("a problem is plain data");
    // A header has visible ASCII alone; JSON can escape the rest.
    let ascii: String = text.chars().map(|c| if c.is_ascii() { c.to_string() } else { escaped(c) }).collect();
    let value = HeaderValue::try_from(ascii).expect("JSON escapes control characters");
    HeaderMap::from_iter([(TRAILER.parse().expect("a header's name"), value)])
}

fn escaped(c: char) -> String {
    c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
}

/// The next bytes of a body; a problem that travelled as a trailer is one again.
pub async fn next(body: &mut Body) -> Result<Option<Bytes>, Problem> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Problem::new(Code::Failure, format!("the value broke off: {e}")))?;
        match frame.into_data() {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(frame) => {
                if let Some(text) = frame.trailers_ref().and_then(|t| t.get(TRAILER)) {
                    let broken = || Problem::new(Code::Failure, "the value broke off");
                    return Err(serde_json::from_slice(text.as_bytes()).unwrap_or_else(|_| broken()));
                }
            }
        }
    }
    Ok(None)
}

/// A request's body for a thread that may block.
pub struct BodyReader {
    body: Body,
    /// `None`: it may take as long as it likes.
    pace: Option<Pace>,
    piece: Bytes,
    /// Why it ends before its end.
    problem: Option<Problem>,
    runtime: Handle,
}

impl BodyReader {
    /// To be called on the runtime and read on one of its blocking threads.
    pub fn new(body: Body, pace: Option<Pace>) -> Self {
        BodyReader { body, pace, piece: Bytes::new(), problem: None, runtime: Handle::current() }
    }

    /// Why it could not be read to its end, if that was so.
    pub fn problem(&self) -> Option<&Problem> {
        self.problem.as_ref()
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        match &mut self.pace {
            Some(pace) => pace.next(&mut self.body).await,
            None => next(&mut self.body).await,
        }
    }
}

impl Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            if let Some(problem) = &self.problem {
                return Err(io::Error::other(problem.clone()));
            }
            let runtime = self.runtime.clone();
            match runtime.block_on(self.next()) {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => return Ok(0),
                Err(problem) => self.problem = Some(problem),
            }
        }
        let len = out.len().min(self.piece.len());
        out[..len].copy_from_slice(&self.piece.split_to(len));
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_at_the_start_is_an_answer_and_later_a_trailer() {
        let problem = Problem::new(Code::Integrity, "authentication failed at block 7 – ü");
        let (to, body) = pieces(true);
        to.send(Err(problem.clone())).await.unwrap();
        assert_eq!(body.begun().await.unwrap_err(), problem);

        let (to, body) = pieces(true);
        to.send(Ok("begun".into())).await.unwrap();
        to.send(Err(problem.clone())).await.unwrap();
        let mut body = body.begun().await.unwrap();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "begun");
        assert_eq!(next(&mut body).await.unwrap_err(), problem);
    }
}
