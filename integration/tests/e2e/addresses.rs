//! Who owns which addresses: peers that are removed, come back, fall silent, lose their state.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use weft::{
    control::store::{self, Edit, Store, Table},
    lab::{Container, traffic::udp_echo, wait_until},
};

use crate::{
    Case,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, no_gaps, retry},
};

pub(crate) const CASES: &[Case] = &[
    ("what_a_dead_peer_owned_is_given_again_once_it_is_removed", 90, dead),
    ("a_living_peer_that_is_removed_is_told_and_no_address_has_two_holders", 120, living),
    ("a_peer_that_is_silent_for_long_is_removed_without_a_command", 120, silent),
    ("an_unreadable_address_state_is_kept_aside_and_its_containers_keep_their_addresses", 90, unreadable),
    ("a_founder_whose_whole_state_is_unreadable_comes_back_to_its_network_and_founds_no_other", 120, founder),
    ("other_ranges_are_refused_while_addresses_are_in_use_and_taken_afterwards", 90, other_ranges),
    ("two_halves_that_grew_apart_become_one_and_both_containers_of_an_address_go_on", 150, halves),
    ("a_router_that_gets_an_old_copy_of_its_disk_back_gives_nothing_twice", 150, old_copy),
    ("who_waits_for_three_says_so_until_they_are_there", 90, consensus),
    ("peers_that_only_others_reach_agree_on_addresses_too", 90, line),
    ("five_routers_give_every_address_once_while_they_are_cut_off_from_each_other", 480, many_operations),
];

/// Until voters have settled what was somebody else's.
const SETTLED: Duration = Duration::from_secs(30);

fn ipam(mesh: &Mesh, router: usize) -> Value {
    let output = mesh.routers[router].cli(["ipam", "-o", "json"]).must("ipam");
    serde_json::from_slice(&output.stdout).must("JSON")
}

fn check(mesh: &Mesh, router: usize) -> Value {
    let output = mesh.routers[router].cli(["ipam", "check", "-o", "json"]).must("ipam check");
    serde_json::from_slice(&output.stdout).must("JSON")
}

fn owned_by(mesh: &Mesh, router: usize, name: &str) -> u64 {
    let ipam = ipam(mesh, router);
    let peers = ipam["peers"].as_array().must("peers").clone();
    peers.iter().find(|peer| peer["name"] == name).map_or(0, |peer| peer["owned"].as_u64().must("owned"))
}

fn claim(mesh: &Mesh, router: usize, container: &Container, address: IpAddr) -> std::io::Result<String> {
    let (target, address) = (container.target(), address.to_string());
    mesh.routers[router].command([OsStr::new("attach"), target.as_os_str(), OsStr::new(&address)])
}

/// Three routers that all own addresses, so that there are three voters.
fn mesh(args: &[&str]) -> Mesh {
    let args = args.iter().map(Into::into).collect();
    let mesh = Mesh::start(&MeshConfig { args, ..MeshConfig::star(3) });
    mesh.wait_established(PATIENCE);
    // The panel of three follows within seconds of the third member; what each knows is the same then.
    thread::sleep(Duration::from_secs(10));
    mesh
}

fn dead() {
    let mut mesh = mesh(&[]);
    let name = mesh.routers[2].name().to_owned();
    let address = mesh.v4(2);
    mesh.routers[2].kill().must("kill");
    mesh.wait_for_peer(0, 2, PATIENCE, |peer| peer["state"] != "established");
    let heir = Container::new("heir").must("make");
    let error = claim(&mesh, 0, &heir, address).expect_err("it belongs to a peer that may be alive");
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    let text = mesh.routers[0].command(["ipam"]).must("ipam");
    assert!(text.contains("its space goes to others in"), "{text}");
    mesh.routers[0].command(["peer", "remove", &name]).must("remove");
    retry(SETTLED, || claim(&mesh, 0, &heir, address)).must("claim what was the dead peer's");
    assert_eq!(mesh.routers[0].attach(&heir).must("attach").first().map(ipnet::IpNet::addr), Some(address));
    // It comes back as a new member, and is told.
    mesh.routers[2].restart().must("start again");
    let told = || mesh.routers[2].command(["events"]).is_ok_and(|text| text.contains("was removed while it was away"));
    assert!(wait_until(PATIENCE, told), "{}", mesh.routers[2].log_tail(3000));
    let newcomer = Container::new("newcomer").must("make");
    let got = retry(SETTLED, || mesh.routers[2].attach(&newcomer)).must("attach at the one that came back");
    assert!(got.iter().all(|net| net.addr() != address), "{got:?}");
}

