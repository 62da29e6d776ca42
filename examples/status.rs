//! Asks a running router how it is, as any program can: HTTP and JSON over its unix socket.
//!
//! ```text
//!   cargo run --example status [/run/weft/weft.sock]
//! ```
#![expect(clippy::print_stdout, reason = "it shows what it does")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::Context as _;
use weft::config::DEFAULT_SOCKET;
use weft::control::api::types::Status;

fn main() -> anyhow::Result<()> {
    let socket = std::env::args().nth(1).unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
    let stream = UnixStream::connect(&socket).with_context(|| format!("no router answers at {socket}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    print!("{}", describe(&ask(stream)?));
    Ok(())
}

fn ask(mut stream: UnixStream) -> anyhow::Result<Status> {
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200"), "the router refused: {head}");
    serde_json::from_str(body).context("the answer is not a status")
}

fn describe(status: &Status) -> String {
    let established = status.peers.iter().filter(|peer| peer.state == "established").count();
    let mut text = format!(
        "{} in network {}: {}, {established} of {} peers reached, encryption {}\n",
        status.peer.name,
        status.network,
        status.verdict,
        status.peers.len(),
        status.encryption
    );
    for problem in &status.problems {
        text += &format!("  {problem}\n");
    }
    text
}
