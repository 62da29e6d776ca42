//! The API over its real socket, held against its description.

mod schema;
mod shape;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};

use super::{BODY_MAX, ROUTES};
use crate::control::http::request;
use crate::router::rig::{Options, Rig, eventually};

/// The description, as it is in the repository.
fn description() -> Value {
    serde_json::from_str(include_str!("../../../../docs/openapi.json")).expect("JSON")
}

fn rig(directory: &Path) -> Rig {
    Rig::start(Options { name: "one", directory, secret: None, targets: Vec::new() })
}

async fn call(rig: &Rig, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
    let body = body.as_bytes().to_vec();
    let (status, answer) =
        request(&rig.socket, method, path, Some(body), Duration::from_secs(30)).await.expect("an answer");
    (status, serde_json::from_slice(&answer).expect("JSON"))
}

#[test]
fn every_route_is_described_and_every_description_has_a_route() {
    let described: BTreeSet<(String, String)> = description()["paths"]
        .as_object()
        .expect("paths")
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().expect("methods").keys().map(|method| (method.clone(), path.clone()))
        })
        .collect();
    let served = ROUTES.iter().map(|&(method, path)| (method.to_owned(), path.to_owned())).collect();
    assert_eq!(described, served);
}

#[test]
fn every_reference_of_the_description_leads_somewhere() {
    let description = description();
    let mut seen = 0;
    schema::each_reference(&description, &mut |reference| {
        seen += 1;
        schema::resolve(&description, reference);
    });
    assert!(seen > 30, "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reads_answers_as_described() {
    let dir = tempfile::tempdir().expect("a directory");
    let rig = rig(dir.path());
    let description = description();
    for (_, path) in ROUTES.iter().filter(|(method, _)| *method == "get") {
        let (status, answer) = call(&rig, Method::GET, path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        schema::check_answer(&description, "get", path, &answer);
    }
    eventually("the verdict is ok", || async { call(&rig, Method::GET, "/v1/status", "").await.1["verdict"] == "ok" })
        .await;
    let (_, status) = call(&rig, Method::GET, "/v1/status", "").await;
    assert_eq!(status["peer"]["name"], "one");
    assert_eq!(status["encryption"], "none");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_answers_as_described() {
    let dir = tempfile::tempdir().expect("a directory");
    let rig = rig(dir.path());
    let description = description();
    let good = [
        ("/v1/connect", json!({"peers": ["192.0.2.1", "[2001:db8::1]:7000"]})),
        ("/v1/forget", json!({"peers": ["192.0.2.1"]})),
        ("/v1/unhold", json!({"holder": "cni:net/nobody/eth0"})),
        ("/v1/hide", json!({})),
        ("/v1/dns/add", json!({"name": "DB.weft.local.", "addresses": ["192.0.2.7", "2001:db8::7"]})),
        ("/v1/dns/add", json!({"name": "db", "addresses": ["192.0.2.7"], "services": ["pg=5432", "53/udp"]})),
        ("/v1/dns/remove", json!({"name": "db", "addresses": ["192.0.2.7"]})),
        ("/v1/down", json!({})),
    ];
    for (path, body) in good {
        let (status, answer) = call(&rig, Method::POST, path, &body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{path}: {answer}");
        schema::check_answer(&description, "post", path, &answer);
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_refused_with_what_is_wrong_and_nothing_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let rig = rig(dir.path());
    let post = Method::POST;
    let long = format!("{{\"peers\":[\"{}\"]}}", "a".repeat(BODY_MAX));
    let many = json!({"peers": (0..257).map(|n| format!("h{n}")).collect::<Vec<_>>()}).to_string();
    let addresses = json!({"addresses": (0..65).map(|n| format!("10.32.1.{n}")).collect::<Vec<_>>()}).to_string();
    for (method, path, body, code, word) in [
        (post.clone(), "/v1/attach", "{", 400, "EOF"),
        (post.clone(), "/v1/attach", "[]", 400, "body"),
        (post.clone(), "/v1/attach", "{}", 400, "target"),
        (post.clone(), "/v1/attach", r#"{"target":"1","adresses":[]}"#, 400, "adresses"),
        (post.clone(), "/v1/attach", r#"{"target":""}"#, 400, "empty"),
        (post.clone(), "/v1/attach", r#"{"target":"run/x"}"#, 400, "absolute"),
        (post.clone(), "/v1/attach", r#"{"target":"/nonexistent/ns"}"#, 404, "/nonexistent/ns"),
        (post.clone(), "/v1/attach", r#"{"target":"1","addresses":["x"]}"#, 400, "`x` is not an IP address"),
        (post.clone(), "/v1/attach", r#"{"target":"docker:../info"}"#, 400, "../info"),
        (post.clone(), "/v1/attach", r#"{"target":"1","services":["0"]}"#, 400, "`0` cannot be a service"),
        (post.clone(), "/v1/detach", r#"{"target":"/nonexistent/ns"}"#, 404, "not attached"),
        (post.clone(), "/v1/hold", r#"{"holder":"cni:a","target":"web","interface":"eth0"}"#, 400, "absolute path"),
        (post.clone(), "/v1/hold", r#"{"holder":"weft:expose","target":"1","interface":"eth0"}"#, 400, "weft:expose"),
        (post.clone(), "/v1/hold", r#"{"holder":"cni:a","target":"1","interface":"eth 0"}"#, 400, "eth 0"),
        (post.clone(), "/v1/hold", r#"{"holder":"cni:a","target":"1","interface":"a","mtu":9999}"#, 400, "1410"),
        (post.clone(), "/v1/hold", r#"{"holder":"cni:a","target":"1","interface":"a","mtu":70000}"#, 400, "u16"),
        (post.clone(), "/v1/hold", r#"{"holder":"cni:a","target":"1","interface":"a","routes":["x"]}"#, 400, "via"),
        (post.clone(), "/v1/hold", r#"{"holder":"cni:a","target":"1","interface":"a","subnets":["x"]}"#, 400, "`x`"),
        (post.clone(), "/v1/hold", r#"{"holder":"cni:a","target":"/nonexistent/ns","interface":"a"}"#, 404, "/nonex"),
        (post.clone(), "/v1/unhold", r#"{"holder":"netns:1"}"#, 400, "netns:1"),
        (post.clone(), "/v1/connect", r#"{"peers":[]}"#, 400, "at least one"),
        (post.clone(), "/v1/connect", r#"{"peers":["a:b"]}"#, 400, "`b` is not a port"),
        (post.clone(), "/v1/connect", r#"{"peers":["0.0.0.0"]}"#, 400, "nobody can be dialled at 0.0.0.0"),
        (post.clone(), "/v1/connect", r#"{"peers":["[ff02::1]:6783"]}"#, 400, "nobody can be dialled at ff02::1"),
        (post.clone(), "/v1/connect", r#"{"peers":["fe80::1"]}"#, 400, "link-local"),
        (post.clone(), "/v1/connect", r#"{"peers":["a\u001b[2Jb"]}"#, 400, "peer `a[2Jb`"),
        (post.clone(), "/v1/connect", r#"{"peers":"host"}"#, 400, "sequence"),
        (post.clone(), "/v1/connect", r#"{"peers":[1]}"#, 400, "string"),
        (post.clone(), "/v1/connect", &many, 400, "at most 256"),
        (post.clone(), "/v1/connect", r#"{"peers":["a"]} trailing"#, 400, "trailing"),
        (post.clone(), "/v1/connect", "\u{fffd}", 400, "body"),
        (post.clone(), "/v1/attach", r#"{"target":"0"}"#, 400, "process id"),
        (post.clone(), "/v1/attach", r#"{"target":"-1"}"#, 400, "-1"),
        (post.clone(), "/v1/attach", r#"{"target":"99999999999999"}"#, 400, "99999999999999"),
        (post.clone(), "/v1/attach", r#"{"target":"docker:"}"#, 400, "name"),
        (post.clone(), "/v1/attach", r#"{"target":7}"#, 400, "string"),
        (post.clone(), "/v1/expose", &addresses, 400, "at most 64"),
        (post.clone(), "/v1/connect", &long, 413, "65536"),
        (post.clone(), "/v1/forget", r#"{"peers":["192.0.2.9"]}"#, 404, "192.0.2.9"),
        (post.clone(), "/v1/hide", r#"{"addresses":["10.32.0.9"]}"#, 404, "10.32.0.9"),
        (post.clone(), "/v1/expose", r#"{"addresses":["192.0.2.1"]}"#, 400, "192.0.2.1"),
        (post.clone(), "/v1/expose", r#"{"addresses":["10.32.0.1/24"]}"#, 400, "10.32.0.1/16"),
        (post.clone(), "/v1/attach", r#"{"target":"1","names":["a b"]}"#, 400, "`a b` cannot be a name"),
        (post.clone(), "/v1/services/export", r#"{"to":"10.32.0.1"}"#, 400, "`10.32.0.1` cannot be a place"),
        (post.clone(), "/v1/services/export", r#"{"to":"80"}"#, 400, "names no address in the mesh"),
        (post.clone(), "/v1/services/export", r#"{"to":"192.0.2.7:80"}"#, 400, "192.0.2.7 is not in the mesh"),
        (post.clone(), "/v1/services/export", r#"{"to":"10.32.0.1:80"}"#, 409, "`weft expose` gives it one"),
        (post.clone(), "/v1/services/import", r#"{"name":"db","to":"10.32.0.1:80"}"#, 400, "in the mesh"),
        (post.clone(), "/v1/services/import", r#"{"name":"a b","to":"192.0.2.7:80"}"#, 400, "`a b` cannot be a name"),
        (post.clone(), "/v1/services/import", r#"{"name":"db","to":"127.0.0.1:80"}"#, 400, "only a host itself"),
        (post.clone(), "/v1/services/import", r#"{"name":"db","to":"192.0.2.7:80"}"#, 409, "no IPv4 address"),
        (post.clone(), "/v1/services/remove", r#"{"at":"80"}"#, 404, "no service at 80/tcp"),
        (post.clone(), "/v1/services/remove", r#"{"at":"web"}"#, 400, "`web` cannot be a place"),
        (post.clone(), "/v1/dns/add", r#"{"name":"db"}"#, 400, "at least one"),
        (post.clone(), "/v1/dns/add", r#"{"name":"","addresses":["192.0.2.7"]}"#, 400, "cannot be a name"),
        (post.clone(), "/v1/dns/add", r#"{"name":"db","addresses":["host"]}"#, 400, "`host` is not"),
        (post.clone(), "/v1/dns/add", r#"{"name":"db","addresses":["0.0.0.0"]}"#, 400, "`0.0.0.0` is not"),
        (
            post.clone(),
            "/v1/dns/add",
            r#"{"name":"db","addresses":["192.0.2.7"],"services":["80/sctp"]}"#,
            400,
            "`80/sctp` cannot be a service",
        ),
        (post.clone(), "/v1/dns/remove", r#"{"name":"db"}"#, 404, "was not given"),
        (Method::GET, "/v1/dns?name=a%20b", "", 400, "`a b` cannot be a name"),
        (Method::GET, "/v1/dns?address=1", "", 400, "address"),
        (post.clone(), "/v1/down", r#"{"now":true}"#, 400, "now"),
        (post.clone(), "/v1/reload", r#"{"file":"/etc/passwd"}"#, 400, "file"),
        (post.clone(), "/v1/reload", "{}", 503, "stopping"),
        (post.clone(), "/v1/status", "", 405, "GET"),
        (Method::GET, "/v1/down", "", 405, "POST"),
        (Method::GET, "/v1/events?after=x", "", 400, "after"),
        (Method::GET, "/v1/events?after=-1", "", 400, "after"),
        (Method::GET, "/v1/events?wait=99999999999999999999", "", 400, "wait"),
        (Method::DELETE, "/v1/down", "", 405, "DELETE"),
        (Method::GET, "/v1/status/", "", 404, "/v1/status/"),
        (Method::GET, "/v1/nothing", "", 404, "/v1/nothing"),
        (Method::GET, "/", "", 404, "openapi"),
    ] {
        let (status, answer) = call(&rig, method, path, body).await;
        let text = answer["error"].as_str().expect("an error");
        assert_eq!(status.as_u16(), code, "{path} {body:.80}: {text}");
        assert!(text.contains(word), "{path} {body:.80}: {text}");
    }
    let (status, _) = call(&rig, Method::GET, "/v1/status", "").await;
    assert_eq!(status, StatusCode::OK);
    rig.stop().await;
}

/// What a route cannot take by its description: what is no object, each field of every other type,
/// each required one missing, and one that nobody knows. With a word that the answer must have.
fn wrong_bodies(description: &Value, path: &str) -> Vec<(String, String)> {
    let bodies =
        ["[]", "[\"x\"]", "[[\"x\"]]", "null", "7", "true", "\"x\"", "{", "{]", "{} {}", "{\"\": \"\\ud800\"}"];
    let deep = "{\"x\":".repeat(200);
    let mut wrong: Vec<(String, String)> =
        bodies.iter().chain([&deep.as_str()]).map(|body| ((*body).to_owned(), "the body is not".to_owned())).collect();
    wrong.push((json!({"nobody-knows": 1}).to_string(), "nobody-knows".to_owned()));
    let content = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"].clone();
    let schema = schema::resolve(description, content["$ref"].as_str().expect("a reference")).clone();
    let none = serde_json::Map::new();
    let fields = schema["properties"].as_object().unwrap_or(&none);
    let value = |field: &Value| match field["type"].as_str() {
        Some("string") => json!("x"),
        Some("array") => json!(["x"]),
        Some("boolean") => json!(true),
        Some("integer") => json!(7),
        other => panic!("{path}: a field of type {other:?}"),
    };
    let whole: serde_json::Map<String, Value> =
        fields.iter().map(|(name, field)| (name.clone(), value(field))).collect();
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in fields {
        for other in [json!(null), json!(7), json!(true), json!({"x": 1}), json!("x"), json!(["x"]), json!([7])] {
            let mut body = whole.clone();
            let fits = other == value(field);
            let found = body.insert(name.clone(), other);
            assert!(found.is_some());
            if !fits {
                wrong.push((Value::Object(body).to_string(), "line 1 column".to_owned()));
            }
        }
        let mut body = whole.clone();
        body.remove(name);
        if required.contains(&name.as_str()) {
            wrong.push((Value::Object(body).to_string(), format!("missing field `{name}`")));
        }
        let twice = format!("{{\"{name}\":{0},\"{name}\":{0}}}", value(field));
        wrong.push((twice, format!("duplicate field `{name}`")));
    }
    wrong
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_body_that_does_not_fit_its_description_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let rig = rig(dir.path());
    let description = description();
    let mut tried = 0;
    for (_, path) in ROUTES.iter().filter(|(method, _)| *method == "post") {
        for (body, word) in wrong_bodies(&description, path) {
            let (status, answer) = call(&rig, Method::POST, path, &body).await;
            let text = answer["error"].as_str().expect("an error");
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body:.80}: {text}");
            assert!(text.contains(&word), "{path} {body:.80}: {word:?} is not in {text}");
            tried += 1;
        }
    }
    assert!(tried > 150, "{tried}");
    let (status, answer) = call(&rig, Method::GET, "/v1/status", "").await;
    assert_eq!((status, &answer["targets"]), (StatusCode::OK, &json!([])), "{answer}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_is_given_back_when_the_kernel_refuses() {
    let dir = tempfile::tempdir().expect("a directory");
    let rig = rig(dir.path());
    let (status, answer) = call(&rig, Method::POST, "/v1/expose", "{}").await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{answer}");
    let (_, ipam) = call(&rig, Method::GET, "/v1/ipam", "").await;
    assert_eq!(ipam["used"], 0, "{ipam}");
    assert_eq!(ipam["allocations"], json!([]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_when_they_happen() {
    let dir = tempfile::tempdir().expect("a directory");
    let rig = rig(dir.path());
    let (_, list) = call(&rig, Method::GET, "/v1/events", "").await;
    let last = list["events"].as_array().expect("a list").last().map_or(0, |event| event["seq"].as_u64().expect("one"));
    let path = format!("/v1/events?after={last}&wait=20");
    let later = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        rig.api.events.push("2026-01-01T00:00:00Z".to_owned(), "other", "it happened".to_owned());
    };
    let ((status, list), ()) = tokio::join!(call(&rig, Method::GET, &path, ""), later);
    assert_eq!(status, StatusCode::OK);
    let events = list["events"].as_array().expect("a list");
    assert!(events.iter().any(|event| event["message"] == "it happened"), "{list}");
    rig.stop().await;
}
