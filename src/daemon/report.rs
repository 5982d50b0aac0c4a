//! Who hears that the mount answers: the command that started the daemon, or the service manager.

use super::log;
use crate::api::{Code, Problem};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What the daemon writes when it is ready; anything else is a [`Problem`] in JSON.
const READY: &[u8] = b"ready";

pub enum Report {
    /// The command waits at the other end and then leaves the daemon alone.
    Command(PipeWriter),
    /// In the foreground: systemd hears of it if it asked to.
    ServiceManager,
}

impl Report {
    pub fn detaches(&self) -> bool {
        matches!(self, Report::Command(_))
    }

    pub fn ready(self) {
        match self {
            // A command that was interrupted does not hear it; the mount stays.
            Report::Command(mut pipe) => drop(pipe.write_all(READY)),
            Report::ServiceManager => {
                if let Err(error) = tell_service_manager("READY=1") {
                    log::warning(&format!("cannot tell the service manager: {error}"));
                }
            }
        }
    }

    pub fn failed(self, problem: &Problem) {
        if let Report::Command(mut pipe) = self {
            let _ = pipe.write_all(&serde_json::to_vec(problem).expect("a problem is plain data"));
        }
    }
}

/// The command's end: waits until the daemon is ready, or has said why not, or is gone.
pub fn hear(mut pipe: PipeReader) -> Result<(), Problem> {
    let mut said = Vec::new();
    let heard = pipe.read_to_end(&mut said);
    if said == READY {
        return Ok(());
    }
    let silent = "the daemon died before it could say why; run the command with -f to watch it";
    Err(match heard.map(|_| serde_json::from_slice(&said)) {
        Ok(Ok(problem)) => problem,
        _ => Problem::new(Code::Failure, silent),
    })
}

/// sd_notify(3): one datagram to `$NOTIFY_SOCKET`, a path or (with `@`) an abstract name.
fn tell_service_manager(state: &str) -> std::io::Result<()> {
    let Ok(name) = std::env::var("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_hears_readiness_the_reason_or_death() {
        let (read, write) = std::io::pipe().unwrap();
        Report::Command(write).ready();
        assert_eq!(hear(read), Ok(()));

        let (read, write) = std::io::pipe().unwrap();
        let problem = Problem::new(Code::Token, "the PIN is not right");
        Report::Command(write).failed(&problem);
        assert_eq!(hear(read), Err(problem));

        let (read, write) = std::io::pipe().unwrap();
        drop(write);
        assert!(hear(read).unwrap_err().error.contains("-f"));
    }
}
