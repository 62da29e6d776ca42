//! Inputs that are well formed, for each way in: made by the machines and encoders themselves, so
//! that a change of a format changes them too. Fuzzers start from them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ipam::RequestId;
use mesh_proto::control::ConnId;
use mesh_proto::control::names::Output as NamesOutput;
use mesh_proto::id::PeerId;
use mesh_proto::wire::cbor::Endpoint;
use mesh_proto::wire::control::{App, Message, Refuse, RefuseCode, Rekey, RekeyAnswer};
use mesh_proto::wire::fastpath::{Message as FastMessage, Ping, ProbeFrame, ProbeKind, Seal, Table};
use mesh_proto::wire::gossip::{
    BUCKETS, Buckets, Digest, HASH_LEN, LinkEntry, RecordBody, Records, VersionEntry, Versions, Want,
};
use mesh_proto::wire::names::{
    Digest as NamesDigest, Message as NamesMessage, Row, Table as NamesTable, Want as NamesWant,
};
use mesh_proto::wire::trust::{Admit, Pake, Revocation, Revocations, Revoked};

use super::{HEARD, Key, NOW, NoKeys, allocator, connect, dial, drained, namer, node, plain_datagram, record, sent};

/// The inputs of a way in, by its name.
#[must_use]
pub fn made(target: &str) -> Vec<Vec<u8>> {
    match target {
        "frames" => frames(),
        "records" => records(),
        "plain_datagrams" | "sealed_datagrams" => records()
            .iter()
            .enumerate()
            .map(|(counter, record)| input(&[plain_datagram(counter as u64, record)]))
            .collect(),
        "strangers_messages" => vec![input(&handshake())],
        "members_messages" => members_messages(),
        "trust_messages" => trust_messages(),
        "address_messages" => vec![input(&address_messages())],
        "fast_path" => fast_path(),
        "name_messages" => vec![input(&name_messages())],
        "dns_messages" => dns_messages(),
        _ => Vec::new(),
    }
}

/// One input of these pieces ([`super::pieces`]).
fn input(pieces: &[Vec<u8>]) -> Vec<u8> {
    let head = |piece: &Vec<u8>| match piece.len() {
        short @ 0..255 => vec![short as u8],
        long => vec![u8::MAX, (long >> 8) as u8, long as u8],
    };
    pieces.iter().flat_map(|piece| [head(piece), piece.clone()].concat()).collect()
}

/// What containers send: each kind that the forwarder treats on its own.
fn frames() -> Vec<Vec<u8>> {
    let ethernet = |to: [u8; 6], rest: &[u8]| [&to[..], &[2, 0, 0, 0, 0, 1], rest].concat();
    let arp = [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..], &[2, 0, 0, 0, 0, 1, 10, 32, 0, 1, 0, 0, 0, 0, 0, 0, 10, 32, 0, 2]];
    // Not to be fragmented, so that what is too big is told.
    let ipv4 = |protocol: u8, body: &[u8]| {
        let [high, low] = (20 + body.len() as u16).to_be_bytes();
        let head = [0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2];
        [&[8, 0][..], &head, body].concat()
    };
    let ipv6 = |next: u8, body: &[u8]| {
        let [high, low] = (body.len() as u16).to_be_bytes();
        let [from, to] = [1, 2].map(|last| [&[0xfd, 0, 0, 0x32][..], &[0; 11], &[last]].concat());
        [&[0x86, 0xdd, 0x60, 0, 0, 0, high, low, next, 255][..], &from, &to, body].concat()
    };
    let ports = |length: u16| [&[0, 7, 0, 7][..], &length.to_be_bytes(), &[0, 0]].concat();
    let udp = |payload: usize| [ports(8 + payload as u16), vec![0x5a; payload]].concat();
    let tcp = |payload: usize| {
        let head = [0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4];
        [&head[..], &vec![0x5a; payload]].concat()
    };
    let solicit = [&[135, 0, 0, 0, 0, 0, 0, 0, 0xfd, 0, 0, 0x32][..], &[0; 11], &[2]].concat();
    let everybody = [0xff; 6];
    vec![
        ethernet(everybody, &arp.concat()),
        ethernet([0x33, 0x33, 0xff, 0, 0, 2], &ipv6(58, &solicit)),
        ethernet([1, 0, 0x5e, 0, 0, 251], &ipv4(17, &udp(40))),
        ethernet([6; 6], &ipv4(17, &udp(0))),
        ethernet(HEARD, &ipv4(17, &udp(1472))),
        ethernet(HEARD, &ipv4(6, &tcp(0))),
        ethernet(HEARD, &ipv4(6, &tcp(8000))),
        ethernet(HEARD, &ipv6(6, &tcp(8000))),
        ethernet(HEARD, &[&[0x81, 0, 0x20, 5][..], &ipv4(17, &udp(100))].concat()),
        ethernet(HEARD, &[&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6][..], &ipv6(17, &udp(100))].concat()),
        // LLC; to a bridge alone; no more than a header; less than one; more than any.
        ethernet([1, 0x80, 0xc2, 0, 0, 3], &[&[0, 3, 0x42, 0x42, 3][..], &[0; 43]].concat()),
        ethernet([1, 0x80, 0xc2, 0, 0, 0], &[&[0, 3, 0x42, 0x42, 3][..], &[0; 43]].concat()),
        ethernet(HEARD, &[8, 0]),
        vec![2; 13],
        ethernet(HEARD, &[&[8, 0][..], &vec![0; 70_000]].concat()),
    ]
}

