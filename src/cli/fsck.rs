//! `vaultfs fsck`: findings as they come, a progress bar on a terminal, and how it ended as the exit code.

use super::client::{self, Client};
use super::exit::Failure;
use super::output::{print, shown, write};
use super::{Global, place};
use crate::api::shape::FsckLine;
use crate::api::{Code, Problem};
use crate::vault::{Finding, FsckOptions, Lost, Severity, Vault};
use axum::http::Method;
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Checks that every record and block opens and that they fit together. Of a mounted vault the daemon checks it,
/// while it serves.
#[derive(Args)]
pub struct Fsck {
    /// Ask no token: check the database, the shape of its rows and the segment files, and open nothing
    #[arg(long)]
    without_keys: bool,
    /// Mend what can be mended without guessing; the vault must not be mounted
    #[arg(long, conflicts_with = "without_keys")]
    repair: bool,
    /// Write findings and what is lost of which object to a file, as JSON. It names paths in clear
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

impl Fsck {
    pub fn run(self, global: &Global) -> Result<(), Failure> {
        let state = place::state(global)?;
        let mut show = Show::new(global.json);
        match Client::of_daemon(&state)? {
            Some(_) if self.repair => {
                let mounted =
                    Failure::new(Code::Failure, "the vault is mounted, and is repaired only when nobody serves it");
                return Err(mounted.with_remedy("`vaultfs umount`, then `vaultfs fsck --repair`"));
            }
            Some(mut daemon) => {
                let keys = if self.without_keys { "?keys=no" } else { "" };
                let mut pending = Vec::new();
                daemon.stream(Method::POST, &format!("/fsck{keys}"), &mut |piece| {
                    pending.extend_from_slice(piece);
                    while let Some(at) = pending.iter().position(|b| *b == b'\n') {
                        let line: Vec<u8> = pending.drain(..=at).collect();
                        let line = serde_json::from_slice(&line).map_err(|e| {
                            Failure::new(Code::Failure, format!("the check's report is not understood: {e}"))
                        })?;
                        show.line(line)?;
                    }
                    Ok(())
                })?;
            }
            None => self.offline(&state, &mut show)?,
        }
        show.end(self.without_keys, self.report.as_deref())
    }

    /// The vault itself, in this process.
    fn offline(&self, state: &Path, show: &mut Show) -> Result<(), Failure> {
        let how = FsckOptions { without_keys: self.without_keys, repair: self.repair };
        let (options, _) = client::options(state)?;
        let told = std::cell::RefCell::new((show, Ok(())));
        let tell = |line| {
            let (show, failed) = &mut *told.borrow_mut();
            if failed.is_ok() {
                *failed = show.line(line);
            }
        };
        let lost = Vault::fsck_offline(
            state,
            &options,
            how,
            &mut |finding| tell(FsckLine::Finding(Box::new(finding))),
            &mut |done, total| tell(FsckLine::Progress { done, total }),
        );
        let lost = lost.map_err(|error| {
            let failure = Failure::from(Problem::from(error));
            match failure.exit() {
                5 => failure.with_remedy(
                    "`vaultfs doctor` says what the token lacks, `vaultfs fsck --without-keys` needs none",
                ),
                _ => failure,
            }
        })?;
        lost.into_iter().for_each(|lost| tell(FsckLine::Lost(lost)));
        tell(FsckLine::Done);
        let (_, failed) = told.into_inner();
        failed
    }
}

/// What has been told, and how it is shown.
struct Show {
    json: bool,
    bar: ProgressBar,
    findings: Vec<Finding>,
    lost: Vec<Lost>,
    done: bool,
}

/// The file that `--report` writes.
#[derive(Serialize)]
struct Report<'a> {
    findings: &'a [Finding],
    lost: &'a [Lost],
}

