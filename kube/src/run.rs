//! Keeps a router's peers as the nodes are, and has the addresses of nodes that are gone returned
//! (kubernetes K14, K15).

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1 as core;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::api::Nodes;
use crate::files::replace;
use crate::health::{Health, serve};
use crate::node::{Node, peer_name};
use crate::peers::File;
use crate::roster::{Note, Roster};
use crate::router::Router;

/// After a removal that failed, or a list that was not had, nothing is removed for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// A new list because of a watch that was refused waits so long, then twice as long, …
const ANEW_MIN: Duration = Duration::from_secs(1);
/// … up to this.
const ANEW_MAX: Duration = Duration::from_secs(30);
/// How long an end waits for what is under way.
const DRAIN: Duration = Duration::from_secs(5);

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of this node.
    pub node: String,
    /// The router's configuration file.
    pub file: PathBuf,
    /// Where it is noted which peers were nodes.
    pub notes: PathBuf,
    /// The router's API socket.
    pub socket: PathBuf,
    /// Where probes are answered.
    pub health: SocketAddr,
    /// For how long a node must be gone and its peer out of reach before it is removed.
    pub grace: Duration,
    /// How often the router is asked.
    pub poll: Duration,
}

/// What was asked for beside the loop.
enum Done {
    /// A fresh list, because of a peer that is due.
    Listed(String, anyhow::Result<Vec<Node>>),
    /// A removal.
    Removed(String, anyhow::Result<()>),
}

struct Keeper {
    options: Options,
    nodes: Nodes,
    router: Router,
    roster: Roster,
    health: Health,
    start: Instant,
    /// What the router was told last; none: nothing yet.
    told: Option<Vec<String>>,
    /// What is in the file of notes.
    noted: BTreeMap<String, Note>,
    /// A list that is coming in.
    listing: Vec<Node>,
    /// Whether the API server, and the router, answered last time.
    api_answers: bool,
    router_answers: bool,
    asked: JoinSet<Done>,
    not_before: Duration,
}

/// Runs until it is told to stop.
///
/// # Errors
/// If probes cannot be answered at that address.
pub async fn run(nodes: Nodes, options: Options, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    let address = options.health;
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot answer probes at {address}"))?;
    let health = Health::default();
    let mut server = JoinSet::new();
    server.spawn(serve(listener, health.clone()));
    let mut keeper = Keeper::new(nodes, options, health);
    let mut stop = pin!(stop);
    tokio::select! {
        () = keeper.keep() => {}
        () = &mut stop => {}
    }
    keeper.end().await;
    Ok(())
}

