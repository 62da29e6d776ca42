//! The command `weft`.
//!
//! Exit code 0: fine. 1: an error, or not well. 2: wrong usage.

mod client;
mod demo;
mod dns;
mod edit;
mod read;
mod service;
mod table;
mod up;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use self::client::Client;
use crate::cni;
use crate::config::DEFAULT_SOCKET;
use crate::control::secret;

/// Not well, or an error.
const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
const USAGE: u8 = 2;

/// A mesh overlay network for containers.
#[derive(Debug, Parser)]
#[command(name = "weft", version, about, max_term_width = 100, subcommand_required = true)]
#[command(after_help = "Exit code 0: fine. 1: an error, or not well. 2: wrong usage.")]
pub struct Cli {
    /// The router's API socket [env: WEFT_SOCKET] [default: /run/weft/weft.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a router on this host
    Up(Box<up::UpArgs>),
    /// Stop the router and remove its bridge and everything attached to it
    Down,
    /// Read the configuration file again, and change what can change without a restart
    Reload(read::ReadArgs),
    /// Dial these peers from now on
    Connect(edit::PeersArgs),
    /// Dial these peers no more, and close the links to them
    Forget(edit::PeersArgs),
    /// Remove a peer that will not come back, or shut one out
    #[command(subcommand)]
    Peer(PeerCommand),
    /// Connect a container to the network; prints one CIDR a line
    Attach(edit::AttachArgs),
    /// Disconnect a container, or take some of its addresses away
    Detach(edit::DetachArgs),
    /// Give this host addresses in the network; prints one CIDR a line
    Expose(edit::ExposeArgs),
    /// Take this host's addresses away, with what it exports and imports by them
    Hide(edit::HideArgs),
    /// Let ports of this host lead into the mesh, and ports in the mesh outside
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Tell whether all is well; exits with 1 if it is not
    Status(read::StatusArgs),
    /// List the other peers
    Peers(read::ReadArgs),
    /// List what is attached to this host, or connected to it by Docker
    Ps(read::ReadArgs),
    /// Show who owns how much of the address space, and what this host gave
    Ipam(read::IpamArgs),
    /// Show and change the names of the mesh
    #[command(subcommand)]
    Dns(dns::DnsCommand),
    /// Show what happened lately
    Events(read::EventsArgs),
    /// Be the CNI plugin, as a container runtime runs it: by the name weft-cni, or so
    Cni,
    /// Run a whole mesh on this machine, and show it at work
    Demo(demo::DemoArgs),
    /// Print a script that completes commands in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    Version(read::ReadArgs),
}

#[derive(Debug, Subcommand)]
enum PeerCommand {
    /// Remove a peer that will not come back: its addresses return to the others
    Remove(edit::RemoveArgs),
    /// Have every member refuse this peer's keys, for good
    Revoke(edit::RevokeArgs),
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For programs; the fields are documented in docs/api.md
    Json,
}

/// Runs the command line of this process. The first thing that a `main` does: the secret is taken
/// out of the environment before there is a second thread.
#[must_use]
pub fn main() -> ExitCode {
    let secret = secret::take_variable();
    if is_plugin(std::env::args_os().next()) {
        return cni::main();
    }
    run(std::env::args_os(), secret)
}

/// Runtimes run a plugin by the name that its configuration has.
fn is_plugin(program: Option<OsString>) -> bool {
    program.is_some_and(|program| Path::new(&program).file_name().is_some_and(|name| name == cni::NAME))
}

fn run(arguments: impl IntoIterator<Item = OsString>, secret: Option<zeroize::Zeroizing<Vec<u8>>>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is no reason to change the code.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    let result = match cli.command {
        Command::Up(args) => return up::run(&args, cli.socket, secret),
        Command::Demo(args) => return demo::run(&args),
        Command::Cni => return cni::main(),
        Command::Completions { shell } => {
            print(&completions(shell));
            Ok(ExitCode::SUCCESS)
        }
        command => client_command(command, cli.socket),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(FAILED)
        }
    }
}

