//! What the generated operations found once, each as small as it could be made.

use super::case;
use super::operation::{Expect, Op, Path};
use super::{template, token};
use vaultfs::vault::RenameMode;

fn at(path: &'static str) -> Path {
    Path { organization: 0, parts: path.split('/').collect() }
}

fn holds(name: &str, ops: &[Op]) {
    token::isolated(&format!("found::{name}"), |token| {
        let template = template(token);
        for values in [true, false] {
            case::run(template.path(), ops, values).unwrap();
        }
    });
}

fn save(path: &'static str, fill: u8) -> Op {
    Op::Save { path: at(path), len: 100, fill }
}

fn replace(from: &'static str, to: &'static str) -> Op {
    Op::Rename { from: at(from), to: at(to), mode: RenameMode::Replace }
}

fn unlink(path: &'static str) -> Op {
    Op::Unlink { path: at(path) }
}

#[test]
fn a_new_empty_file_is_a_version_also_if_its_maker_closes_before_another_opener() {
    let ops = [
        Op::Create { slot: 0, path: at("a") },
        Op::Open { slot: 1, path: at("a"), truncate: false, append: false },
        Op::Close { slot: 0 },
        Op::Close { slot: 1 },
    ];
    holds("a_new_empty_file_is_a_version_also_if_its_maker_closes_before_another_opener", &ops);
}

#[test]
fn a_name_removed_made_and_removed_again_in_one_batch_is_gone() {
    let remove = || unlink("a");
    let ops = [
        Op::Symlink { path: at("a"), target: "x" },
        Op::Sync,
        remove(),
        Op::Symlink { path: at("a"), target: "x" },
        remove(),
        Op::Remount,
    ];
    holds("a_name_removed_made_and_removed_again_in_one_batch_is_gone", &ops);
}

#[test]
fn a_restored_history_has_its_value() {
    let ops = [
        save("a", 1),
        save("a", 2),
        save("b", 3),
        replace("a", "b"),
        Op::Restore { organization: 0, index: 0, to: Some(at("d")) },
        Op::Remount,
    ];
    holds("a_restored_history_has_its_value", &ops);
}

#[test]
fn a_file_whose_version_check_is_about_a_purged_object_can_be_deleted() {
    let ops = [
        save("a", 1),
        Op::Create { slot: 0, path: at("b") },
        Op::Guard { path: at("b"), expect: Expect::Current(at("a")) },
        unlink("a"),
        Op::Purge { organization: 0, index: 0 },
        Op::Write { slot: 0, at: 0, len: 10, fill: 4 },
        Op::Close { slot: 0 },
        unlink("b"),
    ];
    holds("a_file_whose_version_check_is_about_a_purged_object_can_be_deleted", &ops);
}

#[test]
fn a_kept_version_in_a_segment_outlives_a_pruned_one() {
    let save = |len, fill| Op::Save { path: at("a"), len, fill };
    let ops = [save(4097, 0), save(4097, 0), save(1, 0), save(3790, 247)];
    holds("a_kept_version_in_a_segment_outlives_a_pruned_one", &ops);
}

#[test]
fn deleting_one_path_again_and_again_does_not_hang() {
    let ops: Vec<Op> = (0..4).flat_map(|fill| [save("a", fill), unlink("a")]).collect();
    holds("deleting_one_path_again_and_again_does_not_hang", &ops);
}
