//! API keys: who is let in, and what is put on record of those who are not.

use crate::http::Service;
use crate::objects::served;
use crate::vault::Vault;
use serde_json::json;
use std::fs;
use std::time::{Duration, Instant};

pub fn denials(vault: &Vault) -> usize {
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
fn an_api_key_names_no_token() {
    let (vault, admin) = served();
    let module = vault.uri();
    for residency in [module.as_str(), "pkcs11:token=x?module-path=/tmp/evil.so"] {
        let own = json!({"name": "own", "residency": residency, "pin_source": "file:/etc/shadow"});
        let before = denials(&vault);
        admin.post("/organizations", own).is(403);
        let to = json!({"residency": residency, "pin_source": "file:/etc/shadow"});
        admin.post("/organizations/acme/move", to).is(403);
        admin.post("/keys/migrate", json!({"token": residency, "pin_source": "file:/etc/shadow"})).is(403);
        assert_eq!(denials(&vault), before + 3);
    }
    admin.post("/organizations", json!({"name": "wrapped", "residency": "wrapped"})).is(201);
    admin.post("/organizations", json!({"name": "nowhere", "residency": "nowhere"})).is(400);
}

#[test]
fn a_key_for_one_organization_sees_nothing_of_others_in_lists_and_by_name() {
    let (vault, admin) = served();
    vault.command(&["org", "create", "two"]).good();
    admin.create("acme", "here", "1");
    admin.create("two", "there", "2");
    let writer = vault.service_with(&["--permission", "write", "--org", "acme"]);
    let listed = writer.get("/vault/v1/kv").is(200);
    assert_eq!((listed["data"].as_array().unwrap().len(), &listed["data"][0]["name"]), (1, &json!("here")));
    assert_eq!(writer.get("/organizations").is(200)["data"].as_array().unwrap().len(), 1);
    writer.get("/vault/v1/kv/name/there").is(404);
    // Nor whether there is a name that is not its own.
    let said = |path: &str| writer.get(path).is(403);
    assert_eq!(said("/organizations/two"), said("/organizations/nobody"));
    assert_eq!(said("/vault/v1/kv/two%2Fthere"), said("/vault/v1/kv/two%2Fnone"));
    assert_eq!(said("/vault/v1/kv/two%2Fthere"), said("/vault/v1/kv/nobody%2Fthere"));
}

#[test]
fn whoever_tries_keys_waits_longer_each_time_and_others_do_not_wait_for_that() {
    let (_vault, service) = served();
    let stranger = Service { key: "sk_wrong".into(), ..service.clone() };
    let begun = Instant::now();
    for _ in 0..6 {
        stranger.get("/vault/v1/kv").is(401);
    }
    assert!(begun.elapsed() > Duration::from_millis(50 + 100 + 200 + 400 + 800 + 1600));
    // Four wrong keys wait for seconds now, and a valid one is answered before them: at least once, on a busy machine.
    let overtakes = || {
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| stranger.get("/vault/v1/kv").is(401))).collect();
            service.get("/vault/v1/kv").is(200);
            waiting.iter().all(|one| !one.is_finished())
        })
    };
    assert!((0..10).any(|_| overtakes()), "a valid key waits");
}

#[test]
fn requests_without_a_key_are_answered_at_once_and_all_put_on_record() {
    let (vault, service) = served();
    let stranger = Service { key: String::new(), ..service.clone() };
    let before = denials(&vault);
    for _ in 0..50 {
        stranger.get("/vault/v1/kv").is(401);
    }
    assert_eq!(denials(&vault), before + 50);
}

#[test]
fn many_wrong_keys_at_once_are_turned_away_and_do_not_fill_the_audit_log() {
    let (vault, service) = served();
    let stranger = Service { key: "sk_wrong".into(), ..service.clone() };
    let (before, begun) = (denials(&vault), Instant::now());
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..150).map(|_| scope.spawn(|| stranger.get("/vault/v1/kv"))).collect();
        let all = all.into_iter().map(|one| one.join().unwrap());
        let told = |answer: &crate::http::Answer| answer.status != 429 || answer.head.contains("retry-after: ");
        all.inspect(|answer| assert!(told(answer), "{}", answer.head)).map(|answer| answer.status).collect()
    });
    let (slowed, turned_away) = (count(&statuses, 401), count(&statuses, 429));
    assert_eq!(slowed + turned_away, 150, "{statuses:?}");
    let told = denials(&vault) - before;
    let seconds = begun.elapsed().as_secs() as usize;
    assert!((slowed..=slowed + seconds + 1).contains(&told), "{told} events for {slowed} and {turned_away}");
    service.get("/vault/v1/kv").is(200);
}

fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|one| **one == status).count()
}
