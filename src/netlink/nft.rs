//! The guard in front of the VXLAN port: a table of nftables, made and kept by netlink.
//!
//! ```text
//!  table inet weft-guard
//!    set peers4, peers6        addresses of the peers that VXLAN is taken from
//!    set owned                 MAC addresses that have an owner, here or at a peer
//!    set pairs4, pairs6        the owning peer's address, with the MAC address
//!    chain arriving            input: what this host itself takes, put together from its fragments
//!      to the port                                           go to `vxlan`
//!    chain vxlan
//!      not from the bridge, (source, inner source) in pairs  accept
//!      not UDP                                               accept
//!      from the bridge                                       count `inside`, drop
//!      source not in peers                                   count `strangers`, drop
//!      inner source not in owned                             accept
//!      all else                                              count `spoofed`, drop
//!    chain passing             forward
//!      to the port, by UDP, not to the bridge                count `inside`, drop
//! ```
//!
//! The last one is for containers that another network of this host masquerades: what they send
//! to a peer's VXLAN port would arrive there with this host's address (fastpath F12).
//!
//! Each packet of the fast path comes by here, so what is usual is quick: a linked peer's frames are
//! accepted by one look into a set. Where br_netfilter is at work, what the bridge passes on comes by
//! `passing`, but not by `arriving`. Both begin with the port: up to four bytes that lie at a multiple
//! of their number are read and compared by nftables in place, without a call. The inner source is
//! therefore read in two parts, and the bridge known by its index.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use rtnetlink::sys::protocols;
use tokio::io::unix::AsyncFd;

use super::Mac;
use super::raw::{ACK, Batch, Body, Message, Socket, attribute, attributes, messages};

/// Group of notifications about nftables (NFNLGRP_NFTABLES).
const GROUP: u32 = 7;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DEL_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DEL_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DEL_SET: u16 = 11;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DEL_ELEMENT: u16 = 14;
const NEW_OBJECT: u16 = 18;
const GET_OBJECT: u16 = 19;

/// Length of `struct nfgenmsg`.
const FIXED: usize = 4;
const INET: u8 = 1;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
/// Before everybody else's chains at the hook.
const PRIORITY: i32 = -350;
const OBJECT_COUNTER: u32 = 1;
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
/// To a chain, without coming back.
const GOTO: u32 = (-4_i32).cast_unsigned();
const META_IIF: u32 = 4;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const BASE_NETWORK: u32 = 1;
const BASE_TRANSPORT: u32 = 2;
const INVERT: u32 = 1;
const UDP: u8 = 17;

const STRANGERS: &str = "strangers";
const INSIDE: &str = "inside";
const SPOOFED: &str = "spoofed";
const ARRIVING: &str = "arriving";
const VXLAN: &str = "vxlan";
const PASSING: &str = "passing";
const RULES: usize = 10;
/// The sets of peers, with what a rule needs: family, and where the source is in the IP header.
const FAMILIES: [Family; 2] = [
    Family { peers: "peers4", pairs: "pairs4", family: 2, offset: 12, length: 4, key_type: 7 },
    Family { peers: "peers6", pairs: "pairs6", family: 10, offset: 8, length: 16, key_type: 8 },
];
const OWNED: &str = "owned";
/// How `nft list` shows MAC addresses (ether_addr).
const ETHER_TYPE: u32 = 9;
/// The same for parts of two and of four bytes (inet_service, mark), of which there is nothing better.
const PART_TYPES: u32 = 13 << 6 | 19;
/// Where the inner source is, behind the headers of UDP and VXLAN and the inner destination.
const INNER_SOURCE: u32 = 8 + 8 + 6;
/// The first of the registers of four bytes.
const REGISTER_SMALL: u32 = 8;

struct Family {
    peers: &'static str,
    pairs: &'static str,
    family: u8,
    offset: u32,
    length: u32,
    key_type: u32,
}

/// The family of an address.
const fn family(ip: IpAddr) -> &'static Family {
    match ip {
        IpAddr::V4(_) => &FAMILIES[0],
        IpAddr::V6(_) => &FAMILIES[1],
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A MAC address in a key that it ends: its two parts, each filled up to a register.
fn in_parts(mac: Mac) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac;
    [a, b, 0, 0, c, d, e, f]
}

/// An address of each family, IPv4 first, if there is one.
pub type Sources = [Option<IpAddr>; 2];

/// A MAC address that has an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// The address.
    pub mac: Mac,
    /// The peer that may send it; none if nobody may, for it is here or its owner is not a peer
    /// that VXLAN is taken from.
    pub from: Sources,
}

