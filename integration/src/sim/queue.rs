//! What happens next: events in the order of (time, sequence), so that two at the same time
//! happen in the order in which they were scheduled, in every run.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::clock::Time;

/// Index of a peer (host) in the simulation.
pub(super) type Index = u16;

/// Something that is going to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A datagram arrives; its place in [`super::net::Net`]'s store.
    Arrive(u32),
    /// A machine of this peer asked to be called.
    Wake(Index),
    /// The name of peer `target` is resolved for this life of a peer.
    Resolved { peer: Index, life: u32, target: Index },
    /// A write of the address state of this life of a peer is durable (or failed).
    Stored { peer: Index, life: u32, ticket: u64, fine: bool },
    /// A fault of the plan begins or ends.
    Fault(u32),
    /// The containers have something to send, or to ask.
    Traffic,
    /// The router of this peer is started for the first time.
    Start(Index),
}

/// The events to come.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
}

impl Queue {
    /// Schedules an event.
    pub(super) fn push(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.heap.push(Reverse((at, self.sequence, event)));
    }

    /// The next event, if it happens before `end`.
    pub(super) fn pop_before(&mut self, end: Time) -> Option<(Time, Event)> {
        if self.heap.peek()?.0.0 >= end {
            return None;
        }
        self.heap.pop().map(|Reverse((at, _, event))| (at, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_one_instant_happen_in_the_order_of_their_scheduling() {
        let mut queue = Queue::default();
        queue.push(2, Event::Wake(1));
        queue.push(1, Event::Wake(2));
        queue.push(2, Event::Traffic);
        queue.push(2, Event::Arrive(0));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop_before(3)).collect();
        assert_eq!(order, [(1, Event::Wake(2)), (2, Event::Wake(1)), (2, Event::Traffic), (2, Event::Arrive(0))]);
        queue.push(3, Event::Traffic);
        assert_eq!(queue.pop_before(3), None);
    }
}
