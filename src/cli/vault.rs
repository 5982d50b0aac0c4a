//! `vaultfs init`, `status` and `fsck`: the vault as a whole.

use super::client::Client;
use super::exit::Failure;
use super::output::{fields, print, print_json, shown, write};
use super::{Global, place};
use crate::api::shape::{FsckLine, Status};
use crate::api::{Code, Problem};
use crate::daemon::process;
use crate::vault::Vault;
use axum::http::Method;
use clap::Args;
use std::io::IsTerminal;
use std::path::PathBuf;

#[derive(Args)]
pub struct Init {
    /// The state directory; made if it is not there
    state: PathBuf,
    /// The token that shall hold the keys, as in pkcs11:token=vault?module-path=/usr/lib/softhsm/libsofthsm2.so
    #[arg(long, value_name = "PKCS11-URI")]
    token: String,
    /// Where its PIN is read each time: file:PATH, credential:NAME, fd:N or prompt
    #[arg(long, value_name = "SOURCE")]
    pin_source: String,
}

impl Init {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        process::keep_secrets();
        let made = Vault::init(&self.state, &self.token, &self.pin_source);
        let vault = made.map_err(|e| Failure::from(Problem::from(e)))?.to_string();
        let state = super::canonical(&self.state)?.display().to_string();
        if global.json {
            return print_json(&serde_json::json!({ "vault": vault, "state_directory": state }));
        }
        print(&fields(&[("vault", vault), ("state", state)]))
    }
}

pub fn status(global: &Global) -> Result<(), Failure> {
    let status: Status = Client::new(&place::state(global)?)?.ask(Method::GET, "/status")?;
    if global.json {
        return print_json(&status);
    }
    let vault = status.vault;
    let token = &vault.token;
    let mounted = match status.daemon {
        Some(daemon) => format!("{} by process {}", shown(&daemon.mount_point), daemon.pid),
        None => "no".into(),
    };
    let mut lines = vec![
        ("vault", format!("{} (format {})", vault.vault, vault.format)),
        ("state", shown(&vault.state_directory)),
        ("mounted", mounted),
        ("token", format!("{} ({})", shown(&token.label), token.state)),
        ("token calls", token.calls.to_string()),
        ("keys cached", token.cached_keys.to_string()),
        ("organizations", vault.organizations.to_string()),
        ("objects", vault.objects.to_string()),
        ("bytes", vault.bytes.to_string()),
        ("tombstones", vault.tombstones.to_string()),
        ("bytes pending", vault.pending_bytes.to_string()),
        ("writing", vault.writing.clone()),
    ];
    if let Some(error) = &token.last_error {
        lines.push(("token error", error.clone()));
    }
    print(&fields(&lines))
}

/// Findings as they come; on a terminal the progress too.
pub fn fsck(global: &Global) -> Result<(), Failure> {
    let mut client = Client::new(&place::state(global)?)?;
    let progress = std::io::stderr().is_terminal() && !global.json;
    let (mut pending, mut end) = (Vec::new(), None);
    client.stream(Method::POST, "/fsck", &mut |piece| {
        if global.json {
            write(piece)?;
        }
        pending.extend_from_slice(piece);
        while let Some(at) = pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = pending.drain(..=at).collect();
            let line = serde_json::from_slice(&line)
                .map_err(|e| Failure::new(Code::Failure, format!("the check's report is not understood: {e}")))?;
            match line {
                FsckLine::Progress { done, total } if progress => eprint!("\r{done} of {total}\x1b[K"),
                FsckLine::Finding(finding) if !global.json => {
                    if progress {
                        eprint!("\r\x1b[K");
                    }
                    print(&told(&finding))?;
                }
                FsckLine::Done { .. } | FsckLine::Failed(_) => end = Some(line),
                FsckLine::Progress { .. } | FsckLine::Finding(_) => {}
            }
        }
        Ok(())
    })?;
    if progress {
        eprint!("\r\x1b[K");
    }
    match end {
        Some(FsckLine::Done { findings: 0 }) if global.json => Ok(()),
        Some(FsckLine::Done { findings: 0 }) => print("everything that was opened is authentic\n"),
        Some(FsckLine::Done { findings }) => {
            let count = if findings == 1 { "1 finding".into() } else { format!("{findings} findings") };
            Err(Failure::new(Code::Integrity, count).with_remedy("what they name is to be restored from a copy"))
        }
        Some(FsckLine::Failed(problem)) => Err(problem.into()),
        _ => Err(Failure::new(Code::Failure, "the check broke off before its end")),
    }
}

fn told(finding: &crate::vault::Finding) -> String {
    let object = finding.object.as_deref().map(|object| format!(" of {object}")).unwrap_or_default();
    let (severity, kind, place) = (&finding.severity, &finding.kind, shown(&finding.place));
    format!("{severity:<7}  {kind}  {place}{object}: {}\n", shown(&finding.message))
}