/// Elements in one transaction: well under the least send buffer.
const ELEMENTS: usize = 1000;

/// Whether a notification says that something of a table was taken away.
fn is_cut(message: Message<'_>, table: &str) -> bool {
    message.kind >> 8 == SUBSYSTEM
        && matches!(message.kind & 0xff, DEL_TABLE | DEL_CHAIN | DEL_RULE | DEL_SET | DEL_ELEMENT)
        // The first attribute of all of these is the table's name.
        && attribute(message.body, FIXED, 1).is_some_and(|name| name.strip_suffix(&[0]) == Some(table.as_bytes()))
}

/// What the guard has dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// VXLAN from addresses that are no linked peer's.
    pub strangers: u64,
    /// VXLAN that containers sent, to this host or past it.
    pub inside: u64,
    /// VXLAN with an inner source that belongs to somebody else.
    pub spoofed: u64,
}

/// Tells when something is taken out of a guard, by whomever.
#[derive(Debug)]
pub struct Cuts {
    socket: AsyncFd<Socket>,
    table: String,
    buffer: Vec<u8>,
}

impl Cuts {
    /// Watches the table of that name. Needs a Tokio runtime around it.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn watch(table: &str) -> io::Result<Self> {
        let socket = Socket::open(protocols::NETLINK_NETFILTER)?;
        socket.join(GROUP)?;
        Ok(Self { socket: socket.watch()?, table: table.to_owned(), buffer: Vec::with_capacity(64 * 1024) })
    }

    /// Waits for the next. May be cancelled without losing one.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn next(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.get_inner().receive(&mut self.buffer) {
                Ok(false) => ready.clear_ready(),
                Ok(true) if messages(&self.buffer).any(|message| is_cut(message, &self.table)) => return Ok(()),
                Ok(true) => {}
                // What did not fit may have been one.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// The guard of one VXLAN port.
#[derive(Debug)]
pub struct Guard {
    socket: Socket,
    table: String,
    bridge: String,
    port: u16,
}

impl Guard {
    /// A guard that is not there yet. `table` is its name, `port` the UDP port.
    ///
    /// # Errors
    /// If the kernel refuses the socket.
    pub fn new(table: &str, bridge: &str, port: u16) -> io::Result<Self> {
        let socket = Socket::open(protocols::NETLINK_NETFILTER)?;
        Ok(Self { socket, table: table.to_owned(), bridge: bridge.to_owned(), port })
    }

    /// Sets the guard up, or anew, in one step: there is no moment without. `bridge` is the index of
    /// the bridge: when there is another one, it has to be set up anew.
    ///
    /// # Errors
    /// If the kernel has no nftables, or refuses.
    pub fn install(&self, bridge: u32, peers: &[IpAddr]) -> io::Result<()> {
        let first = peers.len().min(ELEMENTS);
        self.transact(|batch| {
            // Made first, so that there is something to delete.
            self.message(batch, NEW_TABLE, libc::NLM_F_CREATE, |body| body.text(1, &self.table));
            self.message(batch, DEL_TABLE, 0, |body| body.text(1, &self.table));
            self.message(batch, NEW_TABLE, libc::NLM_F_CREATE, |body| body.text(1, &self.table));
            for (id, Family { peers, pairs, length, key_type, .. }) in (1..).step_by(2).zip(&FAMILIES) {
                self.set(batch, peers, id, *length, *key_type);
                // Types of concatenated keys are written one behind the other, six bits each.
                self.set(batch, pairs, id + 1, length + 8, key_type << 12 | PART_TYPES);
            }
            self.set(batch, OWNED, 9, 6, ETHER_TYPE);
            for name in [STRANGERS, INSIDE, SPOOFED] {
                self.message(batch, NEW_OBJECT, libc::NLM_F_CREATE, |body| {
                    body.text(1, &self.table);
                    body.text(2, name);
                    body.number(3, OBJECT_COUNTER);
                    body.nest(4, |_| {});
                });
            }
            self.chain(batch, VXLAN, None);
            self.chain(batch, ARRIVING, Some(HOOK_INPUT));
            self.chain(batch, PASSING, Some(HOOK_FORWARD));
            self.rule(batch, ARRIVING, |rule| {
                rule.is_for_port(self.port);
                rule.verdict(GOTO, Some(VXLAN));
            });
            self.vxlan_rules(batch, bridge);
            self.rule(batch, PASSING, |rule| {
                rule.is_for_port(self.port);
                rule.meta(META_PROTOCOL, Is::Equal, &[UDP]);
                rule.meta(META_OIFNAME, Is::Other, &self.bridge_name());
                rule.count_and_drop(INSIDE);
            });
            self.peers(batch, NEW_ELEMENT, &peers[..first]);
        })?;
        self.admit(&peers[first..])
    }

