//! What containers are called, as an engine tells it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Path as Id;
use axum::routing::get;
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::control::guests::Named;
use crate::docker::port::near;

/// An engine with two containers in the network; of the second it tells when it is told to.
fn play(socket: &Path, mut told: mpsc::UnboundedReceiver<&'static str>) {
    let listener = UnixListener::bind(socket).expect("bound");
    let lines = futures_util::stream::poll_fn(move |context| told.poll_recv(context)).map(Ok::<_, std::io::Error>);
    let lines = Arc::new(Mutex::new(Some(lines)));
    let events = move || {
        let lines = lines.lock().expect("whole").take();
        async move { lines.map_or_else(Body::empty, Body::from_stream) }
    };
    let network =
        || async { json!({"Id": id('n'), "IPAM": {}, "Containers": {"c1": {"EndpointID": id('1')}}}).to_string() };
    let container = |Id(container): Id<String>| async move {
        let joined = |endpoint: char, alias: &str| json!({"mesh": {"EndpointID": id(endpoint), "Aliases": [alias]}});
        let (name, networks) = match container.as_str() {
            "c1" => ("/web", joined('1', "www")),
            _ => ("/db", joined('2', "not a name")),
        };
        let config = json!({"ExposedPorts": {"80/tcp": {}}});
        json!({"Id": container, "Name": name, "State": {"Pid": 7}, "Config": config, "NetworkSettings": {"Networks": networks}}).to_string()
    };
    let app = axum::Router::new()
        .route("/events", get(events))
        .route("/networks/{id}", get(network))
        .route("/containers/{id}/json", get(container));
    tokio::spawn(axum::serve(listener, app).into_future());
}

#[tokio::test]
async fn containers_are_known_by_the_names_that_the_engine_tells() {
    let mut world = World::start();
    let network = id('n');
    world.network(&network).await;
    for (endpoint, address) in [('1', "10.32.0.1/16"), ('2', "10.32.0.2/16")] {
        world.run(&network, &id(endpoint), address).await.expect("runs");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("docker.sock");
    let (tell, told) = mpsc::unbounded_channel();
    play(&socket, told);
    world.reload(Some(Engine { socket }));
    let guests = world.docker.inner.guests.clone();
    let names = || {
        let text = |named: Named| {
            let services: Vec<String> = named.services.iter().map(ToString::to_string).collect();
            format!("{} {} {} {}", named.name, named.address, services.join(","), named.interface)
        };
        guests.names().into_iter().map(text).collect::<Vec<String>>()
    };
    let listener = tokio::spawn(world.docker.clone().learn_names());
    let changed = || tokio::time::timeout(Duration::from_secs(10), guests.changed());
    changed().await.expect("those that run are looked for");
    let first = near(&id('1'));
    assert_eq!(names(), [format!("web 10.32.0.1 80/tcp {first}"), format!("www 10.32.0.1 80/tcp {first}")]);
    tell.send("{\"Type\":\"network\",\"Actor\":{\"ID\":\"n\",\"Attr").expect("heard");
    tell.send("ibutes\":{\"container\":\"c2\"}}}\n").expect("heard");
    changed().await.expect("one that joins is looked at, and what is no name is left out");
    assert_eq!(names().len(), 3);
    assert_eq!(*world.ports.shielded.lock().expect("whole"), [first.clone(), near(&id('2'))]);
    assert!(names().contains(&format!("db 10.32.0.2 80/tcp {}", near(&id('2')))), "{:?}", names());
    let gone = json!({"NetworkID": network, "EndpointID": id('1')});
    world.ok("NetworkDriver.DeleteEndpoint", &gone).await;
    assert_eq!(names(), [format!("db 10.32.0.2 80/tcp {}", near(&id('2')))]);
    listener.abort();
}
