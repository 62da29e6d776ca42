//! What is known after a restart, and what is cleaned up that went meanwhile.

use std::time::Duration;

use axum::routing::get;
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::docker::audit::Memory;
use crate::docker::port::near;

/// An engine that has these endpoints in its one network, if it has that.
fn engine(dir: &Path, network: &str, endpoints: &[(&str, &str)]) -> (Engine, JoinHandle<()>) {
    let socket = dir.join("engine.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).expect("bound");
    let containers: BTreeMap<String, Value> = endpoints
        .iter()
        .map(|(id, address)| {
            let of =
                json!({"EndpointID": id, "MacAddress": "02:77:0a:20:00:01", "IPv4Address": address, "IPv6Address": ""});
            (format!("container of {id}"), of)
        })
        .collect();
    let one = json!({"Id": network, "Internal": false, "Containers": containers,
        "IPAM": {"Driver": "weft", "Config": [{"Subnet": "10.32.0.0/16"}]}});
    let list = if network.is_empty() { json!([]) } else { json!([one]) };
    let app = axum::Router::new()
        .route("/networks", get(move || async move { axum::Json(list) }))
        .route("/networks/{id}", get(move || async move { axum::Json(one) }));
    let server = tokio::spawn(async move { axum::serve(listener, app).await.expect("served") });
    (Engine { socket }, server)
}

/// Looks twice, so far apart that nothing can be under way between.
async fn look_long(world: &World) {
    let mut memory = Memory::default();
    let now = Instant::now();
    world.docker.look(&mut memory, now).await;
    world.docker.look(&mut memory, now + Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_is_known_after_a_restart_and_none_of_it_is_a_leak() {
    let mut world = World::start();
    let network = id('a');
    let pool = world.network(&network).await;
    let address = world.address(&pool, "").await.expect("one");
    world.run(&network, &id('e'), &address).await.expect("made");
    let held = world.address(&pool, "").await.expect("held only");
    let book = &world.docker.inner.book;
    let before = (book.networks(), book.endpoints(), book.holds());

    world.reload(None);
    let book = &world.docker.inner.book;
    assert_eq!((book.networks(), book.endpoints(), book.holds()), before);
    world.rig.api.attachments.reclaim().await.expect("nothing is lost");
    assert_eq!(world.given().await, 2, "what is held is no orphan");
    let audit = world.rig.api.attachments.check(true).await.expect("it runs");
    assert_eq!(audit, crate::control::attach::Audit::default());
    // The engine goes on where it was.
    let both = json!({"NetworkID": network, "EndpointID": id('e')});
    for call in ["Leave", "DeleteEndpoint"] {
        world.ok(&format!("NetworkDriver.{call}"), &both).await;
    }
    for address in [address, held] {
        let plain = address.split('/').next().expect("an address");
        world.ok("IpamDriver.ReleaseAddress", &json!({"PoolID": pool, "Address": plain})).await;
    }
    assert_eq!((world.given().await, world.ports.count()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_was_given_half_way_is_freed_at_the_start() {
    let world = World::start();
    // Durable in the ring, and the router was killed before it was written down.
    world.rig.handle.allocate("docker-network:half-way", ranges()[0]).await.expect("it runs").expect("one");
    let audit = world.rig.api.attachments.check(false).await.expect("it runs");
    assert_eq!(audit.leaked.len(), 1);
    world.rig.api.attachments.reclaim().await.expect("nothing is lost");
    assert_eq!(world.given().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_engine_has_no_more_is_removed_and_what_it_has_stays() {
    let mut world = World::start();
    let network = id('a');
    let pool = world.network(&network).await;
    let mut addresses = Vec::new();
    for endpoint in ['c', 'd', 'e'] {
        let address = world.address(&pool, "").await.expect("one");
        world.run(&network, &id(endpoint), &address).await.expect("made");
        addresses.push(address);
    }
    let held = world.address(&pool, "").await.expect("held only");
    // Two containers died: the engine has forgotten one, and is about to start the other again.
    world.ports.put(&id('c'), Place::Nowhere);
    world.ports.put(&id('d'), Place::Nowhere);
    world.ports.put("nobody's", Place::Host);

    look_long(&world).await;
    assert_eq!(world.docker.inner.book.endpoints().len(), 3, "without an engine to ask, all is kept");
    world.reload(Some(Engine { socket: world.dir.path().join("nobody.sock") }));
    look_long(&world).await;
    assert_eq!(world.docker.inner.book.endpoints().len(), 3, "an engine that does not answer has all of it");

    let dir = tempfile::tempdir().expect("a directory");
    let (asked, server) = engine(dir.path(), &network, &[(&id('d'), &addresses[1]), (&id('e'), &addresses[2])]);
    world.reload(Some(asked));
    let mut memory = Memory::default();
    let now = Instant::now();
    world.docker.look(&mut memory, now).await;
    assert_eq!(world.docker.inner.book.endpoints().len(), 3, "a call may be under way");
    world.docker.look(&mut memory, now + Duration::from_secs(10)).await;
    let left: Vec<String> = world.docker.inner.book.endpoints().into_iter().map(|endpoint| endpoint.id).collect();
    assert_eq!(left, [id('d'), id('e')]);
    assert_eq!(world.ports.all().await.expect("played"), [near(&id('e'))]);
    assert_eq!(world.given().await, 3, "the held one may be of a container that waits for the router");
    world.docker.look(&mut memory, now + Duration::from_secs(60)).await;
    assert_eq!(world.given().await, 2, "{held} is free");
    assert_eq!(world.docker.inner.book.networks().len(), 1);
    server.abort();

    // All went, the network too.
    world.ports.put(&id('e'), Place::Nowhere);
    let (asked, server) = engine(dir.path(), "", &[]);
    world.reload(Some(asked));
    look_long(&world).await;
    look_long(&world).await;
    let book = &world.docker.inner.book;
    assert_eq!((book.networks(), book.endpoints(), book.holds()), (vec![], vec![], vec![]));
    assert_eq!(world.given().await, 0);
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_router_that_lost_its_disk_takes_over_what_the_engine_has() {
    let mut world = World::start();
    let dir = tempfile::tempdir().expect("a directory");
    let network = id('a');
    let (asked, server) = engine(dir.path(), &network, &[(&id('e'), "10.32.0.9/16")]);
    // Its container runs, and the kernel has its interface.
    world.reload(Some(asked));
    world.ports.put(&id('e'), Place::Container);
    world.docker.look(&mut Memory::default(), Instant::now()).await;
    let book = &world.docker.inner.book;
    assert_eq!(book.endpoints().len(), 1);
    assert_eq!(book.networks()[0].id, network);
    assert_eq!((world.given().await, world.ports.count()), (1, 1));
    let said = world.address("10.32.0.0/16", "10.32.0.9").await.expect_err("taken");
    assert!(said.contains("in use by the endpoint eeeeeeeeeeee"), "{said}");
    // A container that starts in it: the engine does not create the network again.
    let other = world.address("10.32.0.0/16", "").await.expect("one");
    world.run(&network, &id('f'), &other).await.expect("made");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_network_of_our_addresses_is_taken_as_our_own() {
    let world = World::start();
    let address = world.address("10.32.0.0/16", "").await.expect("one");
    world.run(&id('a'), &id('e'), &address).await.expect("made");
    assert_eq!(world.docker.inner.book.networks()[0].id, id('a'));
}
