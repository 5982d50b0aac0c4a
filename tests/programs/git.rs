//! git: hard links into another repository, many small files, renames onto names, and its own check of all of it.

use crate::Stage;

const IDENTITY: &str = "
export GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b.c GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b.c
git config --global init.defaultBranch main
git config --global advice.detachedHead false
fsck() { git -C \"$1\" fsck --strict --full --no-progress --no-dangling; same \"$(git -C \"$1\" status --porcelain)\" ''; }
";

const COMMITS: &str = r#"
git init -q origin
for n in {1..10}; do
    mkdir -p origin/d$n
    seq $n $((n * 300)) >origin/d$n/f
    ln -s f origin/d$n/l
    echo $n >origin/x
    chmod +x origin/x
    git -C origin add -A
    git -C origin commit -qm "commit $n"
done
"#;

fn passes(text: &str) {
    Stage::new().passes(&[IDENTITY, COMMITS, text].concat());
}

#[test]
fn git_commits_rebases_merges_and_collects_garbage() {
    passes(
        r#"
cd origin
same "$(git rev-list --count HEAD)" 10
git switch -qc topic HEAD~4
seq 5 >t; git add t; git commit -qm t
git mv t u; echo more >>u; git commit -qam u
git rebase -q main
same "$(git rev-list --count HEAD)" 12
git switch -q main
git merge -q --ff-only topic
echo changed >>d1/f; git stash -q; same "$(git status --porcelain)" ''; git stash pop -q; git checkout -q .; git stash list
git gc -q --prune=now; fsck .
git repack -qadf; git prune; fsck .
git worktree add -q ../tree HEAD~1; fsck ../tree; git worktree remove ../tree
git bundle create -q ../bundle main; git clone -q -b main ../bundle ../unbundled; fsck ../unbundled
diff -r -x .git . ../unbundled
"#,
    );
}

#[test]
fn git_clones_a_local_repository_three_times_at_once_with_hard_links() {
    passes(
        r#"
git -C origin gc -q
for n in 1 2 3; do git clone -q --local origin clone$n & pids[n]=$!; done
for n in 1 2 3; do wait ${pids[n]}; done
for n in 1 2 3; do diff -r -x .git origin clone$n; fsck clone$n; done
pack=$(cd origin; ls .git/objects/pack/*.pack)
same "$(stat -c '%i %h' origin/$pack)" "$(stat -c '%i 4' clone1/$pack)"
"#,
    );
}

#[test]
fn git_pushes_fetches_and_pulls() {
    passes(
        r#"
git clone -q origin one; git clone -q --no-local "file://$V/origin" two; git init -q --bare hub
cd one
seq 1000 >new; git add new; git commit -qm new
git push -q origin main:pushed; same "$(git -C ../origin rev-parse pushed)" "$(git rev-parse HEAD)"
git push -q --mirror ../hub; fsck ../origin
cd ../two; git pull -q --ff-only ../hub main; same "$(git rev-parse HEAD)" "$(git -C ../one rev-parse HEAD)"
git fetch -q --all; git push -q origin :pushed; refused git -C ../origin rev-parse -q --verify pushed
fsck .; diff -r -x .git . ../one
git -C ../hub fsck --strict --no-progress
"#,
    );
}
