//! Real runtimes: containerd's `ctr`, and podman with its CNI back end. Nothing is pulled: their
//! containers run on a directory with busybox.
//!
//! ```text
//!   test ─ stdin ─► bash (own mount namespace: own /etc/cni, /opt/cni)    ends all below when stdin ends
//!                     └── containerd (network of host N, own root, state, socket)
//!                           └── shim ── container
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    time::Duration,
};

use ipnet::IpNet;
use serde_json::{Value, json};
use weft::lab::{Host, wait_until};

use crate::{
    PLUGINS,
    busybox::{PATH, make_root},
    world::{Must as _, PATIENCE, World, both_families, text},
};

/// Longest time for a command.
const LIMIT: Duration = Duration::from_secs(30);
/// What a container serves, and where.
const PAGE: &str = "a page of the other host\n";

/// From when the test ends (or is killed) to when nothing of containerd is left. `ctr` has the folders
/// of CNI built in, so each host has its own at that place.
const KEEPER: &str = r#"
set -eu
mkdir -p "$DIR/over"
mount -t tmpfs tmpfs "$DIR/over"
for place in etc opt; do
  mkdir "$DIR/over/$place" "$DIR/over/$place.work"
  mount -t overlay overlay -o "lowerdir=/$place,upperdir=$DIR/over/$place,workdir=$DIR/over/$place.work" "/$place"
