//! A host that changes under its router: addresses come and go, and interfaces are tampered with.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use weft::{
    lab::{Container, raw::RawSocket, traffic::udp_echo, wait_until},
    netlink::{Netlink, Result},
};

use crate::{
    Case,
    advertise::{advertisement, is_forged},
    ledger::{Refusal, post},
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, no_gaps},
};

pub(crate) const CASES: &[Case] = &[
    ("the_mesh_knows_a_hosts_new_address_within_a_second", 60, addresses_are_followed),
    ("bridge_and_tap_are_put_back_within_a_second", 90, interfaces_are_put_back),
    ("what_cannot_be_put_back_is_said_and_nothing_else_stops", 60, what_cannot_be_put_back),
    ("a_container_takes_no_router_advertisement_of_another", 60, advertisements),
    ("a_hundred_attached_at_once_are_all_answered_and_all_work", 60, hundred_at_once),
];

/// How soon a change must have been acted on.
const SOON: Duration = Duration::from_secs(1);

fn on_host(mesh: &Mesh, host: usize, work: impl AsyncFnOnce(Netlink) -> Result<()> + Send) {
    Netlink::block_on_in(mesh.lab.host(host).namespace(), work).must("change the host");
}

fn endpoints(mesh: &Mesh, router: usize) -> Vec<String> {
    let status = mesh.status(router);
    let list = status["endpoints"].as_array().must("endpoints").iter();
    list.map(|endpoint| endpoint.as_str().must("text").to_owned()).collect()
}

fn addresses_are_followed() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    let before = endpoints(&mesh, 0);
    for (address, endpoint) in [("10.99.7.7/16", "10.99.7.7:6783"), ("fd00:99::7:7/64", "[fd00:99::7:7]:6783")] {
        let net = address.parse().must("an address");
        on_host(&mesh, 0, async |netlink| netlink.add_address(&netlink.need_link("eth0").await?, net).await);
        let there = || endpoints(&mesh, 0).iter().any(|known| known == endpoint);
        assert!(wait_until(SOON, there), "{endpoint} is not in {:?}", endpoints(&mesh, 0));
        on_host(&mesh, 0, async |netlink| netlink.del_address(&netlink.need_link("eth0").await?, net).await);
        assert!(wait_until(SOON, || endpoints(&mesh, 0) == before), "{:?}", endpoints(&mesh, 0));
    }
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
}

/// Verdict and problems.
fn verdict(mesh: &Mesh, router: usize) -> (Value, Value) {
    let status = mesh.status(router);
    (status["verdict"].clone(), status["problems"].clone())
}

/// What is not as the router made it.
fn as_made(mesh: &Mesh, mtu: u32, exposed: &[IpNet]) -> Option<String> {
    let found = Netlink::block_on_in(mesh.lab.host(0).namespace(), async |netlink: Netlink| {
        let (bridge, tap) = (netlink.need_link("weft").await?, netlink.need_link("weft-tap").await?);
        let addresses = netlink.addresses(&bridge).await?;
        let fine = bridge.up
            && tap.up
            && tap.master == Some(bridge.index)
            && (bridge.mtu, tap.mtu) == (mtu, mtu)
            && exposed.iter().all(|net| addresses.contains(net));
        Ok((!fine).then(|| format!("{bridge:?} {tap:?} {addresses:?}")))
    });
    found.unwrap_or_else(|error| Some(error.to_string()))
}

