//! Hosts whose packet filter drops what their bridges carry, as Docker's does.

use std::{ffi::CStr, io, thread, time::Duration};

use netlink_bindings::nftables::{Chained, Nfgenmsg, Registers, VerdictCode};
use netlink_socket2::NetlinkSocket;
use weft::{
    lab::{traffic::udp_echo, wait_until},
    netlink::filter::{Family, Filter, ForwardChain, Pass},
};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE},
};

pub(crate) const CASES: &[Case] =
    &[("frames_pass_where_the_hosts_filter_drops_by_policy_and_stop_where_a_rule_says_so", 60, dropping_hosts)];

/// How soon a filter that was loaded anew has been looked at.
const SOON: Duration = Duration::from_secs(2);

/// The chain that iptables calls FORWARD, and one of somebody's own.
const CHAINS: [(u8, &CStr, &CStr); 3] =
    [(2, c"filter", c"FORWARD"), (10, c"filter", c"FORWARD"), (1, c"own", c"through")];

fn header(family: u8) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = family;
    header
}

/// Changes the filter of a host, all at once.
fn change(mesh: &Mesh, host: usize, fill: impl Fn(&mut Chained<'_>) + Send + Sync) {
    let work = || -> io::Result<()> {
        let mut socket = NetlinkSocket::new();
        let mut ends = Nfgenmsg::new();
        ends.set_res_id(10);
        let mut batch = Chained::new(socket.reserve_seq(64));
        batch.request().op_batch_begin_do(&ends);
        fill(&mut batch);
        batch.request().op_batch_end_do(&ends);
        Ok(socket.request_chained(&batch.finalize())?.recv_all()?)
    };
    mesh.lab.host(host).namespace().run(work).must("enter the host").must("change the filter");
}

/// Makes the chains as an engine does when it begins to forward.
fn drop_by_policy(batch: &mut Chained<'_>) {
    for (family, table, chain) in CHAINS {
        batch.request().set_create().op_newtable_do(&header(family)).encode().push_name(table);
        let mut request = batch.request().set_create().op_newchain_do(&header(family));
        let chain = request.encode().push_table(table).push_name(chain);
        let chain = chain.nested_hook().push_num(2).push_priority(0).end_nested();
        chain.push_policy(VerdictCode::Drop as u32).push_type(c"filter");
    }
}

fn flush(batch: &mut Chained<'_>) {
    for (family, table, chain) in CHAINS {
        batch.request().op_delrule_do(&header(family)).encode().push_table(table).push_chain(chain);
    }
}

/// A rule of the operator's that drops everything, before all others.
fn drop_by_rule(batch: &mut Chained<'_>) {
    let (family, table, chain) = CHAINS[0];
    let mut request = batch.request().set_create().op_newrule_do(&header(family));
    let rule = request.encode().push_table(table).push_chain(chain).nested_expressions();
    let immediate = rule.nested_elem().nested_data_immediate().push_dreg(Registers::RegVerdict as u32);
    let verdict = immediate.nested_data().nested_verdict().push_code(VerdictCode::Drop as u32);
    verdict.end_nested().end_nested().end_nested().end_nested().end_nested();
}

/// How many of our rules each chain of a host has.
fn rules(mesh: &Mesh, host: usize) -> Vec<usize> {
    let count = || -> io::Result<Vec<usize>> {
        let mut filter = Filter::default();
        let chains = filter.forward_chains()?;
        let mut counts = Vec::new();
        for (family, table, name) in CHAINS {
            let family = [(1, Family::Both), (2, Family::V4), (10, Family::V6)].into_iter().find(|(n, _)| *n == family);
            let family = family.must("a family").1;
            let wanted = ForwardChain { family, table: table.to_owned(), name: name.to_owned(), drops: true };
            assert!(chains.contains(&wanted), "{wanted:?} is not in {chains:?}");
            let passes = filter.passes(&wanted, "weft")?;
            assert!(passes.iter().all(|(pass, _)| *pass == Pass::Within), "no services, no rules for them: {passes:?}");
            counts.push(passes.len());
        }
        Ok(counts)
    };
    mesh.lab.host(host).namespace().run(count).must("enter the host").must("look at the filter")
}

fn dropping_hosts() {
    let mut mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    let beside = mesh.add_container(0);
    mesh.all_reach(&[0, 1, beside], PATIENCE);
    let setting = || std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables");
    if !setting().is_ok_and(|text| text.trim() == "1") {
        eprintln!("this kernel does not filter what bridges carry: there is nothing to let through");
        return;
    }
    // An engine comes: within two seconds all is as it was.
    change(&mesh, 0, drop_by_policy);
    assert!(wait_until(SOON, || rules(&mesh, 0) == [1, 1, 1]), "{:?}", rules(&mesh, 0));
    mesh.all_reach(&[0, 1, beside], SOON);
    // Without the rules nothing would pass: while a rule of the operator's says so, nothing does.
    change(&mesh, 0, drop_by_rule);
    let v4 = mesh.v4(beside);
    assert!(wait_until(SOON, || udp_echo(&mesh.containers[0], v4, b"x", Duration::from_millis(300)).is_err()));
    thread::sleep(Duration::from_millis(500));
    mesh.is_cut_off(0, beside);
    // It is loaded anew: the rules are back, one in each chain, and stay one.
    change(&mesh, 0, flush);
    assert!(wait_until(SOON, || rules(&mesh, 0) == [1, 1, 1]), "{:?}", rules(&mesh, 0));
    mesh.all_reach(&[0, 1, beside], SOON);
    thread::sleep(Duration::from_millis(700));
    assert_eq!(rules(&mesh, 0), [1, 1, 1]);
    // Who takes the router down gets the filter back as it was.
    mesh.routers[0].command(["down"]).must("down");
    assert!(mesh.routers[0].wait_for_exit(Duration::from_secs(5)).must("exit").success());
    assert_eq!(rules(&mesh, 0), [0, 0, 0]);
}
