//! A small HTTP/1.1 client that sends exactly what it is told: paths and bodies are not touched.

#![allow(dead_code)]

use crate::vault::Vault;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A way into the API over TCP, with an API key.
#[derive(Clone)]
pub struct Service {
    pub address: String,
    pub key: String,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Vault {
    /// The API of a vault that listens, with a new key for all of it.
    pub fn service(&self) -> Service {
        self.service_with(&["--permission", "admin"])
    }

    pub fn service_with(&self, arguments: &[&str]) -> Service {
        let made = self.command(&[&["apikey", "create", "test", "--json"], arguments].concat()).good().json();
        let status = self.command(&["status", "--json"]).good().json();
        let listens = status["daemon"]["listens"].as_str().expect("it listens");
        let address = listens.split("//").nth(1).unwrap().to_owned();
        Service { address, key: made["value"].as_str().unwrap().to_owned() }
    }
}

impl Service {
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[("Content-Type", "application/json")], b"")
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[("Content-Type", "application/json")], b"")
    }

    pub fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    pub fn put(&self, path: &str, body: Value) -> Answer {
        self.send("PUT", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n");
        if !self.key.is_empty() {
            head += &format!("Authorization: Bearer {}\r\n", self.key);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", body.len());
        let mut stream = self.connect();
        // A refusal may come before all of a body is taken.
        let _ = stream.write_all(&[head.as_bytes(), body].concat());
        Answer::from(stream)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Creates an object and says what is known of it.
    #[track_caller]
    pub fn create(&self, organization: &str, name: &str, value: &str) -> Value {
        let context = serde_json::json!({ "organizationId": organization });
        let body = serde_json::json!({ "key_context": context, "name": name, "value": value });
        self.post("/vault/v1/kv", body).is(201)
    }
}

impl Answer {
    pub fn from(mut stream: TcpStream) -> Answer {
        let mut bytes = Vec::new();
        // A server that has answered may close before it has read all.
        let _ = stream.read_to_end(&mut bytes);
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("the head of an answer") + 4;
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = bytes[end..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            body = unchunked(&body);
        }
        Answer { status, head, body }
    }

    /// It has this status; its body in JSON.
    #[track_caller]
    pub fn is(self, status: u16) -> Value {
        let text = String::from_utf8_lossy(&self.body).into_owned();
        assert_eq!(self.status, status, "{text}");
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        let value: Value = serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {text}"));
        if status >= 400 {
            assert!(!value["error"].as_str().unwrap().is_empty() && value["error"] == value["message"], "{text}");
        }
        value
    }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        body.extend_from_slice(&rest[line + 2..][..len]);
        rest = &rest[line + 2 + len + 2..];
        if len == 0 {
            break;
        }
    }
    body
}
