//! `weft-kube` beside a router that does as it is told: what becomes of nodes that come, move and go
//! while the API server fails in every way that it can.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use kube::Config;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::UnixListener, runtime::Runtime, sync::oneshot, task::JoinHandle};
use weft::lab::wait_until;
use weft_kube::{api::Nodes, init, peers::File, run};

use crate::{
    Case,
    apiserver::{ApiServer, Faults},
    harness::Must as _,
    transcripts,
};

pub(crate) const CASES: &[Case] = &[
    ("nodes_appear_change_their_address_and_go", nodes_come_and_go),
    ("a_node_deleted_while_nobody_watched_is_found_after_each_kind_of_410", unseen_deletions),
    ("an_api_server_that_is_away_changes_nothing", away),
    ("a_list_with_nobody_is_not_believed", nobody),
    ("a_list_without_this_node_is_not_believed", without_this_node),
    ("a_deletion_that_a_fresh_list_denies_removes_nobody", denied),
    ("a_thousand_nodes_are_listed_through_refusals_and_pages_that_expire", pages),
    ("a_removal_that_is_refused_is_asked_for_again", refused_removal),
    ("what_was_noted_is_known_after_a_restart", restarted),
    ("probes_are_answered_and_an_end_is_polite", probes),
    ("a_first_start_waits_for_the_api_server_and_a_later_one_does_not", first_start),
];

/// The grace of these tests.
const GRACE: Duration = Duration::from_secs(1);
/// For how long nothing must happen: several times what it takes where it shall.
const QUIET: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Told {
    /// By id: name, and whether it is in reach.
    peers: BTreeMap<String, (String, bool)>,
    removed: Vec<String>,
    reloads: usize,
    refuse_removals: usize,
}

/// A router's API that says what it was told.
#[derive(Debug, Clone, Default)]
struct FakeRouter(Arc<Mutex<Told>>);

impl FakeRouter {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meets(&self, name: &str, reachable: bool) {
        self.told().peers.insert(format!("{name:0>32}"), (name.to_owned(), reachable));
    }

    fn app(&self) -> Router {
        async fn status(State(router): State<FakeRouter>) -> Json<Value> {
            let peers: Vec<_> = router.told().peers.iter().filter(|(_, (name, _))| name != "a").map(peer).collect();
            Json(json!({
                "version": "0", "peer": {"id": format!("{:0>32}", "a"), "name": "a", "instance": "0", "incarnation": 1},
                "network": "weft", "ready": true, "verdict": "ok", "problems": [], "encryption": "none", "mtu": 1400,
                "range": [], "bridge": "weft", "port": 6783, "endpoints": [], "pid": 1, "since": "", "targets": [],
                "peers": peers, "offloads": weft::control::api::types::Offloads::default(),
                "counters": weft::control::api::types::Counters::default(),
            }))
        }
        fn peer((id, (name, reachable)): (&String, &(String, bool))) -> Value {
            json!({
                "id": id, "name": name, "instance": "0", "incarnation": 1,
                "state": if *reachable { "established" } else { "retrying" }, "carrier": null, "via": null,
                "via_name": null, "encrypted": false, "cipher": null, "endpoint": null, "mtu": null, "rtt_us": null,
                "loss": null, "since": "", "reason": "", "links": [],
            })
        }
        async fn ipam(State(router): State<FakeRouter>) -> Json<Value> {
            let told = router.told();
            let owner = |(id, (name, reachable)): (&String, &(String, bool))| {
                json!({
                    "id": id, "name": name, "owned": 64, "free": null, "reachable": reachable, "silent_s": null,
                    "removal_s": null, "removed": told.removed.contains(id),
                })
            };
            let peers: Vec<_> = told.peers.iter().map(owner).collect();
            Json(json!({
                "range": [], "ready": true, "waiting_for": null, "owned": 64, "free": 64, "used": 0, "cooling": 0,
                "peers": peers, "allocations": [], "contested": [], "problems": [],
            }))
        }
        async fn reload(State(router): State<FakeRouter>) -> Json<Value> {
            router.told().reloads += 1;
            Json(json!({"changed": [], "refused": []}))
        }
        async fn remove(State(router): State<FakeRouter>, Json(body): Json<Value>) -> (StatusCode, Json<Value>) {
            let mut told = router.told();
            if told.refuse_removals > 0 {
                told.refuse_removals -= 1;
                return (StatusCode::CONFLICT, Json(json!({"error": "not yet"})));
            }
            let id = body["peer"].as_str().must("an id").to_owned();
            told.removed.push(id.clone());
            (StatusCode::OK, Json(json!({"id": id, "name": ""})))
        }
        Router::new()
            .route("/v1/status", get(status))
            .route("/v1/ipam", get(ipam))
            .route("/v1/reload", post(reload))
            .route("/v1/peers/remove", post(remove))
            .with_state(self.clone())
    }
}

