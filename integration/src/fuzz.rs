//! What is done with bytes that a stranger, or a member gone mad, could send: one function for each
//! way in. The fuzz targets call them with what libFuzzer makes up, and `tests/replay.rs` with the
//! kept corpus, with well-formed inputs ([`made`]) and with random bytes. None may panic, hang, or
//! deliver a frame that nobody sealed.

mod made;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipam::allocator::{Allocator, Config, PeerKey};
use mesh_proto::control::fastpath::{FastPath, FastPathConfig};
use mesh_proto::control::names::Names;
use mesh_proto::control::node::Node;
use mesh_proto::control::terms::Terms;
use mesh_proto::control::{ConnId, Connected, DialId, Identity, NodeConfig, Output, TrustConfig};
use mesh_proto::data::forwarder::{Forwarder, ForwarderConfig};
use mesh_proto::data::{Hop, Sink};
use mesh_proto::handover::{Command, PeerPath, SessionKey, SessionKeys, Suite, Tables};
use mesh_proto::id::{Incarnation, PeerId};
use mesh_proto::wire::fastpath::Seal;
use mesh_proto::wire::record::Records;
use mesh_proto::wire::services::NameRecords;
use mesh_proto::wire::trust::{Admission, Edge};

use weft::control::dns::{Asked, Cache, Reply, Transport, Zone, answers, passed_on};
use weft::router::MeshNames;

pub use made::made;

const NOW: Duration = Duration::from_secs(1);
const ME: PeerId = PeerId([1; 16]);
const PEER: PeerId = PeerId([2; 16]);
/// Index of the one session; the corpus writes it into headers so that they lead somewhere.
const SESSION: u32 = 7;
/// Hardware address of a container behind the peer.
const HEARD: [u8; 6] = [8; 6];

/// Counts what leaves a forwarder.
#[derive(Debug, Default)]
struct Counting {
    frames: usize,
}

impl Sink for Counting {
    fn datagram(&mut self, _to: SocketAddr, _bytes: &[u8]) {}
    fn frame(&mut self, _bytes: &[u8]) {
        self.frames += 1;
    }
    fn quic(&mut self, _from: Hop, _bytes: &[u8]) {}
}

fn peer_address() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 2], 6783))
}

fn forwarder(suite: Suite) -> Forwarder {
    let sealed = suite != Suite::Plain;
    let config = ForwarderConfig { sealed, macs_max: 64, mac_age: Duration::from_secs(60), payload_max: 1472 };
    let mut forwarder = Forwarder::new(config, 1, NOW);
    let path = PeerPath { incarnation: Incarnation(1), direct: Some(peer_address()), relays: Vec::new() };
    let tables = Tables {
        me: ME,
        incarnation: Incarnation(1),
        peers: BTreeMap::from([(PEER, path)]),
        trees: BTreeMap::from([(ME, vec![PEER])]),
    };
    let key = || SessionKey([9; 32].into());
    let keys = SessionKeys {
        peer: PEER,
        incarnation: Incarnation(1),
        suite,
        local_index: SESSION,
        remote_index: SESSION,
        send: key(),
        receive: key(),
        initiator: true,
    };
    let mut sink = Counting::default();
    forwarder.handle_command(Command::Tables(Arc::new(tables)), NOW, &mut sink);
    forwarder.handle_command(Command::Install(Box::new(keys)), NOW, &mut sink);
    forwarder
}

/// Datagrams from the underlay to a peer of a sealed network: the input is cut into datagrams by the
/// lengths in it. None may deliver a frame.
///
/// # Panics
/// If one does.
pub fn sealed_datagrams(bytes: &[u8]) {
    let mut forwarder = forwarder(Suite::Aes256Gcm);
    let delivered = feed(&mut forwarder, bytes);
    assert_eq!(delivered, 0, "a frame that nobody sealed was delivered");
}

/// The same to a peer of a network without a secret, where anything well formed is delivered: this
/// reaches the parsers behind the seal, which a mad member could reach too.
pub fn plain_datagrams(bytes: &[u8]) {
    feed(&mut forwarder(Suite::Plain), bytes);
}

/// The pieces of an input: each has its length before it, in one byte, or in two after a 255.
fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (&short, rest) = bytes.split_first()?;
        let (length, rest) = match rest {
            [high, low, rest @ ..] if short == u8::MAX => (u16::from_be_bytes([*high, *low]), rest),
            _ => (short.into(), rest),
        };
        let (piece, rest) = rest.split_at(rest.len().min(length.into()));
        bytes = rest;
        Some(piece)
    })
}

