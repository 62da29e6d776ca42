//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use weft::config::{LogFormat, LogLevel};

use crate::api::Nodes;
use crate::install::Host;
use crate::node::Selector;
use crate::{init, run};

/// Gives a Weft router its peers from the Kubernetes API.
#[derive(Debug, Parser)]
#[command(name = "weft-kube", version)]
struct Cli {
    /// error, warn, info, debug or trace.
    #[arg(long, env = "WEFT_LOG_LEVEL", default_value = "info", global = true)]
    log_level: LogLevel,
    /// text or json.
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install the CNI plugin on the node, and write the router's configuration from the list of nodes.
    Init {
        #[command(flatten)]
        cluster: Cluster,
        #[command(flatten)]
        install: Install,
        /// How many seconds a router that was here before waits for an API server that does not answer.
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        api_wait: u64,
    },
    /// Keep the router's peers as the nodes are, and answer probes.
    Run {
        #[command(flatten)]
        cluster: Cluster,
        /// The router's API socket.
        #[arg(long, env = "WEFT_SOCKET", default_value = "/run/weft/weft.sock")]
        socket: PathBuf,
        /// Where probes are answered: /readyz, /livez.
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6785")]
        health: SocketAddr,
        /// For how many seconds a node must be gone, and its router out of reach, before its addresses go to the others.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        grace: u64,
    },
    /// Take the CNI plugin and its configuration from the node.
    Uninstall {
        #[command(flatten)]
        install: Install,
    },
}

#[derive(Debug, Args)]
struct Cluster {
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// The router's configuration file, to write.
    #[arg(long, value_name = "FILE", default_value = "/var/lib/weft/kubernetes.toml")]
    config: PathBuf,
    /// Labels of the nodes that have a router, as in the DaemonSet's nodeSelector.
    #[arg(long, env = "WEFT_KUBE_NODE_SELECTOR", value_name = "KEY=VALUE,…", default_value = "kubernetes.io/os=linux")]
    node_selector: Selector,
}

#[derive(Debug, Args)]
struct Install {
    /// The host's folder of CNI plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// The host's folder of CNI configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// The configuration to install, under its own name.
    #[arg(long, value_name = "FILE", default_value = "/etc/weft/cni/10-weft.conflist")]
    conflist: PathBuf,
    /// The binary to install as weft-cni.
    #[arg(long, value_name = "FILE", default_value = "/usr/bin/weft")]
    plugin: PathBuf,
}

impl Install {
    fn host(&self) -> Host {
        Host { bin_dir: self.cni_bin_dir.clone(), conf_dir: self.cni_conf_dir.clone() }
    }
}

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = start(&cli).and_then(|runtime| runtime.block_on(work(cli.command)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the log may not have begun")]
            {
                eprintln!("weft-kube: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(cli: &Cli) -> anyhow::Result<tokio::runtime::Runtime> {
    weft::logging::start(cli.log_level, cli.log_format);
    // It waits most of the time: one thread is enough.
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")
}

async fn work(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { cluster, install, api_wait } => {
            let work = async {
                let nodes = Nodes::of_this_pod(cluster.node_selector).await?;
                let options =
                    init::Options { node: cluster.node, file: cluster.config, api_wait: Duration::from_secs(api_wait) };
                init::init(&nodes, &options).await?;
                install.host().install(&install.plugin, &install.conflist)
            };
            tokio::select! {
                done = work => done,
                () = told_to_end()? => anyhow::bail!("told to end before the list of nodes was there"),
            }
        }
        Command::Run { cluster, socket, health, grace } => {
            let nodes = Nodes::of_this_pod(cluster.node_selector).await?;
            let options = run::Options {
                node: cluster.node,
                notes: cluster.config.with_extension("peers.json"),
                file: cluster.config,
                socket,
                health,
                grace: Duration::from_secs(grace),
                poll: Duration::from_secs(2),
            };
            run::run(nodes, options, told_to_end()?).await
        }
        Command::Uninstall { install } => install.host().uninstall(&install.conflist),
    }
}

/// Ends with SIGTERM or SIGINT, which are taken from now on: as process 1 of a container, nobody else ends on them.
fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
    })
}
