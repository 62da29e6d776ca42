use std::time::Instant;

use mesh_proto::data::Hop;
use mesh_proto::data::forwarder::ForwarderConfig;
use mesh_proto::handover::Command;
use mesh_proto::id::PeerId;
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
    let config = DataConfig { tap, socket: socket.clone(), forwarder, seed: 1, clock: Clock::start() };
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

#[tokio::test]
async fn an_idle_thread_sleeps() {
    let host = start();
    let before = host.handle.report().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = host.handle.report().await.unwrap();
    // Without peers there is not even a timer: only the second report wakes it.
    assert_eq!(after.turns - before.turns, 1);
}
