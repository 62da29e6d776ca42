//! The drivers over a real socket, beside a whole router without privileges; the kernel and the engine are
//! played.

mod calls;
mod faults;
mod left;
mod names;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::port::near;
use super::{Docker, DockerConfig, Engine, Place, Ports};
use crate::control::guests::Guests;
use crate::control::store::{self, Store};
use crate::netlink::{Mac, NetlinkError};
use crate::router::rig::{Options, Rig, ranges};

/// Ids as the engine makes them.
pub(super) fn id(of: char) -> String {
    of.to_string().repeat(64)
}

/// Near ends, with the place of the far end, and what the kernel refuses.
#[derive(Debug, Clone, Default)]
pub(super) struct Played {
    pairs: Arc<Mutex<BTreeMap<String, (Place, Mac)>>>,
    refuses: Arc<Mutex<bool>>,
    /// The networks that are kept apart, and the endpoints that are kept to one.
    pub(super) apart: Arc<Mutex<BTreeMap<String, Vec<IpNet>>>>,
    pub(super) members: Arc<Mutex<BTreeMap<String, String>>>,
    /// Those that take no router advertisements, in the order in which that was asked for.
    pub(super) shielded: Arc<Mutex<Vec<String>>>,
}

impl Played {
    pub(super) fn put(&self, endpoint: &str, place: Place) {
        let mut pairs = self.pairs.lock().expect("whole");
        pairs.remove(&near(endpoint));
        if place != Place::Nowhere {
            pairs.insert(near(endpoint), (place, [0; 6]));
        }
    }

    pub(super) fn refuse(&self, refuses: bool) {
        *self.refuses.lock().expect("whole") = refuses;
    }

    pub(super) fn count(&self) -> usize {
        self.pairs.lock().expect("whole").len()
    }
}

impl Ports for Played {
    async fn open_network(&self, id: &str, subnets: Vec<IpNet>) -> Result<(), NetlinkError> {
        if *self.refuses.lock().expect("whole") {
            return Err(NetlinkError::other(id, "keep it apart", "there is no nftables"));
        }
        self.apart.lock().expect("whole").insert(id.to_owned(), subnets);
        Ok(())
    }

    async fn close_network(&self, id: &str) {
        self.apart.lock().expect("whole").remove(id);
    }

    async fn plug(&self, endpoint: &str, mac: Mac, apart: Option<String>) -> Result<(), NetlinkError> {
        if *self.refuses.lock().expect("whole") {
            return Err(NetlinkError::other("weft", "find the interface", "it is away"));
        }
        self.pairs.lock().expect("whole").entry(near(endpoint)).or_insert((Place::Host, mac));
        if let Some(network) = apart {
            assert!(self.apart.lock().expect("whole").contains_key(&network), "{network} is open before its ports");
            self.members.lock().expect("whole").insert(near(endpoint), network);
        }
        Ok(())
    }

    async fn unplug(&self, near: &str) -> Result<(), NetlinkError> {
        self.pairs.lock().expect("whole").remove(near);
        self.members.lock().expect("whole").remove(near);
        Ok(())
    }

    async fn place(&self, endpoint: &str) -> Result<Place, NetlinkError> {
        let pairs = self.pairs.lock().expect("whole");
        Ok(pairs.get(&near(endpoint)).map_or(Place::Nowhere, |(place, _)| *place))
    }

    async fn shield(&self, endpoint: &str, _: u32) -> Result<(), NetlinkError> {
        self.shielded.lock().expect("whole").push(near(endpoint));
        Ok(())
    }

    async fn all(&self) -> Result<Vec<String>, NetlinkError> {
        Ok(self.pairs.lock().expect("whole").keys().cloned().collect())
    }
}

/// A router with its drivers, and their socket.
pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) docker: Docker<Played>,
    pub(super) ports: Played,
    /// Of the drivers' own store; that of the rig is beside it.
    pub(super) dir: TempDir,
    _rig_dir: TempDir,
    socket: PathBuf,
    server: JoinHandle<()>,
}

impl World {
    pub(super) fn start() -> Self {
        let (dir, rig_dir) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
        let rig = Rig::start(Options { name: "one", directory: rig_dir.path(), secret: None, targets: Vec::new() });
        let ports = Played::default();
        let docker = make(&rig, dir.path(), &ports, None);
        let socket = dir.path().join("plugin.sock");
        let listener = UnixListener::bind(&socket).expect("bound");
        let app = super::server::app(docker.clone());
        let server = tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
        Self { rig, docker, ports, dir, _rig_dir: rig_dir, socket, server }
    }

