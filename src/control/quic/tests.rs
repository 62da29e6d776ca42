use std::net::SocketAddr;
use std::time::Instant;

use mesh_proto::control::MESSAGE_MAX;
use mesh_proto::id::PeerId;

use super::*;
use crate::data::bind_udp;

/// An endpoint on loopback whose datagrams are received by a thread as simple as can be.
struct Host {
    quic: Quic,
    events: mpsc::Receiver<QuicEvent>,
    address: SocketAddr,
    socket: Arc<UdpSocket>,
    /// Stands for the data thread's output.
    arrivals: mpsc::Sender<(Hop, Vec<u8>)>,
    relayed: std::sync::mpsc::Receiver<(PeerId, Vec<u8>)>,
    receiver: tokio::task::JoinHandle<()>,
}

impl Host {
    fn start(seed: u8) -> Self {
        Self::start_on(seed, Arc::new(bind_udp("127.0.0.1:0".parse().unwrap()).unwrap()))
    }

    fn start_on(seed: u8, socket: Arc<UdpSocket>) -> Self {
        let (data, relayed) = DataHandle::without_thread();
        let (arrivals, incoming) = mpsc::channel(1024);
        let config = QuicConfig { seed: Zeroizing::new([seed; 32]), socket: socket.clone(), data, incoming };
        let (quic, events) = Quic::start(config).unwrap();
        let receiver = tokio::spawn(receive(socket.clone(), arrivals.clone()));
        Self { quic, events, address: socket.local_addr().unwrap(), socket, arrivals, relayed, receiver }
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

    async fn disconnected(&mut self) -> String {
        match self.event().await {
            QuicEvent::Disconnected(_, reason) => reason,
            other => panic!("not disconnected: {other:?}"),
        }
    }
}

async fn receive(socket: Arc<UdpSocket>, arrivals: mpsc::Sender<(Hop, Vec<u8>)>) {
    let socket = tokio::net::UdpSocket::from_std(socket.try_clone().unwrap()).unwrap();
    let mut buffer = [0; 2048];
    while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
        if arrivals.send((Hop::Direct(from), buffer[..len].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn pair() -> (Host, ConnId, Connected, Host, ConnId, Connected) {
    let (mut a, mut b) = (Host::start(1), Host::start(2));
    a.quic.dial(DialId(7), Hop::Direct(b.address));
    let (at_a, of_a) = a.connected().await;
    let (at_b, of_b) = b.connected().await;
    (a, at_a, of_a, b, at_b, of_b)
}

fn public_key(seed: u8) -> [u8; 32] {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    pair.public_key().as_ref().try_into().unwrap()
}

#[tokio::test]
async fn both_ends_see_the_others_key_and_the_same_exporter() {
    let (a, _, of_a, b, _, of_b) = pair().await;
    assert_eq!(of_a.sign_key, public_key(2));
    assert_eq!(of_b.sign_key, public_key(1));
    assert_eq!(of_a.exporter, of_b.exporter);
    assert_ne!(of_a.exporter, [0; 32]);
    assert_eq!((of_a.dial, of_b.dial), (Some(DialId(7)), None));
    assert_eq!(of_a.hop, Hop::Direct(b.address));
    assert_eq!(of_b.hop, Hop::Direct(a.address));
}

#[tokio::test]
async fn two_connections_have_two_names_and_two_exporters() {
    let (mut a, first, of_first, mut b, ..) = pair().await;
    a.quic.dial(DialId(8), Hop::Direct(b.address));
    let (second, of_second) = a.connected().await;
    b.connected().await;
    assert_ne!(first, second);
    assert_ne!(of_first.exporter, of_second.exporter);
}

#[tokio::test]
async fn messages_keep_their_boundaries_and_order_both_ways() {
    let (mut a, at_a, _, mut b, at_b, _) = pair().await;
    let messages = [vec![1], vec![2; 3], vec![3; 5000], vec![4; MESSAGE_MAX], vec![5; 7]];
    // The end that was dialled may speak first.
    b.quic.send(at_b, b"hello".to_vec());
    assert_eq!(a.message().await, b"hello");
    for message in &messages {
        a.quic.send(at_a, message.clone());
    }
    for message in &messages {
        assert!(b.message().await == *message, "a message of {} bytes", message.len());
    }
}

#[tokio::test]
async fn the_reason_of_a_close_arrives_after_what_was_sent_before() {
    let (mut a, at_a, _, mut b, _, _) = pair().await;
    for n in 0..100 {
        a.quic.send(at_a, vec![n; 2000]);
    }
    a.quic.close(at_a, "the secret is wrong");
    a.quic.send(at_a, b"too late".to_vec());
    for n in 0..100 {
        assert_eq!(b.message().await, vec![n; 2000]);
    }
    assert_eq!(b.disconnected().await, "the secret is wrong");
    assert_eq!(a.disconnected().await, "closed at this end: the secret is wrong");
}

#[tokio::test]
async fn a_shutdown_tells_every_other_end_and_refuses_new_ones() {
    let (mut a, _, _, mut b, _, _) = pair().await;
    let began = Instant::now();
    a.quic.shutdown("going down").await;
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(b.disconnected().await, "going down");
    assert_eq!(a.disconnected().await, "closed at this end: going down");
    b.quic.dial(DialId(9), Hop::Direct(a.address));
    assert!(matches!(b.event().await, QuicEvent::DialFailed(DialId(9), _)));
    a.quic.dial(DialId(10), Hop::Direct(b.address));
    assert!(matches!(a.event().await, QuicEvent::DialFailed(DialId(10), _)));
}

#[tokio::test]
async fn a_dial_to_a_dead_port_fails_in_time() {
    let mut a = Host::start(1);
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let began = Instant::now();
    a.quic.dial(DialId(1), Hop::Direct(silent.local_addr().unwrap()));
    match a.event().await {
        QuicEvent::DialFailed(DialId(1), reason) => assert_eq!(reason, "no answer within 4 s"),
        other => panic!("{other:?}"),
    }
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn an_address_that_cannot_be_dialled_fails_at_once() {
    let mut a = Host::start(1);
    a.quic.dial(DialId(1), Hop::Direct("127.0.0.1:0".parse().unwrap()));
    assert!(matches!(a.event().await, QuicEvent::DialFailed(DialId(1), _)));
}

#[tokio::test]
async fn garbage_neither_connects_nor_disturbs_a_connection() {
    let (a, at_a, _, mut b, _, _) = pair().await;
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut noise = 1_u64;
    for n in 0..5000_usize {
        let bytes: Vec<u8> = (0..n % 1400)
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                noise.to_be_bytes()[0]
            })
            .collect();
        stranger.send_to(&bytes, b.address).unwrap();
        // As if from the very connection's other end.
        b.arrivals.send((Hop::Direct(a.address), bytes)).await.unwrap();
    }
    a.quic.send(at_a, b"still here".to_vec());
    assert_eq!(b.message().await, b"still here");
    assert!(b.events.try_recv().is_err());
}

#[tokio::test]
async fn a_router_that_was_killed_and_is_back_ends_its_old_connections_at_once() {
    let (mut a, at_a, _, b, _, _) = pair().await;
    // The old life hears nothing any more; the new one has the same port and the same key.
    b.receiver.abort();
    let _b = Host::start_on(2, b.socket.clone());
    let began = Instant::now();
    a.quic.send(at_a, vec![0; 100]);
    assert_eq!(a.disconnected().await, "the other end was started again");
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_queue_that_nobody_reads_is_bounded_and_closed_as_too_slow() {
    let (mut a, at_a, _, _b, _, _) = pair().await;
    // b's events are not drained, so its reader stops and the windows fill.
    for _ in 0..500 {
        a.quic.send(at_a, vec![0; 1 << 16]);
        tokio::task::yield_now().await;
    }
    assert!(a.disconnected().await.contains("too slow"));
}

#[tokio::test]
async fn a_message_over_the_limit_is_not_sent() {
    let (mut a, at_a, _, mut b, _, _) = pair().await;
    a.quic.send(at_a, vec![0; MESSAGE_MAX + 1]);
    assert!(a.disconnected().await.contains("over the limit"));
    assert!(b.disconnected().await.contains("over the limit"));
}

/// A dialler that does as it likes.
async fn dial_by_hand(to: SocketAddr) -> Connection {
    let tls = tls::configure(&[3; 32]).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::new(tls.endpoint, None, socket, Arc::new(TokioRuntime)).unwrap();
    endpoint.connect_with(ClientConfig::new(tls.client), to, "weft").unwrap().await.unwrap()
}

#[tokio::test]
async fn an_announced_length_over_the_limit_ends_the_connection() {
    let mut b = Host::start(2);
    let stranger = dial_by_hand(b.address).await;
    let (mut send, _receive) = stranger.open_bi().await.unwrap();
    send.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    b.connected().await;
    assert!(connection::explain(&stranger.closed().await).contains("over the limit"));
    b.disconnected().await;
}

#[tokio::test]
async fn a_dialler_that_opens_no_stream_is_let_go_unheard() {
    let mut b = Host::start(2);
    let stranger = dial_by_hand(b.address).await;
    assert_eq!(connection::explain(&stranger.closed().await), "no stream was opened");
    assert!(b.events.try_recv().is_err());
}

#[tokio::test]
async fn a_stream_that_ends_within_a_message_ends_the_connection() {
    let mut b = Host::start(2);
    let stranger = dial_by_hand(b.address).await;
    let (mut send, _receive) = stranger.open_bi().await.unwrap();
    send.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
    send.finish().unwrap();
    b.connected().await;
    assert_eq!(connection::explain(&stranger.closed().await), "the stream broke");
    b.disconnected().await;
}

#[tokio::test]
async fn a_stranger_without_a_raw_key_or_with_another_protocol_is_refused() {
    let mut b = Host::start(2);
    for protocol in ["weft", "h3"] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        client.alpn_protocols = vec![protocol.into()];
        let client = quinn::crypto::rustls::QuicClientConfig::try_from(client).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let endpoint = Endpoint::new(quinn::EndpointConfig::default(), None, socket, Arc::new(TokioRuntime)).unwrap();
        let connecting = endpoint.connect_with(ClientConfig::new(Arc::new(client)), b.address, "weft").unwrap();
        assert!(timeout(HANDSHAKE, connecting).await.unwrap().is_err());
    }
    assert!(b.events.try_recv().is_err());
}

#[tokio::test]
async fn a_flood_of_handshakes_from_forged_addresses_does_not_keep_a_peer_out() {
    let (mut a, mut b) = (Host::start(1), Host::start(2));
    let stranger = Host::start(3);
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for port in 0..200 {
        stranger.quic.dial(DialId(port.into()), Hop::Direct(silent.local_addr().unwrap()));
        let mut first = [0; 2048];
        let (len, _) = silent.recv_from(&mut first).await.unwrap();
        let forged = ([192, 0, 2, 9], 10_000 + port).into();
        b.arrivals.send((Hop::Direct(forged), first[..len].to_vec())).await.unwrap();
    }
    while b.quic.shared.pending.load(Ordering::Relaxed) < PENDING_UNPROVEN {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    a.quic.dial(DialId(1), Hop::Direct(b.address));
    a.connected().await;
    b.connected().await;
    assert!(b.quic.shared.pending.load(Ordering::Relaxed) <= PENDING_UNPROVEN);
}

#[tokio::test]
async fn a_connection_through_relays_names_the_peers_and_not_addresses() {
    let (mut a, mut b) = (Host::start(1), Host::start(2));
    let (id_a, id_b) = (PeerId([0xa; 16]), PeerId([0xb; 16]));
    relay(std::mem::replace(&mut a.relayed, std::sync::mpsc::channel().1), id_b, id_a, b.arrivals.clone());
    relay(std::mem::replace(&mut b.relayed, std::sync::mpsc::channel().1), id_a, id_b, a.arrivals.clone());
    a.quic.dial(DialId(1), Hop::Relayed(id_b));
    let (at_a, of_a) = a.connected().await;
    let (_, of_b) = b.connected().await;
    assert_eq!((of_a.hop, of_b.hop), (Hop::Relayed(id_b), Hop::Relayed(id_a)));
    assert_eq!(of_a.exporter, of_b.exporter);
    a.quic.send(at_a, vec![9; 100_000]);
    assert_eq!(b.message().await, vec![9; 100_000]);
}

/// Carries what is sent to `to` as coming from `from`; no datagram may exceed what a relay takes.
fn relay(
    sent: std::sync::mpsc::Receiver<(PeerId, Vec<u8>)>,
    to: PeerId,
    from: PeerId,
    arrivals: mpsc::Sender<(Hop, Vec<u8>)>,
) {
    std::thread::spawn(move || {
        for (peer, bytes) in sent {
            assert_eq!(peer, to);
            assert!(bytes.len() <= 1200);
            assert_ne!(bytes[0] & 0x40, 0, "QUIC shows its bit in every datagram");
            if arrivals.blocking_send((Hop::Relayed(from), bytes)).is_err() {
                return;
            }
        }
    });
}
