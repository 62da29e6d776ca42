//! Clients of the routers' API, and a book of who has which address: kept outside, by what was answered.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use hyper::Method;
use ipnet::IpNet;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, task::JoinSet};
use weft::{control::http, lab::Container};

use crate::mesh::{Mesh, Must as _};

/// The range of these tests: 1,024 blocks of one address each, two of which are never given.
pub(crate) const RANGE: &str = "10.60.0.0/22";
/// How many of its addresses can be given.
pub(crate) const USABLE: usize = 1022;
/// Longer than the API takes for any answer.
const PATIENCE: Duration = Duration::from_secs(125);
/// Addresses that a container remembers to have had.
const REMEMBERED: usize = 8;
/// Threads that make namespaces at once.
const MAKERS: usize = 4;

/// What the API said instead of doing it.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// Its status code; 0: it gave no answer.
    pub(crate) status: u16,
    pub(crate) error: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.error)
    }
}

/// Asks a router for a change.
pub(crate) async fn post(socket: &Path, path: &str, body: &Value) -> Result<Value, Refusal> {
    exchange(socket, Method::POST, path, Some(body.to_string().into_bytes())).await
}

/// Asks a router for what it knows.
pub(crate) async fn get(socket: &Path, path: &str) -> Result<Value, Refusal> {
    exchange(socket, Method::GET, path, None).await
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Value, Refusal> {
    let answer = http::request(socket, method, path, body, PATIENCE).await;
    let (status, bytes) = answer.map_err(|error| Refusal { status: 0, error: error.to_string() })?;
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if status.is_success() {
        return Ok(value);
    }
    Err(Refusal { status: status.as_u16(), error: value["error"].as_str().unwrap_or("no reason given").to_owned() })
}

/// Who has which address. An address that is told to a second one ends the test.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    holders: Mutex<BTreeMap<IpAddr, (usize, String)>>,
}

impl Ledger {
    fn holders(&self) -> MutexGuard<'_, BTreeMap<IpAddr, (usize, String)>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A router answered with an address.
    pub(crate) fn gave(&self, address: IpAddr, host: usize, pod: &str) {
        let holder = (host, pod.to_owned());
        let before = self.holders().insert(address, holder.clone());
        assert!(
            before.as_ref().is_none_or(|before| *before == holder),
            "DUPLICATE: {address} was given to {holder:?}, and {before:?} has it"
        );
    }

    /// It is about to be given back. Written down before the request leaves: from then on another one may get it.
    pub(crate) fn frees(&self, address: IpAddr) {
        self.holders().remove(&address);
    }

    /// A host is gone with all that ran on it.
    pub(crate) fn host_is_gone(&self, gone: usize) {
        self.holders().retain(|_, (host, _)| *host != gone);
    }

    pub(crate) fn count(&self) -> usize {
        self.holders().len()
    }

    /// What those on a host have.
    pub(crate) fn of_host(&self, wanted: usize) -> BTreeSet<IpAddr> {
        self.holders().iter().filter(|(_, (host, _))| *host == wanted).map(|(address, _)| *address).collect()
    }
}

/// A container with its addresses, and the router that it is attached to.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) host: usize,
    pub(crate) name: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// What it had and gave back, the last ones.
    pub(crate) before: VecDeque<IpAddr>,
    socket: PathBuf,
    container: Container,
    ledger: Arc<Ledger>,
}

impl Pod {
    /// Containers, not attached yet: so many on each of these hosts. Not to be called by a task.
    pub(crate) fn make(mesh: &Mesh, ledger: &Arc<Ledger>, wanted: &[(usize, usize)]) -> Vec<Self> {
        let places: Vec<(usize, usize)> =
            wanted.iter().flat_map(|&(host, count)| (0..count).map(move |number| (host, number))).collect();
        let make = |&(host, number): &(usize, usize)| {
            let name = format!("pod{host}-{number}");
            let container = Container::new(&name).must("make a container");
            let (socket, ledger) = (mesh.routers[host].socket(), Arc::clone(ledger));
            Self { host, name, addresses: Vec::new(), before: VecDeque::new(), socket, container, ledger }
        };
        thread::scope(|scope| {
            let parts = places.chunks(places.len().div_ceil(MAKERS).max(1));
            let makers: Vec<_> =
                parts.map(|part| scope.spawn(move || part.iter().map(make).collect::<Vec<_>>())).collect();
            makers.into_iter().flat_map(|maker| maker.join().expect("no panic")).collect()
        })
    }