fn client_command(command: Command, socket: Option<String>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new(socket_path(socket));
    runtime.block_on(async {
        match command {
            Command::Down => edit::down(&client).await,
            Command::Reload(args) => edit::reload(&client, &args).await,
            Command::Connect(args) => edit::connect(&client, &args).await,
            Command::Forget(args) => edit::forget(&client, &args).await,
            Command::Peer(PeerCommand::Remove(args)) => edit::remove(&client, &args).await,
            Command::Peer(PeerCommand::Revoke(args)) => edit::revoke(&client, &args).await,
            Command::Attach(args) => edit::attach(&client, &args).await,
            Command::Detach(args) => edit::detach(&client, &args).await,
            Command::Expose(args) => edit::expose(&client, &args).await,
            Command::Hide(args) => edit::hide(&client, &args).await,
            Command::Service(command) => service::run(&client, &command).await,
            Command::Status(args) => read::status(&client, &args).await,
            Command::Peers(args) => read::peers(&client, &args).await,
            Command::Ps(args) => read::ps(&client, &args).await,
            Command::Ipam(args) => read::ipam(&client, &args).await,
            Command::Dns(command) => dns::run(&client, &command).await,
            Command::Events(args) => read::events(&client, &args).await,
            Command::Version(args) => read::version(&args),
            Command::Up(_) | Command::Demo(_) | Command::Cni | Command::Completions { .. } => Ok(ExitCode::SUCCESS),
        }
    })
}

/// A script that completes commands in a shell.
fn completions(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

fn socket_path(flag: Option<String>) -> PathBuf {
    flag.or_else(|| std::env::var("WEFT_SOCKET").ok())
        .filter(|path| !path.is_empty())
        .map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)
}