    /// What becomes of what is for the port.
    fn vxlan_rules(&self, batch: &mut Batch, bridge: u32) {
        for Family { pairs, family, offset, length, .. } in &FAMILIES {
            self.rule(batch, VXLAN, |rule| {
                rule.meta(META_IIF, Is::Other, &bridge.to_ne_bytes());
                rule.meta(META_FAMILY, Is::Equal, &[*family]);
                rule.payload(REGISTER_SMALL, BASE_NETWORK, *offset, *length);
                rule.payload(REGISTER_SMALL + length / 4, BASE_TRANSPORT, INNER_SOURCE, 2);
                rule.payload(REGISTER_SMALL + length / 4 + 1, BASE_TRANSPORT, INNER_SOURCE + 2, 4);
                rule.is_in(pairs, REGISTER_SMALL, true);
                rule.verdict(ACCEPT, None);
            });
        }
        self.rule(batch, VXLAN, |rule| {
            rule.meta(META_PROTOCOL, Is::Other, &[UDP]);
            rule.verdict(ACCEPT, None);
        });
        self.rule(batch, VXLAN, |rule| {
            rule.meta(META_IIFNAME, Is::Equal, &self.bridge_name());
            rule.count_and_drop(INSIDE);
        });
        for Family { peers, family, offset, length, .. } in &FAMILIES {
            self.rule(batch, VXLAN, |rule| {
                rule.meta(META_FAMILY, Is::Equal, &[*family]);
                rule.payload(REGISTER, BASE_NETWORK, *offset, *length);
                rule.is_in(peers, REGISTER, false);
                rule.count_and_drop(STRANGERS);
            });
        }
        self.rule(batch, VXLAN, |rule| {
            rule.payload(REGISTER, BASE_TRANSPORT, INNER_SOURCE, 6);
            rule.is_in(OWNED, REGISTER, false);
            rule.verdict(ACCEPT, None);
        });
        // Also where there is no inner source to look at: a first fragment of IPv6, which comes by
        // before it is put together, may be cut so short.
        self.rule(batch, VXLAN, |rule| rule.count_and_drop(SPOOFED));
    }

    /// Lets VXLAN from these addresses pass.
    ///
    /// # Errors
    /// If the guard is not there, or the kernel refuses.
    pub fn admit(&self, peers: &[IpAddr]) -> io::Result<()> {
        peers.chunks(ELEMENTS).try_for_each(|peers| self.transact(|batch| self.peers(batch, NEW_ELEMENT, peers)))
    }

