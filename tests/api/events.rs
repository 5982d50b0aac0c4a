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
    // What follows and what goes before, from either end.
    let names_of = |query: &str| -> Vec<String> {
        let page = service.get(&format!("/events?{query}")).is(200);
        page["data"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap().to_owned()).collect()
    };
    let id = |at: usize| all["data"][at]["id"].as_str().unwrap();
    assert_eq!(names_of(&format!("after={}&limit=2", id(3))), expected[4..6]);
    assert_eq!(names_of(&format!("before={}&limit=2", id(3))), expected[1..3]);
    let turned = |mut names: Vec<String>| {
        names.reverse();
        names
    };
    assert_eq!(turned(names_of("order=desc&limit=3")), expected[6..]);
    assert_eq!(turned(names_of(&format!("order=desc&after={}&limit=2", id(3)))), expected[1..3]);
    assert_eq!(turned(names_of(&format!("order=desc&before={}&limit=2", id(3)))), expected[4..6]);
    let at = |at: usize| all["data"][at]["created_at"].as_str().unwrap();
    assert_eq!(names_of(&format!("limit=100&range_start={}&range_end={}", at(2), at(5))), expected[2..5]);
    let organization = made["context"]["organizationId"].as_str().unwrap();
    let of_acme: Vec<&str> = expected.into_iter().filter(|name| *name != "vault.names.listed").collect();
    assert_eq!(names_of(&format!("limit=100&organization_id={organization}")), of_acme);
    assert_eq!(names_of("organization_id=nobody"), [""; 0]);
    for wrong in ["limit=0", "order=up", "range_start=x", "range_end=x"] {
        service.get(&format!("/events?{wrong}")).is(400);
    }
    // The audit log has the same names.
    let log = fs::read_to_string(vault.state().join("audit/audit.jsonl")).unwrap();
    for name in expected {
        assert!(log.contains(&format!("\"event\":\"{name}\"")), "{name}");
    }
    // Names are looked up, not written down.
    assert!(!log.contains("prod/db"));
}

/// The client libraries take events apart: a field that is null or missing is an exception in some.
#[test]
fn events_stay_whole_when_what_they_are_about_is_deleted_purged_or_locked() {
    let (vault, service) = served();
    let context = json!({ "organizationId": "acme", "customer": "c17" });
    let make = |name: &str| {
        let body = json!({ "key_context": context, "name": name, "value": "1" });
        service.post("/vault/v1/kv", body).is(201)["id"].as_str().unwrap().to_owned()
    };
    let (kept, deleted, purged) = (make("kept"), make("deleted"), make("purged"));
    for id in [&kept, &deleted, &purged] {
        service.get(&format!("/vault/v1/kv/{id}")).is(200);
        service.get(&format!("/vault/v1/kv/{id}/metadata")).is(200);
    }
    service.post("/vault/v1/keys/data-key", json!({ "context": context })).is(200);
    for id in [&deleted, &purged] {
        service.delete(&format!("/vault/v1/kv/{id}")).is(200);
    }
    service.delete(&format!("/vault/v1/tombstones/{purged}")).is(200);
    let fields = |event: &str| -> &[&str] {
        match event {
            "vault.data.created" | "vault.data.updated" => &["kv_name", "key_id", "key_context"],
            "vault.data.read" => &["kv_name", "key_id"],
            "vault.data.deleted" | "vault.metadata.read" => &["kv_name"],
            "vault.kek.created" | "vault.kek.deleted" => &["key_name", "key_id"],
            "vault.dek.read" | "vault.dek.rekeyed" => &["key_ids", "key_context"],
            "vault.dek.decrypted" => &["key_id"],
            _ => &[],
        }
    };
    let events = || {
        let all = service.get("/events?limit=100").is(200)["data"].as_array().unwrap().clone();
        for event in &all {
            let name = event["event"].as_str().unwrap();
            for field in [fields(name), &["actor_id", "actor_name", "actor_source"]].concat() {
                assert!(!event["data"][field].is_null(), "{name} has no {field}: {event}");
            }
            assert!(["api", "dashboard"].contains(&event["data"]["actor_source"].as_str().unwrap()));
        }
        all
    };
    let all = events();
    let created = |id: &str| {
        let of =
            |event: &&serde_json::Value| event["event"] == "vault.data.created" && event["data"]["object_id"] == id;
        all.iter().find(of).unwrap()["data"].clone()
    };
    for (id, name) in [(&kept, "kept"), (&deleted, "deleted"), (&purged, "")] {
        let data = created(id);
        assert_eq!(data["kv_name"], name);
        assert_eq!(data["key_id"].as_str().unwrap().split(',').count(), 2, "{data}");
        assert_eq!(data["key_context"]["customer"].as_str(), (*id != purged).then_some("c17"));
    }
    let issued = all.iter().find(|event| event["event"] == "vault.dek.read").unwrap();
    assert_eq!(issued["data"]["key_context"]["customer"], "c17");
    assert_eq!(issued["data"]["key_ids"].as_array().unwrap().len(), 2);
    let kek = all.iter().rfind(|event| event["event"] == "vault.kek.created").unwrap();
    assert_eq!(kek["data"]["key_name"], "customer=c17");
    vault.command(&["org", "lock", "acme"]).good();
    events();
    vault.command(&["org", "unlock", "acme"]).good();
    vault.command(&["object", "put", "acme/by-hand"]).good();
    let last = events().pop().unwrap();
    assert_eq!((&last["data"]["actor_id"], &last["data"]["actor_source"]), (&json!("uid:0"), &json!("dashboard")));
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
    // Not answered from the kernel's caches either, nor as attributes and listings.
    for _ in 0..5 {
        fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
        crate::vault::run("sh", &[&"-c", &"ls -lR \"$0\"; getfattr -dR \"$0\"; find \"$0\" -size +0", &acme]);
    }
    assert_eq!(lines(), before);
}