fn feed(forwarder: &mut Forwarder, bytes: &[u8]) -> usize {
    let mut sink = Counting::default();
    let mut now = NOW;
    for datagram in pieces(bytes) {
        now += Duration::from_millis(10);
        forwarder.handle_datagram(peer_address(), &mut datagram.to_vec(), now, &mut sink);
        forwarder.flush(now, &mut sink);
        forwarder.handle_timeout(now, &mut sink);
        while forwarder.poll_event().is_some() {}
    }
    sink.frames
}

/// Messages of a member's fast path, and frames that a container or a peer could send in the place
/// of probes: the input is cut by length bytes, whose highest bit says which it is.
///
/// # Panics
/// If it asks to be called again at once.
pub fn fast_path(mut bytes: &[u8]) {
    let mut fast = FastPath::new(FastPathConfig { me: ME, port: 6784, mtu: 1402 }, [7; 32], NOW);
    let path = PeerPath { incarnation: Incarnation(1), direct: Some(peer_address()), relays: Vec::new() };
    let peers = BTreeMap::from([(PEER, path)]);
    let tables = Tables { me: ME, incarnation: Incarnation(1), peers, trees: BTreeMap::new() };
    fast.set_seal(Some(Seal { key: [8; 32], port: 6785 }), NOW);
    fast.set_tables(&tables, |_| Terms { plain: true, sealed: true }, NOW);
    let mut now = NOW;
    while let Some((&length, rest)) = bytes.split_first() {
        let (input, rest) = rest.split_at(usize::from(length & 0x7f).min(rest.len()));
        bytes = rest;
        now += Duration::from_millis(10);
        if length & 0x80 == 0 {
            fast.handle_message(PEER, input, now);
        } else {
            fast.handle_probe(input, now);
        }
        fast.handle_timeout(now);
        while fast.poll_output().is_some() {}
        assert!(fast.poll_timeout().is_some_and(|(at, _)| at > now), "it asks to be called again and again");
    }
}

/// A datagram as the sealing peer would number it.
fn plain_datagram(counter: u64, records: &[u8]) -> Vec<u8> {
    let header = mesh_proto::wire::datagram::SleeveHeader { receiver: SESSION, counter };
    [&header.bytes()[..], records].concat()
}

fn record(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, body.len() as u8][..], body].concat()
}

/// A forwarder that knows one container behind its peer.
fn heard() -> Forwarder {
    let mut forwarder = forwarder(Suite::Plain);
    let frame = [&[0xff; 6][..], &HEARD, &[8, 6], &[0; 46]].concat();
    let mut datagram = plain_datagram(0, &record(1, &frame));
    forwarder.handle_datagram(peer_address(), &mut datagram, NOW, &mut Counting::default());
    forwarder
}

/// Frames from the TAP: a container can send anything, to everybody or to a peer's container.
pub fn frames(bytes: &[u8]) {
    let mut forwarder = heard();
    let mut sink = Counting::default();
    forwarder.handle_frame(bytes, NOW, &mut sink);
    forwarder.flush(NOW, &mut sink);
}

/// The records of an opened datagram.
pub fn records(bytes: &[u8]) {
    for record in Records::new(bytes) {
        if record.is_err() {
            break;
        }
    }
}

/// Keys that sign for nobody: a fuzzer cannot forge, and need not.
#[derive(Debug)]
struct NoKeys(u8);

impl NoKeys {
    /// The one signature: it is good for everything.
    const fn signature(&self) -> [u8; 64] {
        [self.0; 64]
    }
}

impl Identity for NoKeys {
    fn sign_key(&self) -> [u8; 32] {
        [self.0; 32]
    }
    fn box_key(&self) -> [u8; 32] {
        [self.0; 32]
    }
    fn sign(&self, _message: &[u8]) -> [u8; 64] {
        self.signature()
    }
    fn verify(&self, sign_key: &[u8; 32], _message: &[u8], signature: &[u8; 64]) -> bool {
        *signature == [sign_key[0]; 64]
    }
}

fn node(number: u8) -> Node<NoKeys> {
    node_with(number, None, TrustConfig::default())
}

fn node_with(number: u8, secret: Option<SessionKey>, trust: TrustConfig) -> Node<NoKeys> {
    let suite = if secret.is_some() { Suite::Aes256Gcm } else { Suite::Plain };
    let config = NodeConfig {
        name: format!("peer{number}"),
        instance: u64::from(number),
        incarnation: Incarnation(1),
        network: "fuzz".to_owned(),
        secret,
        suites: vec![suite],
        endpoints: vec![SocketAddr::from(([192, 0, 2, number], 6783))],
        targets: Vec::new(),
        discovery: true,
        links_max: 8,
        trust,
    };
    Node::new(config, NoKeys(number), [number; 32], NOW)
}

