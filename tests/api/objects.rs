//! Every route of objects and data keys, with exact statuses and shapes.

use crate::http::Service;
use crate::vault::{Vault, try_run};
use serde_json::{Value, json};

pub fn served() -> (Vault, Service) {
    let vault = Vault::new();
    vault.serve(&["--listen", "127.0.0.1:0"]);
    vault.command(&["org", "create", "acme"]).good();
    let service = vault.service();
    (vault, service)
}

#[test]
fn an_object_lives_through_all_of_its_routes() {
    let (_vault, service) = served();
    let made = service.create("acme", "prod/db", "one");
    let id = made["id"].as_str().unwrap();
    assert!(id.starts_with("secret_") && id.len() == 39);
    for field in ["environment_id", "context", "key_id", "updated_at", "version_id"] {
        assert!(!made[field].is_null(), "{field}");
    }
    assert!(made["updated_by"]["id"].as_str().unwrap().starts_with("key_"));
    assert_eq!(made["updated_by"]["name"], "test");
    assert!(made["context"]["organizationId"].as_str().unwrap().starts_with("org_"));
    let path = format!("/vault/v1/kv/{id}");
    let check = &made["version_id"];
    let put = service.put(&path, json!({ "value": "two", "version_check": check })).is(201);
    assert!(put.get("value").is_none() && put["metadata"]["version_id"] != *check);
    assert_eq!((&put["id"], &put["name"]), (&json!(id), &json!("prod/db")));
    service.put(&path, json!({ "value": "three", "version_check": check })).is(409);
    let read = service.get(&path).is(200);
    assert_eq!((&read["value"], &read["metadata"]), (&json!("two"), &put["metadata"]));
    assert_eq!(service.get("/vault/v1/kv/name/prod%2Fdb").is(200)["value"], "two");
    let described = service.get(&format!("{path}/metadata")).is(200);
    assert_eq!((&described["metadata"], described.get("value")), (&put["metadata"], None));
    let versions = service.get(&format!("{path}/versions")).is(200);
    let versions = versions["data"].as_array().unwrap();
    assert_eq!(versions.len(), 2);
    assert_eq!((&versions[0]["current_version"], &versions[0]["id"]), (&json!(true), &put["metadata"]["version_id"]));
    assert_eq!(versions[1]["current_version"], false);
    for name in ["1", check.as_str().unwrap()] {
        assert_eq!(service.get(&format!("{path}/versions/{name}")).is(200)["value"], "one");
    }
    service.get(&format!("{path}/versions/9")).is(404);
    let listed = service.get("/vault/v1/kv").is(200);
    assert_eq!(listed["data"][0]["name"], "prod/db");
    assert_eq!(listed["list_metadata"], json!({ "before": null, "after": null }));
    service.delete(&format!("{path}?version_check=nonsense")).is(400);
    service.delete(&format!("{path}?version_check={}", check.as_str().unwrap())).is(409);
    assert_eq!(service.delete(&path).is(200), json!({ "success": true, "name": "prod/db" }));
    service.get(&path).is(404);
    service.get("/vault/v1/kv/name/prod%2Fdb").is(404);
    service.delete(&path).is(404);
    let graves = service.get("/vault/v1/tombstones").is(200);
    assert_eq!(graves["data"][0]["id"], id);
    service.post(&format!("/vault/v1/tombstones/{id}/restore"), Value::Null).is(200);
    assert_eq!(service.get(&path).is(200)["value"], "two");
}