fn records() -> Vec<Vec<u8>> {
    let frame = record(1, &[[0xff; 6], [2; 6], [0x08; 6]].concat());
    let probe = record(3, &[0, 0, 0, 1, 0x04, 0xb0, 0, 0]);
    let fragment = record(5, &[0, 0, 0, 1, 0, 0, 22, 0, 0, 0, 1, 0, 0, 18, 0xff, 0xff]);
    let flood = record(2, &[[2u8; 16].as_slice(), &[0; 16], &[3], &[0xff; 14]].concat());
    vec![frame, probe, fragment, flood]
}

/// What a sane peer says that dials the one of [`super::strangers_messages`].
fn handshake() -> Vec<Vec<u8>> {
    let (mut one, mut two) = (node(1), node(2));
    let dialled = dial(&mut two, 1);
    connect(&mut two, 1, Some(dialled));
    connect(&mut one, 2, None);
    let mut said = Vec::new();
    for _ in 0..4 {
        let (from_one, from_two) = (sent(&mut one), sent(&mut two));
        from_one.iter().for_each(|message| two.handle_message(ConnId(1), message, NOW));
        from_two.iter().for_each(|message| one.handle_message(ConnId(1), message, NOW));
        said.extend(from_two);
    }
    said
}

fn id(number: u8) -> PeerId {
    PeerId::of_keys(&[number; 32], &[number; 32])
}

/// What a peer says of itself, signed as [`NoKeys`] signs.
fn peer_record(number: u8, seq: u64, links: &[u8]) -> Vec<u8> {
    let mut links: Vec<_> = links.iter().map(|&other| LinkEntry { peer: id(other), rtt_us: 100 }).collect();
    links.sort_by_key(|link| link.peer);
    let body = RecordBody {
        sign_key: [number; 32],
        box_key: [number; 32],
        instance: u64::from(number),
        incarnation: 1,
        seq,
        name: format!("peer{number}"),
        endpoints: vec![Endpoint(SocketAddr::from(([192, 0, 2, number], 6783)))],
        links,
        run: [number; 16],
        admissions: Vec::new(),
    };
    [&NoKeys(number).signature()[..], &body.encode()].concat()
}

/// Each kind of message that a member sends, about itself and about a third peer.
fn members_messages() -> Vec<Vec<u8>> {
    let told = |record: Vec<u8>| Message::Records(Records { records: vec![record.into()] });
    let app = |origin: u8, to: Option<PeerId>, signature: Option<[u8; 64]>| {
        let payload = b"payload".to_vec();
        Message::App(App { origin: id(origin), incarnation: 1, seq: 1, to, hops: 8, payload, signature })
    };
    let entry = VersionEntry { peer: id(3), incarnation: 2, seq: 7, tag: 1 };
    let refuse = |code: RefuseCode, record| {
        Message::Refuse(Refuse { code: code.code(), reason: "for a test".to_owned(), record }).encode()
    };
    let messages = [
        told(peer_record(2, 9, &[1, 3])),
        told(peer_record(3, 1, &[2])),
        app(2, Some(id(1)), None),
        app(3, None, Some(NoKeys(3).signature())),
        app(2, Some(id(3)), Some(NoKeys(2).signature())),
        Message::Rekey(Rekey { index: 9, ephemeral: None }),
        Message::RekeyAnswer(RekeyAnswer { proposal: 7, index: 9, ephemeral: None }),
        Message::Digest(Digest { root: [5; HASH_LEN] }),
        Message::Want(Want { peers: vec![id(1), id(3), id(4)] }),
        Message::Versions(Versions::of(u64::MAX, [entry].into_iter())),
        Message::Buckets(Buckets { hashes: vec![7; BUCKETS * HASH_LEN] }),
    ];
    vec![
        input(&messages.each_ref().map(Message::encode)),
        input(&[refuse(RefuseCode::Settings, None)]),
        input(&[refuse(RefuseCode::Stale, Some(peer_record(1, 99, &[2])))]),
    ]
}