impl Show {
    fn new(json: bool) -> Self {
        let target = match std::io::stderr().is_terminal() && !json {
            true => ProgressDrawTarget::stderr_with_hz(5),
            false => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        let bar = ProgressBar::with_draw_target(Some(0), target).with_style(style.expect("a template of known words"));
        Show { json, bar, findings: Vec::new(), lost: Vec::new(), done: false }
    }

    fn line(&mut self, line: FsckLine) -> Result<(), Failure> {
        if self.json && !matches!(line, FsckLine::Progress { .. }) {
            let mut text = serde_json::to_vec(&line).expect("a line is plain data");
            text.push(b'\n');
            write(&text)?;
        }
        match line {
            FsckLine::Progress { done, total } => {
                self.bar.set_length(total);
                self.bar.set_position(done);
            }
            FsckLine::Finding(finding) => {
                if !self.json {
                    self.bar.suspend(|| print(&told(&finding)))?;
                }
                self.findings.push(*finding);
            }
            FsckLine::Lost(lost) => {
                if !self.json {
                    self.bar.suspend(|| print(&what_is_left(&lost)))?;
                }
                self.lost.push(lost);
            }
            FsckLine::Failed(problem) => return Err(problem.into()),
            FsckLine::Done => self.done = true,
        }
        Ok(())
    }

    fn end(self, without_keys: bool, report: Option<&Path>) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        if let Some(path) = report {
            self.write_report(path).map_err(|e| Failure::io(path.display(), e))?;
        }
        if !self.done {
            return Err(Failure::new(Code::Failure, "the check broke off before its end"));
        }
        let count = |worse: bool| {
            let left = self.findings.iter().filter(|f| !f.repaired && (f.severity > Severity::Warning) == worse);
            left.count()
        };
        let (errors, warnings) = (count(true), count(false));
        let repaired = self.findings.len() - errors - warnings;
        if !self.json {
            if repaired > 0 {
                print(&format!("{repaired} repaired\n"))?;
            }
            if without_keys {
                print(
                    "not checked, for want of keys: whether rows, names, keys and values are authentic, and what they say\n",
                )?;
            } else if errors + warnings == 0 {
                print("everything is authentic and fits together\n")?;
            }
        }
        let number = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        match (errors, warnings) {
            (0, 0) => Ok(()),
            (0, _) => Err(Failure::warnings(format!("{}, no error", number(warnings, "warning")))),
            (_, 0) => Err(damaged(number(errors, "error"))),
            _ => Err(damaged(format!("{}, {}", number(errors, "error"), number(warnings, "warning")))),
        }
    }

    fn write_report(&self, path: &Path) -> std::io::Result<()> {
        let report = Report { findings: &self.findings, lost: &self.lost };
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&serde_json::to_vec_pretty(&report).expect("a report is plain data"))?;
        file.write_all(b"\n")?;
        file.sync_all()
    }
}

fn damaged(count: String) -> Failure {
    Failure::new(Code::Integrity, count).with_remedy("each says above what can be done")
}

fn told(finding: &Finding) -> String {
    let Finding { severity, code, place, message, remedy, .. } = finding;
    let word = if finding.repaired { "repaired".into() } else { severity.to_string() };
    let object = finding.object.as_deref().map(|object| format!(" of {object}")).unwrap_or_default();
    let path = finding.path.as_deref().map(|path| format!(" ({})", shown(path))).unwrap_or_default();
    let whose = match (&finding.organization, object.is_empty()) {
        (Some(organization), true) => format!(" of {organization}"),
        _ => object,
    };
    let remedy = if finding.repaired { String::new() } else { format!("; {remedy}") };
    let (code, message) = (code.word(), shown(message));
    format!("{word:<8}  {code}  {place}{whose}{path}: {message}{remedy}\n")
}

/// One line for each version of an object that something is gone of.
fn what_is_left(lost: &Lost) -> String {
    let path = lost.path.as_deref().map(|path| format!(" ({})", shown(path))).unwrap_or_default();
    let version = |v: &crate::vault::LostVersion| {
        let gone: Vec<String> = v.gone.iter().map(|(from, to)| format!("{from}–{}", to - 1)).collect();
        match v.readable {
            true => format!("    version {} can be read\n", v.version),
            false => format!("    version {}, {} bytes: bytes {} are gone\n", v.version, v.size, gone.join(", ")),
        }
    };
    format!("lost of {}{path}:\n", lost.object) + &lost.versions.iter().map(version).collect::<String>()
}
