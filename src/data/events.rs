//! Events on their way to control: none lost, whatever control does.

use std::collections::BTreeMap;

use mesh_proto::handover::DataEvent;
use mesh_proto::id::PeerId;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Sends events, and keeps what the queue has no room for: the latest of each kind for each peer,
/// so that what is kept is bounded by the number of peers and control, once it is back, sees the
/// state as it is then.
pub(super) struct Events {
    queue: mpsc::Sender<DataEvent>,
    kept: BTreeMap<(PeerId, u8), DataEvent>,
}

impl Events {
    pub(super) fn new(queue: mpsc::Sender<DataEvent>) -> Self {
        Self { queue, kept: BTreeMap::new() }
    }

    /// Hands an event over, or keeps it.
    pub(super) fn send(&mut self, event: DataEvent) {
        if !self.kept.is_empty() {
            self.keep(event);
        } else if let Err(TrySendError::Full(event)) = self.queue.try_send(event) {
            self.keep(event);
        }
    }

    /// Tries again with what was kept. True if some is still kept.
    pub(super) fn retry(&mut self) -> bool {
        while let Some(entry) = self.kept.first_entry() {
            match self.queue.try_reserve() {
                Ok(permit) => permit.send(entry.remove()),
                Err(TrySendError::Full(())) => return true,
                // Nobody will ever ask again.
                Err(TrySendError::Closed(())) => self.kept.clear(),
            }
        }
        false
    }

    fn keep(&mut self, event: DataEvent) {
        self.kept.insert(key(&event), event);
    }
}

/// Events with the same key replace each other. `PathUp` and `PathDown` are one kind.
fn key(event: &DataEvent) -> (PeerId, u8) {
    match *event {
        DataEvent::PathUp { peer, .. } | DataEvent::PathDown { peer } => (peer, 0),
        DataEvent::Rtt { peer, .. } => (peer, 1),
        DataEvent::Mtu { peer, .. } => (peer, 2),
        DataEvent::Moved { peer, .. } => (peer, 3),
        DataEvent::SessionWanted { peer } => (peer, 4),
        DataEvent::RekeyDue { peer } => (peer, 5),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ONE: PeerId = PeerId([1; 16]);
    const TWO: PeerId = PeerId([2; 16]);

    #[test]
    fn what_the_queue_has_no_room_for_arrives_later_with_the_latest_state() {
        let (queue, mut control) = mpsc::channel(1);
        let mut events = Events::new(queue);
        events.send(DataEvent::SessionWanted { peer: ONE });
        events.send(DataEvent::PathUp { peer: TWO, rtt: Duration::from_millis(1) });
        events.send(DataEvent::PathDown { peer: TWO });
        events.send(DataEvent::Mtu { peer: TWO, payload: 1400 });
        assert!(events.retry());
        assert_eq!(control.try_recv(), Ok(DataEvent::SessionWanted { peer: ONE }));
        assert!(events.retry());
        assert_eq!(control.try_recv(), Ok(DataEvent::PathDown { peer: TWO }));
        assert!(!events.retry());
        assert_eq!(control.try_recv(), Ok(DataEvent::Mtu { peer: TWO, payload: 1400 }));
        assert!(control.try_recv().is_err());
    }

    #[test]
    fn a_control_side_that_is_gone_costs_nothing() {
        let (queue, control) = mpsc::channel(1);
        let mut events = Events::new(queue);
        events.send(DataEvent::PathDown { peer: ONE });
        events.send(DataEvent::PathDown { peer: TWO });
        drop(control);
        assert!(!events.retry());
        events.send(DataEvent::PathDown { peer: TWO });
        assert!(events.kept.is_empty());
    }
}
