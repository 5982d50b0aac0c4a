//! Bad input and limits: documented statuses, bounded memory, and a mount that goes on.

use crate::http::Answer;
use crate::objects::served;
use crate::vault::Vault;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};

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
fn what_is_no_request_or_no_json_is_refused_as_documented() {
    let (_vault, service) = served();
    service.create("acme", "a", "1");
    let post = |body: &[u8]| service.send("POST", "/vault/v1/kv", &[("Content-Type", "application/json")], body);
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = format!(r#"{{"key_context":{{"organizationId":"acme"}},"name":"n","value":{nested}}}"#);
    for body in [
        &b""[..],
        b"nul",
        b"[]",
        b"\"text\"",
        b"{",
        b"{}",
        b"\xff\xfe",
        b"{\"key_context\":{\"organizationId\":\"\xff\"},\"name\":\"n\",\"value\":\"x\"}",
        br#"{"key_context":{"organizationId":"acme"},"name":"n","value":"\ud800"}"#,
        br#"{"key_context":{"organizationId":"acme"},"name":"n","name":"m","value":"x"}"#,
        br#"{"key_context":[["organizationId","acme"]],"name":"n","value":"x"}"#,
        br#"{"key_context":{"organizationId":"acme"},"name":"n","value":"x","encoding":"rot13"}"#,
        br#"{"key_context":{"organizationId":"acme"},"name":"n","value":"!","encoding":"base64"}"#,
        deep.as_bytes(),
    ] {
        let answer = post(body);
        assert_eq!(answer.status, 400, "{}", String::from_utf8_lossy(&body[..body.len().min(100)]));
        assert_eq!(answer.is(400)["code"], "invalid");
    }
    for value in ["1", "true", "null", "[]", "{}", "1e400"] {
        let body = format!(r#"{{"key_context":{{"organizationId":"acme","n":{value}}},"name":"n","value":"x"}}"#);
        post(body.as_bytes()).is(400);
        let body = format!(r#"{{"context":{{"organizationId":"acme","n":{value}}}}}"#);
        service.send("POST", "/vault/v1/keys/data-key", &[], body.as_bytes()).is(400);
    }
    // Names that nothing can have: when something is made and when it is looked for.
    let long = "x".repeat(201);
    for name in ["..", "a/../b", "", "/", "a//b", "nul\0", &long, &format!("{long}/{long}")] {
        let body = json!({ "key_context": { "organizationId": "acme" }, "name": name, "value": "x" });
        service.post("/vault/v1/kv", body).is(422);
    }
    for name in ["..", "%2e%2e", "a%2F..%2Fb", "%00", "%ff%fe", &"x".repeat(300)] {
        let found = service.get(&format!("/vault/v1/kv/name/{name}"));
        assert!([400, 404].contains(&found.status), "{name}: {}", found.status);
    }
    for query in [
        "limit=0",
        "limit=-1",
        "limit=x",
        "limit=99999999999999999999",
        "order=up",
        "search=%ff",
        "after=none",
        "updatedAfter=x",
        "prefix=%zz",
        "search=%7B",
    ] {
        let refused = service.get(&format!("/vault/v1/kv?{query}"));
        assert!([400, 404].contains(&refused.status), "{query}: {}", refused.status);
    }
    // What is no HTTP at all has the status alone.
    let raw = |text: &str| {
        let mut stream = service.connect();
        stream.write_all(text.as_bytes()).unwrap();
        Answer::from(stream).status
    };
    assert_eq!(raw("nonsense\r\n\r\n"), 400);
    assert_eq!(raw("GET /healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
    assert_eq!(raw("GET /healthz HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400);
    assert_eq!(raw(&format!("GET /healthz HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200))), 431);
    service.get("/vault/v1/kv").is(200);
}

#[test]
fn a_body_in_chunks_has_the_same_limit() {
    let (_vault, service) = served();
    let head = format!(
        "POST /vault/v1/kv HTTP/1.1\r\nHost: v\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
         Transfer-Encoding: chunked\r\n\r\n",
        service.key
    );
    let mut stream = service.connect();
    let piece = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
    let sent =
        stream.write_all(head.as_bytes()).and_then(|()| (0..9).try_for_each(|_| stream.write_all(piece.as_bytes())));
    // It may close as soon as it has heard enough.
    drop(sent);
    assert_eq!(Answer::from(stream).status, 413);
}

#[test]
fn a_thousand_connections_at_once_are_all_answered() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    service.create("acme", "a", "1");
    let request = format!(
        "GET /vault/v1/kv/acme%2Fa HTTP/1.1\r\nHost: v\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
        service.key
    );
    let mut all: Vec<_> = (0..1000).map(|_| service.connect()).collect();
    all.iter_mut().for_each(|stream| stream.write_all(request.as_bytes()).unwrap());
    fs::write(acme.join("f"), "still here").unwrap();
    assert_eq!(fs::read(acme.join("f")).unwrap(), b"still here");
    for stream in all {
        assert_eq!(Answer::from(stream).is(200)["value"], "1");
    }
}

/// Resident memory of the daemon in MiB.
fn memory(vault: &Vault) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", vault.daemon().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn a_thousand_slow_connections_neither_grow_the_daemon_nor_stop_the_mount() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    let before = memory(&vault);
    let body = format!(
        "POST /vault/v1/kv HTTP/1.1\r\nHost: v\r\nAuthorization: Bearer {}\r\nContent-Length: 8000000\r\n\r\n{{\"a\":\"",
        service.key
    );
    let slow = |text: &str| {
        let mut stream = service.connect();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    let mut bodies: Vec<_> = (0..500).map(|_| slow(&body)).collect();
    let heads: Vec<_> = (0..500).map(|_| slow("GET /healthz HTTP/1.1\r\nHost: ")).collect();
    for n in 0..20 {
        fs::write(acme.join(format!("f{n}")), "still here").unwrap();
    }
    service.get("/vault/v1/kv").is(200);
    assert!(memory(&vault) < before + 200, "{} MiB after {before} MiB", memory(&vault));
    // They are told that they were too slow, or that nothing came that could be answered.
    assert_eq!(Answer::from(bodies.remove(0)).status, 408);
    let mut unheard = Vec::new();
    let _ = heads[0].try_clone().unwrap().read_to_end(&mut unheard);
    assert!(unheard.is_empty() || unheard.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&unheard));
}

#[test]
fn raw_values_that_stop_half_way_leave_room_for_others() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    // More of them than threads that answer requests.
    let stopped: Vec<_> = (0..150)
        .map(|n| {
            let mut stream = service.connect();
            let head = format!(
                "PUT /vault/v1/kv/acme%2Fslow-{n} HTTP/1.1\r\nHost: v\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\
                 Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\nhalf",
                service.key
            );
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    for n in 0..10 {
        service.create("acme", &format!("n{n}"), "v");
        fs::write(acme.join(format!("f{n}")), "still here").unwrap();
    }
    vault.command_with(&["object", "put", "acme/by-command"], b"value").good();
    for stream in stopped {
        let status = Answer::from(stream).status;
        assert!([408, 503].contains(&status), "{status}");
    }
    assert!(fs::read_dir(&acme).unwrap().flatten().all(|entry| !entry.file_name().to_str().unwrap().contains("slow")));
    let raw = [("Content-Type", "application/octet-stream")];
    service.send("PUT", "/vault/v1/kv/acme%2Fslow-1", &raw, b"whole").is(201);
}

#[test]
fn answers_that_nobody_reads_take_bounded_memory_and_end() {
    let (vault, service) = served();
    let value = "v".repeat(7 << 20);
    service.create("acme", "long", &value);
    service.create("acme", "short", "s");
    let before = memory(&vault);
    let request = |accept: &str| {
        format!(
            "GET /vault/v1/kv/acme%2Flong HTTP/1.1\r\nHost: v\r\nAccept: {accept}\r\nAuthorization: Bearer {}\r\n\r\n",
            service.key
        )
    };
    let unread: Vec<_> = (0..400)
        .map(|n| {
            let mut stream = service.connect();
            let accept = if n % 2 == 0 { "application/json" } else { "application/octet-stream" };
            stream.write_all(request(accept).as_bytes()).unwrap();
            stream
        })
        .collect();
    service.get("/vault/v1/kv").is(200);
    let mut most = 0;
    // While they last there may be no room; then there is again.
    let answered = (0..100).any(|_| {
        most = most.max(memory(&vault));
        let answer = service.get("/vault/v1/kv/acme%2Fshort");
        assert!([200, 503].contains(&answer.status));
        answer.status == 200
    });
    assert!(answered);
    // 256 MiB of JSON and as much again while it is made, 64 raw values with a few pieces of 1 MiB; 2.8 GiB without a bound.
    assert!(most < before + 1200, "{most} MiB after {before} MiB");
    drop(unread);
}
