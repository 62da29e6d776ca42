//! The command `weft`; all of it is in [`weft::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    weft::cli::main()
}
