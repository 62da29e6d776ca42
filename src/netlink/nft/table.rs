//! One table of nftables, and how its parts are written: sets, chains, rules, counters.

use std::io;

use ipnet::IpNet;
use rtnetlink::sys::protocols;
use tokio::io::unix::AsyncFd;

use crate::netlink::raw::{ACK, Batch, Body, Message, Socket, attribute, attributes, messages};

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
/// Puts elements into a set.
pub(super) const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
/// Takes elements out of a set.
pub(super) const DEL_ELEMENT: u16 = 14;
const NEW_OBJECT: u16 = 18;
const GET_OBJECT: u16 = 19;

/// Length of `struct nfgenmsg`.
const FIXED: usize = 4;
/// Before everybody else's chains at the hook.
const FIRST: i32 = -350;
/// Where sources are translated (`NF_IP_PRI_NAT_SRC`).
const SOURCES: i32 = 100;
/// Where destinations are translated (`NF_IP_PRI_NAT_DST`).
const DESTINATIONS: i32 = -100;
/// The kind of `nat` that translates destinations (`NFT_NAT_DNAT`).
const DESTINATION_NAT: u32 = 1;
/// Second register of sixteen bytes.
const REGISTER_TWO: u32 = 2;
/// What the routing table says an address is (`NFT_FIB_RESULT_ADDRTYPE`), of a destination (`NFTA_FIB_F_DADDR`).
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;
/// An address of this host (`RTN_LOCAL`).
const LOCAL: u32 = 2;
/// The connection as it was before anything was translated (`IP_CT_DIR_ORIGINAL`).
const ORIGINAL: u8 = 0;
/// Destinations were translated (`IPS_DST_NAT`).
const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// Whether a port is free is not asked before it is drawn by lot (`NF_NAT_RANGE_PROTO_RANDOM_FULLY`).
const RANDOM_FULLY: u32 = 1 << 4;
const OBJECT_COUNTER: u32 = 1;
const VERDICT: u32 = 0;
const DROP: u32 = 0;
/// The packet passes this hook.
pub(super) const ACCEPT: u32 = 1;
/// To a chain, without coming back.
const GOTO: u32 = (-4_i32).cast_unsigned();
const INVERT: u32 = 1;

/// The register that comparisons are made in.
pub(super) const REGISTER: u32 = 1;
/// The first of the registers of four bytes; the same place as [`REGISTER`].
pub(super) const REGISTER_SMALL: u32 = 8;
/// Index of the interface that a packet came by.
pub(super) const META_IIF: u32 = 4;
/// Its name.
pub(super) const META_IIFNAME: u32 = 6;
/// Name of the interface that a packet leaves by.
pub(super) const META_OIFNAME: u32 = 7;
/// Family of the packet.
pub(super) const META_FAMILY: u32 = 15;
/// Protocol above IP, behind all extension headers of IPv6. Known only of a packet whose headers are whole.
pub(super) const META_PROTOCOL: u32 = 16;
/// Offsets from the Ethernet header; what the kernel holds apart of a VLAN tag is in its place.
pub(super) const BASE_LINK: u32 = 0;
/// Offsets from the header of IP or ARP.
pub(super) const BASE_NETWORK: u32 = 1;
/// Offsets from the header above IP. Not for fragments but the first.
pub(super) const BASE_TRANSPORT: u32 = 2;
/// The number of TCP.
pub(super) const TCP: u8 = 6;
/// The number of UDP.
pub(super) const UDP: u8 = 17;
/// Whether and how a connection was translated.
const CT_STATUS: u32 = 2;
/// The port that a connection is for, as its first packet said it.
pub(super) const CT_PORT: u32 = 12;
/// The IPv4 address that a connection is for.
pub(super) const CT_ADDRESS_4: u32 = 20;
/// The IPv6 address.
pub(super) const CT_ADDRESS_6: u32 = 22;

/// Elements in one message: an attribute has at most 64 KiB.
const ELEMENTS: usize = 500;

/// Whether a notification says that something of a table was taken away.
fn is_cut(message: Message<'_>, table: &str) -> bool {
    message.kind >> 8 == SUBSYSTEM
        && matches!(message.kind & 0xff, DEL_TABLE | DEL_CHAIN | DEL_RULE | DEL_SET | DEL_ELEMENT)
        // The first attribute of all of these is the table's name.
        && attribute(message.body, FIXED, 1).is_some_and(|name| name.strip_suffix(&[0]) == Some(table.as_bytes()))
}

