//! The commands that read: the verdict first, then tables; or JSON.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::client::Client;
use super::table::{clean, table};
use super::{FAILED, Format, print};
use crate::control::api::types::{
    Attachment, CheckRequest, EventList, Holding, Ipam, IpamCheck, IpamPeer, Peer, Status,
};

/// How long `--wait` waits when it is given no time.
const WAIT_DEFAULT: &str = "30";
/// How often it looks.
const WAIT_STEP: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct ReadArgs {
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    pub(super) output: Format,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Wait until all is well, at most so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = WAIT_DEFAULT)]
    wait: Option<u32>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Go on as things happen
    #[arg(short, long)]
    follow: bool,
    /// How the answer is written; JSON is one object a line
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

/// Pretty JSON with a line end.
pub(super) fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

pub(super) async fn status(client: &Client, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let seconds = args.wait.unwrap_or(0);
    let deadline = Instant::now() + Duration::from_secs(seconds.into());
    let status = loop {
        let answer = client.get::<Status>("/v1/status").await;
        let well = answer.as_ref().is_ok_and(|status| status.verdict == "ok");
        if well || Instant::now() >= deadline {
            break answer?;
        }
        tokio::time::sleep(WAIT_STEP).await;
    };
    match args.output {
        Format::Json => print(&json(&status)?),
        Format::Text => print(&status_text(&status)),
    }
    let well = status.verdict == "ok";
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn status_text(status: &Status) -> String {
    let established = status.peers.iter().filter(|peer| peer.state == "established").count();
    let mut text = match status.verdict.as_str() {
        "ok" => format!("ok: {established} of {} peers reachable\n", status.peers.len()),
        verdict => format!(
            "{verdict}: {} problem{}, {established} of {} peers reachable\n",
            status.problems.len(),
            if status.problems.len() == 1 { "" } else { "s" },
            status.peers.len()
        ),
    };
    for problem in &status.problems {
        text.push_str(&format!("  ! {}\n", clean(problem)));
    }
    let me = &status.peer;
    let counters = &status.counters;
    let dropped: u64 = counters.dropped.values().sum();
    let lines = [
        ("peer", format!("{} ({}), start {}", me.name, me.id, me.incarnation)),
        ("network", format!("{}, encryption {}", status.network, status.encryption)),
        ("fast path", status.fast_path.clone()),
        ("ranges", status.range.join(", ")),
        ("reachable at", status.endpoints.join(", ")),
        ("bridge", format!("{}, MTU {}", status.bridge, status.mtu)),
        ("running since", format!("{} (weft {}, pid {})", status.since, status.version, status.pid)),
        (
            "frames",
            format!(
                "{} in, {} out, {} relayed, {} replayed, {dropped} dropped",
                counters.frames_in, counters.frames_out, counters.relayed, counters.replayed
            ),
        ),
    ];
    text.push('\n');
    for (name, value) in lines {
        text.push_str(&format!("{:<15}{}\n", format!("{name}:"), clean(&value)));
    }
    for missing in &status.offloads.missing {
        text.push_str(&format!("{:<15}{}\n", "slower:", clean(missing)));
    }
    if !status.peers.is_empty() {
        text.push('\n');
        text.push_str(&peers_text(&status.peers));
    }
    text
}

pub(super) async fn peers(client: &Client, args: &ReadArgs) -> anyhow::Result<ExitCode> {
    let peers: Vec<Peer> = client.get("/v1/peers").await?;
    print(&match args.output {
        Format::Json => json(&peers)?,
        Format::Text if peers.is_empty() => "no other peers\n".to_owned(),
        Format::Text => peers_text(&peers),
    });
    Ok(ExitCode::SUCCESS)
}

fn peers_text(peers: &[Peer]) -> String {
    let dash = || "-".to_owned();
    let rows = peers.iter().map(|peer| {
        let carrier = match (&peer.carrier, &peer.via_name) {
            (Some(carrier), Some(via)) => format!("{carrier} via {via}"),
            (Some(carrier), None) => carrier.clone(),
            (None, _) => dash(),
        };
        vec![
            peer.name.clone(),
            peer.state.clone(),
            carrier,
            peer.cipher.clone().unwrap_or_else(dash),
            peer.mtu.map_or_else(dash, |mtu| mtu.to_string()),
            peer.rtt_us.map_or_else(dash, |rtt| format!("{:.2} ms", rtt as f64 / 1000.0)),
            peer.loss.map_or_else(dash, |loss| format!("{:.0} %", loss * 100.0)),
            peer.endpoint.clone().unwrap_or_else(dash),
            peer.since.clone(),
            peer.reason.clone(),
        ]
    });
    let header = ["PEER", "STATE", "CARRIER", "CIPHER", "MTU", "RTT", "LOSS", "ENDPOINT", "SINCE", "REASON"];
    table(&header, rows)
}

pub(super) async fn ps(client: &Client, args: &ReadArgs) -> anyhow::Result<ExitCode> {
    let attached: Vec<Attachment> = client.get("/v1/ps").await?;
    let rows = attached.iter().map(|one| {
        let (target, interface, mac) = (one.target.clone(), one.interface.clone(), one.mac.clone());
        vec![target, interface, mac, one.addresses.join(" "), one.names.join(" ")]
    });
    print(&match args.output {
        Format::Json => json(&attached)?,
        Format::Text if attached.is_empty() => "nothing is attached\n".to_owned(),
        Format::Text => table(&["TARGET", "INTERFACE", "MAC", "ADDRESSES", "NAMES"], rows),
    });
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct IpamArgs {
    #[command(subcommand)]
    command: Option<IpamCommand>,
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Debug, Subcommand)]
enum IpamCommand {
    /// Compare what was given with what is there; exits with 1 if they differ
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// Free what nobody has, and record what is not recorded
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    read: ReadArgs,
}

pub(super) async fn ipam(client: &Client, args: &IpamArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        Some(IpamCommand::Check(args)) => check(client, args).await,
        None => show_ipam(client, &args.read).await,
    }
}

