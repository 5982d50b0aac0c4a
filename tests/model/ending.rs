//! An organization that is purged with all that is in it, by a daemon that dies on the way: the next one goes on.
//!
//! The keys in the token are as they were at that moment, since each stop is of a purge of its own. `VAULTFS_CRASH_EVERYWHERE=1`
//! asks for a stop at every change.

use super::dice::Dice;
use super::history::in_memory;
use super::token::{self, Token, eventually};
use super::volatile::{LOSSES, Platter, VolatileDisk};
use super::world::{MortalDisk, options};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use vaultfs::store::{Disk, RealDisk};
use vaultfs::vault::{Caller, ObjectId, Vault};

/// Without being asked for more, one stop in so many.
const STRIDE: usize = 3;

fn open(state: &Path, disk: Arc<dyn Disk>) -> Arc<Vault> {
    let vault = Vault::open_on(state, options(), disk).unwrap();
    // A dead disk has its reports, and they are expected.
    vault.on_report(Box::new(|_| ()));
    vault
}

fn put(vault: &Vault, path: &str, value: &[u8]) -> ObjectId {
    vault.put_object(&Caller::daemon(), path.as_bytes(), None, &mut &*value).unwrap().id.parse().unwrap()
}

fn value(vault: &Vault, id: ObjectId) -> Vec<u8> {
    let mut value = Vec::new();
    let read = vault.read_object(id, None, &mut |part| {
        value.extend_from_slice(part);
        Ok(())
    });
    read.unwrap();
    value
}

fn findings(vault: &Vault) -> usize {
    let mut found = 0;
    vault.fsck(&mut |_| found += 1, &mut |_, _| ()).unwrap();
    found
}

/// Purges an organization and stops after so many changes; whether it ended before.
fn purge_cut_short(token: &Token, state: &Path, keys: usize, stop: usize) -> bool {
    let caller = Caller::daemon();
    let vault = open(state, Arc::new(RealDisk));
    vault.create_organization(&caller, "acme", None, None).unwrap();
    let (small, large) = (put(&vault, "acme/small", b"small"), put(&vault, "acme/d/large", &[7; 300_000]));
    let deleted = put(&vault, "acme/deleted", b"deleted");
    vault.delete_object(&caller, deleted, None).unwrap();
    vault.close().unwrap();
    let mut platter = Platter::of(state);
    let disk = Arc::new(VolatileDisk::new(state));
    let mortal = Arc::new(MortalDisk::above(disk.clone()));
    let vault = open(state, mortal.clone());
    mortal.stop_after(stop);
    let ended = vault.purge_living_organization(&caller, "acme").is_ok();
    mortal.stop_after(0);
    let _ = vault.close();
    drop(vault);
    disk.changes().iter().for_each(|change| platter.apply(change));
    let loss = LOSSES[stop / STRIDE % LOSSES.len()];
    platter.after_power_loss(loss, &mut Dice::new(stop as u64)).write(state);

    let vault = open(state, Arc::new(RealDisk));
    if vault.organization("acme").is_ok() {
        assert!(!ended, "{loss:?}: it was durable");
        vault.unlock_organization(&caller, "acme").unwrap();
        assert_eq!(value(&vault, small), b"small", "{stop} changes, {loss:?}");
        assert_eq!(value(&vault, large), [7; 300_000], "{stop} changes, {loss:?}");
        assert_eq!(vault.tombstones(Some("acme")).unwrap().len(), 1);
        vault.purge_living_organization(&caller, "acme").unwrap();
    }
    eventually(Duration::from_secs(60), || findings(&vault) == 0 && token.keys() == keys);
    vault.close().unwrap();
    assert_eq!(std::fs::read_dir(state.join("segments")).unwrap().count(), 0, "{stop} changes, {loss:?}");
    ended
}

#[test]
fn a_purge_of_an_organization_that_is_cut_short_is_gone_on_with() {
    token::isolated("ending::a_purge_of_an_organization_that_is_cut_short_is_gone_on_with", |token| {
        let directory = in_memory();
        let state = directory.path().join("state");
        let config = token.config();
        Vault::init(&state, &config.uri.to_string(), &config.pin.to_string()).unwrap();
        let keys = token.keys();
        let stride = if std::env::var_os("VAULTFS_CRASH_EVERYWHERE").is_some() { 1 } else { STRIDE };
        let mut stops = (0..).step_by(stride);
        let ended = stops.find(|stop| purge_cut_short(token, &state, keys, *stop)).unwrap();
        assert!(ended > 3 * STRIDE, "only {ended} changes");
        println!("{ended} changes");
    });
}
