//! Hosts that are replaced, one by one, as an orchestrator does it: nobody types a command.

use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::runtime::Runtime;

use crate::{
    Case,
    ledger::{Ledger, Pod, RANGE, USABLE, agrees, for_each, post},
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, new_lab, retry},
};

pub(crate) const CASES: &[Case] =
    &[("every_host_is_killed_and_replaced_at_95_percent_and_every_request_is_served", 3600, every_host_is_replaced)];

const HOSTS: usize = 5;
/// Addresses in use: 95 % of those that can be given.
const IN_USE: usize = USABLE * 95 / 100;
/// How often every host is replaced: `WEFT_E2E_REPLACES`, or this.
const ROUNDS: usize = 1;
/// Requests under way at once at each host.
const AT_ONCE: usize = 8;
/// Containers that come and go on each host that lives while another one is dead. Their addresses have to be among
/// the 5 %, and what they had is not given again for 30 s.
const CHANGES: usize = 2;

/// What it took.
#[derive(Debug, Default)]
struct Tally {
    given: usize,
    slowest: Duration,
    longest_replacement: Duration,
}

/// The mesh, and what runs on it.
struct Fleet {
    mesh: Mesh,
    pods: Vec<Vec<Pod>>,
    ledger: Arc<Ledger>,
    runtime: Runtime,
    tally: Tally,
}

fn share(host: usize) -> usize {
    (IN_USE - host).div_ceil(HOSTS)
}

fn every_host_is_replaced() {
    let rounds = std::env::var("WEFT_E2E_REPLACES").map_or(ROUNDS, |text| text.parse().must("WEFT_E2E_REPLACES"));
    let args = ["--range", RANGE].map(Into::into).into();
    // A host that takes the place of another one is told of all others, as by an orchestrator's list.
    let told = (0..HOSTS).flat_map(|a| (0..HOSTS).filter(move |&b| a != b).map(move |b| (a, b))).collect();
    let config = MeshConfig { args, told, ..MeshConfig::star(HOSTS) };
    let mesh = Mesh::start_routers(new_lab(&config), &config);
    mesh.wait_established(PATIENCE);
    let mut fleet = Fleet {
        mesh,
        pods: (0..HOSTS).map(|_| Vec::new()).collect(),
        ledger: Arc::default(),
        runtime: Runtime::new().must("a runtime"),
        tally: Tally::default(),
    };
    for host in 0..HOSTS {
        fleet.fill(host);
    }
    for round in 0..rounds {
        for host in 0..HOSTS {
            fleet.replace(host);
        }
        fleet.all_agree();
        eprintln!("round {}: every host was replaced, {} addresses are in use; {:?}", round + 1, IN_USE, fleet.tally);
    }
}

impl Fleet {
    /// As many containers as belong on a host; each gets an address at the first attempt.
    fn fill(&mut self, host: usize) {
        let pods = Pod::make(&self.mesh, &self.ledger, &[(host, share(host))]);
        let (pods, slowest) = self.runtime.block_on(all_get_one(pods));
        self.tally.given += pods.len();
        self.tally.slowest = self.tally.slowest.max(slowest);
        self.pods[host] = pods;
    }

    /// A host dies with all that runs on it; the cluster takes it off its list, which the others hear; another one
    /// takes its place.
    fn replace(&mut self, host: usize) {
        let start = Instant::now();
        let name = self.mesh.routers[host].name().to_owned();
        self.mesh.routers[host].kill().must("kill");
        self.pods[host].clear();
        self.ledger.host_is_gone(host);
        let others: Vec<usize> = (0..HOSTS).filter(|&other| other != host).collect();
        let mut changing = Vec::new();
        for &other in &others {
            let pods = &mut self.pods[other];
            changing.extend(pods.drain(..CHANGES.min(pods.len())));
        }
        let sockets: Vec<_> = others.iter().map(|&other| self.mesh.routers[other].socket()).collect();
        let router = &mut self.mesh.routers[host];
        let (changed, slowest) = thread::scope(|scope| {
            let runtime = &self.runtime;
            let changes = scope.spawn(move || {
                runtime.block_on(async {
                    for pod in &mut changing {
                        pod.free_all().await.must("give back");
                    }
                    all_get_one(changing).await
                })
            });
            // All hear it at the same moment.
            let deletions: Vec<_> = sockets
                .iter()
                .map(|socket| {
                    let body = json!({ "peer": name });
                    let delete = move || runtime.block_on(post(socket, "/v1/peers/remove", &body));
                    scope.spawn(move || retry(PATIENCE, delete))
                })
                .collect();
            for deletion in deletions {
                deletion.join().expect("no panic").must("the removal of a node");
            }
            fs::remove_dir_all(router.data_dir()).must("empty the new host");
            router.restart().must("start the new host");
            changes.join().expect("no panic")
        });
        self.tally.given += changed.len();
        self.tally.slowest = self.tally.slowest.max(slowest);
        for pod in changed {
            self.pods[pod.host].push(pod);
        }
        self.fill(host);
        assert_eq!(self.ledger.count(), IN_USE);
        self.tally.longest_replacement = self.tally.longest_replacement.max(start.elapsed());
    }

    /// What every router says is what was answered.
    fn all_agree(&self) {
        for (host, router) in self.mesh.routers.iter().enumerate() {
            let (socket, ledger) = (router.socket(), &self.ledger);
            retry(PATIENCE, || self.runtime.block_on(agrees(&socket, host, ledger))).must("an agreement");
        }
    }
}

/// Each of these gets an address at the first attempt; how long the slowest took.
async fn all_get_one(pods: Vec<Pod>) -> (Vec<Pod>, Duration) {
    let get_one = |mut pod: Pod| async move {
        let start = Instant::now();
        pod.allocate().await.must("an address at the first attempt");
        (pod, start.elapsed())
    };
    let (pods, took): (Vec<_>, Vec<_>) = for_each(pods, AT_ONCE, get_one).await.into_iter().unzip();
    (pods, took.into_iter().max().unwrap_or_default())
}
