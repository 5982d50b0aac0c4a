//! Copying with everything: bytes, holes, hard links, owners, modes, times, attributes and access control lists, in, inside
//! and back out, once and again.

use crate::Stage;

/// `$W/tree`, with one of everything.
const TREE: &str = r#"
mkdir -p $W/tree/a/b "$W/tree/ü ö"
(
    cd $W/tree
    seq 10000 >a/f; ln a/f a/hard
    ln -s ../a/f a/b/soft; ln -s gone dangling
    printf x >"ü ö/a name with
a newline"
    : >empty
    truncate -s 5M sparse; printf end >>sparse; printf middle | dd of=sparse bs=1 seek=2000000 conv=notrunc status=none
    mkfifo fifo; mknod null c 1 3
    setfattr -n user.a -v b a/f; setfattr -n user.bytes -v 0x00ff01 a; setfattr -n trusted.t -v 1 a/f
    chmod 4755 a/hard; chmod 2750 a/b; chown 1234:4321 sparse; chown -h 5:6 dangling
    setfacl -m u:1234:rw,g:99:- a/f; setfacl -d -m g:99:rx a; setfacl -m u:7:rwx a/b
    # Times of the same second are the same to rsync, which then keeps its own.
    find . -exec touch -h -d '2003-03-03 03:03:03.25Z' {} +
    touch -d '1985-07-20 20:17:40.123456789Z' a/f; touch -h -d '1999-01-01Z' dangling; touch -d '2001-01-01 00:00:00.5Z' a/b a
)
same_as() { # ONE OTHER
    diff -r --no-dereference -x fifo -x null "$1" "$2"
    diff <(shape "$1") <(shape "$2")
    diff <(attributes "$1") <(attributes "$2")
}
small() { [ $(du -k "$1" | cut -f1) -lt 300 ] || { du -k "$1" >&2; return 1; }; }
"#;

fn passes(text: &str) {
    Stage::new().passes(&[TREE, text].concat());
}

#[test]
fn cp_keeps_everything_in_inside_and_out() {
    passes(
        r#"
cp -a --reflink=auto --sparse=auto $W/tree one; same_as $W/tree one; small one/sparse
cp -a --reflink=auto --sparse=auto one two; same_as one two; small two/sparse
cp -a two $W/back; same_as $W/tree $W/back
cp -a one/. two/; same_as one two
cp -a --sparse=always one three; cp -a --reflink=auto --sparse=never one/a/f four; cmp one/a/f four; same_as one three
"#,
    );
}

#[test]
fn rsync_keeps_everything_in_inside_and_out() {
    passes(
        r#"
rsync -aHAX $W/tree/ one; same_as $W/tree one
rsync -aHAXS one/ two; same_as one two; small two/sparse
rsync -aHAX two/ $W/back; same_as $W/tree $W/back
seq 20000 >$W/tree/a/f; rm $W/tree/empty
rsync -aHAX --delete --inplace $W/tree/ one; same_as $W/tree one
rsync -aHAX --delete --checksum $W/tree/ two; same_as $W/tree two
rsync -aHAX --delete --link-dest=$V/one $W/tree/ three; diff -r --no-dereference -x fifo -x null $W/tree three
"#,
    );
}

#[test]
fn rsync_with_attributes_says_nothing_the_second_time_either() {
    passes(
        r#"
for n in 1 2 3; do seq $n >$W/tree/changing; rsync -aX $W/tree/ one; done
rsync -aX $W/tree/ .
for n in 1 2 3; do seq 1$n >one/changing; rsync -aX --inplace one/ two; done
same_as one two
"#,
    );
}

#[test]
fn tar_keeps_everything_in_inside_and_out() {
    passes(
        r#"
all="--xattrs --xattrs-include=* --acls --sparse --format=posix"
tar $all -cf $W/in.tar -C $W/tree .
mkdir one two; tar $all -xpf $W/in.tar -C one; same_as $W/tree one; small one/sparse
tar $all -cf out.tar -C one .; tar $all -xpf out.tar -C two; same_as one two
tar --compare -f out.tar -C two
mkdir $W/back; tar $all -xpf out.tar -C $W/back; same_as $W/tree $W/back
tar -cz one | tar -xz -C $W; diff -r --no-dereference -x fifo -x null one $W/one
echo more >two/more; tar $all -rf out.tar -C two ./more; same "$(tar -xOf out.tar ./more)" more
"#,
    );
}

#[test]
fn zip_gzip_xz_bzip2_and_split_give_back_what_they_got() {
    Stage::new().passes(
        r#"
mkdir d; seq 100000 >d/f; head -c 2000000 /dev/urandom >d/r; ln -s f d/l; cp /bin/ls d/x
zip -qry z.zip d; unzip -tqq z.zip; unzip -q z.zip -d out; diff -r --no-dereference d out/d; [ -x out/d/x ]
for how in gzip bzip2 xz; do $how -1k d/f; done
gzip -dc d/f.gz | cmp - d/f; bzip2 -dc d/f.bz2 | cmp - d/f; xz -dc d/f.xz | cmp - d/f
rm d/f; gzip -d d/f.gz; same "$(wc -l <d/f)" 100000
split -b 300000 d/r part.; cat part.* | cmp - d/r
sort -R d/f | sort -n -T . -S 1M | cmp - d/f
sha256sum d/* >sums; sha256sum --quiet -c sums
ar rc lib.a d/x d/f; same "$(ar t lib.a)" $'x\nf'; ar p lib.a f | cmp - d/f
"#,
    );
}
