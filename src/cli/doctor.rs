//! `vaultfs doctor`: what a mount needs, whether it is there, and how to get it.

mod machine;
mod state;

use super::Global;
use super::exit::Failure;
use super::output::{print, print_json, shown};
use crate::api::Code;
use serde::Serialize;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Level {
    Ok,
    Warning,
    Problem,
}

#[derive(Debug, Serialize)]
struct Check {
    level: Level,
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Check {
    fn ok(what: impl Into<String>) -> Check {
        Check { level: Level::Ok, what: what.into(), remedy: None }
    }

    fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { level: Level::Warning, what: what.into(), remedy: Some(remedy.into()) }
    }

    fn problem(what: impl Into<String>, remedy: impl Into<String>) -> Check {
        Check { level: Level::Problem, what: what.into(), remedy: Some(remedy.into()) }
    }

    /// `problem  /dev/fuse is missing — load it with …`
    fn line(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok     ",
            Level::Warning => "warning",
            Level::Problem => "problem",
        };
        let remedy = self.remedy.as_ref().map(|remedy| format!(" — {remedy}")).unwrap_or_default();
        format!("{level}  {}{remedy}\n", shown(&self.what))
    }
}

pub fn run(global: &Global) -> Result<(), Failure> {
    let mut checks = machine::checks();
    checks.extend(state::checks(global));
    let problems = checks.iter().filter(|check| check.level == Level::Problem).count();
    if global.json {
        print_json(&checks)?;
    } else {
        print(&checks.iter().map(Check::line).collect::<String>())?;
    }
    match problems {
        0 => Ok(()),
        1 => Err(Failure::new(Code::Failure, "1 problem")),
        _ => Err(Failure::new(Code::Failure, format!("{problems} problems"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_and_how() {
        assert_eq!(Check::ok("/dev/fuse can be opened").line(), "ok       /dev/fuse can be opened\n");
        let line = Check::problem("/dev/fuse is missing", "`modprobe fuse`").line();
        assert_eq!(line, "problem  /dev/fuse is missing — `modprobe fuse`\n");
    }
}
