//! Two hosts with a router each, and what must not be left of them.

use std::{
    collections::BTreeSet,
    fmt::Display,
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use ipnet::IpNet;
use rustix::{
    io::Errno,
    process::{WaitOptions, wait},
};
use serde_json::{Value, json};
use weft::lab::{
    Container, Lab, LabConfig,
    router::{Router, RouterConfig, write_secret},
    traffic::{Echo, tcp_echo, udp_echo},
    wait_until,
};

pub(crate) use crate::harness::Must;
use crate::{
    ROUTER,
    busybox::PATH,
    driver::{Driver, Pod},
};

/// Whether the filter of IP sees what the bridges of a host carry.
const BRIDGE_FILTER: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
/// How long any one thing may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

impl Display for crate::driver::Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "code {}: {}", self.code, self.text)
    }
}

/// Two hosts with a router each. Fields end in this order.
pub(crate) struct World {
    pub(crate) routers: Vec<Router>,
    pub(crate) lab: Lab,
    /// Where the plugin is, under its name.
    pub(crate) bin: PathBuf,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::beside(0)
    }

    /// Besides the two, hosts that know nothing of the mesh: the third of the lab and so on.
    pub(crate) fn beside(others: usize) -> Self {
        let lab = Lab::new(&LabConfig::hosts(2 + others)).must("make hosts");
        let bin = lab.dir().join("bin");
        fs::create_dir(&bin).must("make a directory");
        let exe = std::env::current_exe().must("find this binary");
        std::os::unix::fs::symlink(exe, bin.join(weft::cni::NAME)).must("name the plugin");
        let mut world = Self { routers: Vec::new(), lab, bin };
        for index in 0..2 {
            let router = Router::start(&world.lab, world.lab.host(index), world.router_config(index));
            world.routers.push(router.must("start a router"));
        }
        (0..2).for_each(|host| world.ready(host));
        world
    }

    /// Waits until a router answers.
    #[track_caller]
    pub(crate) fn answers(&self, host: usize) {
        let router = &self.routers[host];
        assert!(wait_until(PATIENCE, || router.status().is_ok()), "{:?}", router.status());
    }

    /// Waits until a router gives addresses and knows the other.
    #[track_caller]
    pub(crate) fn ready(&self, host: usize) {
        let router = &self.routers[host];
        let fine = || router.status().is_ok_and(|s| s["ready"] == true && s["peers"][0]["state"] == "established");
        assert!(wait_until(PATIENCE, fine), "{:?}", router.status());
    }

    fn router_config(&self, index: usize) -> RouterConfig {
        let secret = self.lab.dir().join(format!("secret{index}"));
        write_secret(&secret, "the same on every host 2718281828").must("write the secret");
        let config = RouterConfig {
            exe: std::env::current_exe().must("find this binary"),
            env: vec![(ROUTER.into(), "1".into())],
            args: Vec::new(),
        };
        let config = config.with(["--range", "10.32.0.0/12", "--range", "fd00:32::/64"]);
        let config = config.with(["--secret-file".into(), secret.into_os_string()]);
        match index {
            0 => config,
            _ => config.with(["--peer".to_owned(), self.lab.host(0).v4().to_string()]),
        }
    }

    /// The network as a host's runtime has it, with these keys besides the router's socket.
    pub(crate) fn driver(&self, host: usize, version: &str, mut keys: Value) -> Driver<'_> {
        keys["socket"] = json!(self.routers[host].socket());
        Driver::new(self.lab.host(host), &self.bin, version, &keys)
    }

    pub(crate) fn json(&self, host: usize, command: &[&str]) -> Value {
        let output = self.routers[host].cli([command, &["-o", "json"]].concat()).must("run weft");
        serde_json::from_slice(&output.stdout).must("JSON")
    }

    /// Owners of everything that is attached to a host.
    pub(crate) fn attached(&self, host: usize) -> BTreeSet<String> {
        let list = self.json(host, &["ps"]);
        list.as_array().into_iter().flatten().map(|one| text(&one["owner"])).collect()
    }

    /// Owners of addresses of a host, but for the host itself.
    pub(crate) fn owners(&self, host: usize) -> BTreeSet<String> {
        let ipam = self.json(host, &["ipam"]);
        let owners = ipam["allocations"].as_array().into_iter().flatten().map(|one| text(&one["owner"]));
        owners.filter(|owner| owner != "weft:expose").collect()
    }

    /// The host ends of veth pairs, and what `bandwidth` makes beside them.
    pub(crate) fn host_ends(&self, host: usize) -> Vec<String> {
        let list = |kind| Command::new("ip").args(["-o", "link", "show", "type", kind]).env("PATH", PATH).output();
        let run = || ["veth", "ifb"].map(|kind| list(kind).must("run ip").stdout).concat();
        let output = self.lab.host(host).namespace().run(run).must("enter the host");
        String::from_utf8_lossy(&output).lines().map(str::to_owned).collect()
    }

    /// Runs a program on a host with that on its standard input; what it prints.
    #[track_caller]
    pub(crate) fn tool(&self, host: usize, command: &[&str], input: &str) -> String {
        let output = self.try_tool(host, command, input);
        assert!(output.status.success(), "{command:?}: {}\n{input}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same, if it may fail.
    #[track_caller]
    pub(crate) fn try_tool(&self, host: usize, command: &[&str], input: &str) -> Output {
        let run = || -> io::Result<Output> {
            let mut process = Command::new(command[0]);
            process.args(&command[1..]).env("PATH", PATH);
            let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that has ended already does not read.
                let _ = stdin.write_all(input.as_bytes());
            }
            child.wait_with_output()
        };
        self.lab.host(host).namespace().run(run).must("enter the host").must(command[0])
    }

    /// Has the filter of IP see what a host's bridges carry, or not: by the setting of the host and by that of the
    /// bridge, either of which is enough.
    #[track_caller]
    pub(crate) fn set_bridge_filter(&self, host: usize, on: bool) {
        self.set_hosts_bridge_filter(host, on);
        let value = if on { "1" } else { "0" };
        let settings = ["nf_call_iptables", value, "nf_call_ip6tables", value];
        self.tool(host, &[&["ip", "link", "set", "weft", "type", "bridge"][..], &settings].concat(), "");
    }

    /// The setting of the host alone.
    #[track_caller]
    pub(crate) fn set_hosts_bridge_filter(&self, host: usize, on: bool) {
        BRIDGE_FILTER.iter().for_each(|setting| self.set(host, setting, if on { "1" } else { "0" }));
    }

    /// Sets one of the kernel's settings on a host.
    #[track_caller]
    pub(crate) fn set(&self, host: usize, setting: &str, value: &str) {
        let write = || fs::write(Path::new("/proc/sys").join(setting), value);
        self.lab.host(host).namespace().run(write).must("enter the host").must(setting);
    }

    /// Whether the host's setting is on, and whether the bridge's own is, for both families alike.
    #[track_caller]
    pub(crate) fn bridge_filter(&self, host: usize) -> (bool, bool) {
        let read = || BRIDGE_FILTER.map(|setting| read_setting(setting) != "0");
        let [v4, v6] = self.lab.host(host).namespace().run(read).must("enter the host");
        let shown = self.tool(host, &["ip", "-j", "-d", "link", "show", "weft"], "");
        let shown: Value = serde_json::from_str(&shown).must("JSON");
        let of_bridge = &shown[0]["linkinfo"]["info_data"];
        assert_eq!((v4, &of_bridge["nf_call_iptables"]), (v6, &of_bridge["nf_call_ip6tables"]));
        (v4, of_bridge["nf_call_iptables"] == 1)
    }

    /// Rules of the host's packet filter, of all tables that plugins write into.
    pub(crate) fn rules(&self, host: usize) -> String {
        let run = |table: &str| Command::new("iptables").args(["-t", table, "-S"]).env("PATH", PATH).output();
        let all = || ["nat", "filter"].map(|table| run(table).map(|output| output.stdout).unwrap_or_default()).concat();
        String::from_utf8_lossy(&self.lab.host(host).namespace().run(all).must("enter the host")).into_owned()
    }

    /// Nothing of any pod is left: no address, no interface, no rule, and nothing that the audit finds.
    #[track_caller]
    pub(crate) fn nothing_is_left(&self) {
        for host in 0..2 {
            assert!(wait_until(PATIENCE, || self.attached(host).is_empty()), "{:?}", self.attached(host));
            assert!(wait_until(PATIENCE, || self.owners(host).is_empty()), "{:?}", self.owners(host));
            assert_eq!(self.host_ends(host), Vec::<String>::new());
            // The chains of `portmap` stay, but for those of each pod.
            let rules = self.rules(host);
            assert!(!rules.contains("CNI-DN-") && !rules.contains("10.3"), "{rules}");
            let audit = self.json(host, &["ipam", "check"]);
            for found in ["leaked", "missing", "contested"] {
                assert_eq!(audit[found], json!([]), "{audit}");
            }
        }
    }

    /// Ends it, and looks for what is left on the machine.
    pub(crate) fn end(self) {
        self.nothing_is_left();
        let dir = self.lab.dir().to_owned();
        drop(self);
        let left = leftovers(&dir);
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if thread::panicking() {
            for router in &self.routers {
                eprintln!("--- router of {}\n{}", router.name(), router.log_tail(4000));
            }
        }
    }
}

