//! Organizations over the API.

use crate::objects::served;
use serde_json::{Value, json};

#[test]
fn an_organization_is_made_found_changed_and_deleted() {
    let (vault, service) = served();
    let new = json!({ "name": "Foo Corp", "external_id": "ext1", "metadata": { "t": "x" },
        "domain_data": [{ "domain": "foo.com", "state": "pending" }] });
    let made = service.post("/organizations", new.clone()).is(201);
    let id = made["id"].as_str().unwrap();
    assert_eq!(
        (&made["object"], &made["name"], &made["external_id"]),
        (&json!("organization"), &json!("Foo Corp"), &json!("ext1"))
    );
    assert_eq!((&made["domains"][0]["domain"], &made["metadata"]["t"]), (&json!("foo.com"), &json!("x")));
    service.post("/organizations", new).is(409);
    for path in
        [format!("/organizations/{id}"), "/organizations/external_id/ext1".into(), "/organizations/Foo%20Corp".into()]
    {
        assert_eq!(service.get(&path).is(200), made, "{path}");
    }
    let renamed = service.put(&format!("/organizations/{id}"), json!({ "name": "Bar", "external_id": null })).is(200);
    assert_eq!(
        (&renamed["name"], &renamed["external_id"], &renamed["metadata"]["t"]),
        (&json!("Bar"), &Value::Null, &json!("x"))
    );
    assert!(vault.command(&["org", "list"]).good().text().contains("Bar"));
    service.get("/organizations/external_id/ext1").is(404);
    service.put(&format!("/organizations/{id}"), json!({ "name": ".hidden" })).is(422);
    // An object finds its organization by the external id too.
    service.put(&format!("/organizations/{id}"), json!({ "external_id": "crm-7" })).is(200);
    assert_eq!(service.create("crm-7", "a", "1")["organization"], "Bar");
    service.delete(&format!("/organizations/{id}")).is(409);
    service.delete("/vault/v1/kv/Bar%2Fa").is(200);
    service.delete(&format!("/organizations/{id}")).is(200);
    service.get(&format!("/organizations/{id}")).is(404);
}

#[test]
fn what_is_known_of_an_organization_outlives_the_daemon() {
    let (vault, service) = served();
    service.put("/organizations/acme", json!({ "external_id": "x", "quota_objects": 1 })).is(200);
    vault.stop();
    vault.serve(&["--listen", "127.0.0.1:0"]);
    let shown = vault.command(&["org", "show", "x", "--json"]).good().json();
    assert_eq!((&shown["external_id"], &shown["quota_objects"]), (&json!("x"), &json!(1)));
}

#[test]
fn organizations_come_in_pages() {
    let (_vault, service) = served();
    for n in 0..12 {
        service.post("/organizations", json!({ "name": format!("org {n}") })).is(201);
    }
    let first = service.get("/organizations?order=desc").is(200);
    assert_eq!((&first["object"], first["data"].as_array().unwrap().len()), (&json!("list"), 10));
    assert_eq!(first["data"][0]["name"], "org 11");
    let after = first["list_metadata"]["after"].as_str().unwrap();
    let second = service.get(&format!("/organizations?order=desc&after={after}")).is(200);
    assert_eq!(second["data"].as_array().unwrap().len(), 3);
    assert_eq!(second["data"][2]["name"], "acme");
    let before = second["list_metadata"]["before"].as_str().unwrap();
    let back = service.get(&format!("/organizations?order=desc&before={before}")).is(200);
    assert_eq!(back["data"], first["data"]);
    assert_eq!(service.get("/organizations?search=org%2011").is(200)["data"].as_array().unwrap().len(), 1);
}

#[test]
fn quotas_refuse_what_is_too_much_on_the_mount_and_in_the_api() {
    use crate::vault::Vault;
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    vault.command(&["org", "set", "acme", "--quota-bytes", "10000", "--quota-objects", "3"]).good();
    std::fs::write(acme.join("a"), vec![b'x'; 9000]).unwrap();
    let full = std::fs::write(acme.join("b"), vec![b'x'; 2000]).unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::EDQUOT));
    let refused = service.post(
        "/vault/v1/kv",
        json!({ "key_context": { "organizationId": "acme" }, "name": "c", "value": "x".repeat(2000) }),
    );
    assert_eq!(refused.is(422)["code"], "quota");
    service.create("acme", "d", "small");
    let fourth = std::fs::File::create(acme.join("e")).unwrap_err();
    assert_eq!(fourth.raw_os_error(), Some(libc::EDQUOT));
    let body = json!({ "key_context": { "organizationId": "acme" }, "name": "f", "value": "" });
    service.post("/vault/v1/kv", body).is(422);
    vault.command(&["org", "set", "acme", "--quota-bytes", "none", "--quota-objects", "none"]).good();
    std::fs::write(acme.join("b"), vec![b'x'; 20000]).unwrap();
}

#[test]
fn versions_whose_time_is_over_go_without_another_save() {
    let (vault, service) = served();
    let count = || service.get("/vault/v1/kv/acme%2Fv/versions").is(200)["data"].as_array().unwrap().len();
    for n in 0..5 {
        vault.command_with(&["object", "put", "acme/v"], n.to_string().as_bytes()).good();
    }
    service.put("/organizations/acme", json!({ "keep_versions_for": 1 })).is(200);
    let gone = (0..60).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(500));
        count() == 1
    });
    assert!(gone, "{} versions", count());
    assert_eq!(service.get("/vault/v1/kv/acme%2Fv").is(200)["value"], "4");
}

#[test]
fn versions_are_kept_for_a_time_instead_of_by_number() {
    let (vault, service) = served();
    let count = || service.get("/vault/v1/kv/acme%2Fv/versions").is(200)["data"].as_array().unwrap().len();
    service.put("/organizations/acme", json!({ "keep_versions_for": 3600 })).is(200);
    for n in 0..15 {
        vault.command_with(&["object", "put", "acme/v"], n.to_string().as_bytes()).good();
    }
    assert_eq!(count(), 15);
    service.put("/organizations/acme", json!({ "keep_versions_for": null })).is(200);
    vault.command_with(&["object", "put", "acme/v"], b"last").good();
    assert_eq!(count(), 10);
}
