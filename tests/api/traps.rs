//! What client libraries really send (`facts/workos-api.md`), one test for each trap.

use crate::objects::served;
use serde_json::{Value, json};

#[test]
fn a_content_type_without_a_body_is_no_mistake() {
    let (_vault, service) = served();
    let id = service.create("acme", "a", "1")["id"].as_str().unwrap().to_owned();
    // `get` and `delete` here send `Content-Type: application/json` with an empty body, as the libraries do.
    service.get(&format!("/vault/v1/kv/{id}")).is(200);
    service.delete(&format!("/vault/v1/kv/{id}")).is(200);
}

#[test]
fn a_version_check_may_be_absent_null_or_a_string() {
    let (_vault, service) = served();
    let made = service.create("acme", "a", "1");
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    service.put(&path, json!({ "value": "2" })).is(201);
    let put = service.put(&path, json!({ "value": "3", "version_check": null })).is(201);
    service.put(&path, json!({ "value": "4", "version_check": put["metadata"]["version_id"] })).is(201);
    service.put(&path, json!({ "value": "5", "version_check": made["version_id"] })).is(409);
    service.put(&path, json!({ "value": "5", "version_check": "Wq49AmJIR7QI0kSwfY9BZ6vNsOq6AO_X" })).is(409);
}

#[test]
fn both_spellings_of_the_date_filter_and_javascript_dates_are_read() {
    let (_vault, service) = served();
    service.create("acme", "a", "1");
    let count = |query: &str| service.get(&format!("/vault/v1/kv?{query}")).is(200)["data"].as_array().unwrap().len();
    for name in ["updatedAfter", "updated_after"] {
        assert_eq!(count(&format!("{name}=2024-01-01T00%3A00%3A00.000Z")), 1);
        let javascript = "Mon+Jan+01+2024+00%3A00%3A00+GMT%2B0000+%28Coordinated+Universal+Time%29";
        assert_eq!(count(&format!("{name}={javascript}")), 1);
        assert_eq!(count(&format!("{name}=2999-01-01T00%3A00%3A00Z")), 0);
        service.get(&format!("/vault/v1/kv?{name}=yesterday")).is(400);
    }
}

#[test]
fn names_come_with_raw_slashes_and_are_decoded_once() {
    let (_vault, service) = served();
    let name = "prod/db pass:wörd?#%2F";
    service.create("acme", name, "1");
    for path in ["prod%2Fdb%20pass%3Aw%C3%B6rd%3F%23%252F", "prod/db%20pass%3Aw%C3%B6rd%3F%23%252F"] {
        assert_eq!(service.get(&format!("/vault/v1/kv/name/{path}")).is(200)["name"], name);
    }
    // Names that are words of the routes.
    for name in ["metadata", "a/metadata", "a/versions", "name"] {
        service.create("acme", name, name);
        assert_eq!(service.get(&format!("/vault/v1/kv/name/{name}")).is(200)["value"], name);
    }
    // What `readObjectByName('..')` becomes: no list, no object.
    service.get("/vault/v1/kv/").is(404);
    service.get("/vault/v1/kv/name/%2E%2E").is(400);
    service.get("/vault/v1/kv/name/a%00b").is(400);
    service.get("/vault/v1/kv/name/a%").is(400);
}

#[test]
fn fields_that_are_not_known_are_left_alone() {
    let (_vault, service) = served();
    let body = json!({ "key_context": { "organizationId": "acme" }, "name": "a", "value": "1", "extra": [1] });
    let made = service.post("/vault/v1/kv", body).is(201);
    let id = made["id"].as_str().unwrap();
    service.put(&format!("/vault/v1/kv/{id}"), json!({ "id": id, "value": "2" })).is(201);
    let body = json!({ "name": "B", "allow_profiles_outside_organization": false, "stripe_customer_id": "x" });
    service.post("/organizations", body).is(201);
}

#[test]
fn a_request_with_an_idempotency_key_is_done_once() {
    let (vault, service) = served();
    let body = json!({ "key_context": { "organizationId": "acme" }, "name": "a", "value": "1" });
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", "retry-1")];
    let post = |body: &Value| service.send("POST", "/vault/v1/kv", &headers, body.to_string().as_bytes());
    let first = post(&body).is(201);
    assert_eq!(post(&body).is(201), first);
    post(&json!({ "key_context": { "organizationId": "acme" }, "name": "b", "value": "1" })).is(422);
    // Another caller's key of the same name is another one.
    let other = vault.service();
    other.send("POST", "/vault/v1/kv", &headers, body.to_string().as_bytes()).is(409);
    service.post("/vault/v1/kv", body).is(409);
    let organization =
        |key: &str| service.send("POST", "/organizations", &[("Idempotency-Key", key)], br#"{"name":"Foo Corp"}"#);
    assert_eq!(organization("idem-1").is(201), organization("idem-1").is(201));
    organization("idem-2").is(409);
}

#[test]
fn a_put_whose_answer_was_lost_succeeds_again_and_another_value_does_not() {
    let (vault, service) = served();
    let made = service.create("acme", "a", "1");
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    let put = |value: &str| service.put(&path, json!({ "value": value, "version_check": made["version_id"] }));
    let first = put("2").is(201);
    assert_eq!(put("2").is(201), first, "no second version");
    put("3").is(409);
    // The same value from somebody else is somebody else's.
    let other = vault.service();
    other.put(&path, json!({ "value": "2", "version_check": made["version_id"] })).is(409);
    service.put(&path, json!({ "value": "3" })).is(201);
    put("2").is(409);
}