    /// Lets VXLAN from this address pass no more. That it did not pass before is fine.
    ///
    /// # Errors
    /// If the guard is not there, or the kernel refuses.
    pub fn refuse(&self, peer: IpAddr) -> io::Result<()> {
        match self.transact(|batch| self.peers(batch, DEL_ELEMENT, &[peer])) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Changes owners: the first are no longer as given, the second are from now on. What was
    /// given for an address before must be taken back before, or with, what is given anew.
    ///
    /// # Errors
    /// If the guard is not there, or not as it is said to be; then nothing of at most
    /// a thousand changes was made.
    pub fn own(&self, old: &[Owned], new: &[Owned]) -> io::Result<()> {
        old.chunks(ELEMENTS).try_for_each(|old| self.transact(|batch| self.owners(batch, DEL_ELEMENT, old)))?;
        new.chunks(ELEMENTS).try_for_each(|new| self.transact(|batch| self.owners(batch, NEW_ELEMENT, new)))
    }

    /// Takes the guard away; fine if there is none.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&self) -> io::Result<()> {
        match self.transact(|batch| self.message(batch, DEL_TABLE, 0, |body| body.text(1, &self.table))) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => Ok(()),
            result => result,
        }
    }

    /// Whether the guard is there, whole, lets exactly these addresses pass, and knows as many
    /// owners of MAC addresses.
    ///
    /// # Errors
    /// If the kernel cannot be asked.
    pub fn stands<'a>(&self, peers: &BTreeSet<IpAddr>, owned: impl IntoIterator<Item = &'a Owned>) -> io::Result<bool> {
        let mut rules = 0;
        self.dump(
            GET_RULE,
            |body| body.text(1, &self.table),
            |message| {
                rules += usize::from(message.kind == SUBSYSTEM << 8 | NEW_RULE);
            },
        )?;
        let mut found = BTreeSet::new();
        for Family { peers, .. } in &FAMILIES {
            self.list(peers, |key| found.extend(address(key)))?;
        }
        // The addresses, and their pairs by IPv4 and IPv6.
        let (mut counts, mut expected) = ([0; 3], [0; 3]);
        for (set, count) in [OWNED, FAMILIES[0].pairs, FAMILIES[1].pairs].into_iter().zip(&mut counts) {
            self.list(set, |_| *count += 1)?;
        }
        for Owned { from: [v4, v6], .. } in owned {
            let there = [true, v4.is_some(), v6.is_some()];
            expected.iter_mut().zip(there).for_each(|(count, there)| *count += usize::from(there));
        }
        Ok(rules == RULES && found == *peers && counts == expected)
    }

    fn list(&self, set: &str, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        let ask = |body: &mut Body<'_>| {
            body.text(1, &self.table);
            body.text(2, set);
        };
        self.dump(GET_ELEMENT, ask, |message| keys(message).for_each(&mut take))
    }

    fn dump(&self, kind: u16, ask: impl FnOnce(&mut Body<'_>), take: impl FnMut(Message<'_>)) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.message(SUBSYSTEM << 8 | kind, libc::NLM_F_DUMP as u16, |body| {
            body.raw(&[INET, 0, 0, 0]);
            ask(body);
        });
        self.socket.exchange(&batch, take)
    }

    /// What was dropped since the guard was set up.
    ///
    /// # Errors
    /// If the guard is not there.
    pub fn dropped(&self) -> io::Result<Dropped> {
        Ok(Dropped { strangers: self.count(STRANGERS)?, inside: self.count(INSIDE)?, spoofed: self.count(SPOOFED)? })
    }

    fn count(&self, name: &str) -> io::Result<u64> {
        let mut batch = Batch::default();
        batch.message(SUBSYSTEM << 8 | GET_OBJECT, 0, |body| {
            body.raw(&[INET, 0, 0, 0]);
            body.text(1, &self.table);
            body.text(2, name);
            body.number(3, OBJECT_COUNTER);
        });
        let mut count = Err(io::Error::from(io::ErrorKind::NotFound));
        self.socket.exchange(&batch, |message| {
            if let Some(packets) = packets(message) {
                count = Ok(packets);
            }
        })?;
        count
    }

    fn transact(&self, fill: impl FnOnce(&mut Batch)) -> io::Result<()> {
        let mut batch = Batch::default();
        let [high, low] = SUBSYSTEM.to_be_bytes();
        batch.message(BATCH_BEGIN, 0, |body| body.raw(&[0, 0, high, low]));
        fill(&mut batch);
        batch.message(BATCH_END, 0, |body| body.raw(&[0, 0, high, low]));
        match self.socket.transact(&batch)?.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn message(&self, batch: &mut Batch, kind: u16, flags: libc::c_int, write: impl FnOnce(&mut Body<'_>)) {
        batch.message(SUBSYSTEM << 8 | kind, flags as u16 | ACK, |body| {
            body.raw(&[INET, 0, 0, 0]);
            write(body);
        });
    }

    fn set(&self, batch: &mut Batch, name: &str, id: u32, length: u32, key_type: u32) {
        self.message(batch, NEW_SET, libc::NLM_F_CREATE, |body| {
            body.text(1, &self.table);
            body.text(2, name);
            body.number(3, 0);
            // What `nft list` shows it as: ipv4_addr, ipv6_addr.
            body.number(4, key_type);
            body.number(5, length);
            body.number(10, id);
        });
    }

    /// A chain at a hook, or one that others go to.
    fn chain(&self, batch: &mut Batch, name: &str, hook: Option<u32>) {
        self.message(batch, NEW_CHAIN, libc::NLM_F_CREATE, |body| {
            body.text(1, &self.table);
            body.text(3, name);
            if let Some(hook) = hook {
                body.nest(4, |body| {
                    body.number(1, hook);
                    body.put(2, &PRIORITY.to_be_bytes());
                });
                body.text(7, "filter");
            }
        });
    }

    /// As the kernel compares names of interfaces.
    fn bridge_name(&self) -> [u8; libc::IFNAMSIZ] {
        let mut padded = [0; libc::IFNAMSIZ];
        for (to, from) in padded.iter_mut().zip(self.bridge.bytes()) {
            *to = from;
        }
        padded
    }

    fn rule(&self, batch: &mut Batch, chain: &str, write: impl FnOnce(&mut Rule<'_, '_>)) {
        self.message(batch, NEW_RULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |body| {
            body.text(1, &self.table);
            body.text(2, chain);
            body.nest(4, |body| write(&mut Rule(body)));
        });
    }

    fn peers(&self, batch: &mut Batch, kind: u16, peers: &[IpAddr]) {
        for Family { peers: set, family: wanted, .. } in &FAMILIES {
            let keys = peers.iter().filter(|ip| family(**ip).family == *wanted).map(|ip| octets(*ip));
            self.elements(batch, kind, set, keys.collect());
        }
    }

    fn owners(&self, batch: &mut Batch, kind: u16, owned: &[Owned]) {
        self.elements(batch, kind, OWNED, owned.iter().map(|owned| owned.mac.to_vec()).collect());
        for Family { pairs, family: wanted, .. } in &FAMILIES {
            let pair = |owned: &Owned| {
                let ip = owned.from.into_iter().flatten().find(|ip| family(*ip).family == *wanted)?;
                Some([&octets(ip)[..], &in_parts(owned.mac)].concat())
            };
            self.elements(batch, kind, pairs, owned.iter().filter_map(pair).collect());
        }
    }

    fn elements(&self, batch: &mut Batch, kind: u16, set: &str, keys: Vec<Vec<u8>>) {
        if keys.is_empty() {
            return;
        }
        let flags = if kind == NEW_ELEMENT { libc::NLM_F_CREATE } else { 0 };
        self.message(batch, kind, flags, |body| {
            body.text(1, &self.table);
            body.text(2, set);
            body.nest(3, |body| {
                for key in keys {
                    body.nest(1, |body| body.nest(1, |body| body.put(1, &key)));
                }
            });
        });
    }
}

/// How two values compare (`nft_cmp_ops`).
#[derive(Clone, Copy)]
enum Is {
    Equal = 0,
    Other = 1,
}

/// The expressions of a rule being written.
struct Rule<'a, 'b>(&'a mut Body<'b>);

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, write: impl FnOnce(&mut Body<'_>)) {
        self.0.nest(1, |body| {
            body.text(1, name);
            body.nest(2, write);
        });
    }

    fn compare(&mut self, how: Is, value: &[u8]) {
        self.expression("cmp", |body| {
            body.number(1, REGISTER);
            body.number(2, how as u32);
            body.nest(3, |body| body.put(1, value));
        });
    }

    /// Goes on only if a property of the packet is as said.
    fn meta(&mut self, key: u32, how: Is, value: &[u8]) {
        self.expression("meta", |body| {
            body.number(1, REGISTER);
            body.number(2, key);
        });
        self.compare(how, value);
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, length: u32) {
        self.expression("payload", |body| {
            body.number(1, register);
            body.number(2, base);
            body.number(3, offset);
            body.number(4, length);
        });
    }

    /// Goes on only with TCP or UDP to that port, and what looks like it.
    fn is_for_port(&mut self, port: u16) {
        self.payload(REGISTER, BASE_TRANSPORT, 2, 2);
        self.compare(Is::Equal, &port.to_be_bytes());
    }

    /// Goes on only if the register is in the set, or only if it is not.
    fn is_in(&mut self, set: &str, register: u32, wanted: bool) {
        self.expression("lookup", |body| {
            body.text(1, set);
            body.number(2, register);
            if !wanted {
                body.number(5, INVERT);
            }
        });
    }

    fn count_and_drop(&mut self, counter: &str) {
        self.expression("objref", |body| {
            body.number(1, OBJECT_COUNTER);
            body.text(2, counter);
        });
        self.verdict(DROP, None);
    }

    fn verdict(&mut self, code: u32, chain: Option<&str>) {
        self.expression("immediate", |body| {
            body.number(1, VERDICT);
            body.nest(2, |body| {
                body.nest(2, |body| {
                    body.number(1, code);
                    if let Some(chain) = chain {
                        body.text(2, chain);
                    }
                });
            });
        });
    }
}

/// The keys in a part of a set.
fn keys(message: Message<'_>) -> impl Iterator<Item = &[u8]> {
    let is_part = message.kind == SUBSYSTEM << 8 | NEW_ELEMENT;
    let list = attribute(message.body, FIXED, 3).filter(|_| is_part).unwrap_or_default();
    attributes(list, 0).filter_map(|(_, element)| attribute(attribute(element, 0, 1)?, 0, 1))
}

fn address(key: &[u8]) -> Option<IpAddr> {
    match key.len() {
        4 => <[u8; 4]>::try_from(key).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(key).ok().map(IpAddr::from),
    }
}

/// The packets of a counter.
fn packets(message: Message<'_>) -> Option<u64> {
    if message.kind != SUBSYSTEM << 8 | NEW_OBJECT {
        return None;
    }
    let data = attribute(message.body, FIXED, 4)?;
    attribute(data, 0, 2)?.try_into().ok().map(u64::from_be_bytes)
}
