//! Where the API is answered: TCP, TLS, the socket; with a mount and without.

use crate::objects::served;
use crate::vault::{Done, Vault};
use std::fs;

#[test]
fn commands_use_the_daemon_that_serves() {
    let (vault, service) = served();
    service.create("acme", "a", "from the network");
    assert_eq!(vault.command(&["object", "get", "acme/a"]).good().out, b"from the network");
    let status = vault.command(&["status"]).good().text();
    assert!(status.contains("served by process") && status.contains("listens on"), "{status}");
    vault.stop();
    assert_eq!(vault.command(&["object", "get", "acme/a"]).good().out, b"from the network");
}

#[test]
fn the_socket_answers_the_same_routes_without_a_key() {
    let (vault, service) = served();
    service.create("acme", "a", "1");
    let socket = vault.state().join("control.sock");
    let curl = |route: &str| {
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "--unix-socket", socket.to_str().unwrap(), &format!("http://vault{route}")]);
        Done::of(&mut curl, b"").good().json()
    };
    assert_eq!(curl("/vault/v1/kv/acme%2Fa")["value"], "1");
    assert_eq!(curl("/vault/v1/kv")["data"], service.get("/vault/v1/kv").is(200)["data"]);
}

#[test]
fn beyond_the_loopback_tls_is_needed_and_a_taken_port_is_said() {
    let (vault, service) = served();
    let other = Vault::new();
    let serve = |listen: &str| other.command(&["serve", other.state().to_str().unwrap(), "--listen", listen]);
    serve("0.0.0.0:0").refused(2).saying("TLS");
    serve("nowhere").refused(2).saying("ADDRESS:PORT");
    serve(&service.address).refused(1).saying("cannot listen");
    drop(vault);
}

#[test]
fn tls_serves_what_plain_tcp_does() {
    let vault = Vault::new();
    let (cert, key) = (vault.directory().join("cert.pem"), vault.directory().join("key.pem"));
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]);
    Done::of(openssl.arg("-keyout").arg(&key).arg("-out").arg(&cert), b"").good();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    vault.serve(&["--listen", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key]);
    let service = vault.service();
    let mut curl = std::process::Command::new("curl");
    curl.args(["-sS", "--cacert", cert, "-H", &format!("Authorization: Bearer {}", service.key)]);
    let answer = Done::of(curl.arg(format!("https://{}/vault/v1/kv", service.address)), b"").good();
    assert_eq!(answer.json()["data"], serde_json::json!([]));
    // Without TLS nothing is said.
    let mut plain = std::process::Command::new("curl");
    let plain = Done::of(plain.args(["-sS", &format!("http://{}/healthz", service.address)]), b"");
    assert_ne!(plain.code, 0);
}

#[test]
fn metrics_count_requests_and_every_answer_has_an_id() {
    let (_vault, service) = served();
    assert!(service.get("/vault/v1/kv").head.contains("x-request-id: req_"));
    let metrics = service.send("GET", "/metrics", &[], b"");
    let text = String::from_utf8(metrics.body).unwrap();
    assert!(text.contains("vaultfs_requests_total{method=\"GET\",status=\"200\"}"), "{text}");
    assert!(text.contains("vaultfs_organizations 1"), "{text}");
    assert!(text.contains("vaultfs_token_up 1") && text.contains("vaultfs_token_pin_refused 0"), "{text}");
}

#[test]
fn the_default_organization_takes_what_names_none_and_others_are_made_in_time() {
    let vault = Vault::new();
    let settings = "default_organization=inbox,organizations=just-in-time";
    vault.serve(&["--listen", "127.0.0.1:0", "-o", settings]);
    let service = vault.service();
    let body = serde_json::json!({ "key_context": { "env": "prod" }, "name": "a", "value": "1" });
    assert_eq!(service.post("/vault/v1/kv", body).is(201)["organization"], "inbox");
    assert_eq!(service.create("newcomer", "a", "1")["organization"], "newcomer");
    assert!(fs::exists(vault.state().join("records.db")).unwrap());
}
