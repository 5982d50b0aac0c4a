//! Bad input and limits: documented statuses, bounded memory, and a mount that goes on.

use crate::http::Answer;
use crate::objects::served;
use crate::vault::Vault;
use serde_json::json;
use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

#[test]
fn a_body_that_is_too_long_is_refused_and_a_raw_value_has_no_limit() {
    let (vault, service) = served();
    let body = json!({ "key_context": { "organizationId": "acme" }, "name": "big", "value": "x".repeat(9 << 20) });
    service.post("/vault/v1/kv", body).is(413);
    let value = vec![b'x'; 20 << 20];
    let raw = [("Content-Type", "application/octet-stream")];
    service.send("PUT", "/vault/v1/kv/acme%2Fbig", &raw, &value).is(201);
    assert!(service.get("/vault/v1/kv/name/big").is(422)["error"].as_str().unwrap().contains("octet-stream"));
    assert_eq!(vault.command(&["object", "get", "acme/big"]).good().out.len(), value.len());
}

#[test]
fn methods_and_routes_that_are_not_there_are_said() {
    let (_vault, service) = served();
    service.send("PATCH", "/vault/v1/kv", &[], b"").is(405);
    service.send("POST", "/vault/v1/kv/name/x", &[], b"").is(405);
    service.get("/vault/v2").is(404);
    service.get("/vault/v1/kv/secret_nonsense").is(404);
    service.get("/vault/v1/kv/secret_00000000000000000000000000000000").is(404);
}

#[test]
fn a_thousand_slow_connections_neither_grow_the_daemon_nor_stop_the_mount() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    let pid = vault.daemon().unwrap();
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    let before = memory();
    let head = format!(
        "POST /vault/v1/kv HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer {}\r\nContent-Length: 8000000\r\n\r\n{{\"a\":\"",
        service.key
    );
    let slow: Vec<_> = (0..1000)
        .map(|_| {
            let mut stream = service.connect();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let begun = Instant::now();
    for n in 0..20 {
        fs::write(acme.join(format!("f{n}")), "still here").unwrap();
    }
    service.get("/vault/v1/kv").is(200);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(memory() < before + 200, "{} MiB after {before} MiB", memory());
    // They are told that they were too slow.
    let answer = Answer::from(slow.into_iter().next().unwrap());
    assert_eq!(answer.status, 408);
}
