//! What the engine sends in the course of a network's life.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::docker::port::{far, near};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_calls_of_an_engine_are_answered_as_it_expects() {
    let world = World::start();
    // No body at all, as the engine begins.
    let (status, answer) = world.post("Plugin.Activate", "").await;
    assert_eq!((status, answer.as_str()), (200, r#"{"Implements":["NetworkDriver","IpamDriver"]}"#));
    let (_, answer) = world.post("NetworkDriver.GetCapabilities", "").await;
    assert_eq!(answer, r#"{"ConnectivityScope":"global","Scope":"local"}"#);
    let (status, _) = world.post("IpamDriver.GetCapabilities", "").await;
    assert_eq!(status, 200);
    let spaces = world.ok("IpamDriver.GetDefaultAddressSpaces", &json!({})).await;
    assert_eq!(spaces["LocalDefaultAddressSpace"], "weft");

    let network = id('a');
    let pool = json!({"AddressSpace": "weft", "Pool": "10.32.0.0/16", "SubPool": "", "Options": {}, "V6": false});
    let pool = world.ok("IpamDriver.RequestPool", &pool).await;
    assert_eq!(pool["Pool"], "10.32.0.0/16");
    assert_eq!(pool["Data"]["com.docker.network.gateway"], "10.32.0.0/16", "nobody's address");
    let pool = pool["PoolID"].as_str().expect("an id").to_owned();
    let gateway =
        json!({"PoolID": pool, "Address": "", "Options": {"RequestAddressType": "com.docker.network.gateway"}});
    let answer = world.ok("IpamDriver.RequestAddress", &gateway).await;
    assert_eq!(answer["Address"], "10.32.0.0/16");
    assert_eq!(world.given().await, 0, "a gateway that does not exist takes no address");
    world.ok("NetworkDriver.CreateNetwork", &create(&network, &json!({}))).await;
    world.ok("NetworkDriver.CreateNetwork", &create(&network, &json!({}))).await;

    let address = world.address(&pool, "").await.expect("one");
    assert!(address.ends_with("/16"), "{address}");
    let endpoint = id('e');
    let answer = world.run(&network, &endpoint, &address).await.expect("made");
    let mac = answer["Interface"]["MacAddress"].as_str().expect("one");
    assert!(mac.starts_with("02:77:0a:20:"), "{mac}: as of an attached container");
    let both = json!({"NetworkID": network, "EndpointID": endpoint});
    let join = world.ok("NetworkDriver.Join", &both).await;
    let expected = json!({
        "InterfaceName": {"SrcName": far(&endpoint), "DstPrefix": "eth"},
        "StaticRoutes": [{"Destination": "224.0.0.0/4", "RouteType": 1, "NextHop": ""}],
        "DisableGatewayService": false
    });
    assert_eq!(join, expected);
    let info = world.ok("NetworkDriver.EndpointOperInfo", &both).await;
    assert_eq!(info["Value"]["HostInterface"], near(&endpoint));
    for call in ["DiscoverNew", "DiscoverDelete", "ProgramExternalConnectivity", "RevokeExternalConnectivity"] {
        world.ok(&format!("NetworkDriver.{call}"), &both).await;
    }

    world.ok("NetworkDriver.Leave", &both).await;
    world.ok("NetworkDriver.DeleteEndpoint", &both).await;
    world.ok("NetworkDriver.DeleteEndpoint", &both).await;
    let plain = address.split('/').next().expect("an address");
    let release = json!({"PoolID": pool, "Address": plain});
    for _ in 0..2 {
        world.ok("IpamDriver.ReleaseAddress", &release).await;
    }
    assert_eq!((world.given().await, world.ports.count()), (0, 0));
    world.ok("IpamDriver.ReleaseAddress", &json!({"PoolID": pool, "Address": "10.32.0.0"})).await;
    for _ in 0..2 {
        world.ok("NetworkDriver.DeleteNetwork", &json!({"NetworkID": network})).await;
        world.ok("IpamDriver.ReleasePool", &json!({"PoolID": pool})).await;
    }
    assert!(world.docker.inner.book.networks().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6_internal_a_part_of_a_pool_and_a_mac_are_as_asked() {
    let world = World::start();
    let network = id('a');
    let v4 = json!({"AddressSpace": "weft", "Pool": "10.32.4.0/24", "SubPool": "10.32.4.128/25", "V6": false});
    let v4 = world.ok("IpamDriver.RequestPool", &v4).await["PoolID"].as_str().expect("an id").to_owned();
    let v6 = json!({"AddressSpace": "weft", "Pool": "", "SubPool": "", "Options": null, "V6": true});
    let v6 = world.ok("IpamDriver.RequestPool", &v6).await;
    assert_eq!(v6["Pool"], "fd00:7::/64");
    let v6 = v6["PoolID"].as_str().expect("an id").to_owned();
    let mut body = create(&network, &json!({"com.docker.network.driver.mtu": "1402"}));
    body["Options"]["com.docker.network.internal"] = json!(true);
    body["IPv4Data"][0]["Pool"] = json!("10.32.4.0/24");
    body["IPv6Data"] = json!([{"AddressSpace": "weft", "Gateway": "fd00:7::/64", "Pool": "fd00:7::/64"}]);
    world.ok("NetworkDriver.CreateNetwork", &body).await;

    let one = world.address(&v4, "").await.expect("one");
    let last: u8 = one.trim_end_matches("/24").rsplit('.').next().expect("a byte").parse().expect("a number");
    assert!(one.starts_with("10.32.4.") && last >= 128, "{one}: of the part, seen in the pool");
    assert_eq!(world.address(&v4, "10.32.4.7").await.expect("fixed"), "10.32.4.7/24");
    assert_eq!(world.address(&v6, "fd00:7::99").await.expect("fixed"), "fd00:7::99/64");
    let endpoint = id('e');
    let mut body = create_endpoint(&network, &endpoint, "10.32.4.7/24", "fd00:7::99/64");
    body["Interface"]["MacAddress"] = json!("02:42:00:00:00:07");
    let answer = world.ok("NetworkDriver.CreateEndpoint", &body).await;
    assert_eq!(answer, json!({"Interface": {}}), "an answer that repeats the question is refused by the engine");
    assert_eq!(world.docker.inner.book.endpoint(&endpoint).expect("made").mac, [2, 0x42, 0, 0, 0, 7]);
    let join = world.ok("NetworkDriver.Join", &json!({"NetworkID": network, "EndpointID": endpoint})).await;
    assert_eq!(join["DisableGatewayService"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_containers_at_once_have_fifty_addresses() {
    let world = World::start();
    let network = id('a');
    let pool = world.network(&network).await;
    let (there, network, pool) = (&world, network.as_str(), pool.as_str());
    let one = |number: usize| async move {
        let address = there.address(pool, "").await.expect("one");
        there.run(network, &format!("{number:064}"), &address).await.expect("made");
        address
    };
    let addresses = futures_util::future::join_all((0..50).map(one)).await;
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 50);
    assert_eq!((world.given().await, world.ports.count()), (50, 50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_comes_twice_is_answered_twice() {
    let world = World::start();
    let network = id('a');
    let pool = world.network(&network).await;
    for _ in 0..2 {
        assert_eq!(world.address(&pool, "10.32.0.9").await.expect("held"), "10.32.0.9/16");
    }
    let body = create_endpoint(&network, &id('e'), "10.32.0.9/16", "");
    let first: Value = world.ok("NetworkDriver.CreateEndpoint", &body).await;
    assert_eq!(world.ok("NetworkDriver.CreateEndpoint", &body).await, first);
    assert_eq!((world.given().await, world.ports.count()), (1, 1));
}
