//! `weft demo`: a whole mesh on this machine, shown at work and taken down again.
//!
//! The hosts are network namespaces, the routers are this very program as child processes, and
//! the network between them is the lab's wire ([`crate::lab`]). What is printed is what happened:
//! each line is written after it was checked, and the first thing that fails ends the demo with
//! exit code 1 and the logs left behind.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Args;
use ipnet::IpNet;

use super::{FAILED, complain, print};
use crate::lab::router::{Router, RouterConfig, write_secret};
use crate::lab::traffic::{Echo, GapStream, tcp_echo, tcp_transfer, udp_echo};
use crate::lab::{self, Container, Lab, LabConfig, wait_until};

/// How long the mesh may take for any one step.
const PATIENCE: Duration = Duration::from_secs(15);
const RANGES: [&str; 2] = ["10.32.0.0/12", "fd00:10:32::/64"];

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Number of hosts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=8))]
    hosts: u8,
    /// Leave the mesh running at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Runs the demo. To be called before the process has threads: without root it moves into a user
/// namespace first.
pub(super) fn run(args: &DemoArgs) -> ExitCode {
    if !lab::is_root()
        && let Err(error) = lab::enter_user_namespace()
    {
        complain(&error.to_string());
        return ExitCode::from(FAILED);
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (hosts, keep, flag) = (usize::from(args.hosts), args.keep, Arc::clone(&stop));
    let show = thread::spawn(move || Demo::new(hosts, flag)?.show(keep));
    if let Err(error) = stop_on_signal(&stop, &show) {
        complain(&format!("signals are not heard: {error}"));
    }
    match show.join() {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            complain(&format!("the demo failed: {error:#}"));
            ExitCode::from(FAILED)
        }
        Err(_) => ExitCode::from(FAILED),
    }
}

/// Waits for the end of the show, and tells it to end when Ctrl-C is pressed.
fn stop_on_signal<T>(stop: &AtomicBool, show: &thread::JoinHandle<T>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        while !show.is_finished() {
            tokio::select! {
                _ = tick.tick() => continue,
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
            stop.store(true, Ordering::Release);
        }
        Ok(())
    })
}

/// The mesh of the demo. Fields end in this order.
struct Demo {
    stop: Arc<AtomicBool>,
    started: Instant,
    echoes: Vec<Echo>,
    routers: Vec<Router>,
    containers: Vec<Container>,
    addresses: Vec<Vec<IpNet>>,
    lab: Lab,
}

impl Demo {
    fn new(hosts: usize, stop: Arc<AtomicBool>) -> anyhow::Result<Self> {
        let started = Instant::now();
        let lab = Lab::new(&LabConfig::hosts(hosts))?;
        let (echoes, routers) = (Vec::new(), Vec::new());
        let (containers, addresses) = (Vec::new(), Vec::new());
        Ok(Self { stop, started, echoes, routers, containers, addresses, lab })
    }

