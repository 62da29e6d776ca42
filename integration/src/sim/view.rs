//! Whether all routers see the same mesh, and the one that is there.

use std::collections::BTreeMap;

use mesh_proto::control::node::{PeerInfo, PeerState};
use mesh_proto::id::{Incarnation, PeerId};

use super::host::{Host, Live};
use super::net::Net;
use super::queue::Index;

/// The mesh as one router sees it: every peer that it reaches, itself among them, with its
/// incarnation and links.
type View = BTreeMap<PeerId, (Incarnation, Vec<PeerId>)>;

/// The mesh that all routers agree on: who has links with whom.
pub(super) type Edges = BTreeMap<Index, Vec<Index>>;

/// The edges on which all routers that run agree.
///
/// # Errors
/// What is amiss, in one line.
pub(super) fn agreed(hosts: &[Host], net: &Net) -> Result<Edges, String> {
    let mut names = BTreeMap::new();
    for host in hosts {
        if let Some(live) = &host.live {
            names.insert(live.node.id(), host);
        }
    }
    for host in names.values() {
        routes(host, &names)?;
    }
    let mut views = names.values().filter_map(|host| Some((host, view(host.live.as_ref()?))));
    let Some((first, common)) = views.next() else { return Ok(Edges::new()) };
    for (host, other) in views {
        if other != common {
            return Err(difference((first, &common), (host, &other), &names));
        }
    }
    edges(&common, &names, net)
}

/// Whether a host's tables reach every host and nobody else. (Quick, so it comes first.)
fn routes(host: &Host, names: &BTreeMap<PeerId, &Host>) -> Result<(), String> {
    let me = host.index;
    let tables = host.live.as_ref().and_then(|live| live.tables.as_ref());
    let Some(tables) = tables else { return Err(format!("p{me:02} has no tables")) };
    let mut count = 0;
    for (id, path) in &tables.peers {
        if path.direct.is_some() || !path.relays.is_empty() {
            count += 1;
            if !names.contains_key(id) {
                return Err(format!("p{me:02} has a route to {}, who is gone", id.short()));
            }
        }
    }
    if count + 1 != names.len() {
        let missing = names.iter().find(|(id, other)| {
            let path = tables.peers.get(id);
            other.index != me && path.is_none_or(|p| p.direct.is_none() && p.relays.is_empty())
        });
        let missing = missing.map_or(Index::MAX, |(_, other)| other.index);
        return Err(format!("p{me:02} has {count} routes; none to p{missing:02}"));
    }
    Ok(())
}

/// How many of the peers that two routers see differently are named.
const DIFFERENCES_SHOWN: usize = 4;

/// What a router tells of itself and of each peer that it has a route to.
fn view(live: &Live) -> View {
    let routed = |id: &PeerId| {
        let path = live.tables.as_ref().and_then(|tables| tables.peers.get(id));
        path.is_some_and(|path| path.direct.is_some() || !path.relays.is_empty())
    };
    let entry = |mut peer: PeerInfo| {
        peer.links.sort_unstable();
        (peer.id, (peer.incarnation, peer.links))
    };
    let seen = |peer: &PeerInfo| peer.state == PeerState::Me || routed(&peer.id);
    live.node.peers().into_iter().filter(seen).map(entry).collect()
}

fn edges(view: &View, names: &BTreeMap<PeerId, &Host>, net: &Net) -> Result<Edges, String> {
    let mut edges = Edges::new();
    for (id, (incarnation, links)) in view {
        let Some(host) = names.get(id) else {
            return Err(format!("{} is seen and does not run", id.short()));
        };
        let me = host.index;
        if *incarnation != host.disk.incarnation {
            let real = host.disk.incarnation;
            return Err(format!("p{me:02} is seen as {incarnation:?}, it is {real:?}"));
        }
        let mut ends = Vec::new();
        for link in links {
            let Some(other) = names.get(link) else {
                return Err(format!("p{me:02} has a link with {}, who is gone", link.short()));
            };
            let back = view.get(link).is_some_and(|(_, links)| links.contains(id));
            if !back {
                return Err(format!("the link of p{me:02} with p{:02} has one end", other.index));
            }
            if !net.joined(me, other.index) {
                return Err(format!("the link of p{me:02} with p{:02} has no way", other.index));
            }
            ends.push(other.index);
        }
        ends.sort_unstable();
        edges.insert(me, ends);
    }
    if edges.len() != names.len() {
        return Err(format!("{} of {} are seen", edges.len(), names.len()));
    }
    Ok(edges)
}

fn difference((a, one): (&Host, &View), (b, two): (&Host, &View), names: &BTreeMap<PeerId, &Host>) -> String {
    let name = |id: &PeerId| names.get(id).map_or_else(|| id.short(), |host| format!("p{:02}", host.index));
    let show = |seen: Option<&(Incarnation, Vec<PeerId>)>| {
        seen.map_or("nothing".to_owned(), |(incarnation, links)| {
            let links: Vec<_> = links.iter().map(name).collect();
            format!("{} {}", incarnation.0, links.join(","))
        })
    };
    let ids = names.keys().filter(|id| one.get(id) != two.get(id)).take(DIFFERENCES_SHOWN);
    let all: Vec<String> =
        ids.map(|id| format!("{}: {} or {}", name(id), show(one.get(id)), show(two.get(id)))).collect();
    format!("p{:02} and p{:02} disagree about {}", a.index, b.index, all.join("; "))
}
