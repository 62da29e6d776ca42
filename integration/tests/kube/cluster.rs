//! Clusters of real routers in the lab, told of each other by nothing but the API.

use std::{
    ffi::OsString,
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::runtime::Runtime;
use weft::lab::{
    Container, Host, Lab, LabConfig,
    router::{Router, RouterConfig},
    traffic::{Echo, tcp_echo},
    wait_until,
};

use crate::{Case, KUBE, ROUTER, apiserver::ApiServer, harness::Must as _};

pub(crate) const CASES: &[Case] = &[
    ("nodes_that_start_together_found_one_network_and_another_joins_it", founding),
    ("a_node_that_is_deleted_gives_its_addresses_back", deletion),
    ("while_the_api_is_away_pods_come_and_reach_each_other", api_away),
];

const PATIENCE: Duration = Duration::from_secs(30);
/// Few enough addresses that all are seen to be owned.
const RANGE: &str = "10.60.0.0/22";
/// Those of them that can be given.
const USABLE: u64 = 1022;

/// A node: the router, and what runs beside it. The latter ends first.
struct Node {
    kube: Option<Child>,
    router: Router,
    kubeconfig: PathBuf,
    file: PathBuf,
}

/// Fields end in this order.
struct Cluster {
    nodes: Vec<Node>,
    lab: Lab,
    server: ApiServer,
    _runtime: Runtime,
}

/// Name and address of a host, as the API has them.
fn register(server: &ApiServer, host: &Host) {
    server.apply(host.name(), &format!("uid-{}", host.name()), &[&host.v4().to_string()]);
}

impl Cluster {
    fn new(hosts: usize) -> Self {
        let runtime = Runtime::new().must("a runtime");
        let server = ApiServer::new();
        let lab = Lab::new(&LabConfig::hosts(hosts)).must("make the lab");
        let mut nodes = Vec::new();
        for host in lab.hosts() {
            // A socket stays in the namespace in which it was made.
            let listener = host.namespace().run(|| TcpListener::bind("127.0.0.1:6443"));
            let listener = listener.must("enter the namespace").must("listen");
            let address = listener.local_addr().must("an address");
            server.serve(runtime.handle(), listener);
            let file = lab.dir().join(format!("{}.toml", host.name()));
            let kubeconfig = lab.dir().join(format!("{}.kubeconfig", host.name()));
            fs::write(&kubeconfig, server.kubeconfig(address).to_string()).must("write the kubeconfig");
            let args = ["--config".into(), file.clone().into(), "--range".into(), RANGE.into()];
            let exe = std::env::current_exe().must("find this binary");
            let config = RouterConfig { exe, env: vec![(ROUTER.into(), "1".into())], args: args.into() };
            let router = Router::prepare(&lab, host, config).must("prepare a router");
            nodes.push(Node { kube: None, router, kubeconfig, file });
        }
        Self { nodes, lab, server, _runtime: runtime }
    }

    /// `weft-kube` on a node.
    fn kube(&self, node: usize, args: &[&str]) -> Command {
        let Node { kubeconfig, file, .. } = &self.nodes[node];
        let log = fs::File::options().create(true).append(true).open(self.log(node)).must("open the log");
        let mut command = Command::new(std::env::current_exe().must("find this binary"));
        command
            .env(KUBE, "1")
            .env("KUBECONFIG", kubeconfig)
            .env("NODE_NAME", self.lab.host(node).name())
            .args(args)
            .arg("--config")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command
    }

    fn log(&self, node: usize) -> PathBuf {
        self.lab.dir().join(format!("kube-{node}.log"))
    }

    fn spawn(&self, node: usize, mut command: Command) -> Child {
        // A child is born in the namespace of the thread that starts it.
        self.lab.host(node).namespace().run(|| command.spawn()).must("enter the namespace").must("start weft-kube")
    }

    /// The init container; it ends by itself.
    fn init(&self, node: usize) -> Child {
        let host = self.lab.dir().join(format!("host-{node}"));
        let [bin, conf] = ["bin", "net.d"].map(|name| host.join(name));
        for dir in [&bin, &conf] {
            fs::create_dir_all(dir).must("make a directory");
        }
        let mut command = self.kube(node, &["init"]);
        let conflist = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/cni/10-weft.conflist");
        command.arg("--cni-bin-dir").arg(bin).arg("--cni-conf-dir").arg(conf).args(["--conflist", conflist]);
        // What is installed is copied: a small file does.
        command.args(["--plugin", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
        self.spawn(node, command)
    }

    /// The pod of a node, as a DaemonSet runs it: init, then the router and what is beside it.
    fn start(&mut self, nodes: &[usize]) {
        let inits: Vec<Child> = nodes.iter().map(|&node| self.init(node)).collect();
        for (mut init, &node) in inits.into_iter().zip(nodes) {
            let status = init.wait().must("wait for init");
            assert!(status.success(), "init of {node}: {status}: {}", self.said(node));
            let installed = self.lab.dir().join(format!("host-{node}"));
            assert!(installed.join("bin/weft-cni").is_file() && installed.join("net.d/10-weft.conflist").is_file());
        }
        for &node in nodes {
            self.nodes[node].router.launch().must("start a router");
            let mut command = self.kube(node, &["run", "--grace", "3"]);
            command.arg("--socket").arg(self.nodes[node].router.socket());
            self.nodes[node].kube = Some(self.spawn(node, command));
        }
    }

    fn said(&self, node: usize) -> String {
        fs::read_to_string(self.log(node)).unwrap_or_default()
    }

    fn all_said(&self) -> String {
        let said = |node: usize| format!("--- {node}\n{}{}\n", self.said(node), self.nodes[node].router.log_tail(3000));
        (0..self.nodes.len()).map(said).collect()
    }

    fn ipam(&self, node: usize) -> Option<Value> {
        let output = self.nodes[node].router.cli(["ipam", "-o", "json"]).ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Who owns how much, as a node sees it.
    fn owners(&self, node: usize) -> Vec<(String, u64)> {
        let ipam = self.ipam(node).unwrap_or_default();
        let owners = ipam["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut owners: Vec<_> = owners
            .iter()
            .filter(|owner| owner["owned"] != 0)
            .map(|owner| (owner["name"].as_str().unwrap_or("?").to_owned(), owner["owned"].as_u64().unwrap_or(0)))
            .collect();
        owners.sort();
        owners
    }

    /// Waits until these nodes, and no others, own addresses, and all of them say so.
    #[track_caller]
    fn wait_owned_by(&self, nodes: &[usize]) {
        let names: Vec<_> = nodes.iter().map(|&node| self.lab.host(node).name().to_owned()).collect();
        let held = wait_until(PATIENCE, || {
            let first = self.owners(nodes[0]);
            first.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>() == names
                && nodes.iter().all(|&node| self.owners(node) == first)
        });
        let seen: Vec<_> = nodes.iter().map(|&node| self.owners(node)).collect();
        assert!(held, "{names:?} shall own all; seen: {seen:?}\n{}", self.all_said());
    }

    /// How many addresses all together own, as a node sees it.
    fn owned(&self, node: usize) -> u64 {
        self.owners(node).iter().map(|(_, owned)| owned).sum()
    }

    /// The HTTP status of a node's readiness probe.
    fn ready(&self, node: usize) -> bool {
        use std::io::{Read as _, Write as _};
        let probe = || -> std::io::Result<String> {
            let mut stream = std::net::TcpStream::connect("127.0.0.1:6785")?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.lab.host(node).namespace().run(probe).must("enter the namespace");
        answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    #[track_caller]
    fn wait_ready(&self, nodes: &[usize]) {
        let held = wait_until(PATIENCE, || nodes.iter().all(|&node| self.ready(node)));
        assert!(held, "not ready:\n{}", self.all_said());
    }

    /// A pod on each of two nodes; the one reaches the other.
    fn pods_reach(&self, from: usize, to: usize, label: &str) {
        let [one, other] = ["x", "y"].map(|end| Container::new(&format!("{label}{end}")).must("make a pod"));
        self.nodes[from].router.attach(&one).must("attach");
        let addresses = self.nodes[to].router.attach(&other).must("attach");
        let _echo = Echo::start(&other).must("start the echo");
        for address in addresses {
            tcp_echo(&one, address.addr(), b"over the mesh", PATIENCE).must("TCP");
        }
    }

    /// The machine of a node is gone, with all that ran on it.
    fn dies(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        if let Some(mut kube) = node.kube.take() {
            kube.kill().must("kill");
            kube.wait().must("wait");
        }
        node.router.kill().must("kill the router");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(mut kube) = self.kube.take() else { return };
        if let Some(pid) = i32::try_from(kube.id()).ok().and_then(Pid::from_raw)
            && matches!(kube.try_wait(), Ok(None))
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        let end = Instant::now() + Duration::from_secs(8);
        while matches!(kube.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = kube.kill();
                let _ = kube.wait();
                assert!(std::thread::panicking(), "weft-kube did not end on SIGTERM");
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn founding() {
    let mut cluster = Cluster::new(4);
    // The first lists before the last is there: what it is told is less than the others are.
    for host in 0..2 {
        register(&cluster.server, cluster.lab.host(host));
    }
    let mut early = cluster.init(0);
    assert!(early.wait().must("wait for init").success(), "{}", cluster.said(0));
    assert!(fs::read_to_string(&cluster.nodes[0].file).must("the file").contains("consensus=2"));
    register(&cluster.server, cluster.lab.host(2));
    cluster.start(&[0, 1, 2]);
    cluster.wait_owned_by(&[0, 1, 2]);
    assert_eq!(cluster.owned(0), USABLE, "{:?}", cluster.owners(0));
    cluster.wait_ready(&[0, 1, 2]);
    cluster.pods_reach(0, 2, "founded");

    register(&cluster.server, cluster.lab.host(3));
    cluster.start(&[3]);
    cluster.wait_ready(&[3]);
    cluster.pods_reach(3, 1, "joined");
    cluster.wait_owned_by(&[0, 1, 2, 3]);
    // All dial it, by the API alone.
    let told = fs::read_to_string(&cluster.nodes[0].file).must("the file");
    assert!(told.contains(&cluster.lab.host(3).v4().to_string()), "{told}");
    for node in 0..4 {
        let ipam = cluster.ipam(node).must("ipam");
        assert_eq!(ipam["contested"].as_array().map(Vec::len), Some(0), "{ipam}");
    }
}

fn deletion() {
    let mut cluster = Cluster::new(3);
    for host in cluster.lab.hosts() {
        register(&cluster.server, host);
    }
    cluster.start(&[0, 1, 2]);
    cluster.wait_owned_by(&[0, 1, 2]);
    let all_noted = |cluster: &Cluster| {
        let notes = |node: usize| fs::read_to_string(cluster.nodes[node].file.with_extension("peers.json"));
        (0..2).all(|node| notes(node).is_ok_and(|notes| notes.contains("uid-host3")))
    };
    assert!(wait_until(PATIENCE, || all_noted(&cluster)), "{}", cluster.all_said());
    let [lost, later] = ["lost", "later"].map(|label| Container::new(label).must("make a pod"));
    let given = cluster.nodes[2].router.attach(&lost).must("attach")[0].to_string();
    cluster.dies(2);
    let claim = |cluster: &Cluster| {
        let target = later.target();
        cluster.nodes[0].router.command(["attach".as_ref(), target.as_os_str(), given.as_ref()])
    };
    cluster.server.delete(cluster.lab.host(2).name());
    cluster.wait_owned_by(&[0, 1]);
    let removals = [0, 1].map(|node| cluster.said(node).matches("was removed").count());
    assert!(removals.iter().sum::<usize>() >= 1, "{}", cluster.all_said());
    cluster.wait_ready(&[0, 1]);
    // What it had given is free again.
    assert!(claim(&cluster).must("claim the address").contains(&given));

    // A machine of the same name takes its place, with an empty disk.
    fs::remove_dir_all(cluster.nodes[2].router.data_dir()).must("empty the disk");
    fs::remove_file(&cluster.nodes[2].file).must("empty the disk");
    let host = cluster.lab.host(2);
    cluster.server.apply(host.name(), "uid-of-another", &[&host.v4().to_string()]);
    cluster.start(&[2]);
    cluster.wait_ready(&[0, 1, 2]);
    cluster.pods_reach(2, 0, "replaced");
    cluster.wait_owned_by(&[0, 1, 2]);
}

fn api_away() {
    let mut cluster = Cluster::new(2);
    for host in cluster.lab.hosts() {
        register(&cluster.server, host);
    }
    cluster.start(&[0, 1]);
    cluster.wait_ready(&[0, 1]);
    cluster.wait_owned_by(&[0, 1]);
    cluster.server.faults(|faults| faults.away = true);
    // Longer than the grace: one that is out of reach is a node as far as anybody knows.
    cluster.dies(1);
    let owned = cluster.owners(0);
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(cluster.owners(0), owned, "nobody was removed");
    // It starts again without the API server, from what it was told last.
    let init = cluster.kube(1, &["init", "--api-wait", "1"]);
    let [bin, conf] = ["bin", "net.d"].map(|name| cluster.lab.dir().join("host-1").join(name));
    let mut init = init;
    init.arg("--cni-bin-dir").arg(bin).arg("--cni-conf-dir").arg(conf).args([
        OsString::from("--conflist"),
        concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/cni/10-weft.conflist").into(),
        "--plugin".into(),
        concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into(),
    ]);
    let status = cluster.spawn(1, init).wait().must("wait for init");
    assert!(status.success(), "{}", cluster.said(1));
    cluster.nodes[1].router.restart().must("start the router");
    cluster.pods_reach(1, 0, "away");
    cluster.server.faults(|faults| faults.away = false);
    cluster.wait_owned_by(&[0, 1]);
}