async fn check(client: &Client, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let found: IpamCheck = client.post("/v1/ipam/check", &CheckRequest { repair: args.repair }).await?;
    print(&match args.read.output {
        Format::Json => json(&found)?,
        Format::Text => check_text(&found),
    });
    let left = found.leaked.len() + found.missing.len() - found.repaired.len() + found.contested.len();
    Ok(if left == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn check_text(found: &IpamCheck) -> String {
    let done = |address: &str| if found.repaired.iter().any(|it| it == address) { "; repaired" } else { "" };
    let mut text = String::new();
    for Holding { address, owner } in &found.leaked {
        text.push_str(&format!("{address} is given to {}, which is not there{}\n", clean(owner), done(address)));
    }
    for Holding { address, owner } in &found.missing {
        text.push_str(&format!("{address} is used by {} and was not given{}\n", clean(owner), done(address)));
    }
    for it in &found.contested {
        let there = it.peer_owner.as_ref().map_or_else(String::new, |owner| format!(", where {} has it", clean(owner)));
        let what = if it.fenced { "belongs to peer" } else { "is used at peer" };
        let (owner, peer) = (clean(&it.owner), clean(&it.peer_name));
        text.push_str(&format!("{} of {owner} {what} {peer} too{there}: detach one of them\n", it.address));
    }
    if text.is_empty() { "ok: what was given and what is there agree\n".to_owned() } else { text }
}

async fn show_ipam(client: &Client, args: &ReadArgs) -> anyhow::Result<ExitCode> {
    let ipam: Ipam = client.get("/v1/ipam").await?;
    print(&match args.output {
        Format::Json => json(&ipam)?,
        Format::Text => ipam_text(&ipam),
    });
    Ok(if ipam.ready { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn ipam_text(ipam: &Ipam) -> String {
    let mut text = match &ipam.waiting_for {
        None => format!("ok: {} addresses free here, {} given, {} owned\n", ipam.free, ipam.used, ipam.owned),
        Some(waiting) => format!("not ready: {}\n", clean(waiting)),
    };
    text.push_str(&format!("ranges: {}\n", ipam.range.join(", ")));
    if !ipam.peers.is_empty() {
        let rows = ipam.peers.iter().map(|peer| {
            let free = peer.free.map_or_else(|| "-".to_owned(), |free| free.to_string());
            vec![peer.name.clone(), peer.owned.to_string(), free, whereabouts(peer)]
        });
        text.push('\n');
        text.push_str(&table(&["PEER", "OWNED", "FREE", "REACHABLE"], rows));
    }
    for problem in &ipam.problems {
        text.push_str(&format!("problem: {}\n", clean(problem)));
    }
    for it in &ipam.contested {
        text.push_str(&format!(
            "problem: {} is claimed by {} too; see weft ipam check\n",
            it.address,
            clean(&it.peer_name)
        ));
    }
    if !ipam.allocations.is_empty() {
        let rows = ipam.allocations.iter().map(|given| {
            let since = given.since.clone().unwrap_or_else(|| "before the start".to_owned());
            vec![given.address.clone(), since, given.owner.clone()]
        });
        text.push('\n');
        text.push_str(&table(&["ADDRESS", "SINCE", "OWNER"], rows));
    }
    text
}

/// Whether a peer can be reached, and else what becomes of its space.
fn whereabouts(peer: &IpamPeer) -> String {
    if peer.reachable {
        return "yes".to_owned();
    }
    let minutes = |seconds: u64| if seconds < 120 { format!("{seconds} s") } else { format!("{} min", seconds / 60) };
    let silent = match peer.silent_s {
        Some(seconds) => format!("no, for {}", minutes(seconds)),
        None => "no".to_owned(),
    };
    match peer.removal_s {
        _ if peer.removed => format!("{silent}; removed, its space goes to others"),
        Some(0) => format!("{silent}; its space goes to others once most voters agree"),
        Some(left) => format!("{silent}; its space goes to others in {}", minutes(left)),
        None => format!("{silent}; keeps its space until `weft peer remove`"),
    }
}

pub(super) async fn events(client: &Client, args: &EventsArgs) -> anyhow::Result<ExitCode> {
    let (mut after, mut path) = (0, "/v1/events".to_owned());
    loop {
        let list: EventList = client.get_within(&path, Duration::from_secs(60)).await?;
        for event in &list.events {
            after = event.seq;
            print(&match args.output {
                Format::Json => serde_json::to_string(event)? + "\n",
                Format::Text => format!("{}  {}\n", event.at, clean(&event.message)),
            });
        }
        if !args.follow {
            return Ok(ExitCode::SUCCESS);
        }
        path = format!("/v1/events?after={after}&wait=30");
    }
}

#[derive(Serialize)]
struct Version {
    version: &'static str,
}

pub(super) fn version(args: &ReadArgs) -> anyhow::Result<ExitCode> {
    let version = Version { version: env!("CARGO_PKG_VERSION") };
    print(&match args.output {
        Format::Json => json(&version)?,
        Format::Text => format!("weft {}\n", version.version),
    });
    Ok(ExitCode::SUCCESS)
}
