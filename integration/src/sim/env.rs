//! What is around the hosts: time, underlay, and everything that is written down.

use core::net::SocketAddr;

use ipam::{AllocError, RequestId};
use ipnet::IpNet;

use super::book::Book;
use super::clock::{MS, Time};
use super::dice::Dice;
use super::ledger::Ledger;
use super::net::Net;
use super::options::Ablation;
use super::queue::{Event, Index, Queue};
use super::trace::Trace;

/// The surroundings of the hosts.
#[derive(Debug)]
pub(super) struct Env {
    pub(super) now: Time,
    pub(super) net: Net,
    pub(super) queue: Queue,
    pub(super) trace: Trace,
    pub(super) ledger: Ledger,
    pub(super) book: Book,
    pub(super) dice: Dice,
    pub(super) ablation: Option<Ablation>,
    /// The host that hears no more of changed routes, as long as [`Ablation::StaleTables`] says.
    pub(super) stale: Option<Index>,
    /// Writes that fail, of a thousand.
    pub(super) disk_faults: u64,
    /// Messages that nodes sent on connections, and their bytes.
    pub(super) messages: (u64, u64),
    /// Links that came or went.
    pub(super) link_changes: u64,
    /// Tables whose broadcast trees were not those of the tables before.
    pub(super) tree_changes: u64,
    /// How often a router has got other addresses or other relays for a peer.
    pub(super) way_changes: u64,
    /// Tables that nodes made.
    pub(super) tables: u64,
}

impl Env {
    /// A host sends a datagram.
    pub(super) fn send(&mut self, host: Index, to: SocketAddr, bytes: &[u8]) {
        self.net.send(self.now, host, to, bytes, &mut self.queue, &mut self.trace);
    }

    /// A router writes a frame to its TAP.
    pub(super) fn deliver(&mut self, host: Index, bytes: &[u8]) {
        if let Some(id) = self.ledger.deliver(host, bytes) {
            self.trace.peer(self.now, host, format_args!("delivers frame {id}"));
        }
        let again = self.ablation == Some(Ablation::DoubleDelivery);
        if again && self.dice.chance(1) {
            self.ledger.deliver(host, bytes);
        }
    }

    /// A node sent a message of this size.
    pub(super) fn messages(&mut self, size: usize) {
        self.messages.0 += 1;
        self.messages.1 += u64::try_from(size).unwrap_or(u64::MAX);
    }

    /// A node wants to know where a target is; it hears it a little later.
    pub(super) fn resolve(&mut self, host: Index, life: u32, target: &str) {
        let Some(target) = target_of(target) else {
            self.ledger.fail(format!("p{host:02} asks for `{target}`, which nobody named"));
            return;
        };
        let at = self.now + self.dice.between(MS / 10, 20 * MS);
        self.queue.push(at, Event::Resolved { peer: host, life, target });
    }

    /// An allocator wrote something, after what it wrote at `before`; returns when that is done.
    pub(super) fn store(&mut self, host: Index, life: u32, ticket: u64, before: Time) -> Time {
        let at = self.now.max(before) + self.dice.between(MS / 5, 10 * MS);
        let fine = !self.dice.chance(self.disk_faults);
        self.queue.push(at, Event::Stored { peer: host, life, ticket, fine });
        at
    }

    /// An allocator answered.
    pub(super) fn answer(&mut self, host: Index, request: RequestId, result: Result<IpNet, AllocError>) {
        self.trace.peer(self.now, host, format_args!("answers {request:?}: {result:?}"));
        let spoilt = self.ablation == Some(Ablation::DoubleAddress) && self.dice.chance(100);
        let result = match (result, self.book.any_held(0)) {
            (Ok(net), Some(other)) if spoilt => Ok(IpNet::new(other, net.prefix_len().min(32)).unwrap_or(net)),
            (result, _) => result.map_err(|error| error.to_string()),
        };
        if let Err(why) = self.book.answer(host, request, result) {
            self.ledger.fail(why);
        }
    }
}

/// The name under which operators name a host.
pub(super) fn target_name(host: Index) -> String {
    format!("host{host}")
}

fn target_of(name: &str) -> Option<Index> {
    name.strip_prefix("host")?.parse().ok()
}
