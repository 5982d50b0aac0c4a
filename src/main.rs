use std::process::ExitCode;

fn main() -> ExitCode {
    vaultfs::cli::run(std::env::args_os().collect())
}
