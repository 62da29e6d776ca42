//! The commands about services of this host.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::client::Client;
use super::edit::show;
use super::read::{ReadArgs, json};
use super::table::table;
use super::{Format, print};
use crate::control::api::types::{ExportRequest, HostService, ImportRequest, ServiceList, ServiceRemoveRequest};

#[derive(Debug, Subcommand)]
pub(super) enum ServiceCommand {
    /// List what this host exports and imports
    List(ReadArgs),
    /// Let a port of this host lead to an address of the mesh; the host needs one itself (weft expose)
    Export(ExportArgs),
    /// Give a service outside a name and an address in the mesh: one that this host has (weft expose)
    Import(ImportArgs),
    /// Take an export or an import away; connections that are there go on
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Where it leads, in the mesh
    #[arg(value_name = "ADDRESS:PORT[/tcp|/udp]")]
    to: String,
    /// Where it is found; without an address, at each of this host's; by default, the same port
    #[arg(long, value_name = "[ADDRESS:]PORT", default_value = "", hide_default_value = true)]
    at: String,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// What it is called in the mesh, with or without the mesh's domain
    name: String,
    /// Where it leads, outside
    #[arg(value_name = "ADDRESS:PORT[/tcp|/udp]")]
    to: String,
    /// Where it is found, at an address that this host has in the mesh; by default, the first one and
    /// the same port
    #[arg(long, value_name = "[ADDRESS:]PORT", default_value = "", hide_default_value = true)]
    at: String,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Where it is found, as `weft service list` shows it; without an address, all with this port
    #[arg(value_name = "[ADDRESS:]PORT[/tcp|/udp]")]
    at: String,
    /// How the answer is written
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
}

pub(super) async fn run(client: &Client, command: &ServiceCommand) -> anyhow::Result<ExitCode> {
    match command {
        ServiceCommand::List(args) => list(client, args).await,
        ServiceCommand::Export(ExportArgs { to, at, output }) => {
            let body = ExportRequest { to: to.clone(), at: at.clone() };
            made(*output, &client.post("/v1/services/export", &body).await?)
        }
        ServiceCommand::Import(ImportArgs { name, to, at, output }) => {
            let body = ImportRequest { name: name.clone(), to: to.clone(), at: at.clone() };
            made(*output, &client.post("/v1/services/import", &body).await?)
        }
        ServiceCommand::Remove(RemoveArgs { at, output }) => {
            let answer: ServiceList =
                client.post("/v1/services/remove", &ServiceRemoveRequest { at: at.clone() }).await?;
            let lines: Vec<String> = answer.services.iter().map(|service| service.at.clone()).collect();
            show(*output, &lines, &answer)
        }
    }
}

async fn list(client: &Client, args: &ReadArgs) -> anyhow::Result<ExitCode> {
    let answer: ServiceList = client.get("/v1/services").await?;
    let rows = answer.services.iter().map(|HostService { kind, at, to, name }| {
        vec![kind.clone(), at.clone(), to.clone(), name.clone().unwrap_or_default()]
    });
    print(&match args.output {
        Format::Json => json(&answer)?,
        Format::Text if answer.services.is_empty() => "no services\n".to_owned(),
        Format::Text => table(&["KIND", "AT", "TO", "NAME"], rows),
    });
    Ok(ExitCode::SUCCESS)
}

fn made(format: Format, service: &HostService) -> anyhow::Result<ExitCode> {
    let named = service.name.as_ref().map(|name| format!("{name} ")).unwrap_or_default();
    show(format, &[format!("{named}{} -> {}", service.at, service.to)], service)
}
