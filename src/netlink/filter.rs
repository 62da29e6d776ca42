//! The host's packet filter: the chains of nftables that forwarded packets pass, and a few rules in
//! them.
//!
//! iptables of today (`iptables -V` says `nf_tables`) keeps its FORWARD chain in the same place, so
//! it is one of these chains, and a rule that is made here is one that iptables lists as its own.
//! The tables of the old iptables are not nftables and not seen here.
//!
//! The calls block for the time of a netlink exchange and work in the namespace of the thread.

use std::ffi::{CStr, CString};
use std::io;

use futures_util::FutureExt as _;
use netlink_bindings::nftables::{
    Chained, CmpOps, CtKeys, DataAttrs, ExprCmpAttrs, ExprCtAttrs, ExprListAttrs, ExprMetaAttrs, ExprOps,
    IterableDataAttrs, IterableExprListAttrs, MetaKeys, Nfgenmsg, Registers, Request, VerdictCode,
};
use netlink_socket2::NetlinkSocket;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};

/// The hook of what is neither for this host nor from it (`NF_INET_FORWARD`).
const FORWARD: u32 = 2;
/// Messages of one transaction, at most.
const TRANSACTION: u32 = 16;
/// Longest name of an interface, with its end (`IFNAMSIZ`).
const NAME_SIZE: usize = 16;
/// Notices of nf_tables (`NFNLGRP_NFTABLES`), as a bit of the address (netlink(7)).
const CHANGES: u32 = 1 << (7 - 1);

/// Most notices that [`Changes::skip`] leaves out.
const SKIPPED: usize = 10_000;

/// Packets of which protocol a chain sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Both.
    Both,
}

impl Family {
    /// Of the kernel's number (`NFPROTO_…`).
    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Both),
            2 => Some(Self::V4),
            10 => Some(Self::V6),
            _ => None,
        }
    }

    const fn header(self) -> Nfgenmsg {
        let nfgen_family = match self {
            Self::Both => 1,
            Self::V4 => 2,
            Self::V6 => 10,
        };
        Nfgenmsg { nfgen_family, version: 0, _res_id_be: 0 }
    }
}

/// A chain through which forwarded packets pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardChain {
    /// What it sees.
    pub family: Family,
    /// Name of its table.
    pub table: CString,
    /// Its name.
    pub name: CString,
    /// What no rule decides on is dropped.
    pub drops: bool,
}

impl ForwardChain {
    /// Whether iptables shows it: in its chains it knows only rules as it writes them itself.
    fn is_of_iptables(&self) -> bool {
        self.family != Family::Both && self.table.as_bytes() == b"filter" && self.name.as_bytes() == b"FORWARD"
    }
}

/// What a rule lets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// What comes from the bridge and goes to it.
    Within,
    /// What comes from the bridge, of connections whose destination was translated.
    From,
    /// What goes to the bridge, of such connections.
    Into,
}

impl Pass {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Within, Self::From, Self::Into];
}

/// A connection to nf_tables.
pub struct Filter(NetlinkSocket);

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Filter")
    }
}

impl Default for Filter {
    fn default() -> Self {
        Self(NetlinkSocket::new())
    }
}

impl Filter {
    /// All chains through which forwarded packets pass; none in a kernel without nf_tables.
    ///
    /// # Errors
    /// If the kernel refuses, for want of CAP_NET_ADMIN.
    pub fn forward_chains(&mut self) -> io::Result<Vec<ForwardChain>> {
        let request = Request::new().op_getchain_dump(&Nfgenmsg::new());
        let mut replies = match self.0.request(&request) {
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            replies => replies?,
        };
        let mut found = Vec::new();
        while let Some(reply) = replies.recv() {
            let (header, chain) = match reply {
                Ok(reply) => reply,
                Err(error) if is_missing(error.as_io_error()) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            };
            // What is no base chain has no hook.
            let hook = chain.get_hook().and_then(|hook| hook.get_num());
            if let (Some(family), Ok(FORWARD)) = (Family::from_number(header.nfgen_family), hook)
                && let (Ok(table), Ok(name)) = (chain.get_table(), chain.get_name())
            {
                let drops = chain.get_policy() == Ok(VerdictCode::Drop as u32);
                found.push(ForwardChain { family, table: table.to_owned(), name: name.to_owned(), drops });
            }
        }
        Ok(found)
    }

    /// The rules of a chain that accept one of these and ask for nothing else, with their handles.
    ///
    /// # Errors
    /// If the kernel refuses or the chain is gone.
    pub fn passes(&mut self, chain: &ForwardChain, bridge: &str) -> io::Result<Vec<(Pass, u64)>> {
        let wanted = Pass::ALL.map(|pass| (pass, rule(chain, pass, bridge)));
        let mut request = Request::new().op_getrule_dump(&chain.family.header());
        request.encode().push_table(&chain.table).push_chain(&chain.name);
        let mut replies = self.0.request(&request)?;
        let mut found = Vec::new();
        while let Some(reply) = replies.recv() {
            let (_, rule) = reply?;
            if let (Ok(handle), Ok(expressions)) = (rule.get_handle(), rule.get_expressions())
                && let Some(steps) = steps(expressions)
            {
                found.extend(wanted.iter().filter(|(_, rule)| *rule == steps).map(|(pass, _)| (*pass, handle)));
            }
        }
        Ok(found)
    }