fn living() {
    let mut mesh = mesh(&[]);
    mesh.all_reach(&[0, 1, 2], PATIENCE);
    let name = mesh.routers[2].name().to_owned();
    let address = mesh.v4(2);
    for other in [0, 1] {
        mesh.lab.wire().cut(other, 2);
    }
    mesh.wait_for_peer(0, 2, PATIENCE, |peer| peer["state"] != "established");
    // Two at once, of a peer that is alive.
    for router in [0, 1] {
        mesh.routers[router].command(["peer", "remove", &name]).must("remove");
    }
    let heir = mesh.containers.len();
    mesh.containers.push(Container::new("heir").must("make"));
    retry(SETTLED, || claim(&mesh, 0, &mesh.containers[heir], address)).must("claim");
    mesh.lab.wire().heal_all();
    mesh.wait_established(Duration::from_secs(40));
    let told = || mesh.routers[2].command(["events"]).is_ok_and(|text| text.contains("removed while it was alive"));
    assert!(wait_until(PATIENCE, told), "{}", mesh.routers[2].log_tail(3000));
    // Nobody sees two holders: what comes from the one that lost it is dropped where it arrives.
    let fenced = |router| mesh.counter_dropped(router, "fenced");
    let dropped = || {
        let _ = udp_echo(&mesh.containers[2], mesh.v4(1), b"who am I?", Duration::from_millis(300));
        fenced(1) > 0
    };
    assert!(wait_until(PATIENCE, dropped), "{}", mesh.status(1));
    mesh.is_cut_off(2, 1);
    // Both sides name both containers.
    for (router, other) in [(2, 0), (0, 2)] {
        let other = mesh.routers[other].name().to_owned();
        let named = || {
            let found = check(&mesh, router);
            let contested = found["contested"].as_array().cloned().unwrap_or_default();
            contested.iter().any(|it| {
                let both = it["owner"].is_string() && it["peer_owner"].is_string();
                it["address"] == address.to_string() && it["peer_name"] == other.as_str() && both
            })
        };
        assert!(wait_until(SETTLED, named), "{}", check(&mesh, router));
        assert_eq!(mesh.routers[router].cli(["ipam", "check"]).must("check").status.code(), Some(1));
    }
    // One of them goes, and all is well.
    let target = mesh.containers[2].target();
    mesh.routers[2].command([OsStr::new("detach"), target.as_os_str()]).must("detach");
    let again = retry(SETTLED, || mesh.routers[2].attach(&mesh.containers[2])).must("attach");
    assert!(again.iter().all(|net| net.addr() != address), "{again:?}");
    mesh.addresses[2] = again;
    mesh.reaches(2, 1, PATIENCE);
    let well = || check(&mesh, 2)["contested"].as_array().is_some_and(Vec::is_empty);
    assert!(wait_until(SETTLED, well), "{}", check(&mesh, 2));
}

fn silent() {
    let mut mesh = mesh(&["--dead-after", "10s"]);
    let name = mesh.routers[2].name().to_owned();
    let address = mesh.v4(2);
    assert!(owned_by(&mesh, 0, &name) > 0);
    mesh.routers[2].kill().must("kill");
    let start = Instant::now();
    assert!(wait_until(Duration::from_secs(60), || owned_by(&mesh, 0, &name) == 0), "{}", ipam(&mesh, 0));
    assert!(start.elapsed() >= Duration::from_secs(8), "removed after {:?}", start.elapsed());
    let heir = Container::new("heir").must("make");
    retry(SETTLED, || claim(&mesh, 1, &heir, address)).must("claim what was the silent peer's");
    let events =
        mesh.routers[0].command(["events"]).must("events") + &mesh.routers[1].command(["events"]).must("events");
    assert!(events.contains("most voters have not heard of them for long"), "{events}");
    mesh.routers[2].restart().must("start again");
    let newcomer = Container::new("newcomer").must("make");
    retry(SETTLED, || mesh.routers[2].attach(&newcomer)).must("attach at the one that came back");
}