    fn show(mut self, keep: bool) -> anyhow::Result<()> {
        let result = self.steps();
        match &result {
            Err(_) if self.stop.load(Ordering::Acquire) => {}
            Err(_) => {
                self.lab.keep_dir();
                say(&format!("\nThe routers' logs are in {}", self.lab.dir().display()));
            }
            Ok(()) if keep => self.wait_for_the_end(),
            Ok(()) => {}
        }
        result?;
        let pids: Vec<u32> = self.routers.iter().filter_map(Router::pid).collect();
        let by_themselves = self.routers.iter_mut().all(Router::end);
        ensure!(by_themselves, "a router did not end when it was asked to");
        say(&format!(
            "\nAll well: {} routers ended, nothing is left behind. {:.1} s.",
            pids.len(),
            self.started.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    fn steps(&mut self) -> anyhow::Result<()> {
        self.start_routers()?;
        self.attach_containers()?;
        self.all_to_all()?;
        self.look_at_the_wire()?;
        self.throughput()?;
        self.peers()?;
        if self.routers.len() > 2 {
            self.cut_and_heal()?;
        }
        Ok(())
    }

    fn go_on(&self) -> anyhow::Result<()> {
        ensure!(!self.stop.load(Ordering::Acquire), "interrupted");
        Ok(())
    }

    fn start_routers(&mut self) -> anyhow::Result<()> {
        let hosts = self.lab.hosts().len();
        say(&format!(
            "Weft demo: {hosts} hosts in network namespaces on this machine, a router on each,\n\
             a container behind each, one encrypted mesh.\n"
        ));
        heading("Start a router on each host; all are told of the first, and share a secret in a file");
        let secret = self.lab.dir().join("secret");
        write_secret(&secret, &random_secret()?)?;
        let exe = std::env::current_exe().context("find this program")?;
        for index in 0..hosts {
            self.go_on()?;
            let mut shown = String::from("weft up");
            let mut config = RouterConfig { exe: exe.clone(), env: Vec::new(), args: Vec::new() };
            for range in RANGES {
                config = config.with(["--range", range]);
                write!(shown, " --range {range}")?;
            }
            config = config.with(["--secret-file".as_ref(), secret.as_os_str()]);
            shown.push_str(" --secret-file FILE");
            if index > 0 {
                let first = self.lab.host(0).v4().to_string();
                write!(shown, " --peer {first}")?;
                config = config.with(["--peer".to_owned(), first]);
            }
            let host = self.lab.host(index);
            say(&format!("  {}  {:<10}  $ {shown}", host.name(), host.v4()));
            self.routers.push(Router::start(&self.lab, host, config)?);
        }
        let before = Instant::now();
        self.wait_for("every router to be linked to every other", |demo| {
            Ok((0..hosts).all(|router| demo.established(router).is_ok_and(|count| count + 1 == hosts)))
        })?;
        let status = self.routers[0].status()?;
        let cipher = status["encryption"].as_str().unwrap_or("nothing").to_owned();
        ensure!(cipher != "nothing" && cipher != "none", "the mesh is not encrypted: {status}");
        say(&format!(
            "  all {} links stand {:.1} s after the last start, sealed with {cipher}",
            hosts * (hosts - 1) / 2,
            before.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    fn established(&self, router: usize) -> anyhow::Result<usize> {
        let status = self.routers[router].status()?;
        let peers = status["peers"].as_array().ok_or_else(|| anyhow!("status without peers: {status}"))?;
        Ok(peers.iter().filter(|peer| peer["state"] == "established").count())
    }

    fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let held = wait_until(PATIENCE, || self.stop.load(Ordering::Acquire) || condition(self).is_ok_and(|held| held));
        self.go_on()?;
        if !held {
            let status = self.routers[0].status().map_or_else(|e| e.to_string(), |status| status.to_string());
            bail!("waited {PATIENCE:?} for {what}; the first router says: {status}");
        }
        Ok(())
    }

    fn attach_containers(&mut self) -> anyhow::Result<()> {
        heading("Attach a container to each host; the mesh gives the addresses");
        for index in 0..self.routers.len() {
            self.go_on()?;
            let container = Container::new(&format!("box{}", index + 1))?;
            let end = Instant::now() + PATIENCE;
            // A router that has just joined may still be waiting for its first addresses.
            let addresses = loop {
                match self.routers[index].attach(&container) {
                    Err(_) if Instant::now() < end => thread::sleep(Duration::from_millis(50)),
                    result => break result?,
                }
            };
            let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            say(&format!("  {}  on {}  {}", container.label(), self.routers[index].name(), list.join("  ")));
            ensure!(addresses.len() == RANGES.len(), "expected an address of each range, got {list:?}");
            self.echoes.push(Echo::start(&container)?);
            self.containers.push(container);
            self.addresses.push(addresses);
        }
        Ok(())
    }

    fn all_to_all(&self) -> anyhow::Result<()> {
        heading("Every container to every other: UDP and TCP, IPv4 and IPv6; shown: UDP round trip");
        let mut line = String::from("  from\\to ");
        for to in &self.containers {
            write!(line, "{:>20}", to.label())?;
        }
        say(&line);
        for (from, container) in self.containers.iter().enumerate() {
            self.go_on()?;
            let mut line = format!("  {:<8}", container.label());
            for to in 0..self.containers.len() {
                let cell = if to == from { "-".to_owned() } else { self.pair(from, to)? };
                write!(line, "{cell:>20}")?;
            }
            say(&line);
        }
        Ok(())
    }

    /// All protocols between two containers; the best round-trip times.
    fn pair(&self, from: usize, to: usize) -> anyhow::Result<String> {
        let mut times = Vec::new();
        for address in &self.addresses[to] {
            let (container, ip) = (&self.containers[from], address.addr());
            let what = |protocol: &str| format!("{protocol} from {} to {ip}", container.label());
            let mut best = Duration::MAX;
            for _ in 0..5 {
                best = best.min(udp_echo(container, ip, b"hello", PATIENCE).with_context(|| what("UDP"))?);
            }
            tcp_echo(container, ip, &[0x5a; 50_000], PATIENCE).with_context(|| what("TCP"))?;
            times.push(format!("{:.2}", best.as_secs_f64() * 1e3));
        }
        Ok(format!("{} ms", times.join(" / ")))
    }

    fn look_at_the_wire(&self) -> anyhow::Result<()> {
        heading("Capture everything between the hosts while the containers exchange a known text");
        let text = b"Weft demo: nobody reads this text";
        self.lab.wire().start_capture(64 << 20);
        let (from, to) = (0, self.containers.len() - 1);
        for address in &self.addresses[to] {
            for _ in 0..20 {
                udp_echo(&self.containers[from], address.addr(), text, PATIENCE)?;
            }
            tcp_echo(&self.containers[from], address.addr(), &text.repeat(100), PATIENCE)?;
        }
        let (frames, _) = self.lab.wire().take_capture();
        let mut needles: Vec<(String, Vec<u8>)> = vec![("the text".into(), text.to_vec())];
        for (container, addresses) in self.containers.iter().zip(&self.addresses) {
            if let Some(mac) = container.link(crate::netlink::container::INTERFACE)?.and_then(|link| link.mac) {
                needles.push((format!("the MAC address of {}", container.label()), mac.to_vec()));
            }
            for ip in addresses.iter().map(IpNet::addr) {
                needles.push((format!("the address {ip}"), octets(ip)));
            }
        }
        ensure!(frames.len() > 100, "only {} frames were seen between the hosts", frames.len());
        for captured in &frames {
            for (name, needle) in &needles {
                ensure!(!contains(&captured.frame, needle), "{name} was seen between the hosts");
            }
        }
        let bytes: usize = frames.iter().map(|captured| captured.frame.len()).sum();
        say(&format!(
            "  {} frames, {bytes} bytes: neither the text nor a MAC or address of a container is in them",
            frames.len()
        ));
        Ok(())
    }

    fn throughput(&self) -> anyhow::Result<()> {
        heading("TCP throughput, all on this one machine, the network between the hosts included");
        for address in &self.addresses[1] {
            self.go_on()?;
            let second = Duration::from_secs(1);
            let done = tcp_transfer(&self.containers[0], address.addr(), u64::MAX, second, PATIENCE)?;
            say(&format!(
                "  {} -> {:<20} {:>7.0} Mbit/s   ({} bytes, SHA-256 compared)",
                self.containers[0].label(),
                address.addr().to_string(),
                done.megabits(),
                done.bytes
            ));
        }
        Ok(())
    }

    fn cut_and_heal(&self) -> anyhow::Result<()> {
        let last = self.routers.len() - 1;
        let (a, b) = (self.routers[0].name(), self.routers[last].name());
        heading(&format!("Cut {a} and {b} off from each other while their containers talk"));
        let ip = self.addresses[last][0].addr();
        let stream = GapStream::start(&self.containers[0], ip, Duration::from_millis(10))?;
        thread::sleep(Duration::from_millis(300));
        self.lab.wire().cut(0, last);
        self.wait_for("the mesh to route around the cut", |demo| Ok(demo.carrier(0, b)?.0 == "relay"))?;
        // Until the stream has run over the new way for a while.
        thread::sleep(Duration::from_secs(1));
        let report = stream.finish()?;
        ensure!(report.longest_gap < Duration::from_secs(4), "the gap was {:?}", report.longest_gap);
        let via = self.carrier(0, b)?.1.unwrap_or_else(|| "another peer".to_owned());
        say(&format!(
            "  {b} is reached through {via}, which cannot read it; the longest gap in a packet every\n  \
             10 ms was {:.2} s ({} of {} came back)",
            report.longest_gap.as_secs_f64(),
            report.received,
            report.sent
        ));
        say(&format!("  box1 -> box{}: {}", last + 1, self.pair(0, last)?));
        self.peers()?;
        heading("Mend the cut");
        self.lab.wire().heal(0, last);
        let before = Instant::now();
        self.wait_for("the direct way to be taken again", |demo| Ok(demo.carrier(0, b)?.0 != "relay"))?;
        say(&format!("  {b} is reached directly again after {:.1} s", before.elapsed().as_secs_f64()));
        say(&format!("  box1 -> box{}: {}", last + 1, self.pair(0, last)?));
        Ok(())
    }

    /// By what, and through whom, a router reaches a peer that it counts as established.
    fn carrier(&self, router: usize, peer: &str) -> anyhow::Result<(String, Option<String>)> {
        let status = self.routers[router].status()?;
        let mut peers = status["peers"].as_array().into_iter().flatten();
        let found = peers
            .find(|found| found["name"] == peer && found["state"] == "established")
            .ok_or_else(|| anyhow!("{peer} is not established: {status}"))?;
        let carrier = found["carrier"].as_str().unwrap_or_default().to_owned();
        Ok((carrier, found["via_name"].as_str().map(str::to_owned)))
    }

    fn peers(&self) -> anyhow::Result<()> {
        heading(&format!("What {} says of its peers: $ weft peers", self.routers[0].name()));
        for line in self.routers[0].command(["peers"])?.lines() {
            say(&format!("  {line}"));
        }
        Ok(())
    }

    fn wait_for_the_end(&self) {
        heading("The mesh is left running until Ctrl-C. To look around:");
        for router in &self.routers {
            say(&format!("  {}  weft --socket {} status", router.name(), router.socket().display()));
        }
        for container in &self.containers {
            say(&format!("  {}  nsenter --net={} ip address", container.label(), container.target().display()));
        }
        while !self.stop.load(Ordering::Acquire) {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

fn heading(text: &str) {
    say(&format!("\n* {text}"));
}

fn say(line: &str) {
    print(&format!("{line}\n"));
}

/// 128 bits from the system, in hexadecimal.
fn random_secret() -> anyhow::Result<String> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow!("the system gives no random bytes"))?;
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}")?;
    }
    Ok(text)
}

fn octets(ip: std::net::IpAddr) -> Vec<u8> {
    match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_needle_is_found_wherever_it_is() {
        assert!(contains(b"abcdef", b"abc") && contains(b"abcdef", b"def") && contains(b"abc", b"abc"));
        assert!(!contains(b"abcdef", b"abd") && !contains(b"ab", b"abc"));
    }

    #[test]
    fn no_two_secrets_are_the_same() {
        let (a, b) = (random_secret().unwrap(), random_secret().unwrap());
        assert_eq!(a.len(), 32);
        assert_ne!(a, b);
    }
}