/// Tells when something is taken out of a table, by whomever.
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

/// A table of a family, there or not.
#[derive(Debug)]
pub(super) struct Table {
    socket: Socket,
    name: String,
    family: u8,
}

impl Table {
    pub(super) fn new(name: &str, family: u8) -> io::Result<Self> {
        let socket = Socket::open(protocols::NETLINK_NETFILTER)?;
        Ok(Self { socket, name: name.to_owned(), family })
    }

    /// Carries out all of a batch, or nothing.
    pub(super) fn transact(&self, fill: impl FnOnce(&mut Batch)) -> io::Result<()> {
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
            body.raw(&[self.family, 0, 0, 0]);
            body.text(1, &self.name);
            write(body);
        });
    }

    /// The table, with nothing in it, whatever was there.
    pub(super) fn renew(&self, batch: &mut Batch) {
        // Made first, so that there is something to delete.
        self.message(batch, NEW_TABLE, libc::NLM_F_CREATE, |_| {});
        self.message(batch, DEL_TABLE, 0, |_| {});
        self.message(batch, NEW_TABLE, libc::NLM_F_CREATE, |_| {});
    }

    /// Takes the table away; fine if there is none.
    pub(super) fn remove(&self) -> io::Result<()> {
        match self.transact(|batch| self.message(batch, DEL_TABLE, 0, |_| {})) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => Ok(()),
            result => result,
        }
    }

    pub(super) fn counter(&self, batch: &mut Batch, name: &str) {
        self.message(batch, NEW_OBJECT, libc::NLM_F_CREATE, |body| {
            body.text(2, name);
            body.number(3, OBJECT_COUNTER);
            body.nest(4, |_| {});
        });
    }

    /// A set of keys of so many bytes. `key_type` is how `nft list` shows them: types of keys of
    /// several parts are written one behind the other, six bits each.
    pub(super) fn set(&self, batch: &mut Batch, name: &str, id: u32, length: u32, key_type: u32) {
        self.message(batch, NEW_SET, libc::NLM_F_CREATE, |body| {
            body.text(2, name);
            body.number(3, 0);
            body.number(4, key_type);
            body.number(5, length);
            body.number(10, id);
        });
    }

    /// A chain at a hook, or one that others go to.
    pub(super) fn chain(&self, batch: &mut Batch, name: &str, hook: Option<u32>) {
        self.chain_at(batch, name, hook.map(|hook| (hook, FIRST, "filter")));
    }

    /// A chain that sees the first packet of each connection at a hook, and may translate its source.
    pub(super) fn source_chain(&self, batch: &mut Batch, name: &str, hook: u32) {
        self.chain_at(batch, name, Some((hook, SOURCES, "nat")));
    }

    /// The same for its destination.
    pub(super) fn destination_chain(&self, batch: &mut Batch, name: &str, hook: u32) {
        self.chain_at(batch, name, Some((hook, DESTINATIONS, "nat")));
    }

    fn chain_at(&self, batch: &mut Batch, name: &str, at: Option<(u32, i32, &str)>) {
        self.message(batch, NEW_CHAIN, libc::NLM_F_CREATE, |body| {
            body.text(3, name);
            if let Some((hook, priority, kind)) = at {
                body.nest(4, |body| {
                    body.number(1, hook);
                    body.put(2, &priority.to_be_bytes());
                });
                body.text(7, kind);
            }
        });
    }

    pub(super) fn rule(&self, batch: &mut Batch, chain: &str, write: impl FnOnce(&mut Rule<'_, '_>)) {
        self.message(batch, NEW_RULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |body| {
            body.text(2, chain);
            body.nest(4, |body| write(&mut Rule(body)));
        });
    }

    pub(super) fn elements(&self, batch: &mut Batch, kind: u16, set: &str, keys: &[Vec<u8>]) {
        let flags = if kind == NEW_ELEMENT { libc::NLM_F_CREATE } else { 0 };
        for keys in keys.chunks(ELEMENTS) {
            self.message(batch, kind, flags, |body| {
                body.text(2, set);
                body.nest(3, |body| {
                    for key in keys {
                        body.nest(1, |body| body.nest(1, |body| body.put(1, key)));
                    }
                });
            });
        }
    }

    /// How many rules there are.
    pub(super) fn rules(&self) -> io::Result<usize> {
        let mut rules = 0;
        self.dump(GET_RULE, |_| {}, |message| rules += usize::from(message.kind == SUBSYSTEM << 8 | NEW_RULE))?;
        Ok(rules)
    }

    /// Hands over every key of a set.
    pub(super) fn list(&self, set: &str, mut take: impl FnMut(&[u8])) -> io::Result<()> {
        self.dump(GET_ELEMENT, |body| body.text(2, set), |message| keys(message).for_each(&mut take))
    }

    fn dump(&self, kind: u16, ask: impl FnOnce(&mut Body<'_>), take: impl FnMut(Message<'_>)) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.message(SUBSYSTEM << 8 | kind, libc::NLM_F_DUMP as u16, |body| {
            body.raw(&[self.family, 0, 0, 0]);
            body.text(1, &self.name);
            ask(body);
        });
        self.socket.exchange(&batch, take)
    }

    /// The packets of a counter.
    pub(super) fn count(&self, name: &str) -> io::Result<u64> {
        let mut batch = Batch::default();
        batch.message(SUBSYSTEM << 8 | GET_OBJECT, 0, |body| {
            body.raw(&[self.family, 0, 0, 0]);
            body.text(1, &self.name);
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
}

/// How two values compare (`nft_cmp_ops`).
#[derive(Clone, Copy)]
pub(super) enum Is {
    Equal = 0,
    Other = 1,
    AtMost = 3,
    AtLeast = 5,
}

/// The expressions of a rule being written. One that cannot be worked out, because the packet has no
/// such part, ends the rule as one that is not true does.
pub(super) struct Rule<'a, 'b>(&'a mut Body<'b>);

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, write: impl FnOnce(&mut Body<'_>)) {
        self.0.nest(1, |body| {
            body.text(1, name);
            body.nest(2, write);
        });
    }

    /// Goes on only if what is in [`REGISTER`] compares so.
    pub(super) fn compare(&mut self, how: Is, value: &[u8]) {
        self.expression("cmp", |body| {
            body.number(1, REGISTER);
            body.number(2, how as u32);
            body.nest(3, |body| body.put(1, value));
        });
    }

    /// A property of the packet, into a register.
    pub(super) fn load(&mut self, register: u32, key: u32) {
        self.expression("meta", |body| {
            body.number(1, register);
            body.number(2, key);
        });
    }

    /// Goes on only if a property of the packet is as said.
    pub(super) fn meta(&mut self, key: u32, how: Is, value: &[u8]) {
        self.load(REGISTER, key);
        self.compare(how, value);
    }

    /// Bytes of the packet, into a register. Goes on only if it has them.
    pub(super) fn payload(&mut self, register: u32, base: u32, offset: u32, length: u32) {
        self.expression("payload", |body| {
            body.number(1, register);
            body.number(2, base);
            body.number(3, offset);
            body.number(4, length);
        });
    }

    /// Goes on only if the packet has these bytes there.
    pub(super) fn bytes(&mut self, base: u32, offset: u32, value: &[u8]) {
        // Longest is an address.
        self.payload(REGISTER, base, offset, value.len() as u32);
        self.compare(Is::Equal, value);
    }

    /// Two bytes of an extension header of IPv6, into [`REGISTER`]. Goes on only if it is there.
    pub(super) fn extension(&mut self, header: u8, offset: u32) {
        self.expression("exthdr", |body| {
            body.number(1, REGISTER);
            body.put(2, &[header]);
            body.number(3, offset);
            body.number(4, 2);
        });
    }

    /// Leaves of as many bytes in [`REGISTER`] only these bits.
    pub(super) fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |body| {
            body.number(1, REGISTER);
            body.number(2, REGISTER);
            // Longest is an address.
            body.number(3, mask.len() as u32);
            body.nest(4, |body| body.put(1, mask));
            body.nest(5, |body| body.put(1, &vec![0; mask.len()]));
        });
    }

    /// Goes on only with TCP or UDP to that port, and what looks like it.
    pub(super) fn is_for_port(&mut self, port: u16) {
        self.bytes(BASE_TRANSPORT, 2, &port.to_be_bytes());
    }

    /// Goes on only if the register is in the set, or only if it is not.
    pub(super) fn is_in(&mut self, set: &str, register: u32, wanted: bool) {
        self.expression("lookup", |body| {
            body.text(1, set);
            body.number(2, register);
            if !wanted {
                body.number(5, INVERT);
            }
        });
    }

    /// Goes on only if the address there is in the network, or only if it is not.
    pub(super) fn within(&mut self, base: u32, offset: u32, network: IpNet, wanted: bool) {
        let (prefix, mask) = match network.trunc() {
            IpNet::V4(net) => (net.addr().octets().to_vec(), net.netmask().octets().to_vec()),
            IpNet::V6(net) => (net.addr().octets().to_vec(), net.netmask().octets().to_vec()),
        };
        // Four bytes, or sixteen.
        self.payload(REGISTER, base, offset, mask.len() as u32);
        self.mask(&mask);
        self.compare(if wanted { Is::Equal } else { Is::Other }, &prefix);
    }

    /// Goes on only if the packet is for an address of this host.
    pub(super) fn is_for_this_host(&mut self) {
        self.expression("fib", |body| {
            body.number(1, REGISTER);
            body.number(2, FIB_ADDRESS_TYPE);
            body.number(3, FIB_DESTINATION);
        });
        self.compare(Is::Equal, &LOCAL.to_ne_bytes());
    }

    /// Goes on only if the destination of the packet's connection was translated.
    pub(super) fn is_translated(&mut self) {
        self.expression("ct", |body| {
            body.number(1, REGISTER);
            body.number(2, CT_STATUS);
        });
        self.mask(&DESTINATION_TRANSLATED.to_ne_bytes());
        self.compare(Is::Other, &[0; 4]);
    }

    /// Goes on only if the first packet of the connection was so.
    pub(super) fn was(&mut self, key: u32, value: &[u8]) {
        self.expression("ct", |body| {
            body.number(1, REGISTER);
            body.number(2, key);
            body.put(3, &[ORIGINAL]);
        });
        self.compare(Is::Equal, value);
    }

    /// The connection goes on to this address and port.
    pub(super) fn redirect(&mut self, family: u8, address: &[u8], port: u16) {
        self.immediate(REGISTER, address);
        self.immediate(REGISTER_TWO, &port.to_be_bytes());
        self.expression("nat", |body| {
            body.number(1, DESTINATION_NAT);
            body.number(2, family.into());
            body.number(3, REGISTER);
            body.number(5, REGISTER_TWO);
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |body| {
            body.number(1, register);
            body.nest(2, |body| body.put(1, value));
        });
    }

    /// The connection goes on in the name of the interface that it leaves by, from a port drawn by lot: of
    /// ports that are tried one after the other, two connections at once can get the same, and one is lost.
    pub(super) fn masquerade(&mut self) {
        self.expression("masq", |body| body.number(1, RANDOM_FULLY));
    }

    /// The end of the packet.
    pub(super) fn count_and_drop(&mut self, counter: &str) {
        self.expression("objref", |body| {
            body.number(1, OBJECT_COUNTER);
            body.text(2, counter);
        });
        self.drop();
    }

    /// The end of the packet, of which nobody is told.
    pub(super) fn drop(&mut self) {
        self.verdict(DROP, None);
    }

    /// The packet passes.
    pub(super) fn accept(&mut self) {
        self.verdict(ACCEPT, None);
    }

    /// The packet goes to a chain and does not come back.
    pub(super) fn goto(&mut self, chain: &str) {
        self.verdict(GOTO, Some(chain));
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

/// The name of an interface as the kernel compares it.
pub(super) fn interface_name(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    for (to, from) in padded.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

/// The keys in a part of a set.
fn keys(message: Message<'_>) -> impl Iterator<Item = &[u8]> {
    let is_part = message.kind == SUBSYSTEM << 8 | NEW_ELEMENT;
    let list = attribute(message.body, FIXED, 3).filter(|_| is_part).unwrap_or_default();
    attributes(list, 0).filter_map(|(_, element)| attribute(attribute(element, 0, 1)?, 0, 1))
}

fn packets(message: Message<'_>) -> Option<u64> {
    if message.kind != SUBSYSTEM << 8 | NEW_OBJECT {
        return None;
    }
    let data = attribute(message.body, FIXED, 4)?;
    attribute(data, 0, 2)?.try_into().ok().map(u64::from_be_bytes)
}