fn unreadable() {
    let mut mesh = mesh(&[]);
    let before = mesh.addresses[2].clone();
    mesh.routers[2].kill().must("kill");
    let directory = mesh.routers[2].data_dir();
    {
        let opened = store::open(&directory).must("open the state");
        let entry = opened.state.ipam.first().must("an entry").0.clone();
        let (store, _stored) = Store::start(opened.file).must("write the state");
        let edits = vec![Edit::set(Table::Ipam, entry, b"garbage".to_vec())];
        let runtime = tokio::runtime::Runtime::new().must("a runtime");
        runtime.block_on(store.write_and_wait(edits)).must("write");
    }
    mesh.routers[2].restart().must("start with it");
    let problems = mesh.status(2)["problems"].to_string();
    assert!(problems.contains("address state was unreadable") && problems.contains("unreadable-"), "{problems}");
    let kept = std::fs::read_dir(&directory).must("list").filter_map(Result::ok);
    let kept = kept.filter(|entry| entry.file_name().to_string_lossy().contains("unreadable")).count();
    assert_eq!(kept, 1, "a copy is kept");
    let again = retry(SETTLED, || mesh.routers[2].attach(&mesh.containers[2])).must("attach");
    assert_eq!(again, before, "the container keeps what it has");
    mesh.reaches(1, 2, PATIENCE);
    let newcomer = Container::new("newcomer").must("make");
    let got = retry(SETTLED, || mesh.routers[2].attach(&newcomer)).must("attach another one");
    assert!(got.iter().all(|net| !before.contains(net)), "{got:?}");
}

fn founder() {
    let mut mesh = mesh(&[]);
    let told = mesh.routers[0].args().iter().any(|arg| arg == "--peer");
    assert!(!told, "nobody was named to the founder: {:?}", mesh.routers[0].args());
    mesh.routers[0].kill().must("kill");
    std::fs::write(mesh.routers[0].data_dir().join("weft.redb"), b"garbage").must("write");
    mesh.routers[0].restart().must("start with it");
    let problems = mesh.status(0)["problems"].to_string();
    assert!(problems.contains("unreadable"), "{problems}");
    mesh.addresses[0] = retry(SETTLED, || mesh.routers[0].attach(&mesh.containers[0])).must("attach again");
    let others: Vec<IpAddr> = [1, 2].iter().flat_map(|&container| mesh.ips(container)).collect();
    assert!(mesh.ips(0).iter().all(|ip| !others.contains(ip)), "{:?} and {others:?}", mesh.addresses[0]);
    for (router, other) in [(0, 1), (0, 2), (1, 2), (2, 1)] {
        let name = mesh.routers[other].name();
        assert!(owned_by(&mesh, router, name) > 0, "{}", ipam(&mesh, router));
    }
    let id = mesh.status(0)["peer"]["id"].clone();
    let known = || ipam(&mesh, 1)["peers"].as_array().is_some_and(|peers| peers.iter().any(|peer| peer["id"] == id));
    assert!(wait_until(PATIENCE, known), "{}", ipam(&mesh, 1));
    mesh.reaches(0, 1, PATIENCE);
}

fn other_ranges() {
    let mut mesh = Mesh::start(&MeshConfig::star(1));
    let old = mesh.routers[0].args().to_vec();
    let new: Vec<_> =
        old.iter().map(|arg| if arg == "10.32.0.0/12" { "10.200.0.0/16".into() } else { arg.clone() }).collect();
    assert_ne!(old, new);
    let held = mesh.addresses[0][0].addr().to_string();
    mesh.routers[0].end();
    mesh.routers[0].set_args(new.clone());
    let refused = mesh.routers[0].restart().expect_err("it would strand an address").to_string();
    assert!(refused.contains(&held) && refused.contains("strand"), "{refused}");
    mesh.routers[0].set_args(old);
    mesh.routers[0].restart().must("start with the old ranges");
    let target = mesh.containers[0].target();
    mesh.routers[0].command([OsStr::new("detach"), target.as_os_str()]).must("detach");
    mesh.routers[0].end();
    mesh.routers[0].set_args(new);
    mesh.routers[0].restart().must("start with the new ranges");
    let got = retry(PATIENCE, || mesh.routers[0].attach(&mesh.containers[0])).must("attach");
    assert!(got.iter().any(|net| net.addr().to_string().starts_with("10.200.")), "{got:?}");
}

