//! The commands about names.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::client::Client;
use super::edit::show;
use super::read::{ReadArgs, json};
use super::table::table;
use super::{FAILED, Format, print};
use crate::control::api::types::{DnsAddRequest, DnsList, DnsName, DnsRequest, DnsService, Released};

#[derive(Debug, Subcommand)]
pub(super) enum DnsCommand {
    /// List all names, with their addresses and at which peer they are
    List(ReadArgs),
    /// Show the addresses of a name, or the names of an address; exits with 1 if there is none
    Lookup(LookupArgs),
    /// Give a service a name, in the mesh or outside
    Add(AddArgs),
    /// Take a name that was added away again
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub(super) struct LookupArgs {
    /// The name, with or without the mesh's domain, or an address
    name: String,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The name, with or without the mesh's domain
    name: String,
    /// Addresses of the service, in the mesh or outside
    #[arg(required = true, value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// What is served at these addresses, answered to SRV questions: a port, or a name for it as well
    #[arg(long = "service", value_name = "[NAME=]PORT[/tcp|/udp]")]
    services: Vec<String>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The name, with or without the mesh's domain
    name: String,
    /// Addresses to take away; without any, all, and the name goes
    #[arg(value_name = "ADDRESS")]
    addresses: Vec<String>,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

pub(super) async fn run(client: &Client, command: &DnsCommand) -> anyhow::Result<ExitCode> {
    match command {
        DnsCommand::List(args) => list(client, args).await,
        DnsCommand::Lookup(args) => lookup(client, args).await,
        DnsCommand::Add(args) => add(client, args).await,
        DnsCommand::Remove(args) => remove(client, args).await,
    }
}

async fn list(client: &Client, args: &ReadArgs) -> anyhow::Result<ExitCode> {
    let answer: DnsList = client.get("/v1/dns").await?;
    let rows = answer.names.iter().map(|entry| {
        let served = if entry.served { "yes" } else { "no: the peer cannot be reached" };
        let addresses = entry.addresses.join(" ");
        vec![entry.name.clone(), addresses, shown(&entry.services), entry.peer_name.clone(), served.to_owned()]
    });
    print(&match args.output {
        Format::Json => json(&answer)?,
        Format::Text if answer.names.is_empty() => "no names\n".to_owned(),
        Format::Text => table(&["NAME", "ADDRESSES", "SERVICES", "PEER", "ANSWERED"], rows),
    });
    Ok(ExitCode::SUCCESS)
}

async fn lookup(client: &Client, args: &LookupArgs) -> anyhow::Result<ExitCode> {
    let answer: DnsList = client.get(&format!("/v1/dns?name={}", escaped(&args.name))).await?;
    let served = answer.names.iter().filter(|entry| entry.served);
    let is_address = args.name.parse::<std::net::IpAddr>().is_ok();
    let found = served.flat_map(|entry| if is_address { vec![entry.name.clone()] } else { entry.addresses.clone() });
    let mut lines: Vec<String> = found.collect();
    lines.sort_unstable();
    lines.dedup();
    let code = if lines.is_empty() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS };
    show(args.output, &lines, &answer)?;
    Ok(code)
}

/// A text as it stands in the query of a path (RFC 3986).
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

async fn add(client: &Client, args: &AddArgs) -> anyhow::Result<ExitCode> {
    let AddArgs { name, addresses, services, .. } = args;
    let (name, addresses, services) = (name.clone(), addresses.clone(), services.clone());
    let body = DnsAddRequest { name, addresses, services };
    let answer: DnsName = client.post("/v1/dns/add", &body).await?;
    let line = format!("{} {} {}", answer.name, answer.addresses.join(" "), shown(&answer.services));
    show(args.output, &[line.trim_end().to_owned()], &answer)
}

/// Services as they are given, without where they are.
fn shown(services: &[DnsService]) -> String {
    let one = |DnsService { service, protocol, port, .. }: &DnsService| match service {
        name if *name == port.to_string() => format!("{port}/{protocol}"),
        name => format!("{name}={port}/{protocol}"),
    };
    services.iter().map(one).collect::<Vec<_>>().join(" ")
}

async fn remove(client: &Client, args: &RemoveArgs) -> anyhow::Result<ExitCode> {
    let body = DnsRequest { name: args.name.clone(), addresses: args.addresses.clone() };
    let answer: Released = client.post("/v1/dns/remove", &body).await?;
    show(args.output, &answer.released, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_in_a_path_is_escaped() {
        assert_eq!(escaped("web.weft.local"), "web.weft.local");
        assert_eq!(escaped("fd00::1"), "fd00%3A%3A1");
        assert_eq!(escaped("a b&c=ü"), "a%20b%26c%3D%C3%BC");
    }
}
