//! One truth: what the API and the mount show of each other, at once, and who wins where both write.

use crate::vault::Vault;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};

fn version(path: &std::path::Path) -> String {
    let path = path.to_str().unwrap();
    let done = crate::vault::try_run("getfattr", &[&"--only-values", &"-n", &"user.vault.version_id", &path]);
    done.good().text()
}

#[test]
fn what_the_api_puts_the_mount_shows_at_once() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    let file = acme.join("f");
    // The kernel knows by now that it is not there.
    assert!(!file.exists() && fs::read_dir(&acme).unwrap().count() == 0);
    let made = service.create("acme", "f", "0");
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    assert_eq!(fs::read_to_string(&file).unwrap(), "0");
    assert_eq!(fs::read_dir(&acme).unwrap().count(), 1);
    let mut open = fs::File::open(&file).unwrap();
    for n in 1..200 {
        let value = "v".repeat(n);
        let put = service.put(&path, json!({ "value": value })).is(201);
        assert_eq!(fs::metadata(&file).unwrap().len(), n as u64);
        assert_eq!(fs::read_to_string(&file).unwrap(), value);
        if n % 20 == 0 {
            assert_eq!(version(&file), put["metadata"]["version_id"].as_str().unwrap());
        }
    }
    // Who has it open keeps the content that was opened.
    let mut kept = String::new();
    open.read_to_string(&mut kept).unwrap();
    assert_eq!(kept, "0");
    service.delete(&path).is(200);
    assert!(!file.exists() && fs::read_dir(&acme).unwrap().count() == 0);
}

#[test]
fn what_the_api_put_survives_kill_9() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    vault.org("acme");
    let service = vault.service();
    let made = service.create("acme", "f", "one");
    service.put(&format!("/vault/v1/kv/{}", made["id"].as_str().unwrap()), json!({ "value": "two" })).is(201);
    vault.kill();
    vault.mount(&[]);
    assert_eq!(fs::read_to_string(vault.at("acme/f")).unwrap(), "two");
}

#[test]
fn what_the_mount_saves_the_api_shows_at_once_with_the_next_version() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    let file = acme.join("f");
    let (mut seen, mut last) = (Vec::new(), 0);
    for n in 1..100u64 {
        fs::write(&file, n.to_string()).unwrap();
        let read = service.get("/vault/v1/kv/acme%2Ff").is(200);
        assert_eq!(read["value"], n.to_string());
        // A program that another test starts in this moment holds the open file too, and closes it: one version more.
        let version = read["metadata"]["version"].as_u64().unwrap();
        assert!(version > last);
        last = version;
        let id = read["metadata"]["version_id"].as_str().unwrap().to_owned();
        assert!(!seen.contains(&id));
        seen.push(id);
    }
}

#[test]
fn of_two_version_checks_from_both_sides_exactly_one_wins() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    let file = acme.join("f");
    let made = service.create("acme", "f", "start");
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    let (mut api_won, mut mount_won) = (0, 0);
    for round in 0..60 {
        let on = version(&file);
        let ordinal = service.get(&format!("{path}/metadata")).is(200)["metadata"]["version"].as_u64().unwrap();
        let barrier = std::sync::Barrier::new(2);
        let (api, mount) = std::thread::scope(|scope| {
            let put = scope.spawn(|| {
                let body = json!({ "value": format!("api {round}"), "version_check": on });
                barrier.wait();
                service.put(&path, body).status
            });
            let saved = scope.spawn(|| {
                let new = acme.join("new");
                fs::write(&new, format!("mount {round}")).unwrap();
                let new_path = new.to_str().unwrap();
                let check: &str = &on;
                let set =
                    &[&"-n" as &dyn AsRef<std::ffi::OsStr>, &"user.vault.version_check", &"-v", &check, &new_path];
                crate::vault::try_run("setfattr", set).good();
                barrier.wait();
                let renamed = fs::rename(&new, &file);
                let _ = fs::remove_file(&new);
                renamed
            });
            (put.join().unwrap(), saved.join().unwrap())
        });
        let value = fs::read_to_string(&file).unwrap();
        let metadata = service.get(&format!("{path}/metadata")).is(200)["metadata"].clone();
        assert_eq!(metadata["version"], ordinal + 1, "one new version in round {round}");
        match (api, mount) {
            (201, Err(lost)) => {
                assert_eq!(lost.raw_os_error(), Some(libc::ESTALE));
                assert_eq!(value, format!("api {round}"));
                api_won += 1;
            }
            (409, Ok(())) => {
                assert_eq!(value, format!("mount {round}"));
                mount_won += 1;
            }
            both => panic!("round {round}: {both:?}"),
        }
    }
    println!("the API won {api_won} times, the mount {mount_won} times");
}

#[test]
fn an_open_writer_under_a_version_check_loses_to_a_put_and_leaves_no_version() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    let made = service.create("acme", "f", "start");
    let file = acme.join("f");
    let mut writer = fs::OpenOptions::new().write(true).open(&file).unwrap();
    let (path, on) = (file.to_str().unwrap(), version(&file));
    crate::vault::try_run("setfattr", &[&"-n", &"user.vault.version_check", &"-v", &on, &path]).good();
    writer.write_all(b"loser").unwrap();
    let object = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    service.put(&object, json!({ "value": "winner", "version_check": on })).is(201);
    assert_eq!(writer.sync_all().unwrap_err().raw_os_error(), Some(libc::ESTALE));
    drop(writer);
    assert_eq!(fs::read_to_string(&file).unwrap(), "winner");
    assert_eq!(service.get(&format!("{object}/versions")).is(200)["data"].as_array().unwrap().len(), 2);
}
