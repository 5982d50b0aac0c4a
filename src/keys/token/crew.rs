//! The threads that ask the token, so that a C call that hangs holds up its own thread and nobody else.

use super::link::Link;
use super::seat::Seat;
use crate::keys::{KeyError, configuration, unavailable};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Real tokens serve several sessions at once; one that hangs leaves the others.
const WORKERS: usize = 3;
/// How long the end of a keyring waits for calls under way; a call that hangs is left behind.
const FAREWELL: Duration = Duration::from_secs(1);

pub type Job = Box<dyn FnOnce(&mut Seat) + Send>;

/// Threads with a seat each, and the queue in front of them.
pub struct Crew {
    shared: Arc<Shared>,
    timeout: Duration,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    farewell: Condvar,
}

#[derive(Default)]
struct Queue {
    now: VecDeque<Job>,
    /// Served when nobody waits.
    later: VecDeque<Job>,
    /// Since when each thread has been busy with one job.
    busy: [Option<Instant>; WORKERS],
    alive: usize,
    closed: bool,
}

impl Queue {
    /// Every thread has been at one job for longer than a caller waits.
    fn stuck(&self, timeout: Duration) -> bool {
        self.busy.iter().all(|since| since.is_some_and(|since| since.elapsed() > timeout))
    }
}

impl Crew {
    pub fn hire(link: Arc<Link>, timeout: Duration) -> Result<Self, KeyError> {
        let shared = Arc::new(Shared { queue: Mutex::default(), work: Condvar::new(), farewell: Condvar::new() });
        let crew = Crew { shared, timeout };
        for number in 0..WORKERS {
            let (shared, seat) = (crew.shared.clone(), Seat::new(link.clone()));
            crew.shared.queue.lock().alive += 1;
            let leaving = Leaving(shared.clone());
            std::thread::Builder::new()
                .name(format!("token-{number}"))
                .spawn(move || {
                    let _leaving = leaving;
                    work(&shared, number, seat);
                })
                .map_err(|error| configuration(format!("cannot start a thread for the token: {error}")))?;
        }
        Ok(crew)
    }

    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits for the answer, at most `patience`; a question that nobody waits for any more is not asked.
    pub fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        question: impl FnOnce(&mut Seat) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, KeyError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let deadline = Instant::now() + patience;
        let job = Box::new(move |seat: &mut Seat| {
            if Instant::now() < deadline {
                // The caller may have left meanwhile.
                let _ = answer.send(question(seat));
            }
        });
        {
            let mut queue = self.shared.queue.lock();
            if queue.stuck(self.timeout) {
                return Err(unavailable("every call to it hangs"));
            }
            queue.now.push_back(job);
        }
        self.shared.work.notify_one();
        answered.recv_timeout(patience).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => unavailable(format!("no answer within {patience:?}")),
                RecvTimeoutError::Disconnected => unavailable("the question was not asked in time"),
            })
        })
    }

    /// Dropped when the token hangs: whoever wants it asks again.
    pub fn later(&self, job: Job) {
        let mut queue = self.shared.queue.lock();
        if !queue.stuck(self.timeout) {
            queue.later.push_back(job);
            self.shared.work.notify_one();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.closed = true;
        self.shared.work.notify_all();
        let deadline = Instant::now() + FAREWELL;
        while queue.alive > 0 && !self.shared.farewell.wait_until(&mut queue, deadline).timed_out() {}
    }
}

/// Reports a thread's end, a panic's too.
struct Leaving(Arc<Shared>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.queue.lock().alive -= 1;
        self.0.farewell.notify_all();
    }
}

fn work(shared: &Shared, number: usize, mut seat: Seat) {
    let mut queue = shared.queue.lock();
    while !queue.closed {
        let job = queue.now.pop_front().or_else(|| queue.later.pop_front());
        match job {
            None => shared.work.wait(&mut queue),
            Some(job) => {
                queue.busy[number] = Some(Instant::now());
                drop(queue);
                job(&mut seat);
                queue = shared.queue.lock();
                queue.busy[number] = None;
            }
        }
    }
}
