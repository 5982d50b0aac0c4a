//! The vault against a reference model, without mount and network: generated operations, everything that can
//! be seen compared after each one, with remounts and kills in between.
//!
//! The same operations each time, unless `VAULTFS_MODEL_CASES=N` asks for N new ones.

#[path = "model/case.rs"]
mod case;
#[path = "model/counts.rs"]
mod counts;
#[path = "model/crash.rs"]
mod crash;
#[path = "support/dice.rs"]
mod dice;
#[path = "model/ending.rs"]
mod ending;
#[path = "model/faults.rs"]
mod faults;
#[path = "model/found.rs"]
mod found;
#[path = "model/history.rs"]
mod history;
#[path = "model/operation.rs"]
mod operation;
#[path = "model/reference.rs"]
mod reference;
#[path = "keys/token.rs"]
#[allow(dead_code, reason = "the tests of the keys use the rest")]
mod token;
#[path = "model/view.rs"]
mod view;
#[path = "model/volatile.rs"]
mod volatile;
#[path = "model/world.rs"]
mod world;

use operation::{Op, operation};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use token::Token;

const CASES: u32 = 60;
const LONGEST: usize = 60;

fn template(token: &Token) -> tempfile::TempDir {
    let config = token.config();
    world::template(&config.uri.to_string(), &config.pin.to_string())
}

#[test]
fn a_vault_is_what_was_done_to_it() {
    token::isolated("a_vault_is_what_was_done_to_it", |token| {
        let template = template(token);
        let asked = std::env::var("VAULTFS_MODEL_CASES").ok().map(|n| n.parse().expect("a number"));
        let config = Config {
            cases: asked.unwrap_or(CASES),
            failure_persistence: None,
            max_shrink_iters: 600,
            ..Config::default()
        };
        let mut runner = match asked {
            Some(_) => TestRunner::new(config),
            None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
        };
        let ops = proptest::collection::vec(operation(), 1..LONGEST);
        let result = runner.run(&(ops, proptest::bool::ANY), |(ops, values)| {
            case::run(template.path(), &ops, values).map_err(TestCaseError::fail)
        });
        match result {
            Ok(()) => {}
            Err(TestError::Fail(reason, (ops, values))) => panic!("{reason}\n{}", shown(&ops, values)),
            Err(abort) => panic!("{abort}"),
        }
    });
}

fn shown(ops: &[Op], values: bool) -> String {
    let lines: Vec<String> = ops.iter().map(|op| format!("    {op:?},")).collect();
    format!("values: {values}\n[\n{}\n]", lines.join("\n"))
}
