//! The commands that change something.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::read::{ReadArgs, json};
use super::table::clean;
use super::{FAILED, Format, complain, print};
use crate::control::api::types::{
    Addresses, AddressesRequest, AttachRequest, Attachment, ConfigRefusal, DownRequest, ExposeRequest, PeersRequest,
    Released, ReloadRequest, Reloaded, RemoveRequest, RemovedPeer, RevokeRequest, RevokedPeer, Stopping, TargetRequest,
    Targets,
};

/// How long `weft down` waits until the router has gone.
const DOWN_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct PeersArgs {
    /// The peers, as HOST[:PORT]
    #[arg(required = true, value_name = "PEER")]
    peers: Vec<String>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// Name of the peer as `weft peers` shows it, or its id
    peer: String,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Name of the peer, or its id, of which eight digits do
    peer: String,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// Path of a network namespace, process id, docker:NAME, or name of a Docker container
    target: String,
    /// Addresses to have; without any, one of each range
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// What it is called in the mesh's domain; may be repeated. A Docker container has its own name
    /// besides
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// What it serves, answered to SRV questions; may be repeated. A Docker container has the ports that it
    /// exposes besides
    #[arg(long = "service", value_name = "[NAME=]PORT[/tcp|/udp]")]
    services: Vec<String>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct DetachArgs {
    /// Path of a network namespace, process id, docker:NAME, or name of a Docker container
    target: String,
    /// Addresses to give back; without any, all, and the interface goes
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct ExposeArgs {
    /// Addresses to have; without any, one of each range
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// What leaves the mesh at this host goes in its name from now on, until all its addresses are hidden
    #[arg(long)]
    masquerade: bool,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct HideArgs {
    /// Addresses to give back; without any, all
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

/// One line each, or the whole answer as JSON.
pub(super) fn show(format: Format, lines: &[String], whole: &impl Serialize) -> anyhow::Result<ExitCode> {
    match format {
        Format::Json => print(&json(whole)?),
        Format::Text => print(&lines.iter().map(|line| clean(line) + "\n").collect::<String>()),
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn connect(client: &Client, args: &PeersArgs) -> anyhow::Result<ExitCode> {
    let body = PeersRequest { peers: args.peers.clone() };
    let answer: Targets = client.post("/v1/connect", &body).await?;
    // In text, silence is consent.
    show(args.output, &[], &answer)
}

pub(super) async fn forget(client: &Client, args: &PeersArgs) -> anyhow::Result<ExitCode> {
    let body = PeersRequest { peers: args.peers.clone() };
    let answer: Targets = client.post("/v1/forget", &body).await?;
    show(args.output, &[], &answer)
}

pub(super) async fn remove(client: &Client, args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let removed: RemovedPeer = client.post("/v1/peers/remove", &RemoveRequest { peer: args.peer.clone() }).await?;
    show(args.output, &[format!("removed {} ({})", clean(&removed.name), removed.id)], &removed)
}

pub(super) async fn attach(client: &Client, args: &AttachArgs) -> anyhow::Result<ExitCode> {
    let AttachArgs { target, addresses, names, services, .. } = args;
    let (addresses, names, services) = (addresses.clone(), names.clone(), services.clone());
    let body = AttachRequest { target: absolute(target), addresses, names, services };
    let answer: Attachment = client.post("/v1/attach", &body).await?;
    show(args.output, &answer.addresses, &answer)
}

pub(super) async fn detach(client: &Client, args: &DetachArgs) -> anyhow::Result<ExitCode> {
    let body = TargetRequest { target: absolute(&args.target), addresses: args.addresses.clone() };
    let answer: Released = client.post("/v1/detach", &body).await?;
    show(args.output, &answer.released, &answer)
}

pub(super) async fn expose(client: &Client, args: &ExposeArgs) -> anyhow::Result<ExitCode> {
    let body = ExposeRequest { addresses: args.addresses.clone(), masquerade: args.masquerade };
    let answer: Addresses = client.post("/v1/expose", &body).await?;
    show(args.output, &answer.addresses, &answer)
}

pub(super) async fn hide(client: &Client, args: &HideArgs) -> anyhow::Result<ExitCode> {
    let body = AddressesRequest { addresses: args.addresses.clone() };
    let answer: Released = client.post("/v1/hide", &body).await?;
    show(args.output, &answer.released, &answer)
}

/// What was changed goes to standard output, what was refused to standard error.
pub(super) async fn reload(client: &Client, args: &ReadArgs) -> anyhow::Result<ExitCode> {
    let answer: Reloaded = client.post("/v1/reload", &ReloadRequest {}).await?;
    let changed = answer.changed.iter().map(|one| format!("{}: {} -> {}", one.key, one.from, one.to));
    let changed: Vec<String> =
        if answer == Reloaded::default() { vec!["nothing has changed".to_owned()] } else { changed.collect() };
    show(args.output, &changed, &answer)?;
    for ConfigRefusal { key, from, to, reason } in &answer.refused {
        complain(&clean(&format!("{key} stays {from}, not {to}: {reason}")));
    }
    Ok(if answer.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

pub(super) async fn revoke(client: &Client, args: &RevokeArgs) -> anyhow::Result<ExitCode> {
    let answer: RevokedPeer = client.post("/v1/revoke", &RevokeRequest { peer: args.peer.clone() }).await?;
    show(args.output, &[format!("revoked {} {}", answer.id, clean(&answer.name)).trim_end().to_owned()], &answer)?;
    Ok(ExitCode::SUCCESS)
}

/// Stops the router, and returns when it has gone.
pub(super) async fn down(client: &Client) -> anyhow::Result<ExitCode> {
    let answer: Stopping = client.post("/v1/down", &DownRequest {}).await?;
    let process = format!("/proc/{}", answer.pid);
    let deadline = Instant::now() + DOWN_TIMEOUT;
    // The socket goes last of all that the router removes.
    while client.socket().exists() && Path::new(&process).exists() {
        if Instant::now() > deadline {
            anyhow::bail!(
                "the router (pid {}) was told to stop and is still there after {} s",
                answer.pid,
                DOWN_TIMEOUT.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lines = answer.removed.iter().map(|line| format!("removed {}\n", clean(line)));
    print(&lines.collect::<String>());
    Ok(ExitCode::SUCCESS)
}

/// The router has a working directory of its own.
fn absolute(target: &str) -> String {
    if !target.contains('/') || target.starts_with('/') || target.starts_with("docker:") {
        return target.to_owned();
    }
    match std::path::absolute(target) {
        Ok(path) => path.display().to_string(),
        Err(_) => target.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_are_made_absolute() {
        for target in ["42", "web", "docker:web", "/run/netns/a"] {
            assert_eq!(absolute(target), target);
        }
        assert!(absolute("netns/a").starts_with('/'));
    }
}
