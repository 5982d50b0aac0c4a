//! The program. Everything that it frees is wiped: a key or a value is never left in memory that nobody owns.

#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> = zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() {
    vaultfs::daemon::process::end(vaultfs::cli::run(std::env::args_os().collect()))
}
