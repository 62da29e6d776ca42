//! The benchmark of the name server: see [`integration::dns`].
//!
//! The router that it measures is this same binary, started again with [`ROUTER`] set.

#![allow(clippy::print_stderr, reason = "says why it cannot run")]

use std::process::ExitCode;

use clap::Parser as _;
use integration::dns::{Options, run};
use integration::path::{ROUTER, end_with_the_parent};

fn main() -> ExitCode {
    if std::env::var_os(ROUTER).is_some() {
        end_with_the_parent();
        return weft::cli::main();
    }
    let options = Options::parse();
    // Before any thread exists.
    if !weft::lab::is_root()
        && let Err(error) = weft::lab::enter_user_namespace()
    {
        eprintln!("dns: the benchmark needs network namespaces: {error}");
        return ExitCode::FAILURE;
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dns: {error:#}");
            ExitCode::FAILURE
        }
    }
}