fn interfaces_are_put_back() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    let exposed = mesh.routers[0].command(["expose"]).must("expose");
    let exposed: Vec<IpNet> = exposed.lines().map(|line| line.trim().parse().must(line)).collect();
    assert!(exposed.iter().any(|net| net.addr().is_ipv6()), "the kernel takes those of an interface that goes down");
    let mtu = u32::try_from(mesh.status(0)["mtu"].as_u64().must("mtu")).must("an MTU");
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    type Tampering = (&'static str, fn(&Mesh));
    let tamperings: [Tampering; 7] = [
        ("delete the TAP", |mesh| on_host(mesh, 0, async |netlink| netlink.delete_link("weft-tap").await.map(drop))),
        ("set the TAP down", |mesh| {
            on_host(mesh, 0, async |netlink| netlink.set_down(&netlink.need_link("weft-tap").await?).await);
        }),
        ("take the TAP out of the bridge", |mesh| {
            on_host(mesh, 0, async |netlink| netlink.set_master(&netlink.need_link("weft-tap").await?, None).await);
        }),
        ("set the bridge down", |mesh| {
            on_host(mesh, 0, async |netlink| netlink.set_down(&netlink.need_link("weft").await?).await);
        }),
        ("change the bridge's MTU", |mesh| {
            on_host(mesh, 0, async |netlink| netlink.set_mtu(&netlink.need_link("weft").await?, 1280).await);
        }),
        ("delete the bridge", |mesh| {
            on_host(mesh, 0, async |netlink| netlink.delete_link("weft").await.map(drop));
        }),
        ("delete both", |mesh| {
            on_host(mesh, 0, async |netlink| {
                netlink.delete_link("weft").await?;
                netlink.delete_link("weft-tap").await.map(drop)
            });
        }),
    ];
    for (what, tamper) in tamperings {
        let start = Instant::now();
        tamper(&mesh);
        for (from, to) in [(0, mesh.v4(1)), (1, mesh.v4(0))] {
            let left = SOON.saturating_sub(start.elapsed());
            let answer = udp_echo(&mesh.containers[from], to, b"put back", left);
            answer.must(&format!("{what}: container {from} to {to}"));
        }
        let fine = || as_made(&mesh, mtu, &exposed).is_none() && verdict(&mesh, 0).0 == "ok";
        let left = SOON.saturating_sub(start.elapsed());
        assert!(wait_until(left, fine), "{what}: {:?} {:?}", as_made(&mesh, mtu, &exposed), verdict(&mesh, 0));
    }
    let events = mesh.routers[0].command(["events"]).must("events");
    assert!(events.contains("the bridge `weft` was deleted") && events.contains("`weft-tap` was set down"), "{events}");
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    assert!(mesh.routers[0].attach(&mesh.containers[0]).must("attach again") == mesh.addresses[0]);
}

fn what_cannot_be_put_back() {
    let mesh = Mesh::start(&MeshConfig::graph(3, &[(0, 1), (1, 2)]));
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1, 2], PATIENCE);
    // Through the router whose bridge goes, others reach each other all the time.
    let streams = mesh.streams(&[(0, 2)]);
    on_host(&mesh, 1, async |netlink| {
        netlink.delete_link("weft").await?;
        let peer = weft::netlink::VethPeer { name: "far", mac: [2, 1, 1, 1, 1, 1], namespace: None };
        netlink.add_veth("weft", 1500, &peer).await.map(drop)
    });
    let said = || verdict(&mesh, 1).1.to_string();
    assert!(wait_until(SOON * 2, || said().contains("cannot be put back")), "{}", said());
    assert!(said().contains("`weft`") && said().contains("veth"), "{}", said());
    assert_eq!(mesh.routers[1].cli(["status"]).must("run").status.code(), Some(1));
    // As soon as it can be put back, it is.
    on_host(&mesh, 1, async |netlink| netlink.delete_link("weft").await.map(drop));
    let fine = || verdict(&mesh, 1).0 == "ok";
    assert!(wait_until(SOON * 3, fine), "{:?}", verdict(&mesh, 1));
    mesh.all_reach(&[0, 1, 2], Duration::from_secs(2));
    thread::sleep(Duration::from_millis(200));
    no_gaps(streams);
}

/// Starts a mesh whose routers have one processor among them, as on busy hosts: there, what many requests
/// ask of the kernel piles up.
fn on_one_processor(config: &MeshConfig) -> Mesh {
    let all = sched_getaffinity(None).must("ask for the processors");
    let first = (0..CpuSet::MAX_CPU).find(|&cpu| all.is_set(cpu)).must("a processor");
    let mut one = CpuSet::new();
    one.set(first);
    sched_setaffinity(None, &one).must("keep to one processor");
    let mesh = Mesh::start(config);
    sched_setaffinity(None, &all).must("use all processors");
    mesh
}