    /// One call as the engine sends it; the answer, or what it says is wrong.
    pub(super) async fn call(&self, name: &str, body: &Value) -> Result<Value, String> {
        let (status, answer) = self.post(name, &body.to_string()).await;
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        match answer["Err"].as_str() {
            None => {
                assert_eq!(status, 200, "{answer}");
                Ok(answer)
            }
            Some(error) => {
                assert_ne!(status, 200, "{answer}");
                Err(error.to_owned())
            }
        }
    }

    pub(super) async fn ok(&self, name: &str, body: &Value) -> Value {
        self.call(name, body).await.unwrap_or_else(|error| panic!("{name} {body}: {error}"))
    }

    /// The very bytes of the engine: no host, no type of the body.
    pub(super) async fn post(&self, name: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).await.expect("connected");
        let head = format!(
            "POST /{name} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\n\
             Accept: application/vnd.docker.plugins.v1.2+json\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        stream.write_all(body.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let code = head.split(' ').nth(1).expect("a code").parse().expect("a number");
        (code, body.to_owned())
    }

    /// `docker network create`; the pool's id.
    pub(super) async fn network(&self, network: &str) -> String {
        let pool = json!({"AddressSpace": "weft", "Pool": "10.32.0.0/16", "SubPool": "", "Options": {}, "V6": false});
        let pool = self.ok("IpamDriver.RequestPool", &pool).await;
        self.ok("NetworkDriver.CreateNetwork", &create(network, &json!({}))).await;
        pool["PoolID"].as_str().expect("an id").to_owned()
    }

    /// An address, any or this one, as the engine asks for it.
    pub(super) async fn address(&self, pool: &str, wanted: &str) -> Result<String, String> {
        let body = json!({"PoolID": pool, "Address": wanted, "Options": null});
        let answer = self.call("IpamDriver.RequestAddress", &body).await?;
        Ok(answer["Address"].as_str().expect("an address").to_owned())
    }

    /// `docker run` up to where the container has its interface.
    pub(super) async fn run(&self, network: &str, endpoint: &str, address: &str) -> Result<Value, String> {
        let answer =
            self.call("NetworkDriver.CreateEndpoint", &create_endpoint(network, endpoint, address, "")).await?;
        let both = json!({"NetworkID": network, "EndpointID": endpoint, "SandboxKey": "/x", "Options": {}});
        self.call("NetworkDriver.Join", &both).await?;
        self.ports.put(endpoint, Place::Container);
        Ok(answer)
    }

    /// How many addresses the ring has given.
    pub(super) async fn given(&self) -> usize {
        self.rig.handle.ipam().await.expect("it runs").allocations.len()
    }

    /// Ends it and starts its drivers again, from what is on disk.
    pub(super) fn reload(&mut self, engine: Option<Engine>) {
        self.server.abort();
        let copy = tempfile::tempdir().expect("a directory");
        // Each answer was durable, so the file is whole at any time.
        std::fs::copy(self.dir.path().join("weft.redb"), copy.path().join("weft.redb")).expect("copied");
        self.dir = copy;
        self.docker = make(&self.rig, self.dir.path(), &self.ports, engine);
        self.socket = self.dir.path().join("plugin.sock");
        let listener = UnixListener::bind(&self.socket).expect("bound");
        let app = super::server::app(self.docker.clone());
        self.server = tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
    }
}

fn make(rig: &Rig, dir: &Path, ports: &Played, engine: Option<Engine>) -> Docker<Played> {
    let opened = store::open(dir).expect("a store");
    let stored = opened.state.docker;
    let (store, _) = Store::start(opened.file).expect("a store");
    Docker::new(DockerConfig {
        router: rig.handle.clone(),
        store,
        stored,
        ledger: rig.ledger.clone(),
        guests: Guests::default(),
        ports: ports.clone(),
        engine,
        mtu: 1402,
        ranges: ranges(),
    })
}

/// A network of these addresses, as the engine sends it.
pub(super) fn create_of(network: &str, pool: &str) -> Value {
    let mut body = create(network, &json!({}));
    body["IPv4Data"][0]["Pool"] = json!(pool);
    body
}

/// As the engine sends it, with more options.
pub(super) fn create(network: &str, generic: &Value) -> Value {
    json!({
        "NetworkID": network,
        "Options": {"com.docker.network.enable_ipv6": false, "com.docker.network.generic": generic},
        "IPv4Data": [{"AddressSpace": "weft", "Gateway": "10.32.0.0/16", "Pool": "10.32.0.0/16"}],
        "IPv6Data": []
    })
}

pub(super) fn create_endpoint(network: &str, endpoint: &str, address: &str, v6: &str) -> Value {
    json!({
        "NetworkID": network,
        "EndpointID": endpoint,
        "Interface": {"Address": address, "AddressIPv6": v6, "MacAddress": ""},
        "Options": {"com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": []}
    })
}
