//! Routers that are killed, started again, and taken down.

use std::{
    thread,
    time::{Duration, Instant},
};

use weft::{
    lab::{Container, traffic::udp_echo},
    netlink::{Netlink, container::INTERFACE},
};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, retry},
};

pub(crate) const CASES: &[Case] = &[
    ("a_killed_router_comes_back_as_itself_and_its_containers_talk_within_three_seconds", 60, killed),
    ("every_router_killed_at_once_comes_back", 60, all_killed),
    ("a_router_asked_to_end_leaves_its_containers_for_the_next_start", 60, ended),
    ("down_removes_all_that_up_made", 60, down),
];

/// From the start of the process to the first answer.
const BACK: Duration = Duration::from_secs(3);

fn identity(mesh: &Mesh, router: usize) -> (String, String) {
    let status = mesh.status(router);
    let text = |field: &str| status["peer"][field].as_str().must(field).to_owned();
    (text("id"), text("name"))
}

/// Restarts routers and measures until the containers behind these hosts answer each other.
#[track_caller]
fn back_in_time(mesh: &mut Mesh, routers: &[usize], hosts: &[usize]) {
    let start = Instant::now();
    for &router in routers {
        mesh.routers[router].launch().must("launch");
    }
    for &from in hosts {
        for ip in hosts.iter().filter(|&&to| to != from).flat_map(|&to| mesh.ips(to)) {
            let left = BACK.saturating_sub(start.elapsed());
            udp_echo(&mesh.containers[from], ip, b"back", left).must("UDP after the restart");
        }
    }
    assert!(start.elapsed() <= BACK, "{:?}", start.elapsed());
}

fn killed() {
    let mut mesh = Mesh::start(&MeshConfig::star(3));
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    for router in [1, 0] {
        let before = identity(&mesh, router);
        let incarnation = mesh.status(router)["peer"]["incarnation"].as_u64().must("incarnation");
        mesh.routers[router].kill().must("kill");
        // Containers on other hosts are not disturbed.
        mesh.reaches((router + 1) % 3, (router + 2) % 3, Duration::from_secs(1));
        back_in_time(&mut mesh, &[router], &[router, 2]);
        let ready = || mesh.routers[router].status().map_err(|e| e.to_string());
        retry(PATIENCE, ready).must("the API");
        assert_eq!(identity(&mesh, router), before);
        let after = mesh.status(router)["peer"]["incarnation"].as_u64().must("incarnation");
        assert!(after > incarnation, "{after} after {incarnation}");
        // Attached still: the same addresses, no second interface, and none given twice.
        let again = mesh.routers[router].attach(&mesh.containers[router]).must("attach again");
        assert_eq!(again, mesh.addresses[router]);
    }
    let newcomer = mesh.add_container(1);
    let taken = mesh.addresses[..newcomer].iter().flatten();
    for address in mesh.addresses[newcomer].iter() {
        assert!(taken.clone().all(|other| other != address), "{address} is given twice");
    }
    mesh.all_reach(&[0, 1, 2, newcomer], Duration::from_secs(2));
}

fn all_killed() {
    let mut mesh = Mesh::start(&MeshConfig::star(3));
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    for router in &mut mesh.routers {
        router.kill().must("kill");
    }
    mesh.is_cut_off(0, 1);
    back_in_time(&mut mesh, &[0, 1, 2], &[0, 1, 2]);
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    mesh.wait_established(PATIENCE);
    let again = mesh.routers[2].attach(&mesh.containers[2]).must("attach again");
    assert_eq!(again, mesh.addresses[2]);
}

fn ended() {
    let mut mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    assert!(mesh.routers[1].end(), "it ends by itself when it is asked to");
    assert!(mesh.containers[1].link(INTERFACE).must("look").is_some(), "an upgrade disturbs nobody");
    thread::sleep(Duration::from_millis(500));
    back_in_time(&mut mesh, &[1], &[1, 0]);
}

fn down() {
    let mut mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    let exposed = mesh.routers[1].command(["expose"]).must("expose");
    assert!(exposed.lines().count() >= 1, "{exposed}");
    mesh.routers[1].command(["down"]).must("down");
    let status = mesh.routers[1].wait_for_exit(Duration::from_secs(5)).must("exit");
    assert!(status.success(), "{status}");
    let left = Netlink::block_on_in(mesh.lab.host(1).namespace(), async |netlink: Netlink| netlink.links().await);
    let names: Vec<String> = left.must("list").into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "eth0"], "nothing of weft is left");
    assert!(mesh.containers[1].link(INTERFACE).must("look").is_none());
    assert!(!mesh.routers[1].socket().exists(), "the socket is gone");
    // And up again, as the same peer.
    mesh.routers[1].restart().must("start again");
    let container = Container::new("again").must("make");
    let addresses = retry(PATIENCE, || mesh.routers[1].attach(&container)).must("attach");
    assert!(!addresses.is_empty());
    let ip = mesh.v4(0);
    udp_echo(&container, ip, b"again", PATIENCE).must("UDP");
}
