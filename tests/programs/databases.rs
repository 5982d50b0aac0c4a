//! Databases: locks, journals, shared mappings, direct and synchronous writes, each with the database's own check.

use crate::Stage;

#[test]
fn sqlite_in_every_journal_mode_with_and_without_mmap() {
    Stage::new().passes(
        r#"
for mode in delete truncate persist wal memory; do for mmap in 0 100000000; do
    db=$mode-$mmap.db
    same "$(sqlite3 -bail $db "pragma journal_mode = $mode")" $mode
    sqlite3 -bail $db "
        pragma mmap_size = $mmap;
        create table t(k integer primary key, v);
        with recursive c(x) as (select 1 union all select x + 1 from c where x < 2000)
            insert into t select x, hex(randomblob(50)) from c;
        begin; update t set v = 'x' where k % 2; rollback;
        begin; delete from t where k % 3 = 0; commit;
        vacuum" >$W/said
    same "$(sqlite3 -bail $db 'pragma integrity_check; select count(*), min(length(v)) from t')" $'ok\n1334|100'
    sqlite3 $db ".backup $db.copy"
    same "$(sqlite3 $db .dump | sha256sum)" "$(sqlite3 $db.copy .dump | sha256sum)"
done; done
"#,
    );
}

#[test]
fn sqlite_with_four_writers_at_once() {
    Stage::new().passes(
        r#"
for mode in delete wal; do
    sqlite3 $mode.db "pragma journal_mode = $mode; create table t(w, n)" >$W/said
    for w in 1 2 3 4; do
        for n in {1..10}; do echo "insert into t values($w, $n);"; done | sqlite3 -bail -cmd '.timeout 30000' $mode.db &
        pids[w]=$!
    done
    for w in 1 2 3 4; do wait ${pids[w]}; done
    same "$(sqlite3 $mode.db 'select count(distinct w * 100 + n) from t; pragma integrity_check')" $'40\nok'
done
"#,
    );
}

#[test]
fn lmdb_loads_dumps_and_copies() {
    Stage::new().passes(
        r#"
{
    printf 'VERSION=3\nformat=print\ntype=btree\nmapsize=100000000\nHEADER=END\n'
    for n in {1..10000}; do printf ' key%05d\n value%d\n' $n $n; done
    echo DATA=END
} >$W/dump
data() { mdb_dump -p "$1" | sed '1,/HEADER=END/d'; }
mkdir env copy
mdb_load env <$W/dump
data env | cmp - <(sed '1,/HEADER=END/d' $W/dump)
mdb_stat env | grep -q 'Entries: 10000'
mdb_copy -c env copy
data copy | cmp - <(data env)
"#,
    );
}

#[test]
fn lmdb_writes_through_a_mapping() {
    Stage::new().passes(
        r#"
/usr/bin/python3 - <<'PYTHON'
import lmdb
for options in {}, {"writemap": True}, {"writemap": True, "map_async": True}, {"metasync": False}:
    name = "env" + "".join(options)
    with lmdb.open(name, map_size=1 << 27, **options) as env:
        for i in range(20):
            with env.begin(write=True) as t:
                for j in range(50):
                    t.put(b"%d" % (i * 50 + j), b"x" * (j * 100))
        with env.begin(write=True) as t:
            for j in range(0, 1000, 2):
                t.delete(b"%d" % j)
        env.sync(True)
    with lmdb.open(name, map_size=1 << 27) as env, env.begin() as t:
        assert dict(t.cursor()) == {b"%d" % j: b"x" * (j % 50 * 100) for j in range(1, 1000, 2)}, options
PYTHON
"#,
    );
}

#[test]
fn postgresql_runs_pgbench_and_recovers_from_a_stop_without_a_checkpoint() {
    Stage::new().passes(
        r#"
bin=$(echo /usr/lib/postgresql/*/bin)
mkdir -m 700 d; chown postgres: d; cd d
as() { runuser -u postgres -- "$@"; }
sql() { as psql -h $V/d -qAt postgres -c "$1"; }
start() {
    as $bin/pg_ctl -D data -w -s -l $V/d/log start \
        -o "-k $V/d -c listen_addresses='' -c shared_buffers=16MB -c max_connections=20"
}
holds() { # what pgbench's transactions keep equal
    same "$(sql "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history),
        (select sum(bbalance) from pgbench_branches) = (select sum(tbalance) from pgbench_tellers)")" 't|t'
}
as $bin/initdb -D data -k -A trust --locale=C --no-instructions >$W/initdb
start
trap 'as $bin/pg_ctl -D data -s -m immediate stop || true' EXIT
as $bin/pgbench -h $V/d -i -q -s 1 postgres 2>$W/init || { cat $W/init >&2; exit 1; }
as $bin/pgbench -h $V/d -n -c 4 -j 2 -T 3 postgres >$W/bench
grep -q 'number of failed transactions: 0 ' $W/bench
holds
committed=$(sql 'select count(*) from pgbench_history')
[ $committed -gt 0 ]
as $bin/pg_ctl -D data -s -m immediate stop
start
holds
same "$(sql 'select count(*) from pgbench_history')" $committed
for command in 'vacuum full' 'reindex database postgres' checkpoint; do sql "$command"; done
as pg_dump -h $V/d postgres | grep -q 'dump complete'
as $bin/pg_ctl -D data -s -m fast stop
trap - EXIT
as $bin/pg_checksums -D data --check >$W/checksums
refused grep -E 'PANIC|FATAL|ERROR' log
"#,
    );
}
