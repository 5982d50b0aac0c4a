//! Editors and other savers: the object keeps its id, and each save is exactly one version.

use crate::Stage;

#[test]
fn editors_keep_the_id_and_make_one_version_with_each_save() {
    Stage::new().passes(
        r#"
says() { getfattr --only-values -n user.vault.$1 f; }
echo 1 >f
id=$(says id) version=1
saves() { # COMMAND…: which puts the next version's number into f
    version=$((version + 1))
    NEXT=$version "$@"
    same "$* $(says id) $(says version) $(cat f)" "$* $id $version $version"
}
saves bash -c 'echo $NEXT >f'
saves bash -c 'sed -i s/.*/$NEXT/ f'
saves bash -c 'sed -i --follow-symlinks s/.*/$NEXT/ f'
saves perl -i -pe 's/.*/$ENV{NEXT}/' f
saves bash -c 'echo $NEXT >f.new; mv f.new f'
saves bash -c 'echo $NEXT >f.new; cp f.new f; rm f.new'
saves bash -c 'echo $NEXT >f.new; mv -b f.new f; rm f~'
"#,
    );
}

#[test]
fn vim_keeps_the_id_and_makes_one_version_with_each_save() {
    Stage::new().passes(
        r#"
says() { getfattr --only-values -n user.vault.$1 f; }
echo 1 >f
id=$(says id) version=1
for how in 'backupcopy=no writebackup' 'backupcopy=yes writebackup' 'backupcopy=auto writebackup' nowritebackup; do
    for n in 1 2; do
        version=$((version + 1))
        vim -u NONE -i NONE -es -c "set $how swapfile|%s/.*/$version/|wq" f
        same "$how $(says id) $(says version) $(cat f)" "$how $id $version $version"
    done
done
same "$(ls -A)" f
same "$(ls -A ../.tombstones/acme | grep -v swp || true)" ''
"#,
    );
}
