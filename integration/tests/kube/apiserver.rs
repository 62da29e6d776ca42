//! A small Kubernetes API server: nodes, listed and watched over real TLS and HTTP, with what real
//! servers were seen to answer, and faults that can be switched on.
//!
//! ```text
//!   LIST ?limit ──► a snapshot, page by page ──► continue, resourceVersion
//!   WATCH ?resourceVersion=N ──► every change after N, then each new one, bookmarks
//!                            └─► 410 Expired, if N is older than what is kept
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{mpsc, watch},
};
use tokio_rustls::TlsAcceptor;

use crate::harness::Must as _;

/// What clients have to show.
pub(crate) const TOKEN: &str = "a-service-accounts-token";
/// How often a watch that asks for bookmarks gets one.
const BOOKMARK: Duration = Duration::from_millis(250);
/// Changes that are kept for watches.
const KEPT: usize = 1000;

/// What goes wrong, until it is switched off; numbers: so many times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Connections are closed at once, and there are no answers on those that are open.
    pub(crate) away: bool,
    /// A list has nobody.
    pub(crate) lists_nobody: bool,
    /// A list lacks these.
    pub(crate) lists_without: Vec<String>,
    /// Lists are refused with 504, as of a server that lags behind.
    pub(crate) lists_too_early: usize,
    /// Pages after the first are refused with 410.
    pub(crate) pages_expired: usize,
    /// A watch from the past is refused with the status 410, and not by an event.
    pub(crate) expired_is_a_status: bool,
    /// A watch answers with an event of an error with this code, and ends.
    pub(crate) watch_error: Option<u16>,
}

#[derive(Debug)]
struct State {
    version: u64,
    nodes: BTreeMap<String, Value>,
    /// Changes, with the version that each made.
    history: VecDeque<(u64, &'static str, Value)>,
    /// Changes up to this are not known any more.
    compacted: u64,
    /// Lists that are read page by page: the rest, and the version.
    pages: BTreeMap<String, (Vec<Value>, u64)>,
    faults: Faults,
    /// Requests, as method and path.
    requests: Vec<String>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Goes up with each change and each switched fault.
    changed: watch::Sender<u64>,
    /// Goes up when watches shall break.
    broken: watch::Sender<u64>,
    certificate: String,
    tls: TlsConfig,
}

struct TlsConfig(Arc<ServerConfig>);

impl std::fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConfig")
    }
}

/// The server. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct ApiServer(Arc<Inner>);

type Body = BoxBody<Bytes, io::Error>;

