//! Compilers and build systems: times decide what is built, and what is built is mapped and run.

use crate::Stage;

#[test]
fn make_cc_install_patch_and_strip() {
    Stage::new().passes(
        r#"
printf '#include <stdio.h>\n#include "hello.h"\nint main(void) { puts(HELLO); return 0; }\n' >hello.c
echo '#define HELLO "one"' >hello.h
cat >Makefile <<'MAKE'
all: hello
hello: hello.o
	cc -o $@ $^
hello.o: hello.c hello.h
	cc -Wall -c $<
install: hello
	install -D -m 755 hello $(DESTDIR)/bin/hello
MAKE
make -s; same "$(./hello)" one
same "$(make)" "make: Nothing to be done for 'all'."
cp hello.h hello.h.orig; echo '#define HELLO "two"' >hello.h.new
diff -u hello.h.orig hello.h.new >hello.patch || true
patch -s hello.h hello.patch; make -s; same "$(./hello)" two
patch -sR hello.h hello.patch; cmp hello.h hello.h.orig; make -s; same "$(./hello)" one
make -s install DESTDIR=$V/dest; same "$(stat -c %a dest/bin/hello)" 755; same "$(dest/bin/hello)" one
install -s -m 4711 -o 12 -g 34 -p hello dest/s; same "$(stat -c %a:%u:%g dest/s)" 4711:12:34; same "$(dest/s)" one
strip dest/bin/hello; same "$(dest/bin/hello)" one
mkdir many; cd many
for n in {1..30}; do echo "int f$n(void) { return $n; }" >f$n.c; done
printf 'lib.so: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\tcc -shared -o $@ $^\n%%.o: %%.c\n\tcc -fPIC -c $<\n' >Makefile
make -s -j4; same "$(nm -D lib.so | grep -c ' T f')" 30
same "$(/usr/bin/python3 -c 'import ctypes; print(sum(getattr(ctypes.CDLL("./lib.so"), f"f{n}")() for n in range(1, 31)))')" 465
"#,
    );
}

#[test]
fn cargo_builds_with_the_target_in_the_vault() {
    let stage = Stage::new();
    // The tests' own cargo and its configuration, whatever HOME is.
    let cargo = env!("CARGO");
    stage.passes(&format!("cargo={cargo}\n{CARGO}"));
}

const CARGO: &str = r#"
export CARGO_HOME=$W/cargo RUSTC=${cargo%/*}/rustc CARGO_TARGET_DIR=$V/target
unset CARGO_BUILD_RUSTFLAGS RUSTFLAGS
mkdir -p a/src b/src
printf '[package]\nname = "a"\nedition = "2024"\n' >a/Cargo.toml
echo 'pub fn f() -> u32 { 41 }' >a/src/lib.rs
printf '[package]\nname = "b"\nedition = "2024"\n[dependencies]\na = { path = "../a" }\n' >b/Cargo.toml
printf 'fn main() { println!("{}", a::f() + 1); }\n#[test]\nfn t() { assert_eq!(a::f(), 41); }\n' >b/src/main.rs
cd b
$cargo build -q --offline; same "$($V/target/debug/b)" 42
$cargo test -q --offline >$W/tests
$cargo build --offline 2>$W/again; refused grep Compiling $W/again
echo 'pub fn f() -> u32 { 1 }' >../a/src/lib.rs; same "$($cargo run -q --offline)" 2
rm -r $V/target; $cargo build -q --offline --release; same "$($V/target/release/b)" 2
$cargo clean -q; [ ! -e $V/target ]
"#;
