//! API keys: who is let in, and what is put on record of those who are not.

use crate::http::Service;
use crate::objects::served;
use crate::vault::Vault;
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};

fn denials(vault: &Vault) -> usize {
    let log = fs::read_to_string(vault.state().join("audit/audit.jsonl")).unwrap();
    log.lines().filter(|line| line.contains("\"access.denied\"")).count()
}

#[test]
fn without_a_valid_key_nothing_is_answered() {
    let (vault, service) = served();
    let stranger = |key: &str| Service { key: key.into(), ..service.clone() };
    let mut changed = service.key.clone();
    let last = changed.pop().unwrap();
    changed.push(if last == '0' { '1' } else { '0' });
    let before = denials(&vault);
    for key in ["", "sk_", "sk_test_123", &changed, &format!("{}0", service.key)] {
        let answer = stranger(key).get("/vault/v1/kv");
        assert!(answer.head.contains("www-authenticate: bearer"), "{key}");
        answer.is(401);
    }
    assert_eq!(denials(&vault), before + 5);
    assert_eq!(stranger("").get("/healthz").status, 200);
    stranger("").get("/openapi.json").is(200);
    service.get("/vault/v1/kv").is(200);
}

#[test]
fn a_key_is_shown_once_kept_hashed_and_ends_when_it_is_revoked() {
    let (vault, service) = served();
    let listed = vault.command(&["apikey", "list", "--json"]).good();
    assert!(!listed.text().contains(&service.key));
    let id = listed.json()["data"][0]["id"].as_str().unwrap().to_owned();
    for entry in fs::read_dir(vault.state()).unwrap().flatten().filter(|e| e.path().is_file()) {
        let bytes = fs::read(entry.path()).unwrap();
        let secret = &service.key.as_bytes()[29..];
        assert!(!bytes.windows(secret.len()).any(|part| part == secret), "{:?}", entry.path());
    }
    service.get("/vault/v1/kv").is(200);
    vault.stop();
    vault.serve(&["--listen", &service.address]);
    service.get("/vault/v1/kv").is(200);
    vault.command(&["apikey", "revoke", &id]).good();
    service.get("/vault/v1/kv").is(401);
    vault.command(&["apikey", "revoke", &id]).refused(3);
}

#[test]
fn a_key_may_do_what_it_is_for_and_no_more() {
    let (vault, admin) = served();
    vault.command(&["org", "create", "two"]).good();
    let here = admin.create("acme", "here", "1");
    let there = admin.create("two", "there", "2");
    let path = |object: &serde_json::Value| format!("/vault/v1/kv/{}", object["id"].as_str().unwrap());
    let reader = vault.service_with(&["--permission", "read"]);
    let writer = vault.service_with(&["--permission", "write", "--org", "acme"]);
    let before = denials(&vault);
    reader.get(&path(&there)).is(200);
    reader.put(&path(&there), json!({ "value": "x" })).is(403);
    reader.delete(&path(&there)).is(403);
    reader.post("/vault/v1/keys/data-key", json!({ "context": { "organizationId": "acme" } })).is(403);
    writer.put(&path(&here), json!({ "value": "x" })).is(201);
    writer.get(&path(&there)).is(403);
    writer.put(&path(&there), json!({ "value": "x" })).is(403);
    writer.get("/organizations/two").is(403);
    let body = json!({ "key_context": { "organizationId": "two" }, "name": "n", "value": "x" });
    writer.post("/vault/v1/kv", body).is(403);
    writer.send("PUT", "/vault/v1/kv/two%2Fraw", &[("Content-Type", "application/octet-stream")], b"x").is(403);
    writer.post("/organizations", json!({ "name": "mine" })).is(403);
    writer.get("/api_keys").is(403);
    writer.post("/api_keys", json!({ "name": "more", "permission": "admin" })).is(403);
    for route in ["/status", "/metrics", "/vault/v1/tombstones"] {
        writer.get(route).is(403);
    }
    assert_eq!(denials(&vault), before + 14);
    let listed = writer.get("/vault/v1/kv").is(200);
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
    assert_eq!(writer.get("/organizations").is(200)["data"].as_array().unwrap().len(), 1);
    writer.get("/vault/v1/kv/name/there").is(404);
}

#[test]
fn whoever_tries_keys_waits_longer_each_time() {
    let (_vault, service) = served();
    let stranger = Service { key: "sk_wrong".into(), ..service.clone() };
    let begun = Instant::now();
    for _ in 0..6 {
        stranger.get("/vault/v1/kv").is(401);
    }
    assert!(begun.elapsed() > Duration::from_millis(50 + 100 + 200 + 400 + 800 + 1600));
    let begun = Instant::now();
    service.get("/vault/v1/kv").is(200);
    assert!(begun.elapsed() < Duration::from_secs(3), "a valid key does not wait");
}