impl ApiServer {
    pub(crate) fn new() -> Self {
        let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).must("make a certificate");
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.must("TLS").with_no_client_auth();
        let config = config.with_single_cert(vec![made.cert.der().clone()], key.into()).must("use the certificate");
        let state = State {
            version: 465,
            nodes: BTreeMap::new(),
            history: VecDeque::new(),
            compacted: 465,
            pages: BTreeMap::new(),
            faults: Faults::default(),
            requests: Vec::new(),
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
            broken: watch::Sender::new(0),
            certificate: made.cert.pem(),
            tls: TlsConfig(Arc::new(config)),
        }))
    }

    /// Answers at a listener, as long as the runtime runs.
    pub(crate) fn serve(&self, runtime: &Handle, listener: StdListener) {
        listener.set_nonblocking(true).must("prepare the listener");
        let _inside = runtime.enter();
        let listener = TcpListener::from_std(listener).must("use the listener");
        let server = self.clone();
        runtime.spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::clone(&server.0.tls.0));
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                if server.state().faults.away {
                    continue;
                }
                let (server, acceptor) = (server.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(move |request| server.clone().answer(request));
                    // Clients come and go as they like.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
    }

    /// What clients are to trust, as PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.0.certificate
    }

    /// The configuration of a client.
    pub(crate) fn kubeconfig(&self, address: SocketAddr) -> Value {
        use std::fmt::Write as _;
        // Base64 of the certificate would need a crate; the file may be YAML, and JSON is.
        let mut pem = String::new();
        for chunk in self.certificate().as_bytes().chunks(3) {
            let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
            for place in 0..4 {
                let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
                let letter = letters[(bits >> (18 - 6 * place) & 63) as usize];
                let _ = write!(pem, "{}", if place > chunk.len() { '=' } else { letter as char });
            }
        }
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://{address}"), "certificate-authority-data": pem,
            }}],
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state());
        self.0.changed.send_modify(|number| *number += 1);
        done
    }

    /// A node appears, or changes.
    pub(crate) fn apply(&self, name: &str, uid: &str, addresses: &[&str]) {
        let labels = json!({"kubernetes.io/os": "linux", "kubernetes.io/hostname": name});
        let internal = addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
        let addresses: Vec<_> = internal.chain([json!({"type": "Hostname", "address": name})]).collect();
        self.put(json!({
            "metadata": {"name": name, "uid": uid, "labels": labels},
            "spec": {"podCIDR": "10.244.0.0/24"},
            "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
        }));
    }

    /// Puts an object as it is; the version that it has then.
    fn put(&self, mut object: Value) -> Value {
        self.change(|state| {
            let name = object["metadata"]["name"].as_str().must("a name").to_owned();
            state.version += 1;
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            let kind = if state.nodes.contains_key(&name) { "MODIFIED" } else { "ADDED" };
            state.nodes.insert(name, object.clone());
            state.remember(kind, object.clone());
            object
        })
    }

    /// A node is deleted.
    pub(crate) fn delete(&self, name: &str) {
        self.change(|state| {
            let object = state.nodes.remove(name).must("a node of this name");
            state.announce_deleted(object);
        });
    }

    /// Watches hear that a node was deleted, and it is there as before.
    pub(crate) fn announce_deletion(&self, name: &str) {
        self.change(|state| {
            let object = state.nodes.get(name).must("a node of this name").clone();
            state.announce_deleted(object);
        });
    }

    /// All changes so far are forgotten, and one of something else: who watches from one of them has to list again.
    pub(crate) fn compact(&self) {
        self.change(|state| {
            state.version += 1;
            state.compacted = state.version;
            state.history.clear();
        });
    }

    /// Breaks all watches off, in the middle of what they say.
    pub(crate) fn disconnect(&self) {
        self.0.broken.send_modify(|number| *number += 1);
    }

    pub(crate) fn faults(&self, change: impl FnOnce(&mut Faults)) {
        self.change(|state| change(&mut state.faults));
        if self.state().faults.away {
            self.disconnect();
        }
    }

    /// Requests so far that begin so.
    pub(crate) fn requests(&self, start: &str) -> usize {
        self.state().requests.iter().filter(|request| request.starts_with(start)).count()
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        if self.state().faults.away {
            // The connection is closed without an answer.
            return Err(io::Error::other("away"));
        }
        let (parts, body) = request.into_parts();
        if parts.headers.get("authorization").is_none_or(|value| value != &format!("Bearer {TOKEN}")) {
            return Ok(refusal(401, "Unauthorized", "Unauthorized"));
        }
        let query: BTreeMap<String, String> = parts.uri.query().map(parse_query).unwrap_or_default();
        let path = parts.uri.path().to_owned();
        let wanted = if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") { "WATCH" } else { "" };
        let line = format!("{} {path} {}", if wanted.is_empty() { parts.method.as_str() } else { wanted }, parts.uri);
        self.state().requests.push(line);
        let rest = path.strip_prefix("/api/v1/nodes");
        Ok(match (&parts.method, rest) {
            (&Method::GET, Some("")) if wanted == "WATCH" => self.watch(&query),
            (&Method::GET, Some("")) => self.list(&query),
            (&Method::GET, Some(name)) => self.get(name.trim_start_matches('/')),
            (&Method::PUT, Some(name)) => {
                let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
                self.replace(name.trim_start_matches('/'), &body)
            }
            _ => refusal(404, "NotFound", "the server could not find the requested resource"),
        })
    }

    fn get(&self, name: &str) -> Response<Body> {
        match self.state().nodes.get(name) {
            Some(object) => answer(200, &with_kind(object)),
            None => refusal(404, "NotFound", &format!("nodes \"{name}\" not found")),
        }
    }

    fn replace(&self, name: &str, body: &[u8]) -> Response<Body> {
        let Ok(object) = serde_json::from_slice::<Value>(body) else {
            return refusal(400, "BadRequest", "the object is no JSON");
        };
        let Some(there) = self.state().nodes.get(name).cloned() else {
            return refusal(404, "NotFound", &format!("nodes \"{name}\" not found"));
        };
        if there["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            let why = format!(
                "Operation cannot be fulfilled on nodes \"{name}\": the object has been modified; please apply your \
                 changes to the latest version and try again"
            );
            return refusal(409, "Conflict", &why);
        }
        answer(200, &with_kind(&self.put(object)))
    }

    fn list(&self, query: &BTreeMap<String, String>) -> Response<Body> {
        let mut state = self.state();
        let asked: u64 = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        let current = state.version;
        let early = take(&mut state.faults.lists_too_early);
        if asked > current || early {
            let asked = asked.max(current + 1);
            let why = format!("Timeout: Too large resource version: {asked}, current: {current}");
            return refusal(504, "Timeout", &why);
        }
        let (mut items, version) = match query.get("continue").filter(|token| !token.is_empty()) {
            Some(token) => {
                let expired = take(&mut state.faults.pages_expired);
                match state.pages.remove(token).filter(|_| !expired) {
                    Some(rest) => rest,
                    None => {
                        let why = "The provided continue parameter is too old to display a consistent list result. \
                                   You can start a new list without the continue parameter.";
                        return refusal(410, "Expired", why);
                    }
                }
            }
            None if state.faults.lists_nobody => (Vec::new(), current),
            None => {
                let hidden = &state.faults.lists_without;
                let shown = state.nodes.iter().filter(|(name, _)| !hidden.contains(name));
                (shown.map(|(_, object)| object.clone()).collect(), current)
            }
        };
        let mut metadata = json!({"resourceVersion": version.to_string()});
        let limit = query.get("limit").and_then(|text| text.parse().ok()).unwrap_or(0);
        if limit > 0 && items.len() > limit {
            let rest = items.split_off(limit);
            let token = format!("eyJ2IjoibWV0YS5rOHMuaW8v{}-{}", version, rest.len());
            metadata["continue"] = token.clone().into();
            metadata["remainingItemCount"] = rest.len().into();
            state.pages.insert(token, (rest, version));
        }
        // In a list, objects have no kind of their own.
        answer(200, &json!({"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items}))
    }

    fn watch(&self, query: &BTreeMap<String, String>) -> Response<Body> {
        let from: u64 = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        let (sender, receiver) = mpsc::channel(64);
        {
            let state = self.state();
            if state.faults.expired_is_a_status && from < state.compacted {
                let why = format!("too old resource version: {from} ({})", state.compacted);
                return refusal(410, "Expired", &why);
            }
        }
        let bookmarks = query.get("allowWatchBookmarks").is_some_and(|value| value == "true" || value == "1");
        let streamed = query.get("sendInitialEvents").is_some_and(|value| value == "true");
        let limit = query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(300);
        let feed = Feed { server: self.clone(), from, bookmarks, streamed, sender };
        tokio::spawn(async move {
            // The server ends each watch, sooner or later, without a word.
            let _ = tokio::time::timeout(Duration::from_secs(limit), feed.run()).await;
        });
        let frames = futures_util::stream::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|frame| (frame, receiver))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed());
        response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
        response
    }
}

