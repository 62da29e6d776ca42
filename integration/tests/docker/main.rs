//! Containers of real Docker engines on two hosts, in one network.
//!
//! ```text
//!   engine 1 ─ container "one" ─ weft0 ─┐               ┌─ weft0 ─ container "two" ─ engine 2
//!                                router 1 ─ lab's wire ─ router 2
//! ```
//!
//! Needs root, because Docker does; `scripts/setup` installs what it needs. In continuous
//! integration a machine without fails the test; elsewhere it is said that it did not run.

#![allow(clippy::print_stderr, reason = "the harness tells the person who runs it what failed")]

#[path = "../harness/advertise.rs"]
mod advertise;
mod advertised;
#[path = "../kube/apiserver.rs"]
#[expect(dead_code, reason = "its faults are for the tests of weft-kube")]
mod apiserver;
#[path = "../harness/busybox.rs"]
mod busybox;
mod daemonset;
mod engine;
#[path = "../harness/mod.rs"]
mod harness;
mod image;
mod isolation;
mod network;
mod newcomer;
mod reboot;

use std::{
    fs, io,
    net::IpAddr,
    panic,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use engine::{Engine, missing_program};
use harness::{Must, bounded, end_with_the_parent};
use ipnet::IpNet;
use libtest_mimic::{Arguments, Trial};
use rustix::{
    io::Errno,
    process::{WaitOptions, wait},
};
use serde_json::Value;
use weft::lab::{
    Lab, LabConfig,
    router::{Router, RouterConfig, write_secret},
    wait_until,
};

/// Where the router of each host answers names, once its host has that address.
const RESOLVERS: [&str; 2] = ["10.32.99.1", "10.32.100.1"];
/// In the environment of a process that shall be `weft` and not the harness.
const ROUTER: &str = "DOCKER_TEST_ROUTER";
/// In the environment of one that shall be `weft-kube`.
const KUBE: &str = "DOCKER_TEST_KUBE";
/// Value of these in a container: its engine ends it, and a command that is run in it loses its parent early.
const CONTAINED: &str = "in a container";
/// How long any one thing may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// After so long a case has failed. An engine tries for 15 s to reach a driver that is away, and a busy disk makes
/// each of its steps ten times as long.
const LIMIT: Duration = Duration::from_secs(240);

fn main() -> ExitCode {
    // As the plugin by the name under which runtimes run it, else by the variable.
    let plugin = std::env::args_os().next().is_some_and(|name| Path::new(&name).ends_with(weft::cni::NAME));
    if plugin {
        return weft::cli::main();
    }
    let role = [KUBE, ROUTER].into_iter().find_map(|name| Some((name, std::env::var_os(name)?)));
    if let Some((name, value)) = role {
        if value != CONTAINED {
            end_with_the_parent();
        }
        return if name == KUBE { weft_kube::cli::main() } else { weft::cli::main() };
    }
    let mut arguments = Arguments::from_args();
    let lacking = lacking();
    if let Some(lacking) = &lacking {
        eprintln!("the tests with Docker cannot run: {lacking}");
        if std::env::var_os("CI").is_some() && !arguments.list {
            return ExitCode::FAILURE;
        }
    }
    // What an engine leaves behind when it dies becomes our child and is seen at the end.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        eprintln!("orphans of the engines will not be seen: {error}");
    }
    let cases: [(&str, fn()); 8] = [
        ("containers_of_two_engines_share_a_network", containers_of_two_engines_share_a_network),
        ("the_image_runs_with_the_capabilities_it_names", image::the_image_runs_with_the_capabilities_it_names),
        (
            "the_image_of_the_dockerfile_runs_as_the_manifest_says",
            daemonset::the_image_of_the_dockerfile_runs_as_the_manifest_says,
        ),
        ("containers_of_two_engines_share_a_docker_network", network::containers_of_two_engines_share_a_docker_network),
        ("two_networks_on_two_hosts_are_kept_apart", isolation::two_networks_on_two_hosts_are_kept_apart),
        ("a_host_that_reboots_regains_its_networks", reboot::a_host_that_reboots_regains_its_networks),
        ("what_the_page_tells_a_newcomer_works_to_the_end", newcomer::what_the_page_tells_a_newcomer_works_to_the_end),
        ("fifty_containers_start_at_once", network::fifty_containers_start_at_once),
    ];
    let trials =
        cases.map(|(name, body)| Trial::test(name, move || bounded(LIMIT, body)).with_ignored_flag(lacking.is_some()));
    // One after the other: each looks for what it left behind.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// What the machine lacks.
fn lacking() -> Option<String> {
    if !weft::lab::is_root() {
        return Some("Docker needs root".to_owned());
    }
    missing_program().map(|program| format!("`{program}` is not installed; scripts/setup installs it"))
}

/// An engine on each of two hosts.
fn start_engines(lab: &Lab) -> Vec<Engine> {
    let starts = |index: usize| Engine::start(lab.host(index), lab.dir().join(format!("docker{index}")));
    let engines: Vec<io::Result<Engine>> = thread::scope(|scope| {
        let threads = [0, 1].map(|index| scope.spawn(move || starts(index)));
        threads.into_iter().map(|thread| thread.join().must_not_panic()).collect()
    });
    engines.into_iter().map(|engine| engine.must("start an engine")).collect()
}

/// The rules of a host for what it forwards, as iptables lists them.
fn forward_rules(lab: &Lab, host: usize) -> String {
    let run = || Command::new("iptables").args(["-S", "FORWARD"]).env("PATH", busybox::PATH).output();
    let output = lab.host(host).namespace().run(run).must("enter the host").must("run iptables");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the containers serve: large enough to need many full-sized segments.
fn data() -> Vec<u8> {
    (0..400_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Two hosts with an engine and a router each. Fields end in this order.
struct World {
    routers: Vec<Router>,
    engines: Vec<Engine>,
    lab: Lab,
}

impl World {
    fn start() -> Self {
        let lab = Lab::new(&LabConfig::hosts(2)).must("make two hosts");
        let engines = start_engines(&lab);
        let mut world = Self { routers: Vec::new(), engines, lab };
        for index in 0..2 {
            let router = Router::start(&world.lab, world.lab.host(index), world.router_config(index));
            world.routers.push(router.must("start a router"));
        }
        world
    }

    fn router_config(&self, index: usize) -> RouterConfig {
        let secret = self.lab.dir().join(format!("secret{index}"));
        write_secret(&secret, "the same on every host 2718281828").must("write the secret");
        let config = RouterConfig {
            exe: std::env::current_exe().must("find this binary"),
            env: vec![(ROUTER.into(), "1".into()), ("DOCKER_HOST".into(), self.engines[index].host().into())],
            args: Vec::new(),
        };
        let config = config.with(["--range", "10.32.0.0/12", "--range", "fd00:32::/64"]);
        let config = config.with(["--secret-file".into(), secret.into_os_string()]);
        let config = config.with(["--docker-socket".into(), self.engines[index].plugin().into_os_string()]);
        let config = config.with(["--dns-listen".to_owned(), format!("{}:53", RESOLVERS[index])]);
        match index {
            0 => config,
            _ => config.with(["--peer".to_owned(), self.lab.host(0).v4().to_string()]),
        }
    }

    /// `weft attach`; the addresses that it printed.
    fn attach(&self, host: usize, target: &str) -> Vec<IpNet> {
        let printed = self.routers[host].command(["attach", target]).must("attach");
        printed.lines().map(|line| line.trim().parse().must("an address")).collect()
    }

    /// A command that must fail, and what it said.
    fn refused(&self, host: usize, args: &[&str]) -> String {
        let output = self.routers[host].cli(args).must("run weft");
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn json(&self, host: usize, command: &str) -> Value {
        let text = self.routers[host].command([command, "-o", "json"]).must(command);
        serde_json::from_str(&text).must("JSON")
    }

    /// Everything that `weft ps` of a host lists: target and addresses.
    fn attached(&self, host: usize) -> Vec<(String, Vec<IpNet>)> {
        let list = self.json(host, "ps");
        let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
        let addresses = |entry: &Value| serde_json::from_value(entry["addresses"].clone()).must("addresses");
        entries.iter().map(|entry| (text(&entry["target"]), addresses(entry))).collect()
    }

    /// Every host comes to know the name by these addresses, and no others.
    #[track_caller]
    fn named(&self, name: &str, addresses: &[IpNet]) {
        let mut expected: Vec<String> = addresses.iter().map(|net| net.addr().to_string()).collect();
        expected.sort_unstable();
        for host in 0..2 {
            // It exits with 1 if there is none.
            let output = || self.routers[host].cli(["dns", "lookup", name]).must("look up").stdout;
            let found = || String::from_utf8_lossy(&output()).lines().map(str::to_owned).collect::<Vec<_>>();
            let known = wait_until(Duration::from_secs(2), || found() == expected);
            assert!(known, "host {host}: {name} is {:?} instead of {expected:?}", found());
        }
    }

    /// The host's rules for what it forwards.
    fn filter(&self, host: usize) -> String {
        forward_rules(&self.lab, host)
    }

    fn wait_until_established(&self) {
        for host in 0..2 {
            let fine = || self.routers[host].status().is_ok_and(|s| s["peers"][0]["state"] == "established");
            assert!(wait_until(PATIENCE, fine), "{}", self.routers[host].status().must("status"));
        }
    }

    /// One container reaches another by ICMP and fetches a file from it by TCP.
    #[track_caller]
    fn reaches(&self, (host, name): (usize, &str), to: &[IpNet]) {
        let engine = &self.engines[host];
        for ip in to.iter().map(IpNet::addr) {
            let there =
                wait_until(PATIENCE, || engine.exec(name, &["ping", "-c", "1", "-W", "1", &ip.to_string()]).is_ok());
            assert!(there, "{name} cannot ping {ip}: {}", engine.exec(name, &["ip", "address"]).must("look inside"));
            let url = match ip {
                IpAddr::V4(ip) => format!("http://{ip}/data"),
                IpAddr::V6(ip) => format!("http://[{ip}]/data"),
            };
            let sum = engine.exec(name, &["sh", "-c", &format!("wget -q -O - {url} | sha256sum")]).must("fetch");
            let expected = engine.exec(name, &["sha256sum", "/srv/data"]).must("sum");
            assert_eq!(sum.split(' ').next(), expected.split(' ').next(), "{name} fetches {url}");
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            for router in &self.routers {
                eprintln!("--- router of {}\n{}", router.name(), router.log_tail(4000));
            }
            for engine in &self.engines {
                eprintln!("--- engine\n{}", engine.log());
            }
        }
    }
}

/// Passes a panic of a thread on.
trait MustNotPanic<T> {
    fn must_not_panic(self) -> T;
}

impl<T> MustNotPanic<T> for thread::Result<T> {
    fn must_not_panic(self) -> T {
        self.unwrap_or_else(|panic| panic::resume_unwind(panic))
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn containers_of_two_engines_share_a_network() {
    on_two_hosts(act);
}

/// Has something happen in a world of two hosts, of which nothing is left behind.
fn on_two_hosts(act: fn(World)) {
    let world = World::start();
    let dir = world.lab.dir().to_owned();
    act(world);
    let left = leftovers(&dir);
    assert!(left.is_empty(), "left behind: {left:#?}");
}

/// What a world left behind: processes (orphans are our children), mounts, files, control groups.
fn leftovers(dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    if !wait_until(PATIENCE, || matches!(wait(WaitOptions::NOHANG), Err(Errno::CHILD))) {
        left.push("processes".to_owned());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").must("read the mounts");
    left.extend(mounts.lines().filter(|line| line.contains(&dir.display().to_string())).map(str::to_owned));
    left.extend(dir.exists().then(|| dir.display().to_string()));
    let group = engine::group("");
    for controller in fs::read_dir("/sys/fs/cgroup").must("list control groups").flatten() {
        let groups = fs::read_dir(controller.path()).into_iter().flatten().flatten();
        let ours = groups.filter(|entry| entry.file_name().to_string_lossy().starts_with(&group));
        left.extend(ours.map(|entry| entry.path().display().to_string()));
    }
    left
}

fn act(mut world: World) {
    // Docker's own bridge besides, as people run it, and no network at all but ours.
    world.engines[0].run("one", &[]).must("run a container");
    world.engines[1].run("two", &["--network", "none"]).must("run a container");
    world.wait_until_established();
    // What makes it hard: as soon as an engine forwards, it drops all that it did not ask for.
    assert!(world.filter(0).contains("-P FORWARD DROP"), "{}", world.filter(0));

    let one = world.attach(0, "one");
    let two = world.attach(1, "docker:two");
    for addresses in [&one, &two] {
        assert!(addresses.iter().any(|net| net.addr().is_ipv4()), "{addresses:?}");
        assert!(addresses.iter().any(|net| net.addr().is_ipv6()), "{addresses:?}");
    }
    world.reaches((0, "one"), &two);
    world.reaches((1, "two"), &one);
    assert_eq!(world.attached(0), [("docker:one".to_owned(), one.clone())]);
    assert_eq!(world.attached(1), [("docker:two".to_owned(), two.clone())]);
    world.named("one", &one);
    world.named("two.weft.local", &two);
    // A name and an id are the same container.
    let id = world.engines[0].docker(&["inspect", "-f", "{{.Id}}", "one"]).must("inspect");
    assert_eq!(world.attach(0, &id), one);
    assert_eq!(world.attached(0).len(), 1);

    refusals(&world);
    restart(&world, &one, &two);
    removal(&world, &two);

    // Detached by hand: the interface goes with the addresses.
    world.routers[1].command(["detach", "two"]).must("detach");
    assert!(world.attached(1).is_empty());
    assert!(world.engines[1].exec("two", &["ip", "link", "show", "weft0"]).is_err());

    // An engine that is gone is said to be gone, and the router goes on.
    assert!(world.engines[1].end(), "the engine does not end");
    let said = world.refused(1, &["attach", "docker:two"]);
    assert!(said.contains("Docker cannot be asked for container `two`"), "{said}");
    assert!(said.contains("docker.sock"), "{said}");
    assert_eq!(world.json(1, "peers")[0]["state"], "established");

    // A router that is taken down leaves the host's filter as it was.
    assert!(world.filter(0).contains("-A FORWARD -i weft -o weft -j ACCEPT"), "{}", world.filter(0));
    world.routers[0].command(["down"]).must("down");
    assert!(world.routers[0].wait_for_exit(PATIENCE).must("exit").success());
    assert!(!world.filter(0).contains("weft"), "{}", world.filter(0));
}

fn refusals(world: &World) {
    let said = world.refused(0, &["attach", "nobody"]);
    assert!(said.contains("there is no Docker container `nobody`"), "{said}");
    let said = world.refused(0, &["detach", "docker:nobody"]);
    assert!(said.contains("not attached"), "{said}");
    world.engines[0].docker(&["create", "--name", "idle", engine::IMAGE, "sh"]).must("create");
    let said = world.refused(0, &["attach", "idle"]);
    assert!(said.contains("not running"), "{said}");
}

/// A container that is started again is the same container: it gets its addresses back by itself.
fn restart(world: &World, one: &[IpNet], two: &[IpNet]) {
    world.engines[0].docker(&["restart", "-t", "0", "one"]).must("restart");
    let engine = &world.engines[0];
    let back = wait_until(PATIENCE, || engine.exec("one", &["ip", "link", "show", "weft0"]).is_ok());
    assert!(back, "not attached again");
    assert_eq!(world.attached(0), [("docker:one".to_owned(), one.to_vec())]);
    world.reaches((0, "one"), two);
    world.reaches((1, "two"), one);
    world.named("one", one);
}

/// A container that is removed gives its addresses back by itself.
fn removal(world: &World, two: &[IpNet]) {
    world.engines[0].docker(&["rm", "-f", "one"]).must("remove");
    world.named("one", &[]);
    let released = wait_until(PATIENCE, || world.attached(0).is_empty());
    assert!(released, "{:?}", world.attached(0));
    let ipam = world.json(0, "ipam");
    assert_eq!(ipam["used"], 0, "{ipam}");
    assert_eq!(world.attached(1), [("docker:two".to_owned(), two.to_vec())]);
}
