//! Two control planes in memory find each other, prove that they know the secret, and agree on
//! keys: what two routers do, without a socket, a thread or a clock.
//!
//! ```text
//!   cargo run --example two_nodes
//! ```
#![expect(clippy::print_stdout, reason = "it shows what it does")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_proto::control::identity::Ed25519Identity;
use mesh_proto::control::node::{Node, PeerState};
use mesh_proto::control::{ConnId, Connected, Identity, NodeConfig, Output, TrustConfig};
use mesh_proto::data::Hop;
use mesh_proto::handover::{Command, DataEvent, SessionKey, Suite};
use mesh_proto::id::Incarnation;
use zeroize::Zeroizing;

type Peer = Node<Ed25519Identity>;
const NAMES: [&str; 2] = ["left", "right"];

/// What happens to a peer next.
type Input = Box<dyn FnOnce(&mut Peer, Duration)>;

fn main() {
    // Time and chance are arguments: the same run comes out the same, always.
    let mut now = Duration::ZERO;
    let mut peers = [0, 1].map(|n| Node::new(config(n), identity(n), [n as u8; 32], now));
    let mut queue: VecDeque<(usize, Input)> = VecDeque::new();
    loop {
        for (n, peer) in peers.iter_mut().enumerate() {
            // After each input: take the outputs until there are none.
            while let Some(output) = peer.poll_output() {
                perform(n, output, now, &mut queue);
            }
        }
        if peers.iter().all(|peer| peer.peers().iter().any(|other| other.state == PeerState::Established)) {
            break;
        }
        if let Some((n, input)) = queue.pop_front() {
            now += Duration::from_millis(1);
            input(&mut peers[n], now);
        } else {
            // Nothing under way: on to the next timer.
            let (due, why) = peers.iter().filter_map(Node::poll_timeout).min().expect("a node without a link has one");
            println!("{now:?}: nothing to do until {due:?} ({why})");
            now = now.max(due);
            peers.iter_mut().for_each(|peer| peer.handle_timeout(now));
        }
    }
    for peer in &peers {
        for other in peer.peers() {
            println!(
                "{} sees {} ({}): {:?}, {}",
                peer.id().short(),
                other.name,
                other.id.short(),
                other.state,
                other.reason
            );
        }
    }
}

fn perform(n: usize, output: Output, now: Duration, queue: &mut VecDeque<(usize, Input)>) {
    let (name, other) = (NAMES[n], 1 - n);
    match output {
        Output::Resolve { target } => {
            println!("{now:?} {name}: resolve {target}");
            queue.push_back((n, Box::new(move |node, now| node.handle_resolved(&target, &[address(other)], now))));
        }
        // A transport would dial and check the TLS keys; both ends learn of the connection.
        Output::Dial { dial, hop } => {
            println!("{now:?} {name}: dial {hop:?}");
            for (end, far, dial) in [(other, n, None), (n, other, Some(dial))] {
                let sign_key = identity(far).sign_key();
                let connected = Connected { hop: Hop::Direct(address(far)), dial, sign_key, exporter: [9; 32] };
                queue.push_back((end, Box::new(move |node, now| node.handle_connected(ConnId(1), connected, now))));
            }
        }
        Output::Send { conn, bytes } => {
            println!("{now:?} {name}: send {} bytes", bytes.len());
            queue.push_back((other, Box::new(move |node, now| node.handle_message(conn, &bytes, now))));
        }
        // The data path is told of the way and tries it; ours says that it works.
        Output::Data(Command::Tables(tables)) => {
            for (&peer, _) in tables.peers.iter().filter(|(_, path)| path.direct.is_some()) {
                let up = DataEvent::PathUp { peer, rtt: Duration::from_millis(2) };
                queue.push_back((n, Box::new(move |node, now| node.handle_data_event(up, now))));
            }
        }
        Output::Data(Command::Install(keys)) => {
            println!("{now:?} {name}: seal with {} from now on", keys.suite.name());
        }
        Output::Event(event) => println!("{now:?} {name}: {event:?}"),
        Output::Close { reason, .. } => println!("{now:?} {name}: close: {reason}"),
        Output::Data(_) | Output::App { .. } | Output::Keep { .. } => {}
    }
}

fn config(n: usize) -> NodeConfig {
    NodeConfig {
        name: NAMES[n].to_owned(),
        instance: n as u64,
        incarnation: Incarnation(1),
        network: "example".to_owned(),
        // A router stretches this from the words in its secret file.
        secret: Some(SessionKey(Zeroizing::new([42; 32]))),
        suites: vec![Suite::Aes256Gcm, Suite::ChaCha20Poly1305],
        endpoints: vec![address(n)],
        // Only one has to be told of the other.
        targets: if n == 0 { vec!["right.example".to_owned()] } else { Vec::new() },
        discovery: true,
        links_max: 8,
        trust: TrustConfig::default(),
    }
}

/// A router draws the two seeds once and keeps them in its data directory.
fn identity(n: usize) -> Ed25519Identity {
    let seed = |kind: u8| Zeroizing::new([10 * kind + n as u8; 32]);
    Ed25519Identity::new(&seed(1), seed(2)).expect("any 32 bytes are a seed")
}

fn address(n: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n as u8 + 1], 6783))
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_nodes_see_each_other() {
        // Ends only when they do.
        super::main();
    }
}