    /// Adds such a rule at the end of a chain.
    ///
    /// # Errors
    /// If the kernel refuses or the chain is gone.
    pub fn accept(&mut self, chain: &ForwardChain, pass: Pass, bridge: &str) -> io::Result<()> {
        let steps = rule(chain, pass, bridge);
        self.transaction(|batch| {
            let mut request = batch.request().set_create().set_append().op_newrule_do(&chain.family.header());
            let mut rule = request.encode().push_table(&chain.table).push_chain(&chain.name).nested_expressions();
            let register = Registers::Reg1 as u32;
            for step in &steps {
                let element = rule.nested_elem();
                rule = match step {
                    Step::Load(key) => {
                        element.nested_data_meta().push_key(*key).push_dreg(register).end_nested().end_nested()
                    }
                    Step::Connection(key) => {
                        element.nested_data_ct().push_dreg(register).push_key(*key).end_nested().end_nested()
                    }
                    Step::Mask(mask) => {
                        let bitwise = element.nested_data_bitwise().push_sreg(register).push_dreg(register);
                        let bitwise = bitwise.push_len(4).nested_mask().push_value(mask).end_nested();
                        bitwise.nested_xor().push_value(&[0; 4]).end_nested().end_nested().end_nested()
                    }
                    Step::Match(info) => {
                        let extension = element.nested_data_match().push_name(CONNTRACK).push_rev(CONNTRACK_REVISION);
                        extension.push_info(info).end_nested().end_nested()
                    }
                    Step::Compare(how, value) => {
                        let compare = element.nested_data_cmp().push_sreg(register).push_op(*how);
                        compare.nested_data().push_value(value).end_nested().end_nested().end_nested()
                    }
                    Step::Verdict(code) => {
                        let counted = element.nested_data_counter().end_nested().end_nested();
                        let verdict = counted.nested_elem().nested_data_immediate();
                        let verdict = verdict.push_dreg(Registers::RegVerdict as u32).nested_data().nested_verdict();
                        verdict.push_code(*code).end_nested().end_nested().end_nested().end_nested()
                    }
                };
            }
            rule.end_nested();
        })
    }

    /// Deletes a rule.
    ///
    /// # Errors
    /// If the kernel refuses or the rule is gone.
    pub fn delete(&mut self, chain: &ForwardChain, rule: u64) -> io::Result<()> {
        self.transaction(|batch| {
            let mut request = batch.request().op_delrule_do(&chain.family.header());
            request.encode().push_table(&chain.table).push_chain(&chain.name).push_handle(rule);
        })
    }

    /// All that is in it, or nothing.
    fn transaction(&mut self, fill: impl FnOnce(&mut Chained<'_>)) -> io::Result<()> {
        /// The batch is for nf_tables (`NFNL_SUBSYS_NFTABLES`).
        const SUBSYSTEM: u16 = 10;
        let mut header = Nfgenmsg::new();
        header.set_res_id(SUBSYSTEM);
        let mut batch = Chained::new(self.0.reserve_seq(TRANSACTION));
        batch.request().op_batch_begin_do(&header);
        fill(&mut batch);
        batch.request().op_batch_end_do(&header);
        Ok(self.0.request_chained(&batch.finalize())?.recv_all()?)
    }
}

/// The kernel has no nf_tables.
fn is_missing(error: &io::Error) -> bool {
    let missing = [libc::EPROTONOSUPPORT, libc::EOPNOTSUPP, libc::EINVAL, libc::ENOENT];
    error.raw_os_error().is_some_and(|errno| missing.contains(&errno))
}

/// One step of a rule, as far as it is told apart here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Load(u32),
    Connection(u32),
    Mask(Vec<u8>),
    /// An extension of iptables, about connections.
    Match(Vec<u8>),
    Compare(u32, Vec<u8>),
    Verdict(u32),
}

/// The extension `conntrack` of iptables, in the form of `struct xt_conntrack_mtinfo3`.
const CONNTRACK: &CStr = c"conntrack";
const CONNTRACK_REVISION: u32 = 3;
/// Destinations were translated, in a connection's status (`IPS_DST_NAT`).
const TRANSLATED: u32 = 1 << 5;

