//! Package managers: many small files, scripts that run from the vault, symlinks and renames of whole trees.

use crate::Stage;

#[test]
fn dpkg_deb_unpacks_and_dpkg_installs() {
    Stage::new().passes(
        r#"
mkdir -p p/DEBIAN p/usr/bin p/usr/share/doc/x
printf 'Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n' >p/DEBIAN/control
printf '#!/bin/sh\necho x\n' >p/usr/bin/x; chmod 755 p/usr/bin/x; ln p/usr/bin/x p/usr/bin/y
head -c 200000 /dev/urandom >p/usr/share/doc/x/r; ln -s ../x p/usr/share/doc/x/l
dpkg-deb --root-owner-group -b p x.deb >$W/said
dpkg-deb -x x.deb out; dpkg-deb -e x.deb out/DEBIAN; diff -r --no-dereference p out
same "$(out/usr/bin/x) $(stat -c %h out/usr/bin/y)" 'x 2'
mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates; : >root/var/lib/dpkg/status
dpkg="dpkg --root=$V/root --log=$V/log"
$dpkg -i x.deb >$W/said; cmp root/usr/share/doc/x/r p/usr/share/doc/x/r; same "$($dpkg -V x)" ''
$dpkg -i x.deb >$W/said; same "$($dpkg -V x)" ''
$dpkg -P x >$W/said; [ ! -e root/usr/bin/x ]
"#,
    );
}

#[test]
fn python_makes_a_virtual_environment_and_pip_installs_into_it() {
    Stage::new().passes(
        r#"
/usr/bin/python3 -m venv venv
same "$(venv/bin/python -c 'import sys; print(sys.prefix)')" $V/venv
mkdir -p wheel/mod-1.dist-info
(
    cd wheel
    echo 'def f(): return 42' >mod.py
    printf 'Metadata-Version: 2.1\nName: mod\nVersion: 1\n' >mod-1.dist-info/METADATA
    printf 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n' >mod-1.dist-info/WHEEL
    find . -type f -printf '%P,,\n' >$W/RECORD; mv $W/RECORD mod-1.dist-info/
    zip -qr ../mod-1-py3-none-any.whl .
)
export PIP_DISABLE_PIP_VERSION_CHECK=1
venv/bin/pip install -q --no-index ./mod-1-py3-none-any.whl
same "$(cd /; $V/venv/bin/python -c 'import mod; print(mod.f())')" 42
ls venv/lib/python3*/site-packages/__pycache__/mod.*.pyc >$W/said
venv/bin/pip uninstall -qy mod; refused test -e venv/lib/python3*/site-packages/mod.py
venv/bin/python - <<'PYTHON'
import os, shelve, shutil, tempfile
with shelve.open("s") as s:
    s["a"] = [1, 2]
with shelve.open("s") as s:
    assert s["a"] == [1, 2]
with tempfile.TemporaryDirectory(dir=".") as d, tempfile.TemporaryFile(dir=d) as f:
    f.write(b"x" * 100000)
    f.seek(0)
    assert f.read() == b"x" * 100000
shutil.copytree("wheel", "copy")
shutil.move("copy/mod.py", "moved.py")
shutil.rmtree("copy")
PYTHON
"#,
    );
}

#[test]
fn npm_installs_a_package() {
    Stage::new().passes(
        r#"
export npm_config_cache=$V/cache npm_config_update_notifier=false npm_config_fund=false npm_config_audit=false
export npm_config_offline=true npm_config_loglevel=error npm_config_nodedir=
unset npm_config_nodedir
mkdir lib app; cd lib
echo '{"name": "lib", "version": "1.0.0", "bin": {"lib": "cli.js"}, "scripts": {"postinstall": "echo done >installed"}}' >package.json
echo 'module.exports = 42' >index.js; printf '#!/usr/bin/env node\nconsole.log(require("./index.js"))\n' >cli.js
npm pack >$W/said
cd ../app; echo '{"name": "app", "version": "1.0.0"}' >package.json
npm install ../lib/lib-1.0.0.tgz >$W/said
same "$(node -p 'require("lib")') $(node_modules/.bin/lib) $(cat node_modules/lib/installed)" '42 42 done'
rm -r node_modules; npm ci >$W/said; same "$(node_modules/.bin/lib)" 42
"#,
    );
}
