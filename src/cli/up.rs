//! `weft up`: settings, then the router; or, with `--detach`, a copy of this process that runs it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use zeroize::Zeroizing;

use super::client::Client;
use super::{FAILED, USAGE, complain};
use crate::config::{Given, Settings, Source, Sources};
use crate::control::api::types::Status;
use crate::control::secret::{self, Secret};
use crate::{logging, router};

/// Set in the environment of the copy that runs in the background.
const BACKGROUND: &str = "WEFT_BACKGROUND";
/// How long the router in the background may take until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// Every flag is a key of the configuration file under the same name, and a variable WEFT_NAME.
/// Flags win over variables, variables over the file. A list replaces the list below it.
#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// Configuration file (TOML) [env: WEFT_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this peer, for people [default: the hostname]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Name of the network; peers of another are refused [default: weft]
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// A peer to dial; may be repeated. With none, this router founds the network
    #[arg(long, value_name = "HOST[:PORT]")]
    peer: Vec<String>,
    /// Address to bind [default: every address, IPv4 and IPv6]
    #[arg(long, value_name = "ADDR[:PORT]")]
    listen: Option<String>,
    /// UDP port of control and data [default: 6783]
    #[arg(long, value_name = "N")]
    port: Option<String>,
    /// Address at which others can dial this peer; may be repeated [default: those of the host]
    #[arg(long, value_name = "ADDR[:PORT]")]
    advertise: Vec<String>,
    /// Range of container addresses, one IPv4 and one IPv6 at most; the same on every peer
    /// [default: 10.32.0.0/12 and an IPv6 /64 of the network's name]
    #[arg(long, value_name = "CIDR")]
    range: Vec<String>,
    /// Who founds the address space: auto, observer (others), consensus=N (a majority of N peers) or
    /// seed=ID,ID,… (these, each at once) [default: auto]
    #[arg(long, value_name = "HOW")]
    ipalloc_init: Option<String>,
    /// After how long a silence a peer is removed from the address space; or never [default: 1h]
    #[arg(long, value_name = "TIME")]
    dead_after: Option<String>,
    /// File with the network secret (or give it in WEFT_SECRET); without a secret nothing is
    /// encrypted
    #[arg(long, value_name = "FILE")]
    secret_file: Option<String>,
    /// Directory of keys, addresses and attachments [default: /var/lib/weft]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Serve Prometheus metrics there [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<String>,
    /// Be Docker's network and IPAM driver, at a socket such as /run/docker/plugins/weft.sock
    /// [default: not]
    #[arg(long, value_name = "PATH")]
    docker_socket: Option<String>,
    /// Name of the bridge; the TAP is NAME-tap [default: weft]
    #[arg(long, value_name = "NAME")]
    bridge: Option<String>,
    /// MTU of the overlay [default: auto]
    #[arg(long, value_name = "auto|N")]
    mtu: Option<String>,
    /// Protection of frames in a network with a secret: auto, aes-256-gcm, chacha20-poly1305 or
    /// nacl [default: auto]
    #[arg(long, value_name = "CIPHER")]
    cipher: Option<String>,
    /// Microseconds for which packets that come one soon after the other are looked for before sleeping; 0:
    /// not at all [default: 100]
    #[arg(long, value_name = "N")]
    busy_poll: Option<String>,
    /// Dial only the peers named, not those that they tell of
    #[arg(long)]
    no_discovery: bool,
    /// Carry all frames by sleeve, none by the kernel's VXLAN
    #[arg(long)]
    no_fast_path: bool,
    /// A network of hosts whose frames to each other need no encryption, though there is a secret:
    /// the kernel's VXLAN may carry them; may be repeated
    #[arg(long, value_name = "CIDR")]
    trusted_subnet: Vec<String>,
    /// Answer names there, over UDP and TCP; may be repeated [default: nowhere]
    #[arg(long, value_name = "ADDR:PORT")]
    dns_listen: Vec<String>,
    /// Domain of the mesh's names; the same on every peer [default: weft.local]
    #[arg(long, value_name = "DOMAIN")]
    dns_domain: Option<String>,
    /// File that names the resolvers for all other names [default: /etc/resolv.conf]
    #[arg(long, value_name = "FILE")]
    dns_resolv_conf: Option<String>,
    /// Return once the router is ready; it goes on in the background
    #[arg(long)]
    detach: bool,
    /// How much is logged: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How it is written: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl UpArgs {
    /// What was on the command line, by key.
    fn given(&self, socket: Option<String>) -> BTreeMap<&'static str, Given> {
        let one = |value: &Option<String>| value.iter().cloned().collect::<Vec<_>>();
        let switch = |set: bool| if set { vec!["true".to_owned()] } else { Vec::new() };
        [
            ("name", one(&self.name)),
            ("network", one(&self.network)),
            ("peer", self.peer.clone()),
            ("listen", one(&self.listen)),
            ("port", one(&self.port)),
            ("advertise", self.advertise.clone()),
            ("range", self.range.clone()),
            ("ipalloc-init", one(&self.ipalloc_init)),
            ("dead-after", one(&self.dead_after)),
            ("secret-file", one(&self.secret_file)),
            ("data-dir", one(&self.data_dir)),
            ("socket", one(&socket)),
            ("metrics", one(&self.metrics)),
            ("docker-socket", one(&self.docker_socket)),
            ("bridge", one(&self.bridge)),
            ("mtu", one(&self.mtu)),
            ("cipher", one(&self.cipher)),
            ("busy-poll", one(&self.busy_poll)),
            ("no-discovery", switch(self.no_discovery)),
            ("no-fast-path", switch(self.no_fast_path)),
            ("trusted-subnet", self.trusted_subnet.clone()),
            ("dns-listen", self.dns_listen.clone()),
            ("dns-domain", one(&self.dns_domain)),
            ("dns-resolv-conf", one(&self.dns_resolv_conf)),
            ("detach", switch(self.detach)),
            ("log-level", one(&self.log_level)),
            ("log-format", one(&self.log_format)),
        ]
        .into_iter()
        .filter(|(_, values)| !values.is_empty())
        .map(|(key, values)| (key, Given { values, source: Source::Flag }))
        .collect()
    }

    fn sources(&self, socket: Option<String>) -> Sources {
        // What is not UTF-8 is no valid value either, and is refused as it is shown.
        let text = |os: OsString| os.to_string_lossy().into_owned();
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .map(|(name, value)| (text(name), text(value)))
            .filter(|(name, _)| name.starts_with("WEFT_"))
            .collect();
        let file = self
            .config
            .clone()
            .or_else(|| environment.get("WEFT_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
        // Only a directory that was deleted has no name: then nothing relative is found.
        let directory = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        Sources {
            flags: self.given(socket),
            file: file.map(|file| directory.join(file)),
            environment,
            directory,
            hostname: hostname(),
        }
    }
}

fn hostname() -> String {
    let name = rustix::system::uname();
    let name = String::from_utf8_lossy(name.nodename().to_bytes()).into_owned();
    // The part before the first dot: the rest is the same on every host.
    name.split('.').next().unwrap_or_default().to_owned()
}

/// Runs a router until it is stopped.
pub(super) fn run(args: &UpArgs, socket: Option<String>, variable: Option<Zeroizing<Vec<u8>>>) -> ExitCode {
    let sources = args.sources(socket);
    let settings = match sources.read() {
        Ok(settings) => settings,
        Err(problems) => {
            complain(&problems.to_string());
            return ExitCode::from(USAGE);
        }
    };
    let background = std::env::var_os(BACKGROUND).is_some();
    let result = if settings.detach && !background {
        detach(&settings, variable)
    } else {
        foreground(settings, sources, variable, background)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(FAILED)
        }
    }
}