    fn request(&self, addresses: &[IpAddr]) -> Value {
        json!({ "target": self.container.target(), "addresses": addresses })
    }

    /// Any address; if it has some already, those.
    pub(crate) async fn allocate(&mut self) -> Result<(), Refusal> {
        let had = self.addresses.len();
        let answer = post(&self.socket, "/v1/attach", &self.request(&[])).await?;
        self.has(&answer);
        assert_eq!(self.addresses.len(), had.max(1), "{} had {had}: {answer}", self.name);
        Ok(())
    }

    /// This address, besides those that it has.
    pub(crate) async fn claim(&mut self, address: IpAddr) -> Result<(), Refusal> {
        let answer = post(&self.socket, "/v1/attach", &self.request(&[address])).await?;
        self.has(&answer);
        assert!(self.addresses.contains(&address), "{} claimed {address}: {answer}", self.name);
        Ok(())
    }

    /// Gives one address back.
    pub(crate) async fn free(&mut self, at: usize) -> Result<(), Refusal> {
        let address = self.addresses.remove(at);
        self.frees(address);
        post(&self.socket, "/v1/detach", &self.request(&[address])).await.map(drop)
    }

    /// Gives all back.
    pub(crate) async fn free_all(&mut self) -> Result<(), Refusal> {
        for address in std::mem::take(&mut self.addresses) {
            self.frees(address);
        }
        post(&self.socket, "/v1/detach", &self.request(&[])).await.map(drop)
    }

    fn frees(&mut self, address: IpAddr) {
        self.ledger.frees(address);
        self.before.push_front(address);
        self.before.truncate(REMEMBERED);
    }

    /// Notes what an answer says that it has; nothing of what it had may be missing.
    fn has(&mut self, answer: &Value) {
        let list = answer["addresses"].as_array().must("addresses");
        let now: Vec<IpAddr> = list.iter().filter_map(Value::as_str).map(plain).collect();
        let lost: Vec<_> = self.addresses.iter().filter(|address| !now.contains(address)).collect();
        assert!(lost.is_empty(), "{} had {lost:?}, and now has {now:?}", self.name);
        for &address in &now {
            self.ledger.gave(address, self.host, &self.name);
        }
        self.addresses = now;
    }
}

/// An address without its prefix length.
fn plain(text: &str) -> IpAddr {
    text.parse::<IpNet>().must(text).addr()
}

/// What a router says and what was answered is the same, and nothing is in dispute.
pub(crate) async fn agrees(socket: &Path, host: usize, ledger: &Ledger) -> Result<(), String> {
    let ipam = get(socket, "/v1/ipam").await.map_err(|refusal| refusal.to_string())?;
    let allocations = ipam["allocations"].as_array().ok_or("no allocations")?;
    let given: BTreeSet<IpAddr> = allocations.iter().filter_map(|one| one["address"].as_str()).map(plain).collect();
    let held = ledger.of_host(host);
    if given != held {
        let (lost, leaked): (Vec<_>, Vec<_>) = (held.difference(&given).collect(), given.difference(&held).collect());
        return Err(format!("host {host} does not know of {lost:?}, and has given {leaked:?} to nobody"));
    }
    let check = post(socket, "/v1/ipam/check", &json!({})).await.map_err(|refusal| refusal.to_string())?;
    let well = ["leaked", "missing", "contested"].iter().all(|kind| check[*kind].as_array().is_some_and(Vec::is_empty));
    if well { Ok(()) } else { Err(format!("host {host} finds {check}")) }
}

/// Does the same with each container, with so many at once of each host; what came of it, in any order.
pub(crate) async fn for_each<T, F>(pods: Vec<Pod>, at_once: usize, work: impl Fn(Pod) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut gates: BTreeMap<usize, Arc<Semaphore>> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    for pod in pods {
        let gate = Arc::clone(gates.entry(pod.host).or_insert_with(|| Arc::new(Semaphore::new(at_once))));
        let work = work(pod);
        tasks.spawn(async move {
            let _turn = gate.acquire_owned().await;
            work.await
        });
    }
    let mut done = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        done.push(ended.must("a task that does not panic"));
    }
    done
}
