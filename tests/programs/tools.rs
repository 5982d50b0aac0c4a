//! The everyday tools: walking, counting, comparing, locking, following, moving, signing.

use crate::Stage;

#[test]
fn find_du_ls_diff_and_grep_agree() {
    Stage::new().passes(
        r#"
mkdir t; for i in {1..20}; do mkdir t/$i; for j in {1..20}; do seq $j >t/$i/$j; done; done
same "$(find t -type f | wc -l) $(find t -noleaf -type f | wc -l) $(stat -c %h t)" '400 400 22'
same "$(find t -samefile t/1/1)" t/1/1
cp -r t $W/t; diff -r t $W/t
same "$(du -b t/1/* | awk '{ s += $1 } END { print s }')" "$(ls -l t/1 | awk '{ s += $5 } END { print s }')"
same "$(du --block-size=512 t/1/* | awk '{ s += $1 } END { print s }')" "$(stat -c %b t/1/* | awk '{ s += $1 } END { print s }')"
head -c 1000000 /dev/urandom >big; sync big
[ $(du -k big | cut -f1) -ge 977 ]; [ $(du -k big | cut -f1) -le 1100 ]; same "$(du -k --apparent-size big | cut -f1)" 977
same "$(du -s --apparent-size -b t | cut -f1)" "$(find t -printf '%s\n' | awk '{ s += $1 } END { print s }')"
same "$(grep -rl '^20$' t | wc -l)" 20
find t -type f -name '1?' -delete; same "$(find t -type f | wc -l)" 200
find t -type f -exec chmod 600 {} +; same "$(find t -type f -perm 600 | wc -l)" 200
rm -r t; [ ! -e t ]
"#,
    );
}

#[test]
fn flock_excludes_and_shares() {
    Stage::new().passes(
        r#"
: >l
(flock 9; touch held; eventually test -e go; echo one >>o) 9>l &
eventually test -e held
refused flock -n l true; refused flock -w 0.2 l true
touch go; flock l sh -c 'echo two >>o'; wait
same "$(cat o)" $'one\ntwo'
flock -s l flock -s -n l true; refused flock -s l flock -n l true
"#,
    );
}

#[test]
fn tail_follows_a_growing_file_and_a_rotated_name() {
    Stage::new().passes(
        r#"
lines() { same "$(wc -l <$1)" $2 2>/dev/null; }
echo start >log; tail -s .1 -n +1 -F log >$W/seen 2>$W/said & followed=$!
tail -s .1 -n +1 -f log >$W/grown & growing=$!
trap 'kill $followed $growing' EXIT
for n in 1 2 3; do echo $n >>log; sleep .2; done
eventually lines $W/grown 4; eventually lines $W/seen 4
mv log log.1; echo again >log
eventually lines $W/seen 5; same "$(cat $W/seen)" $'start\n1\n2\n3\nagain'; same "$(cat $W/grown)" $'start\n1\n2\n3'
"#,
    );
}

#[test]
fn mv_carries_a_tree_to_another_organization_and_back() {
    let stage = Stage::new();
    stage.vault.org("other");
    stage.passes(
        r#"
other=$(cd ../other; pwd)
says() { getfattr --absolute-names --only-values -n user.vault.$2 "$1"; }
mkdir -p t/d/e; seq 5000 >t/f; ln t/f t/d/hard; ln -s ../f t/d/l; mkfifo t/p; echo v >t/d/v; setfattr -n user.mine -v kept t/d/v
truncate -s 3M t/s; echo end >>t/s; touch -d 1999-01-01 t/d/e/x; chmod 2750 t/d; touch -d 2000-01-01 t/d
shape t >$W/before; attributes t >>$W/before; id=$(says t/d/v id)
mv t $other/t; [ ! -e t ]
diff $W/before <(shape $other/t; attributes $other/t)
seq 5000 | cmp - $other/t/f; [ $other/t/f -ef $other/t/d/hard ]; [ $(du -k $other/t/s | cut -f1) -lt 200 ]
refused test "$(says $other/t/d/v id)" = "$id"
same "$(says $other/t/d/v context.organizationId)" "$(says $other id)"
mv $other/t t; diff $W/before <(shape t; attributes t); same "$(says t/d/v context.organizationId)" "$(says . id)"
same "$(ls -A $other)" ''
"#,
    );
}

#[test]
fn gpg_keeps_its_home_signs_and_encrypts() {
    Stage::new().passes(
        r#"
export GNUPGHOME=$V/g; mkdir -m 700 g
trap 'gpgconf --kill all' EXIT
gpg="gpg --batch -q --no-tty --pinentry-mode loopback --passphrase x"
$gpg --quick-gen-key 'a <a@b.c>' ed25519 sign never 2>$W/said
seq 10000 >f; $gpg --detach-sign f; $gpg --verify f.sig f 2>$W/said; grep -q 'Good signature' $W/said
$gpg -c f; $gpg -o back -d f.gpg 2>$W/said; cmp f back
"#,
    );
}
