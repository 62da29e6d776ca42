//! One Ethernet frame through the data path: sealed by one forwarder, opened by the other.
//!
//! ```text
//!   cargo run --example forward_a_frame
//! ```
#![expect(clippy::print_stdout, reason = "it shows what it does")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_proto::data::forwarder::{Forwarder, ForwarderConfig};
use mesh_proto::data::{Hop, Sink};
use mesh_proto::handover::{Command, PeerPath, SessionKey, SessionKeys, Suite, Tables};
use mesh_proto::id::{Incarnation, PeerId};
use zeroize::Zeroizing;

/// Takes what a forwarder makes. A router's puts it on a socket and a TAP device.
#[derive(Default)]
struct Made {
    datagrams: Vec<Vec<u8>>,
    frames: Vec<Vec<u8>>,
}

impl Sink for Made {
    fn datagram(&mut self, _to: SocketAddr, bytes: &[u8]) {
        self.datagrams.push(bytes.to_vec());
    }
    fn frame(&mut self, bytes: &[u8]) {
        self.frames.push(bytes.to_vec());
    }
    fn quic(&mut self, _from: Hop, _bytes: &[u8]) {}
}

fn main() {
    let now = Duration::from_secs(1);
    let (mut left, mut right) = (forwarder(0, now), forwarder(1, now));

    // A broadcast: every other host shall see it.
    let text = b"a frame that nobody on the way can read";
    let frame = [&[0xff; 6][..], &[0x02, 0, 0, 0, 0, 1], &[0x88, 0xb5], text].concat();
    let mut wire = Made::default();
    left.handle_frame(&frame, now, &mut wire);
    left.flush(now, &mut wire);

    let mut arrived = Made::default();
    for mut datagram in wire.datagrams.clone() {
        let readable = datagram.windows(text.len()).any(|part| part == text);
        println!(
            "on the wire: {} bytes, the text is {} in them",
            datagram.len(),
            if readable { "READABLE" } else { "not" }
        );
        assert!(!readable);
        right.handle_datagram(address(0), &mut datagram, now, &mut arrived);
    }
    println!("arrived: {:?}", String::from_utf8_lossy(&arrived.frames[0][14..]));
    assert_eq!(arrived.frames, [frame]);

    // The same again, as somebody who listens could send it.
    for mut datagram in wire.datagrams {
        right.handle_datagram(address(0), &mut datagram, now, &mut arrived);
    }
    let replayed = right.counters().replayed;
    println!("sent again: {replayed} datagram refused as replayed, {} frame arrived in all", arrived.frames.len());
    assert_eq!(replayed, 1);
    assert_eq!(arrived.frames.len(), 1);
}

/// A forwarder that control has told of the other one. The two agree on keys by QUIC; here both
/// are simply given them.
fn forwarder(me: usize, now: Duration) -> Forwarder {
    let config = ForwarderConfig { sealed: true, macs_max: 1024, mac_age: Duration::from_secs(300), payload_max: 1472 };
    let mut forwarder = Forwarder::new(config, me as u64, now);
    let other = 1 - me;
    let path = PeerPath { incarnation: Incarnation(1), direct: Some(address(other)), relays: Vec::new() };
    let tables = Tables {
        me: id(me),
        incarnation: Incarnation(1),
        peers: BTreeMap::from([(id(other), path)]),
        // What begins here goes to the other; what began there ends here.
        trees: BTreeMap::from([(id(me), vec![id(other)]), (id(other), Vec::new())]),
    };
    let keys = SessionKeys {
        peer: id(other),
        incarnation: Incarnation(1),
        suite: Suite::ChaCha20Poly1305,
        local_index: 100 + me as u32,
        remote_index: 100 + other as u32,
        send: key(me),
        receive: key(other),
        initiator: me == 0,
    };
    // The first probes of the path are not carried anywhere here.
    let mut nowhere = Made::default();
    forwarder.handle_command(Command::Tables(Arc::new(tables)), now, &mut nowhere);
    forwarder.handle_command(Command::Install(Box::new(keys)), now, &mut nowhere);
    forwarder
}

fn key(from: usize) -> SessionKey {
    SessionKey(Zeroizing::new([7 + from as u8; 32]))
}

fn id(n: usize) -> PeerId {
    PeerId([n as u8 + 1; 16])
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n as u8 + 1], 6783))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_frame_arrives_once_and_unread() {
        super::main();
    }
}