/// Node `a` of a cluster of `a` to `d`, whose routers it has met. Fields end in this order.
struct World {
    stop: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<anyhow::Result<()>>>,
    runtime: Runtime,
    server: ApiServer,
    router: FakeRouter,
    config: Config,
    health: SocketAddr,
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let runtime = Runtime::new().must("a runtime");
        let (server, config) = transcripts::server(&runtime);
        let dir = tempfile::tempdir().must("a directory");
        let router = FakeRouter::default();
        let app = router.app();
        let socket = dir.path().join("weft.sock");
        runtime.spawn(async move {
            let listener = UnixListener::bind(socket).must("listen");
            axum::serve(listener, app).await.must("serve");
        });
        for name in ["a", "b", "c", "d"] {
            router.meets(name, true);
        }
        // An address of its own: a free port of the usual one may be a client's before it is used.
        static WORLDS: AtomicU8 = AtomicU8::new(1);
        let health = SocketAddr::from(([127, 9, 0, WORLDS.fetch_add(1, Ordering::Relaxed)], 6785));
        Self { stop: None, running: None, runtime, server, router, config, health, dir }
    }

    /// Runs, and has met all.
    fn running() -> Self {
        let mut world = Self::new();
        world.start();
        world.wait("all to be noted", || world.noted().len() == 4);
        world.wait("all to be dialled", || world.dialled() == ["192.0.2.2", "192.0.2.3", "192.0.2.4"]);
        world
    }

    fn nodes(&self) -> Nodes {
        let _inside = self.runtime.enter();
        Nodes::of(self.config.clone(), "kubernetes.io/os=linux".parse().must("labels")).must("a client")
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("kubernetes.toml")
    }

    fn notes(&self) -> PathBuf {
        self.dir.path().join("kubernetes.peers.json")
    }

    fn start(&mut self) {
        let options = run::Options {
            node: "a".to_owned(),
            file: self.file(),
            notes: self.notes(),
            socket: self.dir.path().join("weft.sock"),
            health: self.health,
            grace: GRACE,
            poll: Duration::from_millis(50),
        };
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            let _ = stopped.await;
        };
        self.running = Some(self.runtime.spawn(run::run(self.nodes(), options, stopped)));
        self.stop = Some(stop);
    }

    /// Ends it as SIGTERM does; how long that took.
    fn end(&mut self) -> Duration {
        let start = Instant::now();
        drop(self.stop.take());
        let running = self.running.take().must("it to run");
        self.runtime.block_on(running).must("no panic").must("a good end");
        start.elapsed()
    }

    fn noted(&self) -> serde_json::Map<String, Value> {
        let text = std::fs::read(self.notes()).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Whom the router's file names.
    fn dialled(&self) -> Vec<String> {
        File::read(&self.file()).must("read the file").map(|file| file.peer).unwrap_or_default()
    }

    fn removed(&self) -> Vec<String> {
        let told = self.router.told();
        told.removed.iter().map(|id| id.trim_start_matches('0').to_owned()).collect()
    }

    #[track_caller]
    fn wait(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let held = wait_until(PATIENCE, &mut condition);
        assert!(
            held,
            "waited for {what}; dialled {:?}, removed {:?}, noted {:?}",
            self.dialled(),
            self.removed(),
            self.noted()
        );
    }

    /// For as long as anything could happen, nothing does.
    #[track_caller]
    fn nothing_happens(&self) {
        let (dialled, removed) = (self.dialled(), self.removed());
        let end = Instant::now() + QUIET;
        while Instant::now() < end {
            assert_eq!((self.dialled(), self.removed()), (dialled.clone(), removed.clone()));
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// What a probe is answered.
    fn probe(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(self.health)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

fn nodes_come_and_go() {
    let world = World::running();
    let reloads = world.router.told().reloads;
    world.server.apply("e", "uid-e", &["192.0.2.5", "2001:db8::5"]);
    world.wait("a node", || world.dialled() == ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"]);
    world.server.apply("b", "uid-b", &["192.0.2.22"]);
    world.wait("the address", || world.dialled() == ["192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.22"]);
    world.wait("the router to be told", || world.router.told().reloads >= reloads + 2);
    // Its router was never met, and so it is nobody's business.
    world.server.delete("e");
    world.wait("it to go", || world.dialled() == ["192.0.2.3", "192.0.2.4", "192.0.2.22"]);
    world.router.meets("c", false);
    world.server.delete("c");
    world.wait("the removal", || world.removed() == ["c"]);
    // One that is alive though its node is gone stays, until it is away.
    world.server.delete("d");
    world.wait("both to be forgotten", || world.dialled() == ["192.0.2.22"]);
    world.nothing_happens();
    world.router.meets("d", false);
    world.wait("the removal", || world.removed() == ["c", "d"]);
    // A node without an address, or one that is none, harms nobody.
    world.server.apply("f", "uid-f", &[]);
    world.server.apply("g", "uid-g", &["not an address"]);
    world.nothing_happens();
    assert_eq!(world.dialled(), ["192.0.2.22"]);
}

fn unseen_deletions() {
    let world = World::running();
    for (name, expired_is_a_status) in [("b", false), ("c", true)] {
        world.router.meets(name, false);
        let lists = world.server.requests("GET");
        world.server.faults(|faults| faults.away = true);
        world.server.delete(name);
        world.server.compact();
        world.server.faults(|faults| {
            faults.away = false;
            faults.expired_is_a_status = expired_is_a_status;
        });
        world.wait("the removal", || world.removed().iter().any(|removed| removed == name));
        assert!(world.server.requests("GET") >= lists + 2, "listed after the gap, and before the removal");
    }
    assert_eq!(world.removed(), ["b", "c"], "each once");
}

fn away() {
    let world = World::running();
    world.server.faults(|faults| faults.away = true);
    world.router.meets("b", false);
    world.nothing_happens();
    assert!(world.probe("/readyz").must("probe").contains(" 200 "), "it is no reason not to be ready");
    world.server.faults(|faults| faults.away = false);
    world.nothing_happens();
    world.server.delete("b");
    world.wait("the removal", || world.removed() == ["b"]);
    // And the other way round: heard of, and gone before a fresh list could agree.
    world.router.meets("c", false);
    world.server.delete("c");
    thread::sleep(GRACE / 2);
    world.server.faults(|faults| faults.away = true);
    let before = world.removed();
    let end = Instant::now() + QUIET;
    while Instant::now() < end {
        assert_eq!(world.removed(), before);
        thread::sleep(Duration::from_millis(50));
    }
    world.server.faults(|faults| faults.away = false);
    world.wait("the removal", || world.removed() == ["b", "c"]);
}

fn nobody() {
    lie(|faults| faults.lists_nobody = true);
}

fn without_this_node() {
    lie(|faults| faults.lists_without = ["a", "b", "c"].map(ToOwned::to_owned).into());
}

/// Nothing comes of a list that is wrong in this way, though all others are out of reach.
fn lie(lie: fn(&mut Faults)) {
    let world = World::running();
    for name in ["b", "c", "d"] {
        world.router.meets(name, false);
    }
    let lists = world.server.requests("GET");
    world.server.faults(lie);
    world.server.compact();
    world.server.disconnect();
    world.wait("a list", || world.server.requests("GET") > lists);
    world.nothing_happens();
    world.server.faults(|faults| *faults = Faults::default());
    world.nothing_happens();
    assert_eq!(world.removed(), Vec::<String>::new());
}

fn denied() {
    let world = World::running();
    world.router.meets("b", false);
    let lists = world.server.requests("GET");
    world.server.announce_deletion("b");
    world.wait("the list", || world.server.requests("GET") > lists);
    // It may have been left out until the list was read.
    world.wait("it is dialled as before", || world.dialled().contains(&"192.0.2.2".to_owned()));
    world.nothing_happens();
    assert_eq!(world.removed(), Vec::<String>::new());
}

fn pages() {
    let mut world = World::new();
    for number in 0..1200 {
        let address = format!("10.1.{}.{}", number / 200, number % 200 + 1);
        world.server.apply(&format!("node-{number}"), &format!("uid-{number}"), &[&address]);
    }
    world.server.faults(|faults| {
        faults.lists_too_early = 1;
        faults.pages_expired = 1;
        faults.watch_error = Some(500);
    });
    world.start();
    world.wait("some to be dialled", || world.dialled().len() > 4);
    assert!(world.dialled().len() <= 16, "and not 1,203 of them: {}", world.dialled().len());
    let watches = world.server.requests("WATCH");
    world.wait("a watch after the error", || world.server.requests("WATCH") > watches);
    world.server.faults(|faults| faults.watch_error = None);
    world.wait("all that were met to be noted", || world.noted().len() == 4);
    world.router.meets("b", false);
    world.server.delete("b");
    world.wait("the removal", || world.removed() == ["b"]);
}

fn refused_removal() {
    let world = World::running();
    world.router.told().refuse_removals = 2;
    world.router.meets("b", false);
    world.server.delete("b");
    world.wait("the removal", || world.removed() == ["b"]);
    assert_eq!(world.router.told().refuse_removals, 0);
    world.nothing_happens();
}

fn restarted() {
    let mut world = World::running();
    assert!(world.end() < Duration::from_secs(5));
    world.router.meets("b", false);
    world.server.delete("b");
    world.server.compact();
    world.start();
    world.wait("the removal", || world.removed() == ["b"]);
    world.wait("it to be forgotten", || world.noted().len() == 3);
    world.end();
    // A file that cannot be read costs the memory, and nothing else.
    std::fs::write(world.notes(), "{").must("damage the file");
    world.start();
    world.wait("all to be noted anew", || world.noted().len() == 3);
    world.nothing_happens();
}

fn probes() {
    let mut world = World::running();
    for path in ["/readyz", "/livez"] {
        world.wait(path, || world.probe(path).is_ok_and(|answer| answer.contains(" 200 ")));
    }
    for name in ["b", "c"] {
        world.router.meets(name, false);
    }
    world.wait("unready", || world.probe("/readyz").is_ok_and(|answer| answer.contains(" 503 ")));
    let answer = world.probe("/readyz").must("probe");
    assert!(answer.contains("1 of 3 nodes can be reached") && answer.contains("b, c"), "{answer}");
    assert!(world.probe("/livez").must("probe").contains(" 200 "), "nobody is killed for it");
    world.router.meets("b", true);
    world.wait("ready", || world.probe("/readyz").is_ok_and(|answer| answer.contains(" 200 ")));
    assert!(world.end() < Duration::from_secs(5));
    assert!(world.probe("/readyz").is_err(), "nobody is left there");
}

fn first_start() {
    let world = World::new();
    let nodes = world.nodes();
    let init = |wait: u64| {
        let (nodes, api_wait) = (nodes.clone(), Duration::from_secs(wait));
        let options = init::Options { node: "a".to_owned(), file: world.file(), api_wait };
        world.runtime.spawn(async move { init::init(&nodes, &options).await })
    };
    // Nothing, and a list without this node, are no reason to begin alone.
    world.server.faults(|faults| faults.away = true);
    let first = init(0);
    thread::sleep(QUIET / 2);
    world.server.faults(|faults| {
        faults.away = false;
        faults.lists_without = vec!["a".to_owned()];
    });
    thread::sleep(QUIET / 2);
    assert!(!first.is_finished());
    world.server.faults(|faults| faults.lists_without.clear());
    world.runtime.block_on(first).must("no panic").must("the file");
    let file = File::read(&world.file()).must("read").must("a file");
    assert_eq!(file.peer, ["192.0.2.2", "192.0.2.3", "192.0.2.4"]);
    assert_eq!((file.name.as_str(), file.ipalloc_init.as_deref()), ("a", Some("consensus=4")));
    // A node that was here before goes on without the API server.
    world.server.faults(|faults| faults.away = true);
    world.runtime.block_on(init(1)).must("no panic").must("a start");
    assert_eq!(File::read(&world.file()).must("read"), Some(file));
}