fn read_setting(name: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(name)).must(name).trim().to_owned()
}

/// What a world left behind: processes (orphans are our children), mounts, files.
fn leftovers(dir: &Path) -> Vec<String> {
    let mut left = Vec::new();
    if !wait_until(PATIENCE, || matches!(wait(WaitOptions::NOHANG), Err(Errno::CHILD))) {
        left.push("processes".to_owned());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").must("read the mounts");
    left.extend(mounts.lines().filter(|line| line.contains(&dir.display().to_string())).map(str::to_owned));
    left.extend(dir.exists().then(|| dir.display().to_string()));
    // What runtimes remember of results, by network, and what they hold by control group.
    let group = format!("weft-test-{}", std::process::id());
    for (folder, begins) in [("/var/lib/cni/results", "weft-"), ("/sys/fs/cgroup/pids", &group), ("/run/netns", "")] {
        let there = fs::read_dir(folder).into_iter().flatten().flatten();
        let ours = there.filter(|entry| entry.file_name().to_string_lossy().starts_with(begins));
        left.extend(ours.map(|entry| entry.path().display().to_string()));
    }
    left
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The addresses in a result.
pub(crate) fn addresses(result: &Value) -> Vec<IpNet> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.map(|ip| text(&ip["address"]).parse().must("an address")).collect()
}

/// A namespace that serves, and what a runtime calls it.
pub(crate) struct Served {
    pub(crate) pod: Pod,
    pub(crate) container: Container,
    _echo: Echo,
}

impl Served {
    pub(crate) fn new(id: &str) -> Self {
        let container = Container::new(id).must("make a namespace");
        let echo = Echo::start(&container).must("serve");
        let pod = Pod { id: id.to_owned(), netns: container.target().display().to_string() };
        Self { pod, container, _echo: echo }
    }

    /// Reaches others by TCP and UDP.
    #[track_caller]
    pub(crate) fn reaches(&self, to: &[IpNet]) {
        assert!(!to.is_empty());
        for ip in to.iter().map(IpNet::addr) {
            let bytes = b"from pod to pod".repeat(400);
            tcp_echo(&self.container, ip, &bytes, PATIENCE).must(&format!("{} reaches {ip} by TCP", self.pod.id));
            udp_echo(&self.container, ip, b"ping", PATIENCE).must(&format!("{} reaches {ip} by UDP", self.pod.id));
        }
    }
}

/// Both families, or it is no pod of a network with two.
#[track_caller]
pub(crate) fn both_families(addresses: &[IpNet]) {
    let of = |v4: bool| addresses.iter().filter(|net| net.addr().is_ipv4() == v4).count();
    assert_eq!((of(true), of(false)), (1, 1), "{addresses:?}");
}

/// The one address of each family, IPv4 first.
#[track_caller]
pub(crate) fn both(addresses: &[IpNet]) -> [IpAddr; 2] {
    both_families(addresses);
    [true, false].map(|v4| addresses.iter().map(IpNet::addr).find(|ip| ip.is_ipv4() == v4).must("one of each"))
}

/// The one address of a family.
pub(crate) fn v4(addresses: &[IpNet]) -> IpAddr {
    addresses.iter().map(IpNet::addr).find(IpAddr::is_ipv4).must("an IPv4 address")
}
