//! How a command ends: the one table from an error's code to the exit code, and what the person may do.

use crate::api::{Code, Problem};
use std::fmt::{self, Display};
use std::io;

pub const HELP: &str = "\
Exit codes: 0 done, 1 failure, 2 usage, 3 not found, 4 version check lost, 5 token, 6 integrity, 7 denied,
8 fsck found warnings only.

OBJECT is ORG/PATH or an id (secret_…).";

/// Why a command did not do it.
#[derive(Debug)]
pub struct Failure {
    exit: u8,
    message: String,
    remedy: Option<&'static str>,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { exit: exit_code(code), message: message.into(), remedy: remedy(code) }
    }

    pub fn with_remedy(self, remedy: &'static str) -> Self {
        Failure { remedy: Some(remedy), ..self }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Invalid, message)
    }

    pub fn io(what: impl Display, error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => Code::NotFound,
            io::ErrorKind::PermissionDenied => Code::Denied,
            _ => Code::Failure,
        };
        Self::new(code, format!("{what}: {error}"))
    }

    /// Says of what the failure speaks.
    pub fn about(self, what: impl Display) -> Self {
        Failure { message: format!("{what}: {}", self.message), ..self }
    }

    /// `fsck` found something, and nothing is damaged.
    pub fn warnings(message: impl Into<String>) -> Self {
        Failure { exit: WARNINGS, message: message.into(), remedy: None }
    }

    pub fn exit(&self) -> u8 {
        self.exit
    }
}

const WARNINGS: u8 = 8;

fn exit_code(code: Code) -> u8 {
    match code {
        Code::Failure | Code::Exists | Code::NotEmpty | Code::NoSpace | Code::Quota => 1,
        Code::TooMany | Code::Timeout | Code::Busy => 1,
        Code::Invalid | Code::Unprocessable | Code::Method | Code::TooLarge => 2,
        Code::NotFound => 3,
        Code::VersionLost => 4,
        Code::Token => 5,
        Code::Integrity => 6,
        Code::Denied | Code::Unauthorized => 7,
    }
}

fn remedy(code: Code) -> Option<&'static str> {
    match code {
        Code::Token => Some("`vaultfs doctor` says what the token lacks"),
        Code::VersionLost => Some("read it again and decide anew"),
        Code::Integrity => Some("`vaultfs fsck` says what else is touched; restore it from a copy"),
        Code::NoSpace => Some("delete objects or purge tombstones; deleting still works"),
        _ => None,
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Failure::new(problem.code, problem.error)
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.remedy.map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_promise() {
        let table = [
            (Code::Failure, 1),
            (Code::Exists, 1),
            (Code::NotEmpty, 1),
            (Code::NoSpace, 1),
            (Code::Invalid, 2),
            (Code::NotFound, 3),
            (Code::VersionLost, 4),
            (Code::Token, 5),
            (Code::Integrity, 6),
            (Code::Denied, 7),
        ];
        for (code, exit) in table {
            assert_eq!(Failure::from(Problem::new(code, "x")).exit(), exit, "{code:?}");
        }
        assert_eq!(Failure::warnings("x").exit(), 8);
    }

    #[test]
    fn a_failure_names_its_subject_and_a_way_out() {
        let failure = Failure::new(Code::Token, "the PIN was refused").about("acme/db");
        assert_eq!(failure.to_string(), "acme/db: the PIN was refused; `vaultfs doctor` says what the token lacks");
    }
}