/// Sends a request for each container to a router that stands still, and lets it go on: the answers, in
/// the order of the containers.
fn all_at_once(mesh: &Mesh, containers: &[Container], path: &'static str) -> Vec<std::result::Result<Value, Refusal>> {
    let router = mesh.routers[0].pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).must("a router");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().must("a runtime");
    runtime.block_on(async {
        kill_process(router, Signal::STOP).must("stop the router");
        let mut requests = JoinSet::new();
        for (number, container) in containers.iter().enumerate() {
            let (socket, body) = (mesh.routers[0].socket(), json!({"target": container.target()}));
            requests.spawn(async move { (number, post(&socket, path, &body).await) });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        kill_process(router, Signal::CONT).must("let it go on");
        let mut answers = requests.join_all().await;
        answers.sort_by_key(|(number, _)| *number);
        answers.into_iter().map(|(_, answer)| answer).collect()
    })
}

fn hundred_at_once() {
    const MANY: usize = 100;
    let mesh = on_one_processor(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    let containers: Vec<Container> = (0..MANY).map(|n| Container::new(&format!("c{n}")).must("a container")).collect();
    let attach = || -> Vec<Vec<IpNet>> {
        let answers = all_at_once(&mesh, &containers, "/v1/attach").into_iter();
        answers
            .map(|answer| serde_json::from_value(answer.must("attach")["addresses"].clone()).must("a list"))
            .collect()
    };
    let attached = attach();
    let distinct: BTreeSet<IpAddr> = attached.iter().flatten().map(IpNet::addr).collect();
    assert_eq!(distinct.len(), 2 * MANY, "an IPv4 and an IPv6 address each");
    // What is there already is looked at without a wait for the mesh or the disk: all at the same moment.
    for _ in 0..20 {
        assert_eq!(attach(), attached);
    }
    for (container, addresses) in containers.iter().zip(&attached) {
        let link = container.link("weft0").must("look inside").must("weft0");
        let look = async |netlink: Netlink| netlink.addresses(&link).await;
        let there = Netlink::block_on_in(container.namespace(), look).must("look inside");
        assert!(addresses.iter().all(|net| there.contains(net)), "{addresses:?} {there:?}");
        for ip in mesh.ips(1) {
            udp_echo(container, ip, b"one of a hundred", PATIENCE).must(&format!("{} to {ip}", container.label()));
        }
    }
    for answer in all_at_once(&mesh, &containers, "/v1/detach") {
        answer.must("detach");
    }
    assert!(containers.iter().all(|one| matches!(one.link("weft0"), Ok(None))));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().must("a runtime");
    let check = runtime.block_on(post(&mesh.routers[0].socket(), "/v1/ipam/check", &json!({}))).must("check");
    assert_eq!((&check["leaked"], &check["missing"]), (&json!([]), &json!([])));
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
}

/// What one container says of routers and prefixes changes nothing at another, of the same host or not.
fn advertisements() {
    let mut mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    let near = mesh.add_container(0);
    mesh.all_reach(&[0, 1, near], Duration::from_secs(5));
    let link = mesh.containers[0].link("weft0").must("look inside").must("weft0");
    let frame = advertisement(link.mac.must("a MAC address"));
    let liar = RawSocket::open(&mesh.containers[0], "weft0").must("open a packet socket");
    for victim in [1, near] {
        let container = &mesh.containers[victim];
        let inside = |work: &(dyn Fn(&Netlink) -> Result<()> + Sync)| {
            Netlink::block_on_in(container.namespace(), async |netlink: Netlink| {
                work(&netlink)?;
                let link = netlink.need_link("weft0").await?;
                netlink.addresses(&link).await
            })
            .must("look inside")
        };
        let mut seen = RawSocket::open(container, "weft0").must("open a packet socket");
        for _ in 0..5 {
            liar.send(&frame).must("send");
            let arrived = seen.collect(Instant::now() + PATIENCE, 1, |got| got == frame).must("receive");
            assert_eq!(arrived.len(), 1, "it arrives");
        }
        assert!(!is_forged(&inside(&|_| Ok(()))), "container {victim} took an address from another container");
        // One that listens would: so it is not for some other reason that nothing happens.
        let listen = |netlink: &Netlink| netlink.sysctl("ipv6", "weft0", "accept_ra", "1");
        inside(&listen);
        let taken = || {
            liar.send(&frame).must("send");
            is_forged(&inside(&|_| Ok(())))
        };
        assert!(wait_until(PATIENCE, taken), "{:?}", inside(&|_| Ok(())));
    }
}