#[test]
fn an_earlier_value_is_restored_as_a_new_version() {
    let (vault, service) = served();
    let id = service.create("acme", "v", "one")["id"].as_str().unwrap().to_owned();
    service.put(&format!("/vault/v1/kv/{id}"), json!({ "value": "two" })).is(201);
    let back = service.post(&format!("/vault/v1/kv/{id}/versions/1/restore"), Value::Null).is(200);
    assert_eq!(back["metadata"]["version"], 3);
    assert_eq!(service.get(&format!("/vault/v1/kv/{id}")).is(200)["value"], "one");
    vault.command(&["object", "restore", "acme/v", "--version", "2"]).good();
    assert_eq!(service.get(&format!("/vault/v1/kv/{id}")).is(200)["value"], "two");
    vault.command(&["object", "restore", "acme/v", "--version", "77"]).refused(3);
}

#[test]
fn creating_is_refused_where_the_hosted_vault_refuses() {
    let (_vault, service) = served();
    service.create("acme", "taken", "x");
    let create = |context: Value, name: Value, value: Value| {
        service.post("/vault/v1/kv", json!({ "key_context": context, "name": name, "value": value }))
    };
    let acme = || json!({ "organizationId": "acme" });
    create(acme(), json!("taken"), json!("x")).is(409);
    create(json!({ "organizationId": "nobody" }), json!("n"), json!("x")).is(422);
    create(json!({}), json!("n"), json!("x")).is(422);
    for name in ["", "..", "a/../b", "a//b", "/a", "a\0b"] {
        create(acme(), json!(name), json!("x")).is(422);
    }
    create(acme(), json!("x".repeat(201)), json!("x")).is(422);
    create(acme(), json!("x".repeat(200)), json!("x")).is(201);
    create(json!({ "organizationId": "acme", "n": 1 }), json!("n"), json!("x")).is(400);
    create(json!({ "organizationId": "acme", "n": null }), json!("n"), json!("x")).is(400);
    create(json!({ "organizationId": "acme", "n": "v".repeat(501) }), json!("n"), json!("x")).is(422);
    let many: serde_json::Map<_, _> = (0..11).map(|n| (format!("k{n}"), json!("v"))).collect();
    create(Value::Object(many), json!("n"), json!("x")).is(422);
    create(acme(), json!(7), json!("x")).is(400);
    create(acme(), json!("n"), Value::Null).is(400);
    service.send("POST", "/vault/v1/kv", &[], b"{\"name\":\"\xff\"}").is(400);
    service.send("POST", "/vault/v1/kv", &[], b"").is(400);
}

#[test]
fn a_context_of_several_pairs_stays_with_the_object() {
    let (vault, service) = served();
    let context = json!({ "organization_id": "acme", "env": "prod" });
    let made = service.post("/vault/v1/kv", json!({ "key_context": context, "name": "a", "value": "1" })).is(201);
    assert_eq!(made["context"]["env"], "prod");
    assert_eq!(made["context"]["organization_id"], made["context"]["organizationId"]);
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    assert_eq!(service.put(&path, json!({ "value": "2" })).is(201)["metadata"]["context"], made["context"]);
    vault.command(&["object", "restore", "acme/a", "--version", "1"]).good();
    let read = service.get(&path).is(200);
    assert_eq!((&read["value"], &read["metadata"]["context"]), (&json!("1"), &made["context"]));
    let listed = service.get("/vault/v1/kv?search=%7B%22key_context%22%3A%7B%22env%22%3A%22prod%22%7D%7D").is(200);
    assert_eq!(listed["data"].as_array().unwrap().len(), 1);
}

#[test]
fn a_name_in_two_organizations_is_a_conflict_that_says_so() {
    let (vault, service) = served();
    vault.command(&["org", "create", "two"]).good();
    service.create("acme", "same", "a");
    service.create("two", "same", "b");
    let refused = service.get("/vault/v1/kv/name/same").is(409);
    assert!(refused["error"].as_str().unwrap().contains("two"), "{refused}");
    assert_eq!(service.get("/vault/v1/kv/name/same?organization=two").is(200)["value"], "b");
}

