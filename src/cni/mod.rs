//! The CNI plugin: what a container runtime runs, as `weft-cni`, to connect a pod.
//!
//! ```text
//!  runtime ─ environment (CNI_*) ─┐
//!          ─ stdin: configuration ┴► this process ─ unix socket ─► router: POST /v1/hold, /v1/unhold
//!          ◄─ stdout: result or error in the form of the version that was asked for
//! ```
//!
//! It keeps nothing itself: an attachment is the router's, under the holder
//! `cni:NETWORK/CONTAINER/INTERFACE` (kubernetes K2).

mod add;
mod check;
mod conf;
mod delete;
mod environment;
mod error;
mod gc;
mod inside;
mod result;
mod router;
mod status;
#[cfg(test)]
mod tests;
mod version;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use serde_json::{Value, json};

use self::conf::Conf;
use self::environment::{Command, Environment};
use self::error::{CniError, Kind};
use self::version::Version;

/// The name under which this program is the plugin.
pub const NAME: &str = "weft-cni";
/// Longest configuration that is read, in bytes: one for GC names every pod of the host.
const INPUT_MAX: u64 = 4 << 20;

/// Does what the environment of this process asks for; the answer goes to standard output.
#[must_use]
pub fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().lock().take(INPUT_MAX + 1).read_to_end(&mut input);
    let (answer, code) = match read {
        Ok(_) => serve(&|name| std::env::var_os(name), &input),
        Err(source) => {
            let error = CniError::new(Kind::Io, format!("the configuration cannot be read from stdin: {source}"));
            (Some(error.to_json(None)), ExitCode::FAILURE)
        }
    };
    if let Some(answer) = answer {
        // A runtime that has gone does not read; what it asked for is done all the same, and undone by
        // the DEL that it owes.
        let _ = writeln!(std::io::stdout().lock(), "{answer}");
    }
    code
}

/// One run: what to print, and how to exit.
fn serve(variable: &dyn Fn(&str) -> Option<OsString>, input: &[u8]) -> (Option<Value>, ExitCode) {
    // An error is told in the version that was asked for, as far as that can be seen.
    let asked = serde_json::from_slice::<Value>(input).ok().and_then(|conf| Version::of(&conf).ok());
    match run(variable, input) {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(error) => (Some(error.to_json(asked)), ExitCode::FAILURE),
    }
}

fn run(variable: &dyn Fn(&str) -> Option<OsString>, input: &[u8]) -> Result<Option<Value>, CniError> {
    let command = Command::read(variable)?;
    if command == Command::Version {
        return version(input).map(Some);
    }
    let conf = Conf::parse(input, command)?;
    if conf.version < command.since() {
        return Err(CniError::new(
            Kind::Version,
            format!(
                "CNI_COMMAND {} came with version {} of CNI, but `cniVersion` is {}",
                command.name(),
                command.since().name(),
                conf.version.name()
            ),
        ));
    }
    let environment = Environment::read(command, variable)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CniError::new(Kind::Io, format!("this process cannot wait for the router: {error}")))?;
    runtime.block_on(async {
        match command {
            Command::Add => add::add(&environment, &conf).await.map(Some),
            Command::Del => delete::delete(&environment, &conf).await.map(|()| None),
            Command::Check => check::check(&environment, &conf).await.map(|()| None),
            Command::Status => status::status(&conf).await.map(|()| None),
            Command::Gc => gc::gc(&conf).await.map(|()| None),
            Command::Version => Ok(None),
        }
    })
}

/// The answer to VERSION: in whatever version it is asked, so that the asker learns which there are.
fn version(input: &[u8]) -> Result<Value, CniError> {
    let conf = if input.trim_ascii().is_empty() { json!({}) } else { conf::decode(input)? };
    let asked = conf.get("cniVersion").and_then(Value::as_str).unwrap_or(Version::LATEST.name());
    Ok(json!({
        "cniVersion": asked,
        "supportedVersions": Version::ALL.map(Version::name),
    }))
}
