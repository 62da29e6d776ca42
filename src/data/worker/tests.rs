use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use mesh_proto::data::Hop;
use mesh_proto::data::forwarder::ForwarderConfig;
use mesh_proto::handover::{Command, DataEvent, PeerPath, SessionKey, SessionKeys, Suite, Tables};
use mesh_proto::id::{Incarnation, PeerId};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::data::{DataHandle, bind_udp};

/// A data thread whose TAP is one end of a pair of datagram sockets.
struct Host {
    handle: DataHandle,
    outputs: DataOutputs,
    /// What the bridge would be.
    bridge: OwnedFd,
    socket: Arc<UdpSocket>,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.handle.stop();
    }
}

fn start() -> Host {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (tap, bridge) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let socket = Arc::new(bind_udp("127.0.0.1:0".parse().unwrap()).unwrap());
    let forwarder =
        ForwarderConfig { sealed: true, macs_max: 1024, mac_age: Duration::from_secs(300), payload_max: 1472 };
    let config = DataConfig {
        tap: tap.into(),
        socket: socket.clone(),
        forwarder,
        seed: 1,
        busy_poll: Duration::from_micros(100),
        clock: Clock::start(),
    };
    let (handle, outputs) = DataHandle::start(config).unwrap();
    Host { handle, outputs, bridge, socket }
}

async fn until(handle: &DataHandle, condition: impl Fn(&Report) -> bool) -> Report {
    let began = Instant::now();
    loop {
        let report = handle.report().await.expect("the thread runs");
        if condition(&report) {
            return report;
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{report:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_comes_from_the_tap_and_the_socket_is_read_in_turns() {
    let host = start();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = host.socket.local_addr().unwrap();
    for n in 0..100_usize {
        rustix::io::write(&host.bridge, &[0; 60][..60 - n % 2]).unwrap();
        // Neither QUIC nor sleeve.
        stranger.send_to(&[0x0f; 30], to).unwrap();
    }
    let report = until(&host.handle, |report| report.io.tap_read_frames == 100 && report.io.udp_received == 100).await;
    assert_eq!((report.io.tap_read_bytes, report.io.udp_received_bytes), (5950, 3000));
    assert_eq!((report.panics, report.tap_lost), (0, false));
}

#[tokio::test]
async fn quic_datagrams_reach_the_endpoint_and_are_counted_when_they_cannot() {
    let mut host = start();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = host.socket.local_addr().unwrap();
    let sent = OUTPUTS as u64 + 10;
    for n in 0..sent {
        stranger.send_to(&[0x40; 40], to).unwrap();
        if n % 100 == 0 {
            until(&host.handle, |report| report.io.udp_received == n + 1).await;
        }
    }
    let report = until(&host.handle, |report| report.io.udp_received == sent).await;
    assert_eq!(report.io.quic_queue_full, 10);
    let from = Hop::Direct(stranger.local_addr().unwrap());
    assert_eq!(host.outputs.quic.try_recv(), Ok((from, vec![0x40; 40])));
}

#[tokio::test]
async fn a_tap_that_goes_away_is_told_and_the_rest_goes_on() {
    let mut host = start();
    let (other, _) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    drop(std::mem::replace(&mut host.bridge, other));
    until(&host.handle, |report| report.tap_lost).await;
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&[1; 10], host.socket.local_addr().unwrap()).unwrap();
    until(&host.handle, |report| report.io.udp_received == 1).await;
}

#[tokio::test]
async fn a_stopped_thread_is_gone_and_its_handles_are_harmless() {
    let host = start();
    let began = Instant::now();
    host.handle.stop();
    assert!(began.elapsed() < Duration::from_millis(500));
    // The other end of the TAP is closed, so writing to it fails.
    assert!(rustix::net::send(&host.bridge, &[0; 60], rustix::net::SendFlags::NOSIGNAL).is_err());
    for _ in 0..5000 {
        host.handle.command(Command::Remove(PeerId([1; 16])));
    }
    assert!(!host.handle.relay_quic(PeerId([1; 16]), b"gone"));
    assert!(host.handle.report().await.is_none());
    host.handle.stop();
}

#[tokio::test]
async fn no_command_is_lost_when_they_come_faster_than_the_thread_takes_them() {
    let host = start();
    for n in 0..20_000_u32 {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&n.to_be_bytes());
        host.handle.command(Command::Remove(PeerId(id)));
    }
    until(&host.handle, |report| report.commands == 20_000).await;
}

#[tokio::test]
async fn the_thread_goes_on_when_control_is_gone() {
    let mut host = start();
    let (quic, events) = (mpsc::channel(1).1, mpsc::channel(1).1);
    drop(std::mem::replace(&mut host.outputs, DataOutputs { quic, events }));
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&[0x40; 40], host.socket.local_addr().unwrap()).unwrap();
    let report = until(&host.handle, |report| report.io.udp_received == 1).await;
    assert_eq!(report.io.quic_queue_full, 1);
}

/// A frame that makes the thread panic as a bug in the forwarder would.
pub(super) const BUG: &[u8] = b"a frame that meets a bug";

#[tokio::test]
async fn a_bug_costs_a_batch_and_not_the_thread() {
    let (a, b) = linked_pair();
    for n in 1..=3 {
        rustix::io::write(&a.bridge, BUG).unwrap();
        until(&a.handle, |report| report.panics == n).await;
        rustix::io::write(&a.bridge, &frame(0xff, 1, 60)).unwrap();
        assert_eq!(next_frame(&b).await, frame(0xff, 1, 60));
    }
}

#[tokio::test]
async fn an_idle_thread_sleeps() {
    let host = start();
    let before = host.handle.report().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = host.handle.report().await.unwrap();
    // Without peers there is not even a timer: only the second report wakes it.
    assert_eq!(after.turns - before.turns, 1);
}

const A: PeerId = PeerId([0xa; 16]);
const B: PeerId = PeerId([0xb; 16]);

/// What the control side of `me` would decide once it has a link with `other` at `at`.
fn link(me: PeerId, other: PeerId, at: SocketAddr) -> [Command; 2] {
    let incarnation = Incarnation(1);
    let path = PeerPath { incarnation, direct: Some(at), relays: Vec::new() };
    let tables = Tables {
        me,
        incarnation,
        peers: BTreeMap::from([(other, path)]),
        trees: BTreeMap::from([(me, vec![other]), (other, Vec::new())]),
    };
    let first = me < other;
    let key = |byte: u8| SessionKey([byte; 32].into());
    let (send, receive) = if first { (key(1), key(2)) } else { (key(2), key(1)) };
    let (local_index, remote_index) = if first { (1, 2) } else { (2, 1) };
    let keys = SessionKeys {
        peer: other,
        incarnation,
        suite: Suite::Aes256Gcm,
        local_index,
        remote_index,
        send,
        receive,
        initiator: first,
    };
    [Command::Tables(Arc::new(tables)), Command::Install(Box::new(keys))]
}

fn linked_pair() -> (Host, Host) {
    let (a, b) = (start(), start());
    let address = |host: &Host| host.socket.local_addr().unwrap();
    link(A, B, address(&b)).into_iter().for_each(|command| a.handle.command(command));
    link(B, A, address(&a)).into_iter().for_each(|command| b.handle.command(command));
    (a, b)
}

/// A frame of `len` bytes from one locally administered address to another, or to everybody.
fn frame(to: u8, from: u8, len: usize) -> Vec<u8> {
    let to = if to == 0xff { [0xff; 6] } else { [2, 0, 0, 0, 0, to] };
    let mut frame = [&to[..], &[2, 0, 0, 0, 0, from], &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|n| n.to_le_bytes()[0]));
    frame
}

