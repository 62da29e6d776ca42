//! Which peers to have a link with: the next two in the order of ids, and others by a hash.
//!
//! ```text
//!  ids, ascending, around the end:   … a   b  (me)  d   e   f …
//!                                              ╰────┴───╯ always wanted, so that the graph of
//!                                                         dials is connected (control C20)
//! ```

use core::net::SocketAddr;
use core::time::Duration;
use std::collections::BTreeSet;

use crate::id::PeerId;
use crate::wire::cbor::Endpoint;

/// Most unreachable peers beside the two successors that are tried in one round.
const ABSENT_TRIED: usize = 8;

/// A known peer, as the connector looks at it.
#[derive(Debug)]
pub(crate) struct PeerView<'a> {
    pub(crate) id: PeerId,
    /// Where it says that it can be dialled; see [`View::endpoints`].
    pub(crate) endpoints: &'a [Endpoint],
    /// Its place in a random-looking order that differs from peer to peer.
    pub(crate) rank: u64,
    /// Where it is linked.
    pub(crate) address: Option<SocketAddr>,
    /// There is a direct connection, proven.
    pub(crate) connected: bool,
    /// We opened it.
    pub(crate) dialled: bool,
    /// There is a route to it.
    pub(crate) reachable: bool,
    /// It has been known for long enough that a route would have been computed.
    pub(crate) settled: bool,
    /// There is a connection through relays, proven.
    pub(crate) relayed: bool,
}

/// What the connector decides by.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) me: PeerId,
    pub(crate) discovery: bool,
    pub(crate) links_max: usize,
    /// Where this peer itself can be dialled.
    pub(crate) ours: &'a [SocketAddr],
    /// Where other peers are linked.
    pub(crate) taken: BTreeSet<SocketAddr>,
    /// All known peers except `me`, ascending.
    pub(crate) peers: Vec<PeerView<'a>>,
}

impl View<'_> {
    pub(super) fn peer(&self, id: &PeerId) -> Option<&PeerView<'_>> {
        self.peers.binary_search_by_key(id, |peer| peer.id).ok().map(|at| &self.peers[at])
    }

    pub(super) fn linked_at(&self, address: &SocketAddr) -> Option<PeerId> {
        self.peers.iter().find(|peer| peer.address == Some(*address)).map(|peer| peer.id)
    }

    /// Where a peer may be dialled: not where we are dialled as well (bridges and loopbacks have
    /// the same addresses on every host), nor where another peer is linked now.
    pub(super) fn endpoints<'v>(&'v self, peer: &PeerView<'v>) -> impl Iterator<Item = SocketAddr> + use<'v> {
        let usable = |at: &SocketAddr| !self.ours.contains(at) && !self.taken.contains(at);
        peer.endpoints.iter().map(|endpoint| endpoint.0).filter(usable)
    }

    /// The peer without link that is said to be dialled at an address.
    pub(super) fn owner_of(&self, address: &SocketAddr) -> Option<PeerId> {
        self.peers.iter().find(|peer| !peer.connected && self.endpoints(peer).any(|at| at == *address)).map(|p| p.id)
    }

    pub(super) fn connected(&self, id: &PeerId) -> bool {
        self.peer(id).is_some_and(|peer| peer.connected)
    }

    pub(super) fn reachable(&self, id: &PeerId) -> bool {
        self.peer(id).is_some_and(|peer| peer.reachable)
    }
}

/// How dialling a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is not to be dialled.
    Held,
    /// There was a link with it lately.
    Missed,
    /// It may be dialled at this time.
    Due(Duration),
}

/// The peers to have a link with that there is none with yet, the most wanted first: neighbours in
/// the order of ids, those with which there was a link lately, then whoever has waited longest.
pub(super) fn wanted<'v, 'a>(view: &'v View<'a>, standing: impl Fn(&PeerId) -> Standing) -> Vec<&'v PeerView<'a>> {
    let mut next = successors(view, |_| true);
    next.extend(successors(view, |peer| peer.reachable));
    let mut wanted: Vec<_> = view
        .peers
        .iter()
        .filter(|peer| !peer.connected && !peer.endpoints.is_empty())
        .filter_map(|peer| match standing(&peer.id) {
            Standing::Held => None,
            Standing::Missed => Some((!next.contains(&peer.id), Duration::ZERO, 0, peer)),
            Standing::Due(at) => Some((!next.contains(&peer.id), at, peer.rank, peer)),
        })
        .filter(|(.., peer)| view.endpoints(peer).next().is_some())
        .collect();
    wanted.sort_unstable_by_key(|&(other, due, rank, peer)| (other, due, rank, peer.id));
    let mut links = view.peers.iter().filter(|peer| peer.dialled).count();
    let alone = !view.peers.iter().any(|peer| peer.connected);
    let mut absent = 0;
    wanted.retain(|(other, _, _, peer)| {
        if peer.reachable || !peer.settled && !alone {
            links += 1;
            !other || links <= view.links_max
        } else {
            // Even a peer with links enough looks for those that are parted from it.
            absent += usize::from(*other);
            !other || absent <= ABSENT_TRIED
        }
    });
    wanted.into_iter().map(|(.., peer)| peer).collect()
}

