//! One truth: what the API and the mount show of each other, at once, and who wins where both write.

use crate::vault::Vault;
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Lets the other threads end, however this one does.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

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
    let mut seen = Vec::new();
    for n in 1..100u64 {
        // In a process of its own: a program that another test starts in this moment would hold a file that is open
        // here, and close it once more.
        crate::vault::run("sh", &[&"-c", &"printf %s \"$1\" > \"$0\"", &file, &n.to_string()]);
        let read = service.get("/vault/v1/kv/acme%2Ff").is(200);
        assert_eq!(read["value"], n.to_string());
        assert_eq!(read["metadata"]["version"], n);
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
fn an_object_is_found_by_its_id_while_the_mount_renames_over_it() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    let made = service.create("acme", "f", "start");
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    let saves = AtomicBool::new(true);
    std::thread::scope(|scope| {
        // Also when an assertion ends this thread.
        let end = End(&saves);
        scope.spawn(|| {
            let _end = End(&saves);
            for round in 0.. {
                fs::write(acme.join("new"), format!("mount {round}")).unwrap();
                fs::rename(acme.join("new"), acme.join("f")).unwrap();
                if !saves.load(Relaxed) {
                    break;
                }
            }
        });
        let puts = scope.spawn(|| {
            let put = |round| service.put(&path, json!({ "value": format!("api {round}") })).is(201);
            (0..150).map(|round| put(round)["metadata"]["version_id"].as_str().unwrap().to_owned()).collect()
        });
        let mut reads = 0;
        while !puts.is_finished() {
            assert!(!service.get(&path).is(200)["value"].as_str().unwrap().is_empty());
            service.get(&format!("{path}/metadata")).is(200);
            service.get(&format!("{path}/versions")).is(200);
            let listed = service.get("/vault/v1/kv").is(200);
            assert!(listed["data"].as_array().unwrap().iter().any(|object| object["id"] == made["id"]));
            reads += 1;
        }
        drop(end);
        let answered: Vec<String> = puts.join().unwrap();
        let different: std::collections::HashSet<_> = answered.iter().collect();
        assert_eq!(different.len(), answered.len(), "each PUT is answered with the version that it made");
        println!("{reads} rounds of reads");
    });
    service.delete(&path).is(200);
}

#[test]
fn a_reader_on_the_mount_finds_the_file_while_the_api_puts_it() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    let made = service.create("acme", "f", "start");
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    std::thread::scope(|scope| {
        let puts = scope.spawn(|| {
            for round in 0..300 {
                service.put(&path, json!({ "value": format!("api {round}") })).is(201);
            }
        });
        while !puts.is_finished() {
            assert!(!fs::read_to_string(acme.join("f")).unwrap().is_empty());
            assert!(fs::metadata(acme.join("f")).unwrap().len() > 0);
        }
    });
}

#[test]
fn requests_that_need_the_same_new_folder_or_organization_all_succeed() {
    let vault = Vault::new();
    vault.serve(&["--listen", "127.0.0.1:0", "-o", "organizations=just-in-time"]);
    let service = vault.service();
    service.create("acme", "f", "v");
    let together = |organization: &str, path: &str| {
        let all = Barrier::new(12);
        std::thread::scope(|scope| {
            for n in 0..12 {
                let (all, service) = (&all, &service);
                scope.spawn(move || {
                    all.wait();
                    service.create(organization, &format!("{path}/{n}"), "v");
                });
            }
        });
    };
    for round in 0..8 {
        together("acme", &format!("{round}/in/folders"));
        together(&format!("newcomer-{round}"), "folder");
    }
    let listed = vault.command(&["org", "list", "--json"]).good().json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 9, "{listed}");
}

#[test]
fn a_put_and_a_delete_follow_an_object_that_the_mount_moves() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    fs::create_dir(acme.join("folder")).unwrap();
    let places = [acme.join("f"), acme.join("folder/g")];
    for round in 0..20 {
        let made = service.create("acme", "f", "start");
        let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
        let moves = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let end = End(&moves);
            let mover = scope.spawn(|| {
                let mut moved = 0;
                while moves.load(Relaxed) && fs::rename(&places[moved % 2], &places[(moved + 1) % 2]).is_ok() {
                    moved += 1;
                    // Another file at the name that it left is not it.
                    let left = &places[(moved + 1) % 2];
                    fs::write(left, "another").unwrap();
                    fs::remove_file(left).unwrap();
                }
                moved
            });
            for n in 0..8 {
                let value = format!("{round} {n}");
                service.put(&path, json!({ "value": value })).is(201);
                assert_eq!(service.get(&path).is(200)["value"], value);
            }
            if round % 2 == 0 {
                drop(end);
                mover.join().unwrap();
            }
            service.delete(&path).is(200);
        });
        assert!(places.iter().all(|place| !place.exists()));
        service.get(&path).is(404);
    }
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