#[test]
fn pages_lead_through_250_objects_in_both_directions() {
    let (_vault, service) = served();
    let mut made: Vec<String> =
        (0..250).map(|n| service.create("acme", &format!("n{n}"), "v")["id"].as_str().unwrap().to_owned()).collect();
    made.sort();
    for (order, limit) in [("asc", 100), ("desc", 100), ("asc", 7), ("desc", 250)] {
        let mut expected = made.clone();
        if order == "desc" {
            expected.reverse();
        }
        let page = |cursor: String| {
            let page = service.get(&format!("/vault/v1/kv?order={order}&limit={limit}{cursor}")).is(200);
            let ids: Vec<String> =
                page["data"].as_array().unwrap().iter().map(|o| o["id"].as_str().unwrap().to_owned()).collect();
            (ids, page["list_metadata"].clone())
        };
        let (mut forward, mut cursor, mut last) = (Vec::new(), String::new(), Value::Null);
        loop {
            let (ids, metadata) = page(cursor);
            forward.extend(ids.clone());
            let Some(after) = metadata["after"].as_str() else {
                last = ids.last().cloned().map_or(last, Value::from);
                break;
            };
            cursor = format!("&after={after}");
        }
        assert_eq!(forward, expected, "{order} {limit}");
        // And back again, from the last object on.
        let mut back = vec![last.as_str().unwrap().to_owned()];
        let mut cursor = format!("&before={}", back[0]);
        loop {
            let (ids, metadata) = page(cursor);
            back.splice(0..0, ids);
            let Some(before) = metadata["before"].as_str() else { break };
            cursor = format!("&before={before}");
        }
        assert_eq!(back, expected, "{order} {limit} backwards");
    }
    assert_eq!(service.get("/vault/v1/kv").is(200)["data"].as_array().unwrap().len(), 10);
    service.get("/vault/v1/kv?limit=0").is(400);
    service.get("/vault/v1/kv?order=sideways").is(400);
    assert_eq!(service.get("/vault/v1/kv?search=n24&limit=100").is(200)["data"].as_array().unwrap().len(), 11);
}

#[test]
fn each_pair_that_a_service_gives_has_a_kek_and_folders_add_theirs() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    std::fs::create_dir(acme.join("eu")).unwrap();
    let eu = acme.join("eu");
    try_run("setfattr", &[&"-n", &"user.vault.context.region", &"-v", &"eu", &eu]).good();
    let create = |name: &str, context: Value| {
        service.post("/vault/v1/kv", json!({ "key_context": context, "name": name, "value": "1" })).is(201)
    };
    let plain = create("plain", json!({ "organizationId": "acme" }));
    let made = create("two", json!({ "organizationId": "acme", "customer": "c17" }));
    let keks = |object: &Value| object["key_id"].as_str().unwrap().split(',').count();
    let below = create("eu/f", json!({ "organizationId": "acme", "customer": "c17" }));
    assert_eq!((keks(&plain), keks(&made), keks(&below)), (1, 2, 3));
    assert_eq!((&below["context"]["region"], &below["context"]["customer"]), (&json!("eu"), &json!("c17")));
    assert_eq!(std::fs::read(acme.join("eu/f")).unwrap(), b"1");
    vault.command(&["key", "revoke", "acme", "customer=c17", "--for-ever"]).good();
    let read = |object: &Value| service.get(&format!("/vault/v1/kv/{}", object["id"].as_str().unwrap()));
    assert_eq!(read(&plain).is(200)["value"], "1");
    read(&made).is(503);
    read(&below).is(503);
    let body = json!({ "organizationId": "acme", "customer": "c17" });
    service.post("/vault/v1/kv", json!({ "key_context": body, "name": "again", "value": "1" })).is(503);
}