/// The addresses of which a router says that two have them, each with the container here and the one there.
fn contested_at(mesh: &Mesh, router: usize) -> BTreeSet<(String, bool)> {
    let found = check(mesh, router)["contested"].as_array().cloned().unwrap_or_default();
    let text = |it: &Value| it["address"].as_str().must("an address").to_owned();
    found.iter().map(|it| (text(it), it["owner"].is_string() && it["peer_owner"].is_string())).collect()
}

fn halves() {
    let config = MeshConfig { told: vec![(1, 0), (3, 2)], ..MeshConfig::star(4) };
    let mut mesh = Mesh::start_routers(crate::mesh::new_lab(&config), &config);
    for host in 0..3 {
        mesh.add_container(host);
    }
    // The last one has other addresses than its like in the other half.
    let spacer = Container::new("spacer").must("make");
    retry(PATIENCE, || mesh.routers[3].attach(&spacer)).must("attach");
    mesh.add_container(3);
    mesh.routers[3].command([OsStr::new("detach"), spacer.target().as_os_str()]).must("detach");
    assert_eq!(mesh.ips(0), mesh.ips(2), "both halves began alike");
    assert_ne!(mesh.ips(1), mesh.ips(3));
    mesh.reaches(1, 0, PATIENCE);
    mesh.reaches(3, 2, PATIENCE);
    let streams = mesh.streams(&[(1, 0), (3, 2)]);
    let first = mesh.lab.host(0).v4().to_string();
    mesh.routers[2].command(["connect", &first]).must("connect");
    mesh.wait_for_peer(2, 0, PATIENCE, |peer| peer["state"] == "established");
    let both: BTreeSet<(String, bool)> = mesh.ips(0).iter().map(|ip| (ip.to_string(), true)).collect();
    for router in [0, 2] {
        let named = || contested_at(&mesh, router) == both;
        assert!(wait_until(SETTLED, named), "{}", check(&mesh, router));
        assert_eq!(mesh.routers[router].cli(["ipam", "check"]).must("check").status.code(), Some(1));
    }
    let of_one = || {
        let owners = |router| ipam(&mesh, router)["peers"].as_array().must("peers").len();
        (0..4).all(|router| owners(router) == 4)
    };
    assert!(wait_until(SETTLED, of_one), "{}", ipam(&mesh, 3));
    // Nothing was cut, and those that meet only now reach each other too.
    no_gaps(streams);
    mesh.reaches(3, 1, PATIENCE);
    // What is in use in either half is given to nobody else.
    let used: BTreeSet<IpAddr> = (0..4).flat_map(|container| mesh.ips(container)).collect();
    for router in 0..4 {
        let newcomer = Container::new(&format!("newcomer{router}")).must("make");
        let got = retry(SETTLED, || mesh.routers[router].attach(&newcomer)).must("attach");
        assert!(got.iter().all(|net| !used.contains(&net.addr())), "{got:?}");
    }
    // One of the two goes, and all is well.
    let target = mesh.containers[2].target();
    mesh.routers[2].command([OsStr::new("detach"), target.as_os_str()]).must("detach");
    for router in 0..4 {
        let well = || check(&mesh, router)["contested"].as_array().is_some_and(Vec::is_empty);
        assert!(wait_until(Duration::from_secs(60), well), "{}", check(&mesh, router));
    }
    let again = retry(SETTLED, || mesh.routers[2].attach(&mesh.containers[2])).must("attach");
    assert!(again.iter().all(|net| !used.contains(&net.addr())), "{again:?}");
    mesh.addresses[2] = again;
    mesh.reaches(2, 0, PATIENCE);
}