async fn next_frame(host: &Host) -> Vec<u8> {
    let began = Instant::now();
    let mut buffer = vec![0; READ_MAX];
    loop {
        match rustix::io::read(&host.bridge, &mut *buffer) {
            Ok(len) => return buffer[..len].to_vec(),
            Err(error) => assert_eq!(error, Errno::AGAIN),
        }
        assert!(began.elapsed() < Duration::from_secs(5), "no frame came");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn frames_of_every_size_cross_two_threads_unchanged_and_sealed() {
    let (a, b) = linked_pair();
    let hello = frame(0xff, 1, 60);
    rustix::io::write(&a.bridge, &hello).unwrap();
    assert_eq!(next_frame(&b).await, hello);
    for len in [14, 15, 60, 1200, 1499, 1500, 1514, 4000, 9014, 65_000] {
        let there = frame(1, 2, len);
        rustix::io::write(&b.bridge, &there).unwrap();
        assert!(next_frame(&a).await == there, "{len} bytes there");
        let back = frame(2, 1, len);
        rustix::io::write(&a.bridge, &back).unwrap();
        assert!(next_frame(&b).await == back, "{len} bytes back");
    }
    let report = a.handle.report().await.unwrap();
    assert_eq!((report.forwarder.frames_in, report.forwarder.frames_out), (11, 10));
    assert_eq!(report.forwarder.floods, 1);
    let [path] = &report.paths[..] else { panic!("one peer: {report:?}") };
    assert_eq!((path.peer, path.suite), (B, Some(Suite::Aes256Gcm)));
    assert_eq!(path.endpoint, Some(b.socket.local_addr().unwrap()));
    assert_eq!(report.panics, 0);
}

#[tokio::test]
async fn a_linked_pair_tells_that_the_path_works_and_hardly_wakes_when_idle() {
    let (mut a, _b) = linked_pair();
    let began = Instant::now();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(5), a.outputs.events.recv()).await.unwrap();
        match event.unwrap() {
            DataEvent::PathUp { peer, rtt } => {
                assert_eq!(peer, B);
                assert!(rtt < Duration::from_secs(1));
                break;
            }
            _ => assert!(began.elapsed() < Duration::from_secs(5)),
        }
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = a.handle.report().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let turns = a.handle.report().await.unwrap().turns - before.turns;
    assert!(turns <= 20, "woken {turns} times in a second");
}

#[tokio::test]
async fn noise_from_anywhere_delivers_nothing_and_disturbs_nothing() {
    let (a, b) = linked_pair();
    rustix::io::write(&a.bridge, &frame(0xff, 1, 60)).unwrap();
    next_frame(&b).await;
    // From a stranger, and from the very address of the other end.
    let listener = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
    let mut noise = 7_u64;
    for n in 0..2000_usize {
        let mut bytes: Vec<u8> = (0..20 + n % 200)
            .map(|_| {
                noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                noise.to_be_bytes()[0]
            })
            .collect();
        bytes[0] &= !0x40;
        a.socket.send_to(&bytes, b.socket.local_addr().unwrap()).unwrap();
        listener.send_to(&bytes, b.socket.local_addr().unwrap()).unwrap();
        if n % 50 == 0 {
            b.handle.report().await.unwrap();
        }
    }
    let report = until(&b.handle, |report| report.io.udp_received >= 4000).await;
    assert_eq!((report.forwarder.frames_out, report.panics), (1, 0));
    rustix::io::write(&a.bridge, &frame(0xff, 1, 61)).unwrap();
    assert_eq!(next_frame(&b).await, frame(0xff, 1, 61));
}