/// Messages on a connection that has just been made: from a stranger who has only a TLS key.
pub fn strangers_messages(bytes: &[u8]) {
    met(bytes);
}

/// A peer that was dialled by a stranger, who said this.
fn met(bytes: &[u8]) -> Node<NoKeys> {
    let mut node = node(1);
    connect(&mut node, 2, None);
    messages(&mut node, bytes);
    node
}

/// Messages on a connection whose handshake is done: from a member.
///
/// # Panics
/// If the handshake between two sane peers does not end well.
pub fn members_messages(bytes: &[u8]) {
    between(node(1), node(2), bytes);
}

/// The same in a network with a secret, of which both know by kept admissions that the other is a
/// member: so admissions and revocations are listened to. Also, the bytes were kept in the data
/// directory.
///
/// # Panics
/// If the handshake between two admitted peers does not end well.
pub fn trust_messages(bytes: &[u8]) {
    let edge = Edge {
        network: "fuzz".to_owned(),
        sign_key: [2; 32],
        box_key: [2; 32],
        instance: 2,
        admission: Admission { sign_key: [1; 32], box_key: [1; 32], not_after: 86_400, signature: [1; 64] },
    };
    let entry = |kind: &[u8], value: &[u8]| (kind.to_vec(), value.to_vec());
    // Each has a secret of its own: the admissions alone must do.
    let [one, two] = [1, 2].map(|number| {
        let trust = TrustConfig { wall: 0, kept: vec![entry(b"a", &edge.encode())] };
        node_with(number, Some(SessionKey([number; 32].into())), trust)
    });
    between(one, two, bytes);
    let kept = [b"a", b"r"].map(|kind| entry(kind, bytes)).to_vec();
    node_with(1, Some(SessionKey([1; 32].into())), TrustConfig { wall: 0, kept });
}

fn between(mut one: Node<NoKeys>, two: Node<NoKeys>, bytes: &[u8]) {
    link(&mut one, two);
    messages(&mut one, bytes);
}

/// The first dials the second, and they agree.
fn link(one: &mut Node<NoKeys>, mut two: Node<NoKeys>) {
    let dial = dial(one, 2);
    connect(one, 2, Some(dial));
    connect(&mut two, 1, None);
    for _ in 0..4 {
        let to_two = sent(one);
        let to_one = sent(&mut two);
        to_two.iter().for_each(|message| two.handle_message(ConnId(1), message, NOW));
        to_one.iter().for_each(|message| one.handle_message(ConnId(1), message, NOW));
    }
    assert_eq!(one.peers().len(), 2, "the handshake failed");
}

/// Makes a node dial another.
fn dial(node: &mut Node<NoKeys>, other: u8) -> DialId {
    let address = SocketAddr::from(([192, 0, 2, other], 6783));
    node.connect(address.to_string(), NOW);
    let mut dialled = None;
    while let Some(output) = node.poll_output() {
        match output {
            Output::Resolve { target } => node.handle_resolved(&target, &[address], NOW),
            Output::Dial { dial, .. } => dialled = Some(dial),
            _ => {}
        }
    }
    dialled.expect("a node dials its targets at once")
}

fn connect(node: &mut Node<NoKeys>, other: u8, dial: Option<DialId>) {
    let hop = Hop::Direct(SocketAddr::from(([192, 0, 2, other], 6783)));
    let connected = Connected { hop, dial, sign_key: [other; 32], exporter: [3; 32] };
    node.handle_connected(ConnId(1), connected, NOW);
}

fn sent(node: &mut Node<NoKeys>) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    while let Some(output) = node.poll_output() {
        if let Output::Send { bytes, .. } = output {
            sent.push(bytes);
        }
    }
    sent
}

fn messages(node: &mut Node<NoKeys>, bytes: &[u8]) {
    let mut now = NOW;
    for message in pieces(bytes) {
        now += Duration::from_millis(10);
        node.handle_message(ConnId(1), message, now);
        node.handle_timeout(now);
        sent(node);
    }
}

/// A peer id of the address protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key([u8; 16]);

