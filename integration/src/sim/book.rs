//! Who was given which address: the record against which every answer of an allocator is held.

use core::net::IpAddr;
use std::collections::BTreeMap;

use ipam::RequestId;
use ipnet::IpNet;

use super::queue::Index;

/// A container that an address is for, or was given to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder {
    pub(super) host: Index,
    pub(super) owner: String,
}

/// Every address that a container holds, and every question that is open.
#[derive(Debug, Default)]
pub(super) struct Book {
    held: BTreeMap<IpAddr, Holder>,
    asked: BTreeMap<RequestId, Holder>,
    requests: u64,
    pub(super) granted: u64,
    pub(super) refused: u64,
}

impl Book {
    /// Notes a question and names it.
    pub(super) fn ask(&mut self, holder: Holder) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.asked.insert(request, holder);
        request
    }

    /// An allocator answered.
    ///
    /// # Errors
    /// If it may not have.
    pub(super) fn answer(
        &mut self,
        host: Index,
        request: RequestId,
        result: Result<IpNet, String>,
    ) -> Result<(), String> {
        let Some(holder) = self.asked.remove(&request) else {
            return Err(format!("p{host:02} answered {request:?}, which nobody asked"));
        };
        match result {
            Ok(net) => {
                self.granted += 1;
                self.hold(net.addr(), holder)
            }
            Err(_) => {
                self.refused += 1;
                Ok(())
            }
        }
    }

    /// A container has an address.
    ///
    /// # Errors
    /// If another has it.
    pub(super) fn hold(&mut self, address: IpAddr, holder: Holder) -> Result<(), String> {
        let there = self.held.entry(address).or_insert_with(|| holder.clone());
        if *there == holder {
            return Ok(());
        }
        Err(format!("{address} was given to {holder:?} while {there:?} has it"))
    }

    /// A container gave an address back.
    pub(super) fn release(&mut self, address: IpAddr) {
        self.held.remove(&address);
    }

    /// The router of a host died: its open questions are never answered.
    pub(super) fn crashed(&mut self, host: Index) {
        self.asked.retain(|_, holder| holder.host != host);
    }

    /// A host is gone with its containers.
    pub(super) fn wiped(&mut self, host: Index) {
        self.held.retain(|_, holder| holder.host != host);
    }

    /// A router started again with its disk: it must know every address that its containers have.
    ///
    /// # Errors
    /// If it forgot one, or believes to have given one that somebody else has.
    pub(super) fn restarted(&mut self, host: Index, known: &BTreeMap<IpAddr, String>) -> Result<(), String> {
        for (address, holder) in &self.held {
            if holder.host == host && known.get(address) != Some(&holder.owner) {
                return Err(format!("p{host:02} forgot that {holder:?} has {address}"));
            }
        }
        for (address, owner) in known {
            self.hold(*address, Holder { host, owner: owner.clone() })?;
        }
        Ok(())
    }

    /// Whether a container waits for an answer.
    pub(super) fn waits(&self, holder: &Holder) -> bool {
        self.asked.values().any(|asker| asker == holder)
    }

    /// Questions that are open.
    pub(super) fn open(&self) -> impl Iterator<Item = &Holder> {
        self.asked.values()
    }

    /// An address that somebody has, if there are any.
    pub(super) fn any_held(&self, pick: usize) -> Option<IpAddr> {
        let count = self.held.len().max(1);
        self.held.keys().nth(pick % count).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(host: Index, owner: &str) -> Holder {
        Holder { host, owner: owner.to_owned() }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_that_is_given_twice_is_noticed() {
        let mut book = Book::default();
        let asks = [holder(1, "a"), holder(2, "a"), holder(1, "a")].map(|holder| book.ask(holder));
        let given = Ok(net("10.32.0.1/24"));
        assert_eq!(book.answer(1, asks[0], given.clone()), Ok(()));
        assert!(book.answer(2, asks[1], given.clone()).is_err());
        assert_eq!(book.answer(1, asks[2], given.clone()), Ok(()), "the same owner may ask again");
        assert!(book.answer(1, asks[2], given).is_err(), "one answer to one question");
    }

    #[test]
    fn a_router_may_not_forget_what_its_containers_have() {
        let mut book = Book::default();
        let address = net("10.32.0.1/24").addr();
        book.hold(address, holder(1, "a")).unwrap();
        assert!(book.restarted(1, &BTreeMap::new()).is_err());
        assert_eq!(book.restarted(1, &BTreeMap::from([(address, "a".to_owned())])), Ok(()));
        assert!(book.restarted(2, &BTreeMap::from([(address, "b".to_owned())])).is_err());
        book.wiped(1);
        assert_eq!(book.restarted(2, &BTreeMap::from([(address, "b".to_owned())])), Ok(()));
    }
}