fn foreground(
    settings: Settings,
    sources: Sources,
    variable: Option<Zeroizing<Vec<u8>>>,
    background: bool,
) -> anyhow::Result<()> {
    if background {
        // Fails only for the leader of a process group, which a child is not.
        rustix::process::setsid().context("the router cannot leave the session")?;
        std::env::set_current_dir("/").context("the router cannot change to /")?;
    }
    logging::start(settings.log_level, settings.log_format);
    for name in sources.unknown_variables() {
        tracing::warn!("{name} is set, and means nothing to this program; docs/configuration.md lists what does");
    }
    let secret = load_secret(&settings, variable)?;
    if secret.is_some() {
        no_core_dumps();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weft-control")
        .enable_all()
        .build()?;
    let result = runtime.block_on(router::run(settings, sources, secret));
    // A name that is being looked up must not hold up the end.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result.map(|_| ())
}

fn load_secret(settings: &Settings, variable: Option<Zeroizing<Vec<u8>>>) -> anyhow::Result<Option<Secret>> {
    match (&settings.secret_file, variable) {
        (Some(path), variable) => {
            if variable.is_some() {
                tracing::warn!("both --secret-file and {} are given: the file is used", secret::VARIABLE);
            }
            let loaded = Secret::from_file(path)?;
            if let Some(warning) = loaded.warning {
                tracing::warn!("{warning}");
            }
            Ok(Some(loaded.secret))
        }
        (None, Some(variable)) => Ok(Some(Secret::from_variable(variable)?)),
        (None, None) => Ok(None),
    }
}

/// A core dump would hold the keys.
fn no_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::debug!(%error, "core dumps cannot be switched off");
    }
}

