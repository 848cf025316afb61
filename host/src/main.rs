//! Arguments in, exit code out.

fn main() -> std::process::ExitCode {
    nbd_rs::cli::main()
}
