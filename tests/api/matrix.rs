//! Every kind of API key against every route: it is done, or it is 403 and one audit event; without a key 401 and one.

use crate::http::{Answer, Service};
use crate::keys::denials;
use crate::objects::served;
use crate::vault::Vault;
use serde_json::{Value, json};

/// What a route needs.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
enum Needs {
    Read,
    Write,
    Admin,
}
use Needs::{Admin, Read, Write};

/// How far a route reaches.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Reach {
    /// Whatever the key is for.
    Own,
    /// The organization that stands in the path, the query or the body.
    Organization,
    Vault,
}
use Reach::{Organization, Own};

/// `ORG` is the organization's name, `OBJECT` an object in it, `GRAVE` a deleted one.
const ROUTES: [(&str, &str, &str, Needs, Reach); 55] = [
    ("GET", "/vault/v1/kv", "", Read, Own),
    ("GET", "/vault/v1/kv?organization=ORG", "", Read, Organization),
    ("POST", "/vault/v1/kv", r#"{"key_context":{"organizationId":"ORG"},"name":"o","value":""}"#, Write, Organization),
    ("GET", "/vault/v1/kv/OBJECT", "", Read, Organization),
    ("GET", "/vault/v1/kv/OBJECT", "raw", Read, Organization),
    ("GET", "/vault/v1/kv/ORG%2Fo", "", Read, Organization),
    ("GET", "/vault/v1/kv/ORG%2Fnone", "", Read, Organization),
    ("GET", "/vault/v1/kv/name/o?organization=ORG", "", Read, Organization),
    ("GET", "/vault/v1/kv/OBJECT/metadata", "", Read, Organization),
    ("GET", "/vault/v1/kv/OBJECT/versions", "", Read, Organization),
    ("GET", "/vault/v1/kv/OBJECT/versions/1", "", Read, Organization),
    ("GET", "/vault/v1/kv/OBJECT/versions/1", "raw", Read, Organization),
    ("POST", "/vault/v1/kv/OBJECT/versions/1/restore", "", Write, Organization),
    ("PUT", "/vault/v1/kv/OBJECT", r#"{"value":"x"}"#, Write, Organization),
    ("PUT", "/vault/v1/kv/OBJECT", "raw", Write, Organization),
    ("PUT", "/vault/v1/kv/ORG%2Fo", "raw", Write, Organization),
    ("PUT", "/vault/v1/kv/ORG%2Fnew", "raw", Write, Organization),
    ("DELETE", "/vault/v1/kv/OBJECT?version_check=99", "", Write, Organization),
    ("GET", "/vault/v1/tombstones", "", Read, Reach::Vault),
    ("GET", "/vault/v1/tombstones?organization=ORG", "", Read, Organization),
    ("POST", "/vault/v1/tombstones/GRAVE/restore", "", Write, Organization),
    ("POST", "/vault/v1/tombstones/ORG%2Fnone/restore", "", Write, Organization),
    ("DELETE", "/vault/v1/tombstones/GRAVE", "", Admin, Organization),
    ("DELETE", "/vault/v1/tombstones/ORG%2Fnone", "", Admin, Organization),
    ("POST", "/vault/v1/keys/data-key", r#"{"context":{"organizationId":"ORG"}}"#, Write, Organization),
    ("POST", "/vault/v1/keys/decrypt", r#"{"keys":"DATAKEY"}"#, Read, Organization),
    (
        "POST",
        "/vault/v1/keys/rekey",
        r#"{"encrypted_keys":"DATAKEY","context":{"organizationId":"ORG","a":"b"}}"#,
        Write,
        Organization,
    ),
    ("GET", "/organizations", "", Read, Own),
    ("POST", "/organizations", r#"{"name":".no"}"#, Admin, Reach::Vault),
    ("GET", "/organizations/ORG", "", Read, Organization),
    ("GET", "/organizations/external_id/crm-ORG", "", Read, Organization),
    ("GET", "/organizations/external_id/none-of-ORG", "", Read, Reach::Vault),
    ("PUT", "/organizations/ORG", "{}", Admin, Organization),
    ("DELETE", "/organizations/ORG", "", Admin, Reach::Vault),
    ("POST", "/organizations/ORG/lock", "", Admin, Organization),
    ("POST", "/organizations/ORG/unlock", "", Admin, Organization),
    ("POST", "/organizations/ORG/rotate", "", Admin, Organization),
    ("POST", "/organizations/ORG/revoke", r#"{"key":"none","value":"x"}"#, Admin, Organization),
    ("POST", "/organizations/ORG/move", r#"{"residency":"token"}"#, Admin, Reach::Vault),
    ("GET", "/organizations/nobody-beside-ORG", "", Read, Reach::Vault),
    ("GET", "/keys", "", Admin, Reach::Vault),
    ("GET", "/keys?organization=ORG", "", Admin, Organization),
    ("GET", "/keys/check", "", Admin, Reach::Vault),
    ("POST", "/keys/pin", r#"{"pin_source":"prompt"}"#, Admin, Reach::Vault),
    ("GET", "/keys/rotations", "", Admin, Reach::Vault),
    ("POST", "/keys/rotate", "", Admin, Reach::Vault),
    ("POST", "/keys/root/rotate", "", Admin, Reach::Vault),
    ("GET", "/api_keys", "", Admin, Reach::Vault),
    ("POST", "/api_keys", r#"{"name":"","permission":"read"}"#, Admin, Reach::Vault),
    ("DELETE", "/api_keys/key_01EHZNVPK3SFK441A1RGBFSHRT", "", Admin, Reach::Vault),
    ("GET", "/events", "", Admin, Reach::Vault),
    ("GET", "/events?organization_id=ORG", "", Admin, Reach::Vault),
    ("GET", "/status", "", Admin, Reach::Vault),
    ("GET", "/metrics", "", Admin, Reach::Vault),
    ("POST", "/fsck?keys=no", "", Admin, Reach::Vault),
];

/// An organization, and what stands in for the words of a route.
struct Place<'a> {
    admin: &'a Service,
    name: &'static str,
    object: String,
    data_key: String,
}

impl Place<'_> {
    fn ask(&self, service: &Service, (method, path, body, ..): (&str, &str, &str, Needs, Reach)) -> Answer {
        let mut path = path.replace("ORG", self.name).replace("OBJECT", &self.object);
        if path.contains("GRAVE") {
            let made = self.admin.send("PUT", &format!("/vault/v1/kv/{}%2Fdoomed", self.name), &[RAW], b"x");
            let id = made.is(201)["id"].as_str().unwrap().to_owned();
            self.admin.delete(&format!("/vault/v1/kv/{id}")).is(200);
            path = path.replace("GRAVE", &id);
        }
        let answer = match (method, body) {
            ("GET", "raw") => service.send(method, &path, &[("Accept", RAW.1)], b""),
            (_, "raw") => service.send(method, &path, &[RAW], b"x"),
            _ => {
                let body = body.replace("ORG", self.name).replace("DATAKEY", &self.data_key);
                service.send(method, &path, &[("Content-Type", "application/json")], body.as_bytes())
            }
        };
        if path.contains("/tombstones/") && answer.status == 200 {
            // Where it was restored its name is taken for the next one.
            self.admin.delete(&format!("/vault/v1/kv/{}%2Fdoomed", self.name));
        }
        answer
    }
}

const RAW: (&str, &str) = ("Content-Type", "application/octet-stream");

fn two_organizations(admin: &Service) -> [Place<'_>; 2] {
    admin.post("/organizations", json!({ "name": "two" })).is(201);
    ["acme", "two"].map(|name| {
        admin.put(&format!("/organizations/{name}"), json!({ "external_id": format!("crm-{name}") })).is(200);
        let context = json!({ "context": { "organizationId": name } });
        let data_key = admin.post("/vault/v1/keys/data-key", context).is(200)["encrypted_keys"].clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Place { admin, name, object: text(&admin.create(name, "o", "1")["id"]), data_key: text(&data_key) }
    })
}

/// Refused with this status, in words, and put on record once.
#[track_caller]
fn refused(vault: &Vault, status: u16, what: &str, ask: impl FnOnce() -> Answer) {
    let before = denials(vault);
    let answer = ask();
    assert_eq!(answer.status, status, "{what}: {}", String::from_utf8_lossy(&answer.body));
    answer.is(status);
    assert_eq!(denials(vault), before + 1, "{what}");
}

#[test]
fn a_key_of_each_kind_may_do_what_it_is_for_on_every_route_and_nothing_else() {
    let (vault, admin) = served();
    let places = two_organizations(&admin);
    for permission in [Read, Write, Admin] {
        for scope in [None, Some("acme")] {
            let word = format!("{permission:?}").to_lowercase();
            let mut arguments = vec!["--permission", &word];
            arguments.extend(scope.iter().flat_map(|organization| ["--org", organization]));
            let service = vault.service_with(&arguments);
            for place in &places {
                for route in ROUTES {
                    let (method, path, _, needs, reach) = route;
                    let within = match reach {
                        Own => true,
                        Organization => scope.is_none_or(|organization| organization == place.name),
                        Reach::Vault => scope.is_none(),
                    };
                    let what = format!("{method} {path} for {} by {word} of {scope:?}", place.name);
                    if within && permission >= needs {
                        let before = denials(&vault);
                        let answer = place.ask(&service, route);
                        let text = String::from_utf8_lossy(&answer.body);
                        assert!(![401, 403, 429, 500, 503].contains(&answer.status), "{what}: {text}");
                        assert_eq!(denials(&vault), before, "{what}");
                    } else {
                        refused(&vault, 403, &what, || place.ask(&service, route));
                    }
                }
            }
        }
    }
}

#[test]
fn without_a_key_no_route_is_answered() {
    let (vault, admin) = served();
    let [place, _] = two_organizations(&admin);
    let stranger = Service { key: String::new(), ..admin.clone() };
    for route in ROUTES {
        refused(&vault, 401, route.1, || place.ask(&stranger, route));
    }
}

#[test]
fn a_key_for_one_organization_makes_no_other_where_organizations_are_made_in_time() {
    let vault = Vault::new();
    vault.serve(&["--listen", "127.0.0.1:0", "-o", "organizations=just-in-time"]);
    vault.command(&["org", "create", "acme"]).good();
    let writer = vault.service_with(&["--permission", "write", "--org", "acme"]);
    let body = json!({ "key_context": { "organizationId": "newcomer" }, "name": "n", "value": "x" });
    writer.post("/vault/v1/kv", body).is(403);
    writer.post("/vault/v1/keys/data-key", json!({ "context": { "organizationId": "newcomer" } })).is(403);
    assert!(!vault.command(&["org", "list"]).good().text().contains("newcomer"));
    writer.create("acme", "n", "x");
}