/// What iptables calls `-m conntrack --ctstate DNAT`.
fn translated_info() -> Vec<u8> {
    /// The structure's size, as the kernel rounds it up.
    const SIZE: usize = 168;
    /// Where it says what is compared, and that it is the state (`XT_CONNTRACK_STATE`).
    const FLAGS: (usize, u16) = (146, 1);
    /// Where the states are that fit, and that it is this one (`XT_CONNTRACK_STATE_DNAT`).
    const STATES: (usize, u16) = (150, 1 << 7);
    let mut info = vec![0; SIZE];
    for (at, value) in [FLAGS, STATES] {
        info[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
    info
}

fn padded(name: &str) -> [u8; NAME_SIZE] {
    let mut padded = [0; NAME_SIZE];
    for (to, from) in padded[..NAME_SIZE - 1].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    padded
}

/// A rule, step by step as iptables makes it in a chain of its own, or iptables does not know it.
fn rule(chain: &ForwardChain, pass: Pass, bridge: &str) -> Vec<Step> {
    let is =
        |key: MetaKeys| [Step::Load(key as u32), Step::Compare(CmpOps::Eq as u32, padded(bridge).to_vec())].into_iter();
    let translated = || match chain.is_of_iptables() {
        true => vec![Step::Match(translated_info())],
        false => vec![
            Step::Connection(CtKeys::Status as u32),
            Step::Mask(TRANSLATED.to_ne_bytes().to_vec()),
            Step::Compare(CmpOps::Neq as u32, vec![0; 4]),
        ],
    };
    let mut steps: Vec<Step> = match pass {
        Pass::Within => is(MetaKeys::Iifname).chain(is(MetaKeys::Oifname)).collect(),
        Pass::From => is(MetaKeys::Iifname).chain(translated()).collect(),
        Pass::Into => is(MetaKeys::Oifname).chain(translated()).collect(),
    };
    steps.push(Step::Verdict(VerdictCode::Accept as u32));
    steps
}

/// The steps of a rule, without counters; `None` if there is one of another kind.
fn steps(expressions: IterableExprListAttrs<'_>) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for expression in expressions {
        let ExprListAttrs::Elem(expression) = expression.ok()?;
        match expression.get_data().ok()? {
            ExprOps::Meta(meta) => {
                let key = meta.filter_map(Result::ok).find_map(|attribute| match attribute {
                    ExprMetaAttrs::Key(key) => Some(key),
                    _ => None,
                });
                steps.push(Step::Load(key?));
            }
            ExprOps::Ct(connection) => {
                let mut key = None;
                for attribute in connection {
                    match attribute.ok()? {
                        ExprCtAttrs::Key(found) => key = Some(found),
                        // Of one direction, or one that is set.
                        ExprCtAttrs::Direction(_) | ExprCtAttrs::Sreg(_) => return None,
                        ExprCtAttrs::Dreg(_) => {}
                    }
                }
                steps.push(Step::Connection(key?));
            }
            ExprOps::Bitwise(bitwise) => {
                if bitwise.get_op().is_ok_and(|op| op != 0) {
                    return None;
                }
                steps.push(Step::Mask(bytes(bitwise.get_mask().ok()?)?));
            }
            ExprOps::Match(extension) => {
                let is_ours = extension.get_name() == Ok(CONNTRACK) && extension.get_rev() == Ok(CONNTRACK_REVISION);
                steps.push(Step::Match(extension.get_info().ok().filter(|_| is_ours)?.to_vec()));
            }
            ExprOps::Cmp(compare) => {
                let (mut how, mut value) = (None, None);
                for attribute in compare {
                    match attribute.ok()? {
                        ExprCmpAttrs::Op(op) => how = Some(op),
                        ExprCmpAttrs::Data(data) => value = bytes(data),
                        _ => {}
                    }
                }
                steps.push(Step::Compare(how?, value?));
            }
            ExprOps::Counter(_) => {}
            ExprOps::Immediate(immediate) => {
                let verdict = immediate.get_data().and_then(|data| data.get_verdict());
                steps.push(Step::Verdict(verdict.and_then(|verdict| verdict.get_code()).ok()?));
            }
            _ => return None,
        }
    }
    Some(steps)
}

fn bytes(data: IterableDataAttrs<'_>) -> Option<Vec<u8>> {
    data.filter_map(Result::ok).find_map(|data| match data {
        DataAttrs::Value(value) => Some(value.to_vec()),
        DataAttrs::Verdict(_) => None,
    })
}

/// Tells when anything in nf_tables changes.
pub struct Changes(TokioSocket);

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes")
    }
}

impl Changes {
    /// Subscribes. Needs a Tokio runtime around it.
    ///
    /// # Errors
    /// If the kernel has no nf_tables or refuses.
    pub fn subscribe() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, CHANGES))?;
        Ok(Self(socket))
    }

    /// Returns when something has changed. May be cancelled.
    ///
    /// # Errors
    /// If the socket fails.
    pub async fn next(&mut self) -> io::Result<()> {
        match self.0.recv_from_full().await {
            Ok(_) => Ok(()),
            // More than fits: something has changed all the same.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Leaves out what has been told already: for whoever looks at everything next.
    pub fn skip(&mut self) {
        // Cut off, because somebody may go on and on: what comes later is told later.
        for _ in 0..SKIPPED {
            if self.0.recv_from_full().now_or_never().is_none() {
                return;
            }
        }
    }
}
