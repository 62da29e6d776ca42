//! What is asked of nodes: addresses.

use std::net::IpAddr;
use std::time::Duration;

use ipam::{AllocError, RequestId};
use ipnet::IpNet;

use super::World;
use super::subject::Subject;

impl World {
    /// Asks for an address; `None` if the node is down, or its host asleep.
    pub(crate) fn allocate(&mut self, node: usize, owner: &str, range: IpNet) -> Option<RequestId> {
        self.ask(node, owner, |allocator, request, now| allocator.allocate(request, owner, range, now))
    }

    /// Asks for a given address; `None` if the node is down, or its host asleep.
    pub(crate) fn claim(&mut self, node: usize, owner: &str, address: IpAddr) -> Option<RequestId> {
        self.ask(node, owner, |allocator, request, now| allocator.claim(request, owner, address, now))
    }

    fn ask(
        &mut self,
        node: usize,
        owner: &str,
        put: impl FnOnce(&mut Subject, RequestId, Duration),
    ) -> Option<RequestId> {
        if self.is_asleep(node) {
            return None;
        }
        self.next_request += 1;
        let request = RequestId(self.next_request);
        let (now, peer) = (self.clock(node), self.nodes[node].peer);
        let allocator = self.nodes[node].allocator.as_mut()?;
        self.check.asked(request, peer, owner, self.now);
        put(allocator, request, now);
        self.drain(node);
        Some(request)
    }

    /// Gives addresses back.
    pub(crate) fn free(&mut self, node: usize, owner: &str, address: Option<IpAddr>) {
        if self.is_asleep(node) {
            return;
        }
        let (now, peer) = (self.clock(node), self.nodes[node].peer);
        if let Some(allocator) = &mut self.nodes[node].allocator {
            let freed = allocator.free(owner, address, now);
            self.check.freed(peer, owner, &freed);
            self.tell(|| format!("{node} frees {freed:?} of {owner}"));
            self.drain(node);
        }
    }

    /// Gives up on a request.
    pub(crate) fn cancel(&mut self, node: usize, request: RequestId) {
        if self.is_asleep(node) {
            return;
        }
        if let Some(allocator) = &mut self.nodes[node].allocator {
            allocator.cancel(request);
            self.check.cancelled(request);
            self.drain(node);
        }
    }

    /// Addresses that a node and another one gave, and whose they are there, once it has asked the others.
    pub(crate) fn contests(&mut self, node: usize) -> Vec<(IpAddr, String)> {
        let now = self.clock(node);
        let Some(Subject::Allocator(allocator)) = &mut self.nodes[node].allocator else {
            return Vec::new();
        };
        allocator.ask_about_strays(now);
        self.drain(node);
        self.run_for(Duration::from_millis(100));
        let summary = self.nodes[node].allocator.as_ref().map(Subject::summary);
        let contests = summary.into_iter().flat_map(|summary| summary.contests);
        contests.filter(|it| it.there.is_some()).map(|it| (it.address, it.here)).collect()
    }

    /// Waits for the answer to a request.
    pub(crate) fn answer(&mut self, request: Option<RequestId>) -> Result<IpNet, AllocError> {
        let request = request.expect("the node is up");
        let until = self.now + Duration::from_secs(12);
        while !self.replies.contains_key(&request) {
            assert!(self.step(until), "a request was not answered in 12 s");
        }
        self.replies[&request].clone()
    }
}
