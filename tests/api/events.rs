//! `/events`: what happened, in the hosted vault's names.

use crate::objects::served;
use crate::vault::Vault;
use serde_json::json;
use std::fs;

#[test]
fn events_have_the_names_and_fields_of_the_hosted_vault() {
    let (vault, service) = served();
    let made = service.create("acme", "prod/db", "1");
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    service.put(&path, json!({ "value": "2" })).is(201);
    service.get(&path).is(200);
    service.get(&format!("{path}/metadata")).is(200);
    service.get("/vault/v1/kv").is(200);
    let key = service.post("/vault/v1/keys/data-key", json!({ "context": { "organizationId": "acme" } })).is(200);
    service.post("/vault/v1/keys/decrypt", json!({ "keys": key["encrypted_keys"] })).is(200);
    service.delete(&path).is(200);
    let all = service.get("/events?limit=100").is(200);
    let names: Vec<&str> = all["data"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap()).collect();
    let expected = [
        "vault.kek.created",
        "vault.data.created",
        "vault.data.updated",
        "vault.data.read",
        "vault.metadata.read",
        "vault.names.listed",
        "vault.dek.read",
        "vault.dek.decrypted",
        "vault.data.deleted",
    ];
    assert_eq!(names, expected);
    let created = &all["data"][1];
    assert_eq!((&created["object"], &created["data"]["kv_name"]), (&json!("event"), &json!("prod/db")));
    assert_eq!(created["data"]["key_context"], json!({ "organizationId": made["context"]["organizationId"] }));
    assert_eq!(created["data"]["actor_name"], "test");
    assert!(created["data"]["actor_id"].as_str().unwrap().starts_with("key_"));
    let some = service.get("/events?events=vault.data.created,vault.data.deleted&limit=1").is(200);
    let after = some["list_metadata"]["after"].as_str().unwrap();
    let rest = service.get(&format!("/events?events=vault.data.created,vault.data.deleted&after={after}")).is(200);
    assert_eq!(rest["data"][0]["event"], "vault.data.deleted");
    assert_eq!(rest["list_metadata"]["after"], serde_json::Value::Null);
    // Names are looked up, not written down.
    assert!(!fs::read_to_string(vault.state().join("audit/audit.jsonl")).unwrap().contains("prod/db"));
}

#[test]
fn a_save_on_the_mount_is_one_event_with_its_version() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let (f, service) = (vault.org("acme").join("f"), vault.service());
    let version = || service.get("/vault/v1/kv/acme%2Ff/metadata").is(200)["metadata"]["version_id"].clone();
    let sh = |script: &str| crate::vault::run("sh", &[&"-c", &script, &f]);
    let mut ids = Vec::new();
    for script in
        ["echo 1 > \"$0\"", "echo 2 > \"$0\"", "echo 3 >> \"$0\"", "echo 4 > \"$0.new\"; mv \"$0.new\" \"$0\""]
    {
        sh(script);
        ids.push(version());
    }
    // Neither is a new value.
    sh("cat \"$0\"; chmod 600 \"$0\"; touch \"$0\"; ls -l \"$0\"; mv \"$0\" \"$0.moved\"; mv \"$0.moved\" \"$0\"");
    sh("rm \"$0\"");
    let of = |names: &str| service.get(&format!("/events?events={names}&limit=100")).is(200)["data"].clone();
    let (created, updated) = (of("vault.data.created"), of("vault.data.updated"));
    let told = |events: &serde_json::Value| -> Vec<_> {
        events.as_array().unwrap().iter().map(|event| event["data"]["version_id"].clone()).collect()
    };
    // The file that replaced it was an object of its own for a moment.
    assert_eq!((told(&created).len(), &told(&created)[0]), (2, &ids[0]));
    assert_eq!(told(&updated), ids[1..]);
    assert_eq!(updated[0]["data"]["object_id"], created[0]["data"]["object_id"]);
    assert_eq!(updated[0]["data"]["actor_id"], "uid:0");
    assert_eq!(of("vault.data.deleted").as_array().unwrap().len(), 1);
    assert_eq!(of("vault.data.read"), json!([]));
}

#[test]
fn a_storm_of_stat_calls_is_no_storm_of_events() {
    let vault = Vault::up();
    let acme = vault.org("acme");
    fs::write(acme.join("f"), "x").unwrap();
    let lines = || fs::read_to_string(vault.state().join("audit/audit.jsonl")).unwrap().lines().count();
    let before = lines();
    for _ in 0..1000 {
        fs::metadata(acme.join("f")).unwrap();
        assert!(fs::metadata(acme.join("none")).is_err());
    }
    assert_eq!(lines(), before);
}