impl Keeper {
    fn new(nodes: Nodes, options: Options, health: Health) -> Self {
        let noted = read_notes(&options.notes);
        Self {
            router: Router::new(options.socket.clone()),
            roster: Roster::new(options.node.clone(), options.grace, noted.clone()),
            options,
            nodes,
            health,
            start: Instant::now(),
            told: None,
            noted,
            listing: Vec::new(),
            api_answers: true,
            router_answers: true,
            asked: JoinSet::new(),
            not_before: Duration::ZERO,
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    async fn keep(&mut self) {
        let mut events = watch(&self.nodes);
        // When to begin with a new list, if that is needed, and how long the next wait will be.
        let (mut anew, mut pause): (Option<Instant>, _) = (None, ANEW_MIN);
        let mut poll = interval(self.options.poll);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.health.beat();
            let begin_anew = async {
                match anew {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = begin_anew => (events, anew) = (watch(&self.nodes), None),
                Some(event) = events.next(), if anew.is_none() => {
                    if needs_new_list(&event) {
                        anew = Some(Instant::now() + pause);
                        pause = (pause * 2).min(ANEW_MAX);
                    } else if matches!(event, Ok(Event::Apply(_) | Event::Delete(_))) {
                        pause = ANEW_MIN;
                    }
                    self.heard(event);
                }
                Some(Ok(done)) = self.asked.join_next(), if !self.asked.is_empty() => self.done(done),
                _ = poll.tick() => self.look().await,
            }
            self.tell().await;
        }
    }

    /// Of the API server.
    fn heard(&mut self, event: watcher::Result<Event<core::Node>>) {
        let now = self.now();
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if std::mem::take(&mut self.api_answers) {
                    tracing::warn!("the nodes are not watched for now: {error}");
                }
                return;
            }
        };
        if !std::mem::replace(&mut self.api_answers, true) {
            tracing::info!("the nodes are watched again");
        }
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => self.listing.extend(self.nodes.read(&object)),
            Event::InitDone => {
                let listed = std::mem::take(&mut self.listing);
                self.listed(listed);
            }
            Event::Apply(object) => {
                if let Some(node) = self.nodes.read(&object) {
                    self.roster.applied(node, now);
                }
            }
            Event::Delete(object) => {
                if let Some(node) = self.nodes.read(&object) {
                    tracing::info!("node {} was deleted", node.name);
                    self.roster.deleted(&node, now);
                }
            }
        }
    }

    fn listed(&mut self, nodes: Vec<Node>) -> bool {
        let now = self.now();
        match self.roster.listed(nodes, now) {
            Ok(()) => true,
            Err(disbelief) => {
                tracing::warn!("{disbelief}: it is not believed, and nothing changes");
                false
            }
        }
    }

    /// At the router.
    async fn look(&mut self) {
        let now = self.now();
        match self.router.view().await {
            Err(error) => {
                if std::mem::take(&mut self.router_answers) {
                    tracing::warn!("{error:#}");
                }
                self.set_ready(Some(format!("{error:#}")));
                return;
            }
            Ok(view) => {
                self.router_answers = true;
                self.roster.looked(view, now);
            }
        }
        self.write_notes();
        self.set_ready(self.roster.cut_off());
        let due = self.roster.due(now).into_iter().next();
        if let Some(id) = due.filter(|_| self.asked.is_empty() && now >= self.not_before) {
            let nodes = self.nodes.clone();
            self.asked.spawn(async move { Done::Listed(id, nodes.list().await) });
        }
    }

    fn done(&mut self, done: Done) {
        let pause = self.now() + PAUSE.min(self.options.grace);
        match done {
            Done::Listed(id, Err(error)) => {
                tracing::warn!("peer {id} is not removed, for {error:#}");
                self.not_before = pause;
            }
            Done::Listed(id, Ok(nodes)) => {
                if !self.listed(nodes) {
                    self.not_before = pause;
                    return;
                }
                if !self.roster.is_absent(&id) {
                    return;
                }
                let name = self.roster.note(&id).map_or("?", |note| note.node.as_str());
                tracing::info!("node {name} is gone and peer {id} out of reach: its addresses go to the others");
                let router = self.router.clone();
                self.asked.spawn(async move {
                    let removed = router.remove(&id).await.map(drop);
                    Done::Removed(id, removed)
                });
            }
            Done::Removed(id, Err(error)) => {
                tracing::warn!("peer {id} was not removed: {error:#}");
                self.not_before = pause;
            }
            Done::Removed(id, Ok(())) => {
                tracing::info!("peer {id} was removed");
                self.not_before = pause.min(self.now() + self.options.poll);
            }
        }
    }

    /// Tells the router whom to dial, if that has changed, until it has taken it.
    async fn tell(&mut self) {
        let now = self.now();
        let Some(peers) = self.roster.whom_to_dial(now) else { return };
        if self.told.as_ref() == Some(&peers) {
            return;
        }
        if let Err(error) = self.write_peers(&peers) {
            // The disk is full, or read-only: said each time that it is tried.
            tracing::error!("{error}");
            return;
        }
        // A router that does not run yet reads the file when it starts.
        if !self.router_answers {
            return;
        }
        match self.router.reload().await {
            Ok(done) => {
                for refused in &done.refused {
                    tracing::warn!("the router did not take {}: {}", refused.key, refused.reason);
                }
                tracing::info!("the router dials {} nodes", peers.len());
                self.told = Some(peers);
            }
            Err(error) => {
                tracing::warn!("{error:#}");
                // Asked again when it answers questions.
                self.router_answers = false;
            }
        }
    }

    fn write_peers(&self, peers: &[String]) -> std::io::Result<()> {
        let before = File::read(&self.options.file).unwrap_or_default();
        let founding = before.and_then(|file| file.ipalloc_init);
        // How many found is settled by the start: another number would be refused until a restart.
        let file = File { name: peer_name(&self.options.node), peer: peers.to_vec(), ipalloc_init: founding };
        file.write(&self.options.file).map(drop)
    }

    fn write_notes(&mut self) {
        if self.noted == *self.roster.notes() {
            return;
        }
        let notes = self.roster.notes().clone();
        let written = serde_json::to_vec_pretty(&notes)
            .map_err(std::io::Error::other)
            .and_then(|json| replace(&self.options.notes, &json, 0o644));
        match written {
            Ok(_) => self.noted = notes,
            Err(error) => tracing::error!("{error}"),
        }
    }

    fn set_ready(&self, unready: Option<String>) {
        let said = unready.clone();
        if self.health.set(unready) {
            match said {
                None => tracing::info!("ready"),
                Some(why) => tracing::warn!("not ready: {why}"),
            }
        }
    }

    /// Says that the node is not ready, and lets a removal that is under way come to its end.
    async fn end(mut self) {
        self.set_ready(Some("weft-kube ends".to_owned()));
        let rest = async { while self.asked.join_next().await.is_some() {} };
        // What is cut off here is done by another node, or after the next start.
        let _ = timeout(DRAIN, rest).await;
    }
}

type Events = Pin<Box<dyn Stream<Item = watcher::Result<Event<core::Node>>> + Send>>;

/// Lists the nodes, by quorum, and watches them from there. Streamed lists, which not every server
/// has, are not asked for.
fn watch(nodes: &Nodes) -> Events {
    Box::pin(watcher(nodes.api(), watcher::Config::default()).default_backoff())
}

/// The watcher asks for the same version again when a watch is refused by the status of the answer;
/// of a version that is too old, or that a server restored from a copy never had, it would do so for
/// ever.
fn needs_new_list(event: &watcher::Result<Event<core::Node>>) -> bool {
    match event {
        Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) => matches!(status.code, 410 | 504),
        _ => false,
    }
}

fn read_notes(path: &std::path::Path) -> BTreeMap<String, Note> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(error) => {
            tracing::warn!("cannot read {}: {error}; peers are noted anew", path.display());
            return BTreeMap::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!("{} is not understood: {error}; peers are noted anew", path.display());
        BTreeMap::new()
    })
}
