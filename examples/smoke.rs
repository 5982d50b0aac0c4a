use std::sync::Arc;
fn main() {
    let state = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let mnt = std::path::PathBuf::from(std::env::args().nth(2).unwrap());
    let tok = std::env::args().nth(3).unwrap_or("x".into());
    let pin = std::env::args().nth(4).unwrap_or("x".into());
    if !state.exists() { println!("{}", vaultfs::vault::Vault::init(&state, &tok, &pin).unwrap()); }
    let v: Arc<vaultfs::vault::Vault> = vaultfs::vault::Vault::open(&state, Default::default()).unwrap();
    let m = vaultfs::fs::Mounted::new(v.clone(), &mnt, &vaultfs::fs::MountOptions::new(state.display().to_string(), 0)).unwrap();
    m.wait();
    v.close().unwrap();
}
