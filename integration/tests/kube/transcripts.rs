//! The API server of these tests answers as a real one of version 1.36 did.

use std::{net::TcpListener, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client, Config,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::runtime::Runtime;

use crate::{Case, apiserver::ApiServer, harness::Must as _};

pub(crate) const CASES: &[Case] = &[
    ("a_watch_from_the_past_is_one_event_that_says_expired", expired),
    ("a_list_of_the_future_is_too_large_and_pages_say_what_remains", lists),
    ("a_stale_object_is_a_conflict", conflict),
    ("who_shows_no_token_is_refused", no_token),
];

/// A server with four nodes, and what a client of it is given.
pub(crate) fn server(runtime: &Runtime) -> (ApiServer, Config) {
    let server = ApiServer::new();
    for (number, name) in ["a", "b", "c", "d"].iter().enumerate() {
        server.apply(name, &format!("uid-{name}"), &[&format!("192.0.2.{}", number + 1)]);
    }
    let listener = TcpListener::bind("127.0.0.1:0").must("listen");
    let address = listener.local_addr().must("an address");
    server.serve(runtime.handle(), listener);
    let text = server.kubeconfig(address).to_string();
    let kubeconfig = Kubeconfig::from_yaml(&text).must("read the configuration");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options);
    let mut config = runtime.block_on(config).must("use the configuration");
    // So that each refusal is seen, and not only the last one.
    config.default_retry = false;
    (server, config)
}

fn with_nodes<F: Future<Output = ()>>(test: impl FnOnce(ApiServer, Api<Node>) -> F) {
    let runtime = Runtime::new().must("a runtime");
    let (server, config) = server(&runtime);
    let _inside = runtime.enter();
    let client = Client::try_from(config).must("a client");
    runtime.block_on(test(server, Api::all(client)));
}

/// The error that a client was told, as code, reason and message.
fn told<T>(result: Result<T, kube::Error>) -> (u16, String, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone(), status.message.clone()),
        Err(error) => panic!("another error: {error}"),
        Ok(_) => panic!("it was answered"),
    }
}

async fn first_event(api: &Api<Node>, params: &WatchParams, version: &str) -> WatchEvent<Node> {
    use futures_util::{StreamExt as _, TryStreamExt as _};
    let events = api.watch(params, version).await.must("watch");
    let event = tokio::time::timeout(Duration::from_secs(10), events.boxed().try_next()).await;
    event.must("an event in time").must("an event").must("an event")
}

fn expired() {
    with_nodes(async |_, api| {
        match first_event(&api, &WatchParams::default(), "1").await {
            WatchEvent::Error(status) => {
                assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
                assert_eq!(status.message, "too old resource version: 1 (465)");
            }
            event => panic!("{event:?}"),
        }
        let version = api.list(&ListParams::default()).await.must("list").metadata.resource_version.must("a version");
        match first_event(&api, &WatchParams::default(), &version).await {
            WatchEvent::Bookmark(bookmark) => assert_eq!(bookmark.metadata.resource_version, version),
            event => panic!("{event:?}"),
        }
        match first_event(&api, &WatchParams::default(), "466").await {
            WatchEvent::Added(node) => {
                assert_eq!(node.metadata.name.as_deref(), Some("b"), "the one after version 466")
            }
            event => panic!("{event:?}"),
        }
        // Servers on an old etcd cannot stream lists.
        let streamed = WatchParams::default().initial_events();
        match first_event(&api, &streamed, "0").await {
            WatchEvent::Error(status) => assert_eq!(status.code, 500),
            event => panic!("{event:?}"),
        }
    });
}

fn lists() {
    with_nodes(async |_, api| {
        let future = ListParams::default().at("99999999").matching(kube::api::VersionMatch::NotOlderThan);
        let (code, reason, message) = told(api.list(&future).await);
        assert_eq!((code, reason.as_str()), (504, "Timeout"));
        assert_eq!(message, "Timeout: Too large resource version: 99999999, current: 469");
        let first = api.list(&ListParams::default().limit(1)).await.must("list");
        assert_eq!((first.items.len(), first.metadata.remaining_item_count), (1, Some(3)));
        let token = first.metadata.continue_.must("a token");
        assert!(token.starts_with("eyJ2"), "{token}");
        let rest = api.list(&ListParams::default().continue_token(&token)).await.must("list");
        assert_eq!((rest.items.len(), rest.metadata.continue_), (3, None));
        assert_eq!(rest.metadata.resource_version, first.metadata.resource_version, "pages are of one state");
        assert_eq!(told(api.list(&ListParams::default().continue_token("eyJ2old")).await).0, 410);
        assert_eq!(told(api.get("nobody").await).1, "NotFound");
    });
}

fn conflict() {
    with_nodes(async |server, api| {
        let stale = api.get("a").await.must("get");
        server.apply("a", "uid-a", &["192.0.2.11"]);
        let (code, reason, message) = told(api.replace("a", &PostParams::default(), &stale).await);
        assert_eq!((code, reason.as_str()), (409, "Conflict"));
        assert_eq!(
            message,
            "Operation cannot be fulfilled on nodes \"a\": the object has been modified; please apply your changes \
             to the latest version and try again"
        );
        let fresh = api.get("a").await.must("get");
        let put = api.replace("a", &PostParams::default(), &fresh).await.must("replace");
        assert_ne!(put.metadata.resource_version, fresh.metadata.resource_version);
    });
}

fn no_token() {
    let runtime = Runtime::new().must("a runtime");
    let (_server, mut config) = server(&runtime);
    config.auth_info = kube::config::AuthInfo::default();
    let _inside = runtime.enter();
    let api: Api<Node> = Api::all(Client::try_from(config).must("a client"));
    assert_eq!(told(runtime.block_on(api.list(&ListParams::default()))).0, 401);
}
