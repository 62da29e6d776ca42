//! QUIC on the port that it shares with sleeve: over real data threads, straight and relayed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use mesh_proto::data::forwarder::ForwarderConfig;
use mesh_proto::handover::{Command, PeerPath, Tables};
use mesh_proto::id::{Incarnation, PeerId};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::clock::Clock;
use crate::data::{DataConfig, bind_udp};

/// A data thread with a pair of local sockets for its TAP, and an endpoint.
struct Router {
    id: PeerId,
    data: DataHandle,
    quic: Quic,
    events: mpsc::Receiver<QuicEvent>,
    address: SocketAddr,
    _bridge: OwnedFd,
}

impl Drop for Router {
    fn drop(&mut self) {
        self.data.stop();
    }
}

impl Router {
    fn start(seed: u8, listen: &str) -> Self {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (tap, bridge) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let socket = Arc::new(bind_udp(listen.parse().unwrap()).unwrap());
        let forwarder =
            ForwarderConfig { sealed: true, macs_max: 64, mac_age: Duration::from_secs(300), payload_max: 1472 };
        let config = DataConfig {
            tap: tap.into(),
            socket: socket.clone(),
            forwarder,
            seed: 1,
            busy_poll: Duration::ZERO,
            clock: Clock::start(),
        };
        let (data, outputs) = DataHandle::start(config).unwrap();
        let address = socket.local_addr().unwrap();
        let (quic, events) = Quic::start(QuicConfig {
            seed: Zeroizing::new([seed; 32]),
            socket,
            data: data.clone(),
            incoming: outputs.quic,
        })
        .unwrap();
        Self { id: PeerId([seed; 16]), data, quic, events, address, _bridge: bridge }
    }

    /// Tables with these peers: linked at an address, or behind a relay.
    fn route(&self, peers: &[(PeerId, Result<SocketAddr, PeerId>)]) {
        let incarnation = Incarnation(1);
        let path = |way: Result<SocketAddr, PeerId>| PeerPath {
            incarnation,
            direct: way.ok(),
            relays: way.err().into_iter().collect(),
        };
        let peers = peers.iter().map(|(peer, way)| (*peer, path(*way))).collect();
        let tables = Tables { me: self.id, incarnation, peers, trees: BTreeMap::new() };
        self.data.command(Command::Tables(Arc::new(tables)));
    }

    async fn event(&mut self) -> QuicEvent {
        timeout(Duration::from_secs(10), self.events.recv()).await.expect("an event").expect("the endpoint runs")
    }

    async fn connected(&mut self) -> (ConnId, Connected) {
        match self.event().await {
            QuicEvent::Connected(conn, connected) => (conn, connected),
            other => panic!("not connected: {other:?}"),
        }
    }

    async fn message(&mut self) -> Vec<u8> {
        match self.event().await {
            QuicEvent::Message(_, bytes) => bytes,
            other => panic!("not a message: {other:?}"),
        }
    }
}

#[tokio::test]
async fn two_routers_connect_over_the_shared_port_in_either_family() {
    for (a, b, dial) in
        [("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"), ("[::]:0", "[::]:0", "::1"), ("[::]:0", "[::]:0", "127.0.0.1")]
    {
        let (mut a, mut b) = (Router::start(1, a), Router::start(2, b));
        let to = SocketAddr::new(dial.parse().unwrap(), b.address.port());
        a.quic.dial(DialId(1), Hop::Direct(to));
        let (at_a, of_a) = a.connected().await;
        let (at_b, of_b) = b.connected().await;
        assert_eq!(of_a.exporter, of_b.exporter);
        assert_eq!(of_a.hop, Hop::Direct(to));
        assert_eq!(of_b.hop, Hop::Direct(SocketAddr::new(to.ip(), a.address.port())));
        let message = vec![7; 300_000];
        a.quic.send(at_a, message.clone());
        assert!(b.message().await == message);
        b.quic.close(at_b, "seen enough");
        assert!(matches!(a.event().await, QuicEvent::Disconnected(_, reason) if reason == "seen enough"));
    }
}

#[tokio::test]
async fn two_routers_that_reach_each_other_only_through_a_third_connect_end_to_end() {
    let listen = "127.0.0.1:0";
    let (mut a, r, mut b) = (Router::start(1, listen), Router::start(2, listen), Router::start(3, listen));
    a.route(&[(r.id, Ok(r.address)), (b.id, Err(r.id))]);
    b.route(&[(r.id, Ok(r.address)), (a.id, Err(r.id))]);
    r.route(&[(a.id, Ok(a.address)), (b.id, Ok(b.address))]);
    // The tables are in force once a report that was asked for after them is there.
    for router in [&a, &r, &b] {
        router.data.report().await.unwrap();
    }
    a.quic.dial(DialId(1), Hop::Relayed(b.id));
    let (at_a, of_a) = a.connected().await;
    let (at_b, of_b) = b.connected().await;
    assert_eq!((of_a.hop, of_b.hop), (Hop::Relayed(b.id), Hop::Relayed(a.id)));
    assert_eq!(of_a.exporter, of_b.exporter);
    a.quic.send(at_a, vec![1; 200_000]);
    assert!(b.message().await == vec![1; 200_000]);
    b.quic.send(at_b, b"back".to_vec());
    assert_eq!(a.message().await, b"back");
    assert!(r.data.report().await.unwrap().forwarder.relayed > 100);
}
