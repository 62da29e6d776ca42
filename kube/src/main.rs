//! The program `weft-kube`.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft_kube::cli::main()
}