/// Four in a line, so that what the address protocol says goes through one other peer or two.
fn line() {
    let args = vec!["--no-discovery".into()];
    let config = MeshConfig { told: vec![(1, 0), (2, 1), (3, 2)], args, ..MeshConfig::star(4) };
    let mut mesh = Mesh::start_routers(crate::mesh::new_lab(&config), &config);
    for host in 0..4 {
        mesh.add_container(host);
    }
    let heard = |router| {
        let peers = ipam(&mesh, router)["peers"].as_array().must("peers").clone();
        peers.len() == 4 && peers.iter().all(|peer| peer["reachable"] == true && peer["silent_s"].is_null())
    };
    for router in 0..4 {
        assert!(wait_until(SETTLED, || heard(router)), "{}", ipam(&mesh, router));
    }
    // All of them are asked for leave to give anything new after a restart.
    for router in 0..4 {
        mesh.routers[router].kill().must("kill");
        mesh.routers[router].restart().must("restart");
        let newcomer = Container::new(&format!("newcomer{router}")).must("make");
        retry(SETTLED, || mesh.routers[router].attach(&newcomer)).must("attach");
    }
    mesh.reaches(3, 0, PATIENCE);
}

fn old_copy() {
    let mut mesh = mesh(&[]);
    mesh.routers[2].end();
    let file = mesh.routers[2].data_dir().join("weft.redb");
    let copy = mesh.lab.dir().join("copy");
    std::fs::copy(&file, &copy).must("copy the state");
    mesh.routers[2].restart().must("start");
    // What is given from now on is not in the copy.
    let later: Vec<usize> = (0..3).map(|_| mesh.add_container(2)).collect();
    mesh.routers[2].kill().must("kill");
    std::fs::copy(&copy, &file).must("put the copy back");
    mesh.routers[2].restart().must("start with the copy");
    // What it knows goes on; what it has forgotten is cut off, and asks again.
    mesh.reaches(0, 2, PATIENCE);
    let again = retry(SETTLED, || mesh.routers[2].attach(&mesh.containers[2])).must("attach again");
    assert_eq!(again, mesh.addresses[2]);
    for router in [2, 0, 1, 2] {
        mesh.add_container(router);
    }
    for &container in &later {
        let again = retry(SETTLED, || mesh.routers[2].attach(&mesh.containers[container])).must("attach again");
        mesh.addresses[container] = again;
    }
    let all: Vec<IpAddr> = (0..mesh.containers.len()).flat_map(|container| mesh.ips(container)).collect();
    let each: BTreeSet<&IpAddr> = all.iter().collect();
    assert_eq!(each.len(), all.len(), "{all:?}");
    for container in later {
        mesh.reaches(0, container, PATIENCE);
    }
    for router in 0..3 {
        let found = check(&mesh, router);
        assert!(
            ["leaked", "missing", "contested"].iter().all(|kind| found[*kind] == Value::Array(Vec::new())),
            "{found}"
        );
    }
}

fn consensus() {
    let args = ["--ipalloc-init", "consensus=3", "--no-discovery"].map(Into::into).into();
    let config = MeshConfig { args, told: Vec::new(), ..MeshConfig::star(3) };
    let mut mesh = Mesh::start_routers(crate::mesh::new_lab(&config), &config);
    let waits = mesh.routers[0].cli(["ipam"]).must("ipam");
    let text = String::from_utf8_lossy(&waits.stdout).into_owned();
    assert!(text.contains("not ready: waiting for 1 of 2 named peers"), "{text}");
    assert_eq!(waits.status.code(), Some(1), "{text}");
    let first = mesh.lab.host(0).v4().to_string();
    for router in [1, 2] {
        mesh.routers[router].command(["connect", &first]).must("connect");
    }
    for host in 0..3 {
        mesh.add_container(host);
    }
    let used: BTreeSet<IpAddr> = (0..3).flat_map(|container| mesh.ips(container)).collect();
    assert_eq!(used.len(), 6, "{used:?}");
    mesh.all_reach(&[0, 1, 2], PATIENCE);
}

/// The addresses of a range of 254, of which each is claimed by several hosts sooner or later.
fn contested(number: u64) -> String {
    format!("10.60.0.{}", 1 + number % 254)
}

/// The addresses that a router says it has given.
fn given(mesh: &Mesh, router: usize) -> BTreeSet<String> {
    let ipam = ipam(mesh, router);
    let addresses = ipam["allocations"].as_array().must("allocations").iter().filter_map(|one| one["address"].as_str());
    addresses.filter_map(|address| Some(address.split('/').next()?.to_owned())).collect()
}

