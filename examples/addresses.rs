//! Two address allocators without any server: one founds the network, the other joins and is given
//! half of it.
//!
//! ```text
//!   cargo run --example addresses
//! ```
#![expect(clippy::print_stdout, reason = "it shows what it does")]

use std::time::Duration;

use ipam::allocator::{Allocator, Config, PeerKey};
use ipam::{Output, RequestId};
use ipnet::IpNet;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Peer(u8);

impl PeerKey for Peer {
    fn to_bytes(self) -> [u8; 16] {
        [self.0; 16]
    }
    fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes[0])
    }
}

fn main() {
    let range: IpNet = "10.32.0.0/12".parse().expect("a range");
    let mut world = World { now: Duration::ZERO, peers: vec![allocator(1, 0, range)], given: Vec::new() };

    // Peer 1 names nobody: it founds the network and owns all of it.
    world.settle();
    world.ask(0, "web", range);

    // Peer 2 names peer 1. It asks there for a part, and from then on needs nobody.
    world.peers.push(allocator(2, 1, range));
    world.peers[0].handle_peers(&[(Peer(2), 1)], world.now);
    world.peers[1].handle_peers(&[(Peer(1), 1)], world.now);
    world.ask(1, "db", range);
    // The same owner asks again, and has the same address.
    world.ask(1, "db", range);

    for peer in &world.peers {
        let summary = peer.summary();
        println!("peer {:?}: {} addresses owned, {} given", summary.peers[0].0, summary.owned, summary.used);
    }
    assert_eq!(world.given[1], world.given[2]);
    assert_ne!(world.given[0], world.given[1]);
}

fn allocator(me: u8, named_peers: usize, range: IpNet) -> Allocator<Peer> {
    let config = Config::new(Peer(me), 1, vec![range], named_peers);
    Allocator::new(config, Vec::new(), [me; 32], Duration::ZERO).expect("an empty state and a usable range")
}

/// Two peers, a network that is always quick, and disks that never fail.
struct World {
    now: Duration,
    peers: Vec<Allocator<Peer>>,
    given: Vec<IpNet>,
}

impl World {
    fn ask(&mut self, peer: usize, owner: &str, range: IpNet) {
        let before = self.given.len();
        self.peers[peer].allocate(RequestId(before as u64), owner, range, self.now);
        while self.given.len() == before {
            self.settle();
            // Time passes: a peer that has just come asks again after a while.
            self.now += Duration::from_millis(100);
            self.peers.iter_mut().for_each(|peer| peer.handle_timeout(self.now));
        }
        println!("{:?}: peer {} gives {} to {owner}", self.now, peer + 1, self.given[before]);
    }

    /// Does what the allocators ask for until they ask for nothing more.
    fn settle(&mut self) {
        let now = self.now;
        while let Some((at, output)) = self.next_output() {
            let from = Peer(at as u8 + 1);
            match output {
                // A router writes this to its disk first: an address given is never forgotten.
                Output::Store { ticket, changes } => {
                    println!("{now:?}: peer {} stores {} changes", at + 1, changes.len());
                    self.peers[at].handle_stored(ticket, Ok(()), now);
                }
                Output::Send { to: Peer(to), bytes } => {
                    println!("{now:?}: peer {} sends {} bytes to peer {to}", at + 1, bytes.len());
                    self.peers[usize::from(to) - 1].handle_message(from, 1, &bytes, now);
                }
                Output::Broadcast { bytes } => {
                    for other in (0..self.peers.len()).filter(|&other| other != at) {
                        self.peers[other].handle_message(from, 1, &bytes, now);
                    }
                }
                Output::Reply { result, .. } => self.given.push(result.expect("there are enough addresses")),
                Output::Notice(text) => println!("{now:?}: peer {}: {text}", at + 1),
                // Nobody is removed here, so nobody's frames are to be looked at.
                Output::Fences(_) => {}
            }
        }
    }

    fn next_output(&mut self) -> Option<(usize, Output<Peer>)> {
        self.peers.iter_mut().enumerate().find_map(|(at, peer)| Some((at, peer.poll_output()?)))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_two_peers_give_the_same_address() {
        super::main();
    }
}