/// Starts this program again, in the background, and waits until the router there answers.
fn detach(settings: &Settings, variable: Option<Zeroizing<Vec<u8>>>) -> anyhow::Result<()> {
    let log = settings.data_dir.join("weft.log");
    let (output, start) = open_log(&settings.data_dir, &log)?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args(std::env::args_os().skip(1))
        .env(BACKGROUND, "1")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    if let Some(secret) = &variable {
        // The child takes it out of its environment before anything else.
        command.env(secret::VARIABLE, std::ffi::OsStr::from_bytes(secret));
    }
    let child = command.spawn().context("the router cannot be started in the background")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(wait_until_ready(child, settings, &log, start))
}

fn open_log(directory: &Path, log: &Path) -> anyhow::Result<(std::fs::File, u64)> {
    let failed = || format!("the log {} cannot be written", log.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).with_context(failed)?;
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(log).with_context(failed)?;
    let start = file.metadata().with_context(failed)?.len();
    Ok((file, start))
}

async fn wait_until_ready(mut child: Child, settings: &Settings, log: &Path, start: u64) -> anyhow::Result<()> {
    let client = Client::new(settings.socket.clone());
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Some(code) = child.try_wait()? {
            let said = log_since(log, start);
            anyhow::bail!("the router ended at once ({code}):\n{said}");
        }
        // Another router may answer at that socket; ours is the one that we started.
        let answer = client.get_within::<Status>("/v1/status", Duration::from_secs(1)).await;
        if answer.is_ok_and(|status| status.pid == child.id()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            anyhow::bail!(
                "the router (pid {}) does not answer after {} s; its log is {}",
                child.id(),
                START_TIMEOUT.as_secs(),
                log.display()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the router wrote, without the mark that this process puts before its own lines.
fn log_since(log: &Path, start: u64) -> String {
    let mut text = String::new();
    let read = std::fs::File::open(log).and_then(|mut file| {
        file.seek(SeekFrom::Start(start))?;
        file.take(16 << 10).read_to_string(&mut text)
    });
    match read {
        Ok(_) => text.lines().map(|line| line.strip_prefix("weft: ").unwrap_or(line)).collect::<Vec<_>>().join("\n"),
        Err(error) => format!("(its log {} cannot be read: {error})", log.display()),
    }
}
