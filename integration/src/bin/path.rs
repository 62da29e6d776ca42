//! The path benchmark: see [`integration::path`].
//!
//! The routers that it measures are this same binary, started again with [`ROUTER`] set, so that
//! they are never older than what measures them.

#![allow(clippy::print_stderr, reason = "says why it cannot run")]

use std::process::ExitCode;

use integration::path::{Options, ROUTER, end_with_the_parent, run};

fn main() -> ExitCode {
    if std::env::var_os(ROUTER).is_some() {
        end_with_the_parent();
        return weft::cli::main();
    }
    let options = Options::read();
    // Before any thread exists.
    if !weft::lab::is_root()
        && let Err(error) = weft::lab::enter_user_namespace()
    {
        eprintln!("path: the benchmark needs network namespaces: {error}");
        return ExitCode::FAILURE;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("path: {error:#}");
            ExitCode::FAILURE
        }
    }
}