/// Hosts ask, claim what another one claims at the same moment, and give back, while one of them is cut off in turns; in
/// the end all of the small range is given, once.
fn many_operations() {
    const ROUNDS: usize = 12;
    const HOSTS: usize = 5;
    let args = ["--range", "10.60.0.0/24", "--range", "fd00:77::/64"].map(Into::into).into();
    let mesh = Mesh::start(&MeshConfig { args, ..MeshConfig::star(HOSTS) });
    mesh.wait_established(PATIENCE);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = |most: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % most
    };
    let mut held: Vec<BTreeSet<String>> = vec![BTreeSet::new(); HOSTS];
    let (mut answered, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        if round % 4 == 0 {
            mesh.lab.wire().heal_all();
            let alone = draw(HOSTS as u64) as usize;
            (0..HOSTS).filter(|&other| other != alone).for_each(|other| mesh.lab.wire().cut(alone, other));
        }
        let host = draw(HOSTS as u64) as usize;
        if draw(3) == 0
            && let Some(address) = held[host].pop_first()
        {
            mesh.routers[host].command(["hide", &address]).must("hide");
            continue;
        }
        let other = (host + 1 + draw(HOSTS as u64 - 1) as usize) % HOSTS;
        let wanted: Vec<String> = (0..3).map(|_| contested(draw(254))).collect();
        let expose = |host: usize| {
            let args = ["expose"].into_iter().chain(wanted.iter().map(String::as_str));
            mesh.routers[host].command(args.collect::<Vec<_>>())
        };
        let results = thread::scope(|scope| {
            let both = [host, other].map(|host| (host, scope.spawn(move || expose(host))));
            both.map(|(host, thread)| (host, thread.join().ok().must("no panic")))
        });
        for (host, result) in results {
            match result {
                Ok(text) => {
                    held[host] = text.lines().filter_map(|line| Some(line.split('/').next()?.to_owned())).collect();
                    answered += 1;
                }
                Err(error) => {
                    assert!(!error.to_string().contains("panick"), "{error}");
                    refused += 1;
                }
            }
        }
        let mut holders: BTreeSet<&String> = BTreeSet::new();
        for address in held.iter().flatten() {
            assert!(holders.insert(address), "{address} is given twice");
        }
    }
    eprintln!(
        "{answered} requests were answered and {refused} refused, of one that was cut off or for one that is in use"
    );
    assert!(answered > ROUNDS / 10, "{answered}");
    mesh.lab.wire().heal_all();
    mesh.wait_established(Duration::from_secs(60));
    for (router, held) in held.iter().enumerate() {
        let agrees = || {
            let found = check(&mesh, router);
            ["leaked", "missing", "contested"].iter().all(|kind| found[*kind].as_array().is_some_and(Vec::is_empty))
        };
        assert!(wait_until(SETTLED, agrees), "{}", check(&mesh, router));
        let given = given(&mesh, router);
        assert!(held.is_subset(&given), "host {router} lost some of {held:?}");
    }
    give_the_rest(&mesh, HOSTS);
}

/// Whoever asks for an address of the small range that nobody has gets it, to the last one.
fn give_the_rest(mesh: &Mesh, hosts: usize) {
    let all: BTreeSet<String> = (0..254).map(contested).collect();
    let used: BTreeSet<String> = (0..hosts).flat_map(|host| given(mesh, host)).collect();
    let left: Vec<&String> = all.difference(&used).collect();
    for (number, some) in left.chunks(16).enumerate() {
        let expose = || {
            let args = ["expose"].into_iter().chain(some.iter().map(|address| address.as_str()));
            mesh.routers[number % hosts].command(args.collect::<Vec<_>>())
        };
        // What was given back is not given to another host for 30 s.
        retry(Duration::from_secs(90), expose).must("nobody has them");
    }
    let mut holders: BTreeSet<String> = BTreeSet::new();
    for address in (0..hosts).flat_map(|host| given(mesh, host)) {
        assert!(holders.insert(address.clone()), "{address} is given twice");
    }
    assert!(all.is_subset(&holders), "{:?} are lost", all.difference(&holders));
}
