//! A fixed number of threads for what would block a FUSE loop.
//!
//! The queue has no limit of its own: every job belongs to a request that a process is waiting for, or to one of the
//! few that the kernel allows in the background, so the kernel bounds it.

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{Builder, JoinHandle};

type Job = Box<dyn FnOnce() + Send>;

/// Dropping it finishes every queued job first.
pub struct Pool {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub fn new(name: &str, threads: usize) -> io::Result<Pool> {
        let (jobs, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..threads)
            .map(|number| {
                let queue = queue.clone();
                Builder::new().name(format!("{name}-{number}")).spawn(move || work(&queue))
            })
            .collect::<io::Result<_>>()?;
        Ok(Pool { jobs: Some(jobs), threads })
    }

    /// Jobs must not panic: each catches its own.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let jobs = self.jobs.as_ref().expect("only drop takes the sender");
        // It could fail only with every worker dead; the dropped job's reply then answers EIO by itself.
        let _ = jobs.send(Box::new(job));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        // In its own statement, so that the queue is unlocked before the job runs.
        let job = queue.lock().recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn a_blocked_job_does_not_hold_up_the_others_and_drop_finishes_all() {
        let pool = Pool::new("test", 2).unwrap();
        let (unblock, blocked) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let done = Arc::new(AtomicU32::new(0));
        pool.run(move || blocked.recv().unwrap());
        pool.run(move || tell.send(()).unwrap());
        told.recv().unwrap();
        for _ in 0..100 {
            let done = done.clone();
            pool.run(move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        unblock.send(()).unwrap();
        drop(pool);
        assert_eq!(done.load(Ordering::Relaxed), 100);
    }
}
