//! How many questions a second a router's name server answers, beside well-known servers that have the same
//! names, ask the same resolver and run on the same host: by `dnsperf`, in turns.
//!
//! ```text
//!   dnsperf ─┬─► router,  127.0.0.1:5301 ──┐
//!            ├─► dnsmasq, 127.0.0.1:5302 ──┼─► a resolver of our own, 127.0.0.9
//!            └─► unbound, 127.0.0.1:5303 ──┘
//! ```
//!
//! All are asked for names of the zone, for names that they have asked for before and may remember, and for
//! names whose answers nobody may remember: of these the resolver says so.

#![allow(clippy::print_stdout, reason = "prints what it measured")]

use std::{
    fmt::Write as _,
    fs, io,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, anyhow, ensure};
use clap::{Parser, ValueEnum};
use weft::lab::{
    Lab, LabConfig,
    router::{Router, RouterConfig},
    wait_until,
};

use crate::path::ROUTER;

const PATIENCE: Duration = Duration::from_secs(20);
/// The domain whose names the resolver tells for no time.
const FLEETING: &str = "example.net";
/// Who is asked for all other names; the only port that a `resolv.conf` can name.
const RESOLVER: &str = "127.0.0.9:53";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Contestant {
    /// The router.
    Router,
    /// dnsmasq.
    Dnsmasq,
    /// unbound.
    Unbound,
}

impl Contestant {
    const fn port(self) -> u16 {
        match self {
            Self::Router => 5301,
            Self::Dnsmasq => 5302,
            Self::Unbound => 5303,
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }
}

/// What is measured.
#[derive(Debug, Parser)]
#[command(name = "dns", about = "Measures the name server of a router beside others, by dnsperf")]
pub struct Options {
    /// With whom the router is compared; who is not installed is left out, and named
    #[arg(long, value_enum, value_delimiter = ',', default_value = "dnsmasq,unbound")]
    pub rivals: Vec<Contestant>,
    /// How often each is measured, by turns
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of one measurement
    #[arg(long, default_value_t = 5)]
    pub seconds: u32,
    /// Names in the zone
    #[arg(long, default_value_t = 200)]
    pub names: u16,
    /// Questions that are under way at most
    #[arg(long, default_value_t = 100)]
    pub outstanding: u16,
}

/// Which names are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Zone,
    Remembered,
    Forwarded,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Zone, Self::Remembered, Self::Forwarded];

    const fn name(self) -> &'static str {
        match self {
            Self::Zone => "names of the zone",
            Self::Remembered => "names of others, remembered",
            Self::Forwarded => "names of others, asked for each time",
        }
    }

    /// So many that of those that are not remembered hardly any is asked for twice at the same time.
    const fn count(self, names: u16) -> u16 {
        match self {
            Self::Zone | Self::Remembered => names,
            Self::Forwarded => 10_000,
        }
    }

    const fn domain(self) -> &'static str {
        match self {
            Self::Zone => "weft.local",
            Self::Remembered => "example.com",
            Self::Forwarded => FLEETING,
        }
    }
}

/// What `dnsperf` found.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Answers a second.
    rate: f64,
    /// Mean time to an answer, in microseconds.
    latency: f64,
}

/// Ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures, and prints what it finds.
///
/// # Errors
/// If a program is missing or fails, or a server does not answer every question rightly.
pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.rounds > 0 && options.names > 0 && options.seconds > 0, "there is nothing to measure");
    let lab = Lab::new(&LabConfig::hosts(1)).context("make a host")?;
    let dir = lab.dir().to_owned();
    let resolv_conf = dir.join("resolv.conf");
    fs::write(&resolv_conf, format!("nameserver {}\n", RESOLVER.trim_end_matches(":53")))?;
    let socket = lab.host(0).namespace().run(|| UdpSocket::bind(RESOLVER))?.context("bind the resolver's address")?;
    // It ends with the process: nothing else tells it to.
    thread::spawn(move || resolve(&socket));
    let config = RouterConfig {
        exe: std::env::current_exe()?,
        env: vec![(ROUTER.into(), "1".into())],
        args: vec!["--dns-resolv-conf".into(), resolv_conf.into_os_string()],
    };
    let listen = format!("127.0.0.1:{}", Contestant::Router.port());
    let config = config.with(["--range", "10.44.0.0/16", "--dns-listen", &listen]);
    let router = Router::start(&lab, lab.host(0), config).context("start a router")?;
    for number in 0..options.names {
        router.command(["dns", "add", &format!("n{number}"), &address(number).to_string()])?;
    }
    let mut contestants = vec![(Contestant::Router, None)];
    for &rival in options.rivals.iter().filter(|rival| **rival != Contestant::Router) {
        match start_rival(rival, &lab, &dir, options)? {
            Some(child) => contestants.push((rival, Some(Process(child)))),
            None => println!("{} is absent: {}", rival.name(), missing(&rival.name())),
        }
    }
    for kind in Kind::ALL {
        let file = questions(&dir, kind, options.names)?;
        for (contestant, _) in &contestants {
            let port = contestant.port();
            let ready = || ask_once(&lab, port, &file).is_ok();
            ensure!(wait_until(PATIENCE, ready), "{}: {:?}", contestant.name(), ask_once(&lab, port, &file));
        }
        let mut figures = vec![Vec::new(); contestants.len()];
        for round in 0..options.rounds {
            // By turns, so that none is always the one that finds the machine warm.
            for turn in 0..contestants.len() {
                let index = (round + turn) % contestants.len();
                figures[index].push(ask(&lab, contestants[index].0.port(), &file, options)?);
            }
        }
        println!("{}: median (least–most) of {} rounds", kind.name(), options.rounds);
        for ((contestant, _), own) in contestants.iter().zip(&figures) {
            print(*contestant, own, &figures[0]);
        }
    }
    Ok(())
}

fn print(contestant: Contestant, own: &[Figures], routers: &[Figures]) {
    let list = |all: Vec<f64>, digits: usize| {
        let mut all = all;
        all.sort_unstable_by(f64::total_cmp);
        let (least, most) = (all[0], all[all.len() - 1]);
        format!("{:.digits$} ({least:.digits$}–{most:.digits$})", all[all.len() / 2])
    };
    let rate = list(own.iter().map(|one| one.rate / 1e3).collect(), 1);
    let latency = list(own.iter().map(|one| one.latency).collect(), 0);
    let ratio = list(routers.iter().zip(own).map(|(router, one)| router.rate / one.rate).collect(), 2);
    let ratio = if contestant == Contestant::Router { String::new() } else { format!(", router / it: {ratio}") };
    println!("  {:<8} {rate} k/s, {latency} µs{ratio}", contestant.name());
}

fn address(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// A file of questions, as `dnsperf` reads it.
fn questions(dir: &Path, kind: Kind, names: u16) -> anyhow::Result<PathBuf> {
    let mut text = String::new();
    for number in 0..kind.count(names) {
        writeln!(text, "n{number}.{} A", kind.domain())?;
    }
    let file = dir.join(format!("{kind:?}"));
    fs::write(&file, text)?;
    Ok(file)
}

/// Answers every question with one address.
fn resolve(socket: &UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let query = &buffer[..length];
        let Some(end) = query.get(12..).and_then(|name| name.iter().position(|byte| *byte == 0)) else { continue };
        let Some(question) = query.get(12..12 + end + 5) else { continue };
        let head = [&query[..2], &[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0], question].concat();
        let fleeting = query.windows(4).any(|part| part == b"\x03net");
        let ttl = if fleeting { 0 } else { 60 };
        let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4, 198, 51, 100, 1];
        // Whoever asked may have gone.
        let _ = socket.send_to(&[&head[..], &record].concat(), from);
    }
}