/// The next two peers after `me` in the order of ids, around the end.
pub(crate) fn successors(view: &View<'_>, counts: impl Fn(&PeerView<'_>) -> bool) -> Vec<PeerId> {
    let (before, after): (Vec<_>, Vec<_>) =
        view.peers.iter().filter(|peer| counts(peer)).map(|peer| peer.id).partition(|id| *id < view.me);
    after.into_iter().chain(before).take(2).collect()
}

/// A random-looking order that differs from peer to peer: FNV-1a over both ids.
pub(crate) fn rank(me: &PeerId, peer: &PeerId) -> u64 {
    me.0.iter()
        .chain(&peer.0)
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> PeerId {
        PeerId([n; 16])
    }

    fn peer(n: u8, endpoints: &[Endpoint]) -> PeerView<'_> {
        PeerView {
            id: id(n),
            endpoints,
            rank: rank(&id(0), &id(n)),
            address: None,
            connected: false,
            dialled: false,
            reachable: true,
            settled: true,
            relayed: false,
        }
    }

    fn view<'a>(me: u8, links_max: usize, peers: Vec<PeerView<'a>>) -> View<'a> {
        View { me: id(me), discovery: true, links_max, ours: &[], taken: BTreeSet::new(), peers }
    }

    fn somewhere() -> [Endpoint; 1] {
        [Endpoint("192.0.2.1:1".parse().unwrap())]
    }

    fn due(_: &PeerId) -> Standing {
        Standing::Due(Duration::ZERO)
    }

    #[test]
    fn successors_go_around_the_end() {
        let list = |me: u8| {
            let peers = (0..6).filter(|n| *n != me).map(|n| peer(n, &[])).collect();
            successors(&view(me, 1, peers), |_| true)
        };
        assert_eq!(list(2), [id(3), id(4)]);
        assert_eq!(list(4), [id(5), id(0)]);
        assert_eq!(list(5), [id(0), id(1)]);
    }

    #[test]
    fn those_that_were_just_heard_of_are_not_all_dialled_as_if_they_were_lost() {
        let at = somewhere();
        let mut peers: Vec<_> = (1..100).map(|n| peer(n, &at)).collect();
        for peer in &mut peers {
            (peer.reachable, peer.settled) = (false, false);
        }
        peers[50].connected = true;
        assert!(wanted(&view(0, 4, peers), due).len() <= 4 + 2);
    }

    #[test]
    fn who_was_linked_lately_comes_first_and_then_who_waits_longest() {
        let at = somewhere();
        let standing = |peer: &PeerId| match peer.0[0] {
            9 => Standing::Held,
            8 => Standing::Missed,
            n => Standing::Due(Duration::from_secs(100 - u64::from(n))),
        };
        let view = view(0, 4, (1..10).map(|n| peer(n, &at)).collect());
        let order: Vec<u8> = wanted(&view, standing).iter().map(|peer| peer.id.0[0]).collect();
        assert_eq!(order, [2, 1, 8, 7]);
    }

    proptest! {
        #[test]
        fn the_dial_graph_of_any_mesh_is_connected(count in 2u8..40, links_max in 0usize..4) {
            let at = somewhere();
            let mut edges = Vec::new();
            for me in 0..count {
                let peers = (0..count).filter(|n| *n != me).map(|n| peer(n, &at)).collect();
                let view = view(me, links_max, peers);
                let wanted = wanted(&view, due);
                prop_assert!(wanted.len() <= links_max.max(2) + 2);
                edges.extend(wanted.iter().map(|peer| (me, peer.id.0[0])));
            }
            let mut reached = vec![false; count.into()];
            let mut queue = vec![0u8];
            while let Some(node) = queue.pop() {
                if !core::mem::replace(&mut reached[usize::from(node)], true) {
                    queue.extend(edges.iter().filter(|(a, _)| *a == node).map(|(_, b)| *b));
                    queue.extend(edges.iter().filter(|(_, b)| *b == node).map(|(a, _)| *a));
                }
            }
            prop_assert!(reached.iter().all(|reached| *reached));
        }
    }
}
