fn main() {
    vaultfs::daemon::process::end(vaultfs::cli::run(std::env::args_os().collect()))
}