/// Starts another server, with the same names; none if it is not installed.
fn start_rival(rival: Contestant, lab: &Lab, dir: &Path, options: &Options) -> anyhow::Result<Option<Child>> {
    let resolver = RESOLVER.trim_end_matches(":53");
    let mut command;
    let mut text = String::new();
    let port = rival.port();
    match rival {
        Contestant::Router => return Ok(None),
        Contestant::Dnsmasq => {
            let hosts = dir.join("hosts");
            for number in 0..options.names {
                writeln!(text, "{} n{number}.weft.local", address(number))?;
            }
            fs::write(&hosts, &text)?;
            command = Command::new("dnsmasq");
            command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-poll"]);
            command.args(["--bind-interfaces", "--listen-address=127.0.0.1", "--local=/weft.local/", "--user=root"]);
            command.args(["--cache-size=10000", "--dns-forward-max=1000", "--pid-file=", "--local-ttl=1"]);
            command.args([format!("--port={port}"), format!("--server={resolver}")]);
            command.arg(format!("--addn-hosts={}", hosts.display()));
        }
        Contestant::Unbound => {
            writeln!(
                text,
                "server:\n verbosity: 0\n interface: 127.0.0.1@{port}\n port: {port}\n num-threads: 1\n \
                 do-not-query-localhost: no\n chroot: \"\"\n username: \"\"\n pidfile: \"\"\n use-syslog: no\n \
                 do-daemonize: no\n module-config: \"iterator\"\n local-zone: \"weft.local.\" static"
            )?;
            for number in 0..options.names {
                writeln!(text, " local-data: \"n{number}.weft.local. 1 IN A {}\"", address(number))?;
            }
            writeln!(text, "forward-zone:\n name: \".\"\n forward-addr: {resolver}")?;
            let conf = dir.join("unbound.conf");
            fs::write(&conf, text)?;
            command = Command::new("unbound");
            command.arg("-d").arg("-c").arg(conf);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).env("PATH", PATH);
    match lab.host(0).namespace().run(|| command.spawn())? {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        spawned => Ok(Some(spawned.with_context(|| format!("start {}", rival.name()))?)),
    }
}

fn missing(program: &str) -> String {
    let package = if program == "dnsmasq" { "dnsmasq-base" } else { program };
    format!("cannot run {program}: the Debian package `{package}` has it")
}

/// Whether a server answers the first question.
fn ask_once(lab: &Lab, port: u16, file: &Path) -> anyhow::Result<()> {
    let (said, _) = dnsperf(lab, port, file, &["-n", "1", "-c", "1", "-q", "1", "-t", "1"])?;
    complete(&said)
}

fn ask(lab: &Lab, port: u16, file: &Path, options: &Options) -> anyhow::Result<Figures> {
    let (seconds, outstanding) = (options.seconds.to_string(), options.outstanding.to_string());
    let (said, value) = dnsperf(lab, port, file, &["-l", &seconds, "-c", "8", "-q", &outstanding])?;
    complete(&said)?;
    let rate = value("Queries per second:")?;
    Ok(Figures { rate, latency: value("Average Latency (s):")? * 1e6 })
}

/// What it says: all of it, and the number behind a label.
fn dnsperf(
    lab: &Lab,
    port: u16,
    file: &Path,
    more: &[&str],
) -> anyhow::Result<(String, impl Fn(&str) -> anyhow::Result<f64> + use<>)> {
    let mut command = Command::new("dnsperf");
    command.args(["-s", "127.0.0.1", "-p", &port.to_string(), "-d"]).arg(file).args(more).env("PATH", PATH);
    let output = lab.host(0).namespace().run(|| command.output())?.with_context(|| missing("dnsperf"))?;
    ensure!(output.status.success(), "dnsperf: {}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let text = said.clone();
    let value = move |label: &str| {
        let rest = text.split_once(label).map(|(_, rest)| rest.split_whitespace().next().unwrap_or_default());
        rest.and_then(|number| number.parse().ok()).ok_or_else(|| anyhow!("dnsperf says no {label:?}:\n{text}"))
    };
    Ok((said, value))
}

/// Every question has a good answer, or it is no measurement of answers.
fn complete(said: &str) -> anyhow::Result<()> {
    let codes = said.lines().find(|line| line.trim_start().starts_with("Response codes:")).unwrap_or_default();
    ensure!(codes.contains("NOERROR") && codes.contains("(100.00%)"), "not every question was answered well:\n{said}");
    let lost = said.split_once("Queries lost:").and_then(|(_, rest)| rest.split(['(', ')']).nth(1));
    let lost: f64 = lost.and_then(|share| share.trim_end_matches('%').parse().ok()).unwrap_or(100.0);
    ensure!(lost < 0.5, "{lost} % of the questions were lost:\n{said}");
    Ok(())
}