impl PeerKey for Key {
    fn to_bytes(self) -> [u8; 16] {
        self.0
    }
    fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// Messages of the address protocol from a member, to a peer that has a network.
///
/// # Panics
/// If the fixed configuration is refused.
pub fn address_messages(bytes: &[u8]) {
    addressed(bytes);
}

/// A peer of the address protocol, to which so many others were named.
fn allocator(number: u8, named: usize) -> Allocator<Key> {
    let ranges = ["10.32.0.0/16", "fd00:32::/64"].map(|range| range.parse().expect("a range"));
    let config = Config::new(Key([number; 16]), 1, ranges.to_vec(), named);
    Allocator::new(config, Vec::new(), [number; 32], NOW).expect("a usable configuration")
}

/// A peer that has a network, and was told this by a member.
fn addressed(bytes: &[u8]) -> Allocator<Key> {
    let mut allocator = allocator(1, 0);
    let mut now = NOW;
    allocator.handle_peers(&[(Key([2; 16]), 1)], now);
    drained(&mut allocator, now);
    for message in pieces(bytes) {
        now += Duration::from_millis(100);
        allocator.handle_message(Key([2; 16]), 1, message, now);
        allocator.handle_timeout(now);
        drained(&mut allocator, now);
    }
    allocator
}

/// Does what the allocator asks for; what it sends is returned.
fn drained(allocator: &mut Allocator<Key>, now: Duration) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    while let Some(output) = allocator.poll_output() {
        match output {
            ipam::Output::Store { ticket, .. } => allocator.handle_stored(ticket, Ok(()), now),
            ipam::Output::Send { bytes, .. } | ipam::Output::Broadcast { bytes } => sent.push(bytes),
            _ => {}
        }
    }
    sent
}

/// Messages about names from a member, who can be reached.
pub fn name_messages(bytes: &[u8]) {
    told(bytes);
}

/// A peer that knows a name of its own, and was told this by a member.
fn told(bytes: &[u8]) -> Names {
    let mut names = namer(1);
    let mut now = NOW;
    for message in pieces(bytes) {
        now += Duration::from_secs(1);
        names.handle_message(PEER, Incarnation(1), message, now);
        names.handle_timeout(now);
        while names.poll_output().is_some() {}
    }
    for listed in names.list() {
        drop(names.lookup(&listed.name));
        drop(names.services(&listed.name));
        listed.records.addresses.list().iter().for_each(|address| drop(names.reverse(*address)));
    }
    names
}

/// A peer that has a name, and reaches one other.
fn namer(number: u8) -> Names {
    let mut names = Names::new(PeerId([number; 16]), Incarnation(1), [number; 32], NOW);
    let others: Vec<_> = [ME, PEER].into_iter().filter(|id| id.0[0] != number).map(|id| (id, Incarnation(1))).collect();
    names.handle_peers(&others, NOW);
    let addresses = || (0..60).map(move |last| std::net::IpAddr::from([10, 32, number, last]));
    let services = addresses().map(|address| ("http=80".parse().expect("a service"), address));
    let own = BTreeMap::from([("web".parse().expect("a name"), NameRecords::new(addresses(), services))]);
    names.set_own(&own);
    names
}

/// A query of a client, and what a resolver says to it: the first piece and the others.
///
/// # Panics
/// If the answer is longer than the client takes.
pub fn dns_messages(bytes: &[u8]) {
    let mut pieces = pieces(bytes);
    let Some(query) = pieces.next() else { return };
    let ranges = ["10.32.0.0/16", "fd00:32::/64"].map(|range| range.parse().expect("a range")).to_vec();
    let zone = Zone::new("weft.local", ranges, MeshNames::new(namer(1))).expect("a domain");
    for (transport, most) in [(Transport::Udp, 1232), (Transport::Tcp, 65_535)] {
        if let Reply::Answer(answer) = zone.reply(query, transport) {
            assert!(answer.len() <= most, "{} bytes", answer.len());
        }
    }
    if let Reply::AskOthers(question) = zone.reply(query, Transport::Udp) {
        let (cache, now) = (Cache::default(), std::time::Instant::now());
        for said in pieces {
            let id = said.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
            if !answers(said, id, query, &question) {
                continue;
            }
            assert_eq!(passed_on(said.to_vec(), query, &question)[..2], query[..2]);
            let Some(asked) = Asked::read(query, &question) else { continue };
            cache.put(1, &asked, &question, said, now);
            let later = now + Duration::from_secs(1);
            if let Some(answer) = cache.get(1, (query, &question), &asked, Transport::Udp, later) {
                assert!(
                    answer.len() <= 1232
                        && answers(&answer, u16::from_be_bytes([query[0], query[1]]), query, &question)
                );
            }
        }
    }
}

/// The name of a fuzz target and of its corpus folder, with what it runs.
pub type WayIn = (&'static str, fn(&[u8]));

/// Every way in.
pub const WAYS_IN: &[WayIn] = &[
    ("sealed_datagrams", sealed_datagrams),
    ("plain_datagrams", plain_datagrams),
    ("frames", frames),
    ("records", records),
    ("strangers_messages", strangers_messages),
    ("members_messages", members_messages),
    ("trust_messages", trust_messages),
    ("address_messages", address_messages),
    ("name_messages", name_messages),
    ("dns_messages", dns_messages),
    ("fast_path", fast_path),
];