/// Writes to standard output. A reader that has gone away (`weft peers | head`) is no error.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Writes an error to standard error, each line marked.
fn complain(text: &str) {
    let mut stderr = std::io::stderr().lock();
    for line in text.lines() {
        let _ = writeln!(stderr, "weft: {}", table::clean(line));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::KEYS;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_key_of_the_configuration_is_a_flag_of_up_and_the_other_way_round() {
        let command = Cli::command();
        let up = command.find_subcommand("up").expect("there");
        let mut flags: Vec<String> = up
            .get_arguments()
            .filter_map(|argument| argument.get_long())
            .filter(|flag| !matches!(*flag, "config" | "help" | "version"))
            .map(str::to_owned)
            .chain(["socket".to_owned()])
            .collect();
        flags.sort();
        flags.dedup();
        let mut keys: Vec<String> = KEYS.iter().map(|key| key.name.to_owned()).collect();
        keys.sort();
        assert_eq!(flags, keys);
    }

    #[test]
    fn the_contract_of_the_command_line_is_accepted() {
        for line in [
            "weft up --name a --peer h1 --peer h2:7000 --listen 0.0.0.0:6783 --port 6783 --advertise 192.0.2.1 --range 10.0.0.0/8 --range fd00::/64 --ipalloc-init consensus=3 --dead-after 1h --secret-file /s --data-dir /d --socket /k --metrics 127.0.0.1:6782 --bridge weft --mtu auto --no-discovery --no-fast-path --trusted-subnet 192.0.2.0/24 --dns-listen 10.0.0.1:53 --dns-domain weft.local --dns-resolv-conf /r --detach --network n --cipher auto --busy-poll 0 --log-level info --log-format json --config /c",
            "weft down",
            "weft connect a b",
            "weft forget a",
            "weft peer revoke a -o json",
            "weft peer remove host3 -o json",
            "weft attach /run/netns/a 10.32.0.1 fd00::1",
            "weft attach web --name www --name shop.eu --service http=8080 --service 53/udp",
            "weft dns list -o json",
            "weft dns lookup web",
            "weft dns add db 192.0.2.7 2001:db8::7",
            "weft dns add db 192.0.2.7 --service pg=5432 --service 53/udp",
            "weft dns remove db",
            "weft detach docker:a",
            "weft expose",
            "weft expose 10.32.0.1 --masquerade",
            "weft hide 10.32.0.1",
            "weft service list -o json",
            "weft service export 10.32.0.5:80 --at 192.0.2.1:8080",
            "weft service export [fd00::5]:53/udp -o json",
            "weft service import db 192.0.2.7:5432 --at 10.32.0.1:5433",
            "weft service remove 8080",
            "weft status --wait -o json",
            "weft status --wait=5",
            "weft peers -o json --socket /x",
            "weft --socket /x ps -o json",
            "weft ipam -o json",
            "weft ipam check",
            "weft ipam check --repair -o json",
            "weft events --follow -o json",
            "weft completions bash",
            "weft version -o json",
            "weft demo --hosts 3 --keep",
            "weft cni",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
    }

    #[test]
    fn the_completions_of_every_shell_know_every_command_and_every_flag() {
        for shell in clap_complete::Shell::value_variants() {
            let script = completions(*shell);
            let known: BTreeSet<&str> = script.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
            let mut commands = vec![Cli::command()];
            while let Some(command) = commands.pop() {
                assert!(known.contains(command.get_name()), "{shell}: {}", command.get_name());
                for flag in command.get_arguments().filter_map(|argument| argument.get_long()) {
                    let known = known.contains(flag) || known.contains(format!("--{flag}").as_str());
                    assert!(known, "{shell}: {} --{flag}", command.get_name());
                }
                commands.extend(command.get_subcommands().cloned());
            }
        }
    }

    #[test]
    fn every_key_and_every_command_is_documented() {
        let keys = include_str!("../../docs/configuration.md");
        for key in KEYS {
            assert!(keys.contains(&format!("| `{}` |", key.name)), "{} is not in docs/configuration.md", key.name);
        }
        let commands = include_str!("../../docs/api.md");
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let known = ["help", "up", "demo", "completions", "version"].contains(&name);
            assert!(known || commands.contains(&format!("`weft {name}")), "{name} is not in docs/api.md");
        }
        for (_, path) in crate::control::api::ROUTES {
            assert!(commands.contains(path), "{path} is not in docs/api.md");
        }
    }

    /// Arguments that any text may be for the parser. The configuration or the router looks at
    /// them, and each has its own test there.
    const TEXTS: &[&str] =
        &["config", "socket", "target", "addresses", "peers", "peer", "name", "names", "services", "to", "at"];

    /// Tries what each command cannot take.
    fn refuses(command: &clap::Command, line: &str) {
        let line = format!("{line} {}", command.get_name());
        let below: Vec<_> = command.get_subcommands().filter(|below| below.get_name() != "help").collect();
        for below in &below {
            refuses(below, &line);
        }
        let refused = |rest: &str, named: &str| {
            let line = format!("{line} {rest}");
            let error = parse(line.trim_start()).expect_err(&line);
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(named), "{line}: {named:?} is not in {error}");
        };
        refused("--frobnicate", "--frobnicate");
        if below.is_empty() && command.get_positionals().all(|argument| argument.get_num_args().is_none()) {
            refused("too many words for it", "'");
        }
        for argument in command.get_arguments() {
            let key = KEYS.iter().any(|key| Some(key.name) == argument.get_long());
            let named = argument.get_long().map(|long| format!("--{long}"));
            match (named, argument.get_action().takes_values()) {
                (Some(flag), false) => refused(&format!("{flag}=yes"), &flag),
                (Some(flag), true) if !key && !TEXTS.contains(&argument.get_id().as_str()) => {
                    refused(&format!("{flag}=nonsense"), &flag);
                    refused(&format!("{flag}=-1"), &flag);
                }
                (None, true) if argument.is_required_set() && below.is_empty() => refused("", "required"),
                _ => assert!(key || TEXTS.contains(&argument.get_id().as_str()), "{line}: {argument:?} is not tried"),
            }
        }
    }

    #[test]
    fn every_command_refuses_what_it_cannot_take_and_names_it() {
        refuses(&Cli::command(), "");
    }

    #[test]
    fn wrong_usage_exits_with_two() {
        for line in [
            "weft",
            "weft frobnicate",
            "weft attach",
            "weft connect",
            "weft peer",
            "weft peer revoke",
            "weft up --ui 127.0.0.1:1",
            "weft status -o yaml",
            "weft status --wait=soon",
            "weft completions tcl",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
        assert_eq!(parse("weft --help").expect_err("help").exit_code(), 0);
        assert_eq!(parse("weft --version").expect_err("version").exit_code(), 0);
    }
}