#[test]
fn of_many_puts_on_top_of_one_version_exactly_one_wins() {
    let (_vault, service) = crate::objects::served();
    let made = service.create("acme", "f", "start");
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    let mut on = made["version_id"].clone();
    for round in 0..15 {
        let barrier = std::sync::Barrier::new(8);
        let answers: Vec<_> = std::thread::scope(|scope| {
            let put = |n: usize| {
                let body = json!({ "value": format!("{round} {n}"), "version_check": on });
                barrier.wait();
                service.put(&path, body)
            };
            let all: Vec<_> = (0..8).map(|n| scope.spawn(move || put(n))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().enumerate().partition(|(_, put)| put.status == 201);
        let [(winner, put)]: [_; 1] = won.try_into().expect("one winner");
        lost.into_iter().for_each(|(_, put)| drop(put.is(409)));
        on = put.is(201)["metadata"]["version_id"].clone();
        let read = service.get(&path).is(200);
        assert_eq!((&read["value"], &read["metadata"]["version_id"]), (&json!(format!("{round} {winner}")), &on));
    }
    assert_eq!(service.get(&format!("{path}/metadata")).is(200)["metadata"]["version"], 16);
}

#[test]
fn of_a_put_and_a_delete_on_top_of_one_version_exactly_one_wins() {
    let (_vault, service) = crate::objects::served();
    for round in 0..20 {
        let made = service.create("acme", "f", "start");
        let (id, on) = (made["id"].as_str().unwrap(), made["version_id"].as_str().unwrap());
        let path = format!("/vault/v1/kv/{id}");
        let barrier = std::sync::Barrier::new(2);
        let (put, delete) = std::thread::scope(|scope| {
            let put = scope.spawn(|| {
                barrier.wait();
                service.put(&path, json!({ "value": "next", "version_check": on })).status
            });
            barrier.wait();
            let delete = service.delete(&format!("{path}?version_check={on}")).status;
            (put.join().unwrap(), delete)
        });
        match (put, delete) {
            (201, 409) => {
                assert_eq!(service.get(&path).is(200)["value"], "next");
                service.delete(&path).is(200);
            }
            (404, 200) => drop(service.get(&path).is(404)),
            both => panic!("round {round}: {both:?}"),
        }
    }
}

/// Closing says whether what was written has become a version.
fn close(file: fs::File) -> std::io::Result<()> {
    // SAFETY: the descriptor is the file's own, and nobody uses it again.
    let closed = unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(file)) };
    if closed == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

#[test]
fn of_a_put_and_an_open_writer_under_a_version_check_exactly_one_wins() {
    let vault = Vault::up_with(&["--listen", "127.0.0.1:0"]);
    let acme = vault.org("acme");
    let service = vault.service();
    let file = acme.join("f");
    let made = service.create("acme", "f", "start");
    let path = format!("/vault/v1/kv/{}", made["id"].as_str().unwrap());
    for round in 0..40 {
        let on = version(&file);
        let mut writer = fs::OpenOptions::new().write(true).open(&file).unwrap();
        let name = file.to_str().unwrap();
        crate::vault::try_run("setfattr", &[&"-n", &"user.vault.version_check", &"-v", &on, &name]).good();
        let barrier = std::sync::Barrier::new(2);
        let (put, saved) = std::thread::scope(|scope| {
            let put = scope.spawn(|| {
                let body = json!({ "value": format!("api {round:04}"), "version_check": on });
                barrier.wait();
                service.put(&path, body).status
            });
            barrier.wait();
            let written = writer.write_all(format!("mnt {round:04}").as_bytes()).and_then(|()| writer.sync_all());
            // The commit is at the close: what was synced before it may lose still.
            (put.join().unwrap(), written.and_then(|()| close(writer)))
        });
        let value = fs::read_to_string(&file).unwrap();
        match (put, saved) {
            (201, Err(lost)) => {
                assert_eq!(lost.raw_os_error(), Some(libc::ESTALE), "round {round}");
                assert_eq!(value, format!("api {round:04}"));
            }
            (409, Ok(())) => assert_eq!(value, format!("mnt {round:04}")),
            both => panic!("round {round}: {both:?}"),
        }
    }
    let versions = service.get(&format!("{path}/metadata")).is(200)["metadata"]["version"].clone();
    assert_eq!(versions, 41, "one for each round");
}
