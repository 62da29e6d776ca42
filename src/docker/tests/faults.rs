//! What is refused: the text names what and why, and nothing is changed.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::docker::book::{Endpoint, Hold, Network};

/// All that a refused call could have changed.
async fn all(world: &World) -> (Vec<Network>, Vec<Endpoint>, Vec<Hold>, usize, usize) {
    let book = &world.docker.inner.book;
    (book.networks(), book.endpoints(), book.holds(), world.given().await, world.ports.count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_no_request_is_refused_and_changes_nothing() {
    let world = World::start();
    let before = all(&world).await;
    for name in [
        "IpamDriver.RequestPool",
        "IpamDriver.RequestAddress",
        "IpamDriver.ReleaseAddress",
        "NetworkDriver.CreateNetwork",
        "NetworkDriver.CreateEndpoint",
        "NetworkDriver.Join",
        "NetworkDriver.EndpointOperInfo",
        "NetworkDriver.DeleteEndpoint",
    ] {
        let deep = "{\"Options\":".repeat(200);
        for body in ["", "{", "[]", "7", "null", "\u{fffd}", "{\"Pool\":7}", "{} {}", "not JSON", &deep] {
            let (status, answer) = world.post(name, body).await;
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            let said = answer["Err"].as_str().unwrap_or_else(|| panic!("{name} {body:.40}: {answer}"));
            assert!(status >= 400 && said.len() > 20, "{name} {body:.40}: {status} {said}");
        }
    }
    let (status, said) = world.post("NetworkDriver.AllocateNetwork", "{}").await;
    assert!(status == 404 && said.contains("NetworkDriver.AllocateNetwork"), "{said}");
    let (status, said) = world.post("NetworkDriver.CreateNetwork", &" ".repeat((4 << 20) + 1)).await;
    assert!(status == 400 && said.contains("longer than"), "{said}");
    assert_eq!(all(&world).await, before);
    world.network(&id('a')).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_cannot_be_is_refused_with_what_and_why() {
    let world = World::start();
    let before = all(&world).await;
    let network = id('a');
    let of = |generic: Value| create(&network, &generic);
    let with = |path: &str, value: Value| {
        let mut body = of(json!({}));
        *body.pointer_mut(path).expect("a field") = value;
        body
    };
    for (body, word) in [
        (of(json!({"foo": "bar"})), "no option `foo`"),
        (with("/Options", json!({"weft.colour": "blue"})), "no option `weft.colour`"),
        (
            of(json!({"com.docker.network.driver.mtu": "9000"})),
            "an MTU of 9000 is asked for, but that of the mesh is 1402",
        ),
        (with("/IPv4Data/0/AddressSpace", json!("LocalDefault")), "--ipam-driver weft"),
        (with("/IPv4Data/0/Pool", json!("172.18.0.0/16")), "172.18.0.0/16: is not inside the mesh's 10.32.0.0/16"),
        (with("/IPv4Data", json!([])), "--ipam-driver weft"),
        (with("/NetworkID", json!("")), "is no id"),
        (with("/NetworkID", json!("../../x")), "`../../x` is no id"),
    ] {
        let said = world.call("NetworkDriver.CreateNetwork", &body).await.expect_err("refused");
        assert!(said.contains(word), "{said}");
    }
    for (pool, word) in [
        (json!({"AddressSpace": "weft", "Pool": "192.0.2.0/24"}), "192.0.2.0/24: is not inside"),
        (json!({"AddressSpace": "weft", "Pool": "10.32.0.0/16", "SubPool": "10.33.0.0/16"}), "10.33.0.0/16"),
        (json!({"AddressSpace": "LocalDefault", "Pool": "10.32.0.0/16"}), "`LocalDefault`"),
        (json!({"AddressSpace": "weft", "Options": {"serial": "x"}}), "no option `serial`"),
    ] {
        let said = world.call("IpamDriver.RequestPool", &pool).await.expect_err("refused");
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(all(&world).await, before);

    world.network(&network).await;
    let said = world.call("NetworkDriver.CreateNetwork", &create(&id('b'), &json!({}))).await.expect_err("a second");
    assert!(said.contains("Docker network aaaaaaaaaaaa already") && said.contains("docker network rm"), "{said}");
    assert_eq!(world.docker.inner.book.networks().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_of_different_parts_are_kept_apart_and_those_that_overlap_refused() {
    let mut world = World::start();
    let (red, blue, green) = (id('a'), id('b'), id('c'));
    let make = |network: &str, pool: &str| create_of(network, pool);
    world.ok("NetworkDriver.CreateNetwork", &make(&red, "10.32.1.0/24")).await;
    world.ok("NetworkDriver.CreateNetwork", &make(&blue, "10.32.2.0/24")).await;
    for (pool, other) in
        [("10.32.2.128/25", "bbbbbbbbbbbb"), ("10.32.0.0/23", "aaaaaaaaaaaa"), ("10.32.0.0/16", "aaaa")]
    {
        let said = world.call("NetworkDriver.CreateNetwork", &make(&green, pool)).await.expect_err("refused");
        assert!(said.contains(other) && said.contains(pool) && said.contains("--subnet"), "{said}");
    }
    let apart = |world: &World| world.ports.apart.lock().expect("whole").keys().cloned().collect::<Vec<_>>();
    assert_eq!(apart(&world), [red.clone(), blue.clone()]);
    let address = world.address("10.32.1.0/24", "").await.expect("one");
    world.run(&red, &id('e'), &address).await.expect("runs");
    assert_eq!(world.ports.members.lock().expect("whole").values().collect::<Vec<_>>(), [&red]);

    // What the kernel is to be told once more after a restart.
    world.reload(None);
    assert_eq!(world.docker.networks().len(), 2);
    let ports = world.docker.guarded();
    assert_eq!((ports.len(), &ports[0].kept), (1, &crate::netlink::nft::Kept::Network(red.clone())));

    // A kernel that cannot: nothing is made.
    world.ports.refuse(true);
    let said = world.call("NetworkDriver.CreateNetwork", &make(&green, "10.32.3.0/24")).await.expect_err("refused");
    assert!(said.contains("nftables"), "{said}");
    assert_eq!(world.docker.inner.book.networks().len(), 2);
    world.ports.refuse(false);

    let delete = json!({"NetworkID": blue});
    world.ok("NetworkDriver.DeleteNetwork", &delete).await;
    assert_eq!(apart(&world), [red]);
    // One of all addresses is the open mesh.
    let mut world = World::start();
    world.network(&green).await;
    assert_eq!(apart(&world), Vec::<String>::new());
    world.reload(None);
    assert!(world.docker.networks().is_empty());
    let address = world.address("10.32.0.0/16", "").await.expect("one");
    world.run(&green, &id('f'), &address).await.expect("runs");
    let ports = world.docker.guarded();
    assert_eq!((ports.len(), &ports[0].kept), (1, &crate::netlink::nft::Kept::Open));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_cannot_be_had_is_refused_with_what_and_why() {
    let world = World::start();
    let network = id('a');
    let pool = world.network(&network).await;
    let address = world.address(&pool, "10.32.0.9").await.expect("free");
    world.run(&network, &id('e'), &address).await.expect("made");
    let attached = world.rig.handle.claim("test:attached", "10.32.0.10".parse().expect("one")).await;
    attached.expect("it runs").expect("free");
    let before = all(&world).await;
    for (wanted, word) in [
        ("10.32.0.9", "10.32.0.9/16 is in use by the endpoint eeeeeeeeeeee on this host"),
        ("10.32.0.10", "10.32.0.10 is in use by test:attached"),
        ("10.99.0.1", "pool 10.32.0.0/16: 10.99.0.1 is not in it"),
        ("10.32.0.0", "network itself"),
        ("10.32.255.255", "broadcast"),
        ("nine", "`nine` is not an IP address"),
    ] {
        let said = world.address(&pool, wanted).await.expect_err(wanted);
        assert!(said.contains(word), "{said}");
    }
    let said = world.address("10.40.0.0/16", "").await.expect_err("another range");
    assert!(said.contains("10.40.0.0/16: is not inside"), "{said}");
    let gateway = json!({"PoolID": pool, "Address": "10.32.0.1", "Options": {"RequestAddressType": "com.docker.network.gateway"}});
    let said = world.call("IpamDriver.RequestAddress", &gateway).await.expect_err("no gateway");
    assert!(said.contains("10.32.0.1") && said.contains("leave --gateway out"), "{said}");
    let release = json!({"PoolID": pool, "Address": "10.32.0.9"});
    world.ok("IpamDriver.ReleaseAddress", &release).await;
    assert_eq!(all(&world).await, before, "what an endpoint has stays with it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_requests_for_one_address_one_gets_it_and_keeps_it() {
    let world = World::start();
    let network = id('a');
    let pool = world.network(&network).await;
    let (one, two) = tokio::join!(world.address(&pool, "10.32.0.9"), world.address(&pool, "10.32.0.9"));
    assert_eq!((one.as_deref(), two.as_deref()), (Ok("10.32.0.9/16"), Ok("10.32.0.9/16")));
    world.run(&network, &id('e'), "10.32.0.9/16").await.expect("the first");
    let said = world.run(&network, &id('f'), "10.32.0.9/16").await.expect_err("the second");
    assert!(said.contains("10.32.0.9/16 is in use by the endpoint eeeeeeeeeeee"), "{said}");
    // What the engine does after a refusal.
    world.ok("IpamDriver.ReleaseAddress", &json!({"PoolID": pool, "Address": "10.32.0.9"})).await;
    assert_eq!((world.given().await, world.ports.count()), (1, 1));
    assert!(world.docker.inner.book.hold("10.32.0.9".parse().expect("one")).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_cannot_be_is_refused_and_leaves_nothing() {
    let world = World::start();
    let network = id('a');
    let pool = world.network(&network).await;
    let address = world.address(&pool, "").await.expect("one");
    world.run(&network, &id('e'), &address).await.expect("made");
    let other = world.address(&pool, "").await.expect("another");
    let before = all(&world).await;
    let of = |network: &str, endpoint: &str, address: &str| create_endpoint(network, endpoint, address, "");
    let with = |pointer: &str, value: Value| {
        let mut body = of(&network, &id('f'), &other);
        *body.pointer_mut(pointer).expect("a field") = value;
        body
    };
    for (body, word) in [
        (of(&network, &id('e'), &other), "endpoint eeeeeeeeeeee exists already"),
        (of(&network, &id('f'), ""), "has no address"),
        (of(&network, &id('f'), "172.18.0.2/16"), "172.18.0.0/16: is not inside"),
        (of(&network, &id('f'), "10.32.0.5"), "`10.32.0.5` is not an address with its prefix length"),
        (of(&id('b'), &id('f'), &other), "Docker network aaaaaaaaaaaa already"),
        (of("", &id('f'), &other), "is no id"),
        (of(&network, "", &other), "is no id"),
        (with("/Interface/MacAddress", json!("02:42")), "MAC address `02:42` is none"),
        (with("/Interface/MacAddress", json!("03:42:00:00:00:01")), "the first one even"),
        (with("/Options", json!({"speed": "fast"})), "no option `speed`"),
    ] {
        let said = world.call("NetworkDriver.CreateEndpoint", &body).await.expect_err("refused");
        assert!(said.contains(word), "{said}");
        assert_eq!(all(&world).await, before, "{said}");
    }
    let nobody = json!({"NetworkID": network, "EndpointID": id('f')});
    for call in ["Join", "EndpointOperInfo"] {
        let said = world.call(&format!("NetworkDriver.{call}"), &nobody).await.expect_err("nobody");
        assert!(said.contains("does not know the endpoint ffffffffffff"), "{said}");
    }
    world.ports.refuse(true);
    let said = world.run(&network, &id('f'), "10.32.0.77/16").await.expect_err("the kernel refuses");
    assert!(said.contains("weft: cannot find the interface"), "{said}");
    assert_eq!(all(&world).await, before, "an address that was taken for it is given back");
    world.ports.refuse(false);
    world.run(&network, &id('f'), &other).await.expect("made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_in_use_is_not_deleted() {
    let world = World::start();
    let network = id('a');
    let pool = world.network(&network).await;
    let address = world.address(&pool, "").await.expect("one");
    world.run(&network, &id('e'), &address).await.expect("made");
    let before = all(&world).await;
    let delete = json!({"NetworkID": network});
    let said = world.call("NetworkDriver.DeleteNetwork", &delete).await.expect_err("in use");
    assert!(said.contains("network aaaaaaaaaaaa is in use by the endpoints eeeeeeeeeeee"), "{said}");
    assert_eq!(all(&world).await, before);
    // Its container died while nobody told the router.
    world.ports.put(&id('e'), Place::Nowhere);
    world.ok("NetworkDriver.DeleteNetwork", &delete).await;
    assert_eq!(all(&world).await, (vec![], vec![], vec![], 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_cannot_be_had_is_said_in_status_and_nothing_else_stops() {
    let world = World::start();
    let serving =
        tokio::spawn(crate::docker::serve(world.docker.clone(), Path::new("/proc/none/weft.sock").to_owned()));
    let said = || async {
        let snapshot = world.rig.handle.snapshot().await.expect("it runs");
        let status = crate::control::api::status(&world.rig.api.info, &snapshot, None, &Default::default());
        status
            .problems
            .iter()
            .any(|problem| problem.contains("does not find Weft's drivers") && problem.contains("--docker-socket"))
    };
    crate::router::rig::eventually("the problem is named", said).await;
    serving.abort();
    let path = world.dir.path().join("plugins/weft.sock");
    let serving = tokio::spawn(crate::docker::serve(world.docker.clone(), path.clone()));
    crate::router::rig::eventually("it is served", || async { UnixStream::connect(&path).await.is_ok() }).await;
    crate::router::rig::eventually("the problem is gone", || async { !said().await }).await;
    serving.abort();
    let _ = serving.await;
    assert!(!path.exists(), "the engine is not left with a socket that nobody serves");
}