done
rm -rf /etc/cni/net.d
mkdir -p /etc/cni/net.d /opt/cni/bin
cp "$CONFLIST" /etc/cni/net.d/10-weft.conflist
for plugin in "$BIN"/* /usr/lib/cni/portmap; do ln -sf "$plugin" /opt/cni/bin/; done
containerd --config "$DIR/config.toml" </dev/null >"$DIR/log" 2>&1 &
engine=$!
cat >/dev/null
set +e
ctr -a "$DIR/c.sock" tasks ls -q 2>/dev/null | while read -r id; do ctr -a "$DIR/c.sock" tasks kill -s KILL "$id"; done
sleep 0.3
kill -TERM $engine 2>/dev/null
for _ in $(seq 50); do kill -0 $engine 2>/dev/null || break; sleep 0.1; done
kill -KILL $engine 2>/dev/null
wait $engine
exit 0
"#;

/// A root of busybox that serves a page.
fn root(dir: &Path) -> io::Result<PathBuf> {
    let root = dir.join("root");
    make_root(&root, &["sh", "httpd", "wget", "ip", "sleep"], "page", PAGE.as_ref())?;
    Ok(root)
}

/// The example's conflist, for the router of a host.
pub(crate) fn conflist(world: &World, host: usize) -> Value {
    let example = include_str!("../../../examples/cni/10-weft.conflist");
    let mut conflist: Value = serde_json::from_str(example).must("the example is JSON");
    conflist["plugins"][0]["socket"] = json!(world.routers[host].socket());
    conflist
}

/// Parent of the control groups of all containers.
fn group() -> String {
    format!("/weft-test-{}", std::process::id())
}

/// Removes the control groups that are left empty; podman does not.
fn remove_groups() {
    let ours = format!("*{}*", group());
    let find = ["/sys/fs/cgroup", "-depth", "-type", "d", "-path", &ours, "-exec", "rmdir", "{}", "+"];
    let _ = Command::new("find").args(find).env("PATH", PATH).stderr(Stdio::null()).status();
}

fn said(output: &Output, what: &str) -> io::Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{what}: {}: {}", output.status, error.trim())))
}

/// Addresses of the one pod of a host, by what the router says of it.
fn pod_addresses(world: &World, host: usize, id: &str) -> Vec<IpNet> {
    let list = world.json(host, &["ps"]);
    let one = list.as_array().into_iter().flatten().find(|one| text(&one["owner"]).contains(id));
    let one = one.must(&format!("{id} in {list}"));
    serde_json::from_value(one["addresses"].clone()).must("addresses")
}

fn url(address: &IpNet) -> String {
    match address.addr() {
        std::net::IpAddr::V4(ip) => format!("http://{ip}/page"),
        std::net::IpAddr::V6(ip) => format!("http://[{ip}]/page"),
    }
}

/// Pods fetch the page from each other, by both protocols.
#[track_caller]
fn pods_reach(world: &World, ids: [&str; 2], exec: &dyn Fn(usize, &[&str]) -> io::Result<String>) {
    for (from, to) in [(0, 1), (1, 0)] {
        let addresses = pod_addresses(world, to, ids[to]);
        both_families(&addresses);
        for address in &addresses {
            let fetch = || exec(from, &["wget", "-q", "-O", "-", &url(address)]);
            assert!(
                wait_until(PATIENCE, || fetch().is_ok_and(|page| page == PAGE.trim())),
                "{} to {address}: {:?}",
                ids[from],
                fetch()
            );
        }
    }
}

/// A running containerd; it ends when it is dropped.
struct Containerd {
    dir: PathBuf,
    keeper: Child,
    /// Its end is what tells the keeper to clean up.
    stdin: Option<ChildStdin>,
}

impl Containerd {
    fn start(world: &World, host: usize) -> io::Result<Self> {
        let dir = world.lab.dir().join(format!("ctr{host}"));
        fs::create_dir_all(&dir)?;
        let conf = dir.join("conflist");
        fs::write(&conf, conflist(world, host).to_string())?;
        let shown = dir.display();
        let config = format!(
            "version = 2\nroot = \"{shown}/data\"\nstate = \"{shown}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{shown}/c.sock\"\n"
        );
        fs::write(dir.join("config.toml"), config)?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "bash", "-c", KEEPER])
            .env("PATH", PATH)
            .env("DIR", &dir)
            .env("BIN", &world.bin)
            .env("CONFLIST", &conf)
            .stdin(Stdio::piped());
        // A child is born in the network namespace of the thread that starts it.
        let spawned = world.lab.host(host).namespace().run(|| command.spawn());
        let mut keeper = spawned.map_err(io::Error::other)??;
        let stdin = keeper.stdin.take();
        let containerd = Self { dir, keeper, stdin };
        if wait_until(PATIENCE, || containerd.ctr(&["version"]).is_ok()) {
            return Ok(containerd);
        }
        let log = fs::read_to_string(containerd.dir.join("log")).unwrap_or_default();
        Err(io::Error::other(format!("containerd does not answer:\n{log}")))
    }

    /// `ctr` where containerd is: it runs plugins itself.
    fn command(&self, args: &[&str]) -> Command {
        let of = |kind: &str| format!("--{kind}=/proc/{}/ns/{kind}", self.keeper.id()).replace("ns/mount", "ns/mnt");
        let mut command = Command::new("nsenter");
        command.args([of("mount"), of("net")]).arg("ctr").arg("-a").arg(self.dir.join("c.sock")).args(args);
        command.env("PATH", PATH).stdin(Stdio::null());
        command
    }

    fn ctr(&self, args: &[&str]) -> io::Result<String> {
        said(&self.command(args).output()?, &args.join(" "))
    }

    /// Starts a container that serves until it is killed; `ctr` stays, and calls DEL at its end.
    fn run(&self, root: &Path, id: &str) -> io::Result<Child> {
        let root = root.display().to_string();
        let group = format!("{}/{id}", group());
        let args = ["run", "--rm", "--cni", "--cgroup", &group];
        let args = [&args[..], &["--rootfs", &root, id, "/bin/httpd", "-f", "-p", "80", "-h", "/srv"]].concat();
        self.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()
    }

    fn exec(&self, id: &str, command: &[&str]) -> io::Result<String> {
        // It looks programs up where it is itself.
        self.ctr(&[&["tasks", "exec", "--exec-id", "x", id, "/bin/busybox"][..], command].concat())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if !wait_until(LIMIT, || !matches!(self.keeper.try_wait(), Ok(None))) {
            let _ = self.keeper.kill();
            let _ = self.keeper.wait();
        }
    }
}

pub(crate) fn containerds() {
    let mut world = World::start();
    let root = root(world.lab.dir()).must("make a root");
    let engines = [0, 1].map(|host| Containerd::start(&world, host).must("start containerd"));
    let ids = ["one", "two"];
    let mut runs: Vec<Child> =
        engines.iter().zip(ids).map(|(engine, id)| engine.run(&root, id).must("run a container")).collect();
    for host in 0..2 {
        if !wait_until(PATIENCE, || world.attached(host).len() == 1) {
            let _ = runs[host].kill();
            let output = runs.remove(host).wait_with_output().must("wait");
            panic!("no pod on host {host}: {output:?}");
        }
    }
    let exec = |host: usize, command: &[&str]| engines[host].exec(ids[host], command);
    pods_reach(&world, ids, &exec);
    world.routers[0].kill().must("kill");
    world.routers[0].restart().must("start again");
    pods_reach(&world, ids, &exec);
    // The end of a container is a DEL without a namespace, of what its router may have restarted for.
    for (host, run) in runs.iter_mut().enumerate() {
        engines[host].ctr(&["tasks", "kill", "-s", "KILL", ids[host]]).must("kill");
        assert!(wait_until(PATIENCE, || !matches!(run.try_wait(), Ok(None))), "ctr does not end");
    }
    world.nothing_is_left();
    drop(engines);
    remove_groups();
    world.end();
}

/// podman on a host: no daemon, so a command for each thing.
struct Podman<'a> {
    dir: PathBuf,
    host: &'a Host,
}

impl<'a> Podman<'a> {
    fn new(world: &World, host: &'a Host) -> io::Result<Self> {
        let dir = world.lab.dir().join(format!("podman{}", host.index()));
        fs::create_dir_all(dir.join("net.d"))?;
        fs::write(dir.join("net.d/10-weft.conflist"), conflist(world, host.index()).to_string())?;
        let conf = format!(
            "[network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{}\", \"{PLUGINS}\"]\n\
             network_config_dir = \"{}/net.d\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n\
             [containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=10000:10000\"]\n",
            world.bin.display(),
            dir.display()
        );
        fs::write(dir.join("containers.conf"), conf)?;
        Ok(Self { dir, host })
    }

    fn podman(&self, args: &[&str]) -> io::Result<String> {
        let mut command = Command::new("timeout");
        command.args([&LIMIT.as_secs().to_string(), "podman", "--storage-driver", "vfs"]);
        for (flag, folder) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(self.dir.join(folder));
        }
        command.args(args).env("PATH", PATH).env("CONTAINERS_CONF", self.dir.join("containers.conf"));
        command.stdin(Stdio::null());
        let output = self.host.namespace().run(|| command.output()).map_err(io::Error::other)??;
        said(&output, &args.join(" "))
    }

    fn run(&self, root: &Path, name: &str, more: &[&str]) -> io::Result<()> {
        let root = root.display().to_string();
        let group = group();
        let args = [&["run", "-d", "--cgroup-parent", &group, "--name", name][..], more].concat();
        let args = [&args[..], &["--rootfs", &root, "/bin/httpd", "-f", "-p", "80", "-h", "/srv"]].concat();
        self.podman(&args).map(drop)
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        let _ = self.podman(&["rm", "-f", "-t", "0", "-a"]);
    }
}

pub(crate) fn podmans() {
    let world = World::start();
    let hosts = [0, 1].map(|host| Podman::new(&world, world.lab.host(host)).must("set podman up"));
    let names = ["one", "two"];
    let wishes: [&[&str]; 2] = [&["--ip", "10.33.1.7", "--mac-address", "02:42:c0:00:02:07"], &["-p", "8080:80"]];
    for ((podman, name), more) in hosts.iter().zip(names).zip(wishes) {
        let root = root(&podman.dir).must("make a root");
        podman.run(&root, name, &[&["--network", "weft"], more].concat()).must("run a container");
    }
    let ids = [0, 1].map(|host| hosts[host].podman(&["inspect", "-f", "{{.Id}}", names[host]]).must("inspect"));
    let exec = |host: usize, command: &[&str]| hosts[host].podman(&[&["exec", names[host]], command].concat());
    pods_reach(&world, [&ids[0], &ids[1]], &exec);
    assert_eq!(pod_addresses(&world, 0, &ids[0])[0].to_string(), "10.33.1.7/12");
    let inside = exec(0, &["ip", "link", "show", "dev", "eth0"]).must("look inside");
    assert!(inside.contains("02:42:c0:00:02:07"), "{inside}");
    // One host fetches from the other host's port.
    let there = format!("http://{}:8080/page", world.lab.host(1).v4());
    let fetch = || Command::new("busybox").args(["wget", "-q", "-O", "-", &there]).env("PATH", PATH).output();
    let fetched = hosts[0].host.namespace().run(fetch).must("enter the host").must("run busybox");
    assert_eq!(said(&fetched, "wget").must("fetch"), PAGE.trim());
    for (podman, name) in hosts.iter().zip(names) {
        podman.podman(&["stop", "-t", "0", name]).must("stop");
        podman.podman(&["rm", name]).must("remove");
    }
    world.nothing_is_left();
    drop(hosts);
    remove_groups();
    world.end();
}

/// Containers that podman gave no network, attached by `weft attach` as a user does it.
pub(crate) fn attached_podmans() {
    let mut world = World::start();
    // Only the lab is borrowed: a router is killed below.
    let lab = &world.lab;
    let hosts = [0, 1].map(|host| Podman::new(&world, lab.host(host)).must("set podman up"));
    let names = ["one", "two"];
    for (host, (podman, name)) in hosts.iter().zip(names).enumerate() {
        let root = root(&podman.dir).must("make a root");
        podman.run(&root, name, &["--network", "none"]).must("run a container");
        let pid = podman.podman(&["inspect", "-f", "{{.State.Pid}}", name]).must("inspect");
        world.routers[host].command(["attach", &pid, "--name", name, "--service", "http=80"]).must("attach");
    }
    let owners = [0, 1].map(|host| world.attached(host).pop_first().must("one that is attached"));
    let exec = |host: usize, command: &[&str]| hosts[host].podman(&[&["exec", names[host]], command].concat());
    pods_reach(&world, [&owners[0], &owners[1]], &exec);
    let knows = |world: &World, host: usize, name: &str| {
        let output = world.routers[host].cli(["dns", "lookup", name]).must("look up");
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    for (host, name) in names.into_iter().enumerate() {
        let list = world.routers[host].command(["ps"]).must("ps");
        assert!(list.contains(name) && list.lines().count() == 2, "{list}");
        let told = || world.json(1 - host, &["dns", "list"]).to_string();
        assert!(wait_until(PATIENCE, || told().matches("\"port\":80").count() == 2), "{}", told());
        assert!(wait_until(PATIENCE, || knows(&world, 1 - host, name) == 2), "{name} on the other host");
    }
    // One is removed while its router is away, the other while it is there: of neither anything is left.
    world.routers[0].kill().must("kill");
    for (podman, name) in hosts.iter().zip(names) {
        podman.podman(&["rm", "-f", "-t", "0", name]).must("remove");
    }
    world.routers[0].restart().must("start again");
    world.nothing_is_left();
    world.ready(0);
    for (host, name) in names.into_iter().enumerate() {
        assert_eq!(knows(&world, 1 - host, name), 0, "{name} has ended");
    }
    drop(hosts);
    remove_groups();
    world.end();
}