fn trust_messages() -> Vec<Vec<u8>> {
    let peer = |n| PeerId([n; 16]);
    let told = |peer, ask| Message::Revocations(Revocations { list: vec![revocation(peer)], ask });
    let messages = [
        told(peer(9), true),
        told(id(1), false),
        told(id(2), true),
        Message::Revoked(Revoked { hash: [3; 16] }),
        Message::Admit(Admit { not_after: 86_401, signature: NoKeys(2).signature() }),
        Message::Pake(Pake { message: vec![0x42; 33] }),
    ];
    vec![input(&messages.each_ref().map(Message::encode)), revocation(peer(7)).encode()]
}

/// A revocation that a member could have signed.
fn revocation(peer: PeerId) -> Revocation {
    Revocation {
        network: "fuzz".to_owned(),
        peer,
        name: "peer".to_owned(),
        at: 1,
        sign_key: [2; 32],
        box_key: [2; 32],
        signature: NoKeys(2).signature(),
    }
}

/// What a sane peer says to the one of [`super::address_messages`]: it joins the network, wants
/// addresses of both families, gives one back, and wants one that the other has.
fn address_messages() -> Vec<Vec<u8>> {
    let (mut one, mut two) = (allocator(1, 0), allocator(2, 1));
    let ranges = two.summary().ranges;
    let mut now = NOW;
    one.handle_peers(&[(Key([2; 16]), 1)], now);
    two.handle_peers(&[(Key([1; 16]), 1)], now);
    let mut said = Vec::new();
    for round in 0..100_u64 {
        let (from_one, from_two) = (drained(&mut one, now), drained(&mut two, now));
        from_one.iter().for_each(|message| two.handle_message(Key([1; 16]), 1, message, now));
        from_two.iter().for_each(|message| one.handle_message(Key([2; 16]), 1, message, now));
        said.extend(from_two);
        match round {
            20 | 21 => two.allocate(RequestId(round), "two", ranges[round as usize - 20], now),
            40 => {
                let freed = two.free("two", None, now);
                assert_eq!(freed.len(), 2, "the joiner has got no address");
            }
            41 => {
                let theirs = ranges[0].hosts().last().expect("a range has addresses");
                two.claim(RequestId(round), "two", theirs, now);
            }
            _ => {}
        }
        now += Duration::from_millis(100);
        one.handle_timeout(now);
        two.handle_timeout(now);
    }
    said
}

fn fast_path() -> Vec<Vec<u8>> {
    let table = Table { port: 6784, willing: true, number: 1, macs: vec![2; 12], seal: None };
    let sealed = Table { willing: false, seal: Some(Seal { key: [7; 32], port: 6785 }), ..table.clone() };
    let (from, to) = (PeerId([2; 16]), PeerId([1; 16]));
    let probe = ProbeFrame { kind: ProbeKind::Probe, from, to, nonce: 1 }.encode(0);
    let piece = |kind: u8, bytes: Vec<u8>| [&[kind | bytes.len() as u8][..], &bytes].concat();
    let table = piece(0, FastMessage::Table(table).encode());
    let ping = piece(0, FastMessage::Ping(Ping { nonce: 1 }).encode());
    let sealed = piece(0, FastMessage::Table(sealed).encode());
    vec![
        [table.clone(), ping].concat(),
        [table, piece(0x80, probe.clone())].concat(),
        [sealed, piece(0x80, probe)].concat(),
    ]
}

/// What a sane peer says of its names to the one of [`super::name_messages`], and each other kind of
/// message.
fn name_messages() -> Vec<Vec<u8>> {
    let mut other = namer(2);
    other.set_own(&BTreeMap::new());
    let sent = std::iter::from_fn(|| other.poll_output());
    let mut said: Vec<Vec<u8>> = sent
        .map(|output| match output {
            NamesOutput::Send(_, bytes) | NamesOutput::Broadcast(bytes) => bytes,
        })
        .collect();
    let row = Row { peer: PeerId([2; 16]), incarnation: 1, version: 9, sum: 3 };
    let messages = [
        NamesMessage::Want(NamesWant { incarnation: 1, version: 0 }),
        NamesMessage::Digest(NamesDigest { root: [3; 16] }),
        NamesMessage::Table(NamesTable::of(true, &[row])),
    ];
    said.extend(messages.each_ref().map(NamesMessage::encode));
    said
}