#[test]
fn data_keys_open_after_a_rotation_and_end_with_their_pair() {
    let (vault, service) = served();
    let post = |route: &str, body: Value| service.post(&format!("/vault/v1/keys/{route}"), body);
    let make = |context: Value| post("data-key", json!({ "context": context })).is(200);
    let plain = make(json!({ "organizationId": "acme" }));
    let made = make(json!({ "organizationId": "acme", "customer": "c17" }));
    let keys = vault.token_keys();
    vault.command(&["key", "rotate", "acme"]).good();
    assert_eq!(vault.token_keys(), keys, "the old versions are gone from the token");
    let open = |made: &Value| post("decrypt", json!({ "keys": made["encrypted_keys"] }));
    for made in [&plain, &made] {
        assert_eq!(open(made).is(200)["data_key"], made["data_key"]);
    }
    vault.command(&["org", "lock", "acme"]).good();
    open(&plain).is(503);
    vault.command(&["org", "unlock", "acme"]).good();
    vault.command(&["key", "revoke", "acme", "customer=c17", "--for-ever"]).good();
    assert_eq!(open(&plain).is(200)["data_key"], plain["data_key"]);
    open(&made).is(503);
    post("data-key", json!({ "context": { "organizationId": "acme", "customer": "c17" } })).is(503);
}

#[test]
fn data_keys_open_again_and_move_to_another_context() {
    let (vault, service) = served();
    vault.command(&["org", "create", "two"]).good();
    let post = |route: &str, body: Value| service.post(&format!("/vault/v1/keys/{route}"), body);
    let made = post("data-key", json!({ "context": { "organizationId": "acme", "env": "prod" } })).is(200);
    assert_eq!(made["data_key"].as_str().unwrap().len(), 44);
    let opened = post("decrypt", json!({ "keys": made["encrypted_keys"] })).is(200);
    assert_eq!((&opened["id"], &opened["data_key"]), (&made["id"], &made["data_key"]));
    let context = json!({ "organizationId": "two" });
    let moved = post("rekey", json!({ "encrypted_keys": made["encrypted_keys"], "context": context })).is(200);
    assert_ne!(moved["encrypted_keys"], made["encrypted_keys"]);
    assert_eq!(moved["data_key"], made["data_key"]);
    assert_eq!(post("decrypt", json!({ "keys": moved["encrypted_keys"] })).is(200)["data_key"], made["data_key"]);
    post("data-key", json!({ "context": { "organizationId": "nobody" } })).is(422);
    post("data-key", json!({ "context": { "organizationId": 7 } })).is(400);
    for keys in ["V09T", "not base64!", ""] {
        post("decrypt", json!({ "keys": keys })).is(400);
    }
    let mut changed = made["encrypted_keys"].as_str().unwrap().to_owned();
    changed.replace_range(80..81, if &changed[80..81] == "A" { "B" } else { "A" });
    post("decrypt", json!({ "keys": changed })).is(400);
    // An organization that is gone takes its data keys with it.
    vault.command(&["org", "delete", "two"]).good();
    post("decrypt", json!({ "keys": moved["encrypted_keys"] })).is(400);
}

#[test]
fn what_is_not_utf8_is_had_as_base64_or_raw() {
    let (vault, service) = served();
    vault.command_with(&["object", "put", "acme/binary"], b"\xff\x00\xfe").good();
    let refused = service.get("/vault/v1/kv/name/binary").is(422);
    assert!(refused["error"].as_str().unwrap().contains("base64"), "{refused}");
    let read = service.get("/vault/v1/kv/name/binary?encoding=base64").is(200);
    assert_eq!((&read["value"], &read["encoding"]), (&json!("/wD+"), &json!("base64")));
    let raw = service.send("GET", "/vault/v1/kv/name/binary", &[("Accept", "application/octet-stream")], b"");
    assert_eq!((raw.status, raw.body), (200, b"\xff\x00\xfe".to_vec()));
    let path = format!("/vault/v1/kv/{}", read["id"].as_str().unwrap());
    service.put(&path, json!({ "value": "AAE=", "encoding": "base64" })).is(201);
    assert_eq!(vault.command(&["object", "get", "acme/binary"]).good().out, b"\x00\x01");
}