impl State {
    fn remember(&mut self, kind: &'static str, object: Value) {
        self.history.push_back((self.version, kind, object));
        while self.history.len() > KEPT {
            if let Some((version, ..)) = self.history.pop_front() {
                self.compacted = version;
            }
        }
    }

    fn announce_deleted(&mut self, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.remember("DELETED", object);
    }
}

/// What one watch is told.
struct Feed {
    server: ApiServer,
    from: u64,
    bookmarks: bool,
    streamed: bool,
    sender: mpsc::Sender<Result<Frame<Bytes>, io::Error>>,
}

impl Feed {
    async fn run(mut self) {
        let mut changed = self.server.0.changed.subscribe();
        let mut broken = self.server.0.broken.subscribe();
        changed.mark_changed();
        let mut bookmark = tokio::time::interval(BOOKMARK);
        loop {
            let said = tokio::select! {
                _ = changed.changed() => self.news().await,
                _ = bookmark.tick(), if self.bookmarks => {
                    let version = self.from.to_string();
                    let metadata = json!({"resourceVersion": version, "creationTimestamp": null});
                    let object = json!({"kind": "Node", "apiVersion": "v1", "metadata": metadata, "spec": {}});
                    self.say("BOOKMARK", &object).await
                }
                _ = broken.changed() => {
                    let _ = self.sender.send(Err(io::Error::other("broken off"))).await;
                    return;
                }
            };
            if said.is_none() {
                return;
            }
        }
    }

    /// All changes that it was not told yet. None: it has ended.
    async fn news(&mut self) -> Option<()> {
        let (error, news) = {
            let state = self.server.state();
            let error = match state.faults.watch_error {
                Some(code) => Some((code, "InternalError", "the server was told to say so".to_owned())),
                None if self.streamed => {
                    let why = "storage does not support streamed lists (RequestWatchProgress)";
                    Some((500, "InternalError", why.to_owned()))
                }
                None if self.from < state.compacted => {
                    Some((410, "Expired", format!("too old resource version: {} ({})", self.from, state.compacted)))
                }
                None => None,
            };
            let news: Vec<_> = state.history.iter().filter(|(version, ..)| *version > self.from).cloned().collect();
            (error, news)
        };
        if let Some((code, reason, message)) = error {
            self.say("ERROR", &status(code, reason, &message)).await?;
            return None;
        }
        for (version, kind, object) in news {
            self.say(kind, &with_kind(&object)).await?;
            self.from = version;
        }
        Some(())
    }

    /// One event, in two chunks: ends of lines and of chunks have nothing to do with each other.
    async fn say(&self, kind: &str, object: &Value) -> Option<()> {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        let (one, two) = line.split_at(line.len() / 2);
        for part in [one, two] {
            self.sender.send(Ok(Frame::data(Bytes::copy_from_slice(part.as_bytes())))).await.ok()?;
        }
        Some(())
    }
}

/// Whether a fault that happens so many times happens now.
fn take(times: &mut usize) -> bool {
    let now = *times > 0;
    *times = times.saturating_sub(1);
    now
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn with_kind(object: &Value) -> Value {
    let mut object = object.clone();
    object["kind"] = "Node".into();
    object["apiVersion"] = "v1".into();
    object
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn refusal(code: u16, reason: &str, message: &str) -> Response<Body> {
    answer(code, &status(code, reason, message))
}

fn answer(code: u16, value: &Value) -> Response<Body> {
    let never = |never: Infallible| match never {};
    let body = Full::new(Bytes::from(value.to_string())).map_err(never).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).must("a status");
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}