/// Queries for the mesh and for others, with and without an extension, and what a resolver says.
fn dns_messages() -> Vec<Vec<u8>> {
    let name = |labels: &[&str]| -> Vec<u8> {
        let label = |label: &&str| [&[label.len() as u8][..], label.as_bytes()].concat();
        labels.iter().flat_map(label).chain([0]).collect()
    };
    let query = |name: &[u8], kind: u8, extended: u8| {
        let head = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, extended];
        let opt: &[u8] = if extended > 0 { &[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0] } else { &[] };
        [&head[..], name, &[0, kind, 0, 1], opt].concat()
    };
    let mesh = name(&["WeB", "weft", "local"]);
    let reverse = name(&["1", "1", "32", "10", "in-addr", "arpa"]);
    let outside = query(&name(&["example", "com"]), 1, 1);
    let mut said = outside.clone();
    said[2] |= 0x80;
    // With a record, and without but with the zone's SOA: both may be remembered.
    let (question, opt) = said[12..].split_at(17);
    let soa_data = [&name(&["ns"])[..], &name(&["root"]), &[0; 19], &[60]].concat();
    let records = [
        [&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1][..]].concat(),
        [&[0xc0, 12, 0, 6, 0, 1, 0, 0, 0, 60, 0, soa_data.len() as u8][..], &soa_data].concat(),
    ];
    let heads = [[0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 1], [0, 7, 0x81, 0x83, 0, 1, 0, 0, 0, 1, 0, 1]];
    let [found, none] = [0, 1].map(|kind| [&heads[kind][..], question, &records[kind], opt].concat());
    vec![
        input(&[query(&mesh, 1, 0)]),
        input(&[query(&mesh, 28, 1)]),
        input(&[query(&reverse, 12, 1)]),
        input(&[query(&name(&["_http", "_tcp", "web", "weft", "local"]), 33, 1)]),
        input(&[query(&name(&["ip-10-32-1-1", "web", "weft", "local"]), 1, 0)]),
        input(&[outside.clone(), said]),
        input(&[outside.clone(), found]),
        input(&[outside, none]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{WAYS_IN, addressed, heard, link, messages, met, told};
    use mesh_proto::control::names::Found;
    use mesh_proto::data::{Hop, Sink};
    use mesh_proto::wire::datagram::SLEEVE_HEADER;

    #[test]
    fn every_way_in_has_inputs_that_are_well_formed() {
        for (name, _) in WAYS_IN {
            assert!(!made(name).is_empty(), "{name}");
        }
    }

    #[test]
    fn the_made_handshake_is_believed() {
        assert_eq!(met(&input(&handshake())).peers().len(), 2);
        assert_eq!(met(&[]).peers().len(), 1);
    }

    #[test]
    fn the_made_records_are_believed() {
        let (mut one, two) = (node(1), node(2));
        link(&mut one, two);
        messages(&mut one, &members_messages()[0]);
        assert_eq!(one.peers().len(), 3, "the third peer is known by its record");
    }

    #[test]
    fn the_made_messages_about_names_are_believed() {
        let names = told(&input(&name_messages()[..2]));
        assert_eq!(
            names.lookup(&"web".parse().expect("a name")),
            Found::Addresses(
                (0..60)
                    .map(|last| [10, 32, 1, last].into())
                    .chain((0..60).map(|last| [10, 32, 2, last].into()))
                    .collect()
            )
        );
        let names = told(&input(&name_messages()));
        assert_eq!(names.list().len(), 1, "the other one has taken its name away again");
    }

    #[test]
    fn the_made_address_messages_are_believed() {
        let owners = addressed(&input(&address_messages())).summary().peers;
        assert!(owners.iter().any(|&(peer, owned)| peer == Key([2; 16]) && owned > 0), "{owners:?}");
    }

    #[derive(Default)]
    struct Sent(Vec<Vec<u8>>);

    impl Sink for Sent {
        fn datagram(&mut self, _to: SocketAddr, bytes: &[u8]) {
            self.0.push(bytes.to_vec());
        }
        fn frame(&mut self, _bytes: &[u8]) {}
        fn quic(&mut self, _from: Hop, _bytes: &[u8]) {}
    }

    #[test]
    fn a_made_frame_goes_to_the_one_peer_whose_container_was_heard() {
        for frame in frames().iter().filter(|frame| frame.starts_with(&HEARD)).take(2) {
            let (mut forwarder, mut sink) = (heard(), Sent::default());
            forwarder.handle_frame(frame, NOW, &mut sink);
            forwarder.flush(NOW, &mut sink);
            let kind = sink.0.last().expect("a datagram")[SLEEVE_HEADER];
            assert!(kind == 1 || kind == 5, "a record of kind {kind}: not a frame to one peer, nor a piece of it");
        }
    }
}
