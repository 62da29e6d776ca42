//! What nodes want done: messages sent, state written, requests answered.

use std::rc::Rc;
use std::time::Duration;

use ipam::{Output, Ticket};

use super::subject::Subject;
use super::{Event, Fate, Peer, World};

impl World {
    /// Performs what a node wants done.
    pub(crate) fn drain(&mut self, node: usize) {
        loop {
            let Some(allocator) = &mut self.nodes[node].allocator else {
                return;
            };
            let Some(output) = allocator.poll_output() else {
                break;
            };
            self.perform(node, output);
        }
        self.arm(node);
        self.look_for_removed(node);
    }

    /// Keeps up with the lives of nodes, and with whom nodes removed by themselves for silence.
    fn look_for_removed(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        let Some(Subject::Allocator(allocator)) = &it.allocator else {
            return;
        };
        it.last_life = allocator.life();
        if let Some(network) = allocator.network() {
            self.check.networks.insert(it.peer, network.clone());
            it.network = Some(network);
        }
        if it.removed_life.is_some_and(|life| life != it.last_life) {
            it.removed_life = None;
            if it.overruled_by.is_none() {
                self.check.unfence(it.peer);
            }
        }
        let network = it.network.clone();
        let news: Vec<(Peer, u64)> = allocator.removed().filter(|owner| !self.removed.contains(owner)).collect();
        for (peer, life) in news {
            self.removed.insert((peer, life));
            let it = &mut self.nodes[usize::from(peer.0) - 1];
            if it.removed_life.is_some() || it.dead {
                continue;
            }
            self.check.fence(peer);
            if it.last_life == life {
                it.removed_life = Some(life);
                // Of one that went over to another network, the one that it left knows nothing more.
                if self.dead_after.is_some() && it.network == network {
                    self.check.silenced(peer);
                }
            } else {
                // It goes on in a later life, without what the earlier one owned.
                self.check.unfence(peer);
            }
        }
    }

    fn arm(&mut self, node: usize) {
        let now = self.now;
        let it = &mut self.nodes[node];
        let at = it.allocator.as_ref().and_then(Subject::poll_timeout);
        it.timer = at.map(|at| at.saturating_sub(it.ahead).max(now));
    }

    fn perform(&mut self, node: usize, output: Output<Peer>) {
        match output {
            Output::Send { to, bytes } => self.post(node, to, &bytes.into()),
            Output::Broadcast { bytes } => {
                let bytes = bytes.into();
                for other in 0..self.nodes.len() {
                    if other != node {
                        let to = self.nodes[other].peer;
                        self.post(node, to, &bytes);
                    }
                }
            }
            Output::Store { ticket, changes } => self.write(node, ticket, changes),
            Output::Reply { request, result } => {
                self.note(format!("{:?} {request:?} {result:?}", self.now).as_bytes());
                self.tell(|| format!("{node} answers {} {result:?}", self.check.asker(request)));
                let network = self.nodes[node].allocator.as_ref().and_then(Subject::network);
                self.check.answered(request, &result, network, self.now);
                self.replies.insert(request, result);
            }
            Output::Fences(fences) => self.nodes[node].fences = fences,
            Output::Notice(text) => {
                self.note(text.as_bytes());
                self.tell(|| format!("{node} says {text}"));
                self.nodes[node].notices.push(text);
            }
        }
    }

    fn post(&mut self, node: usize, to: Peer, bytes: &Rc<[u8]>) {
        assert!(bytes.len() <= 512 * 1024, "a message of {} bytes", bytes.len());
        self.note(bytes);
        if self.sample.len() < 300 {
            self.sample.push(Rc::clone(bytes));
        }
        let it = &mut self.nodes[node];
        it.messages_sent += 1;
        it.bytes_sent += bytes.len() as u64;
        let (from, from_life) = (it.peer, it.life);
        let copies = 1 + u32::from(self.chance(self.faults.duplication));
        for _ in 0..copies {
            if self.chance(self.faults.loss) {
                continue;
            }
            let at = self.now + Duration::from_micros(50) + self.millis(self.faults.delay);
            self.schedule(at, Event::Message { from, from_life, to, bytes: Rc::clone(bytes) });
        }
    }

    fn write(&mut self, node: usize, ticket: Ticket, changes: Vec<ipam::Change>) {
        let number = self.writes;
        self.writes += 1;
        self.nodes[node].writes += 1;
        let fate = if let Some((_, durable)) = self.crash_at.filter(|&(at, _)| at == number) {
            if durable { Fate::CrashAfter } else { Fate::CrashBefore }
        } else if self.chance(self.faults.write_error) {
            Fate::Error
        } else if self.chance(self.faults.write_crash) {
            [Fate::CrashBefore, Fate::CrashAfter][self.below(2) as usize]
        } else {
            Fate::Durable
        };
        let at = self.now + Duration::from_micros(50) + self.millis(self.faults.write);
        // A disk keeps the order of what it is given.
        let at = at.max(self.nodes[node].last_write);
        self.nodes[node].last_write = at;
        let process = self.nodes[node].process;
        let event = Event::Written { node, process, ticket, changes, fate };
        self.schedule(at, event);
    }
}
