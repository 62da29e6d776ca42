//! The plugin as runtimes run it: variables and bytes in, bytes out.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::conf::{Attachment, Conf};
use super::environment::Command;
use super::gc::stale;
use super::result::{CniResult, Dns, Interface, Ip, Route};
use super::serve;
use super::version::Version;
use crate::router::rig::{Options, Rig, eventually};

/// Runs the plugin.
fn plugin(variables: &[(&str, &str)], input: &[u8]) -> (Option<Value>, bool) {
    let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(*value));
    let (answer, code) = serve(&get, input);
    (answer, code == ExitCode::SUCCESS)
}

/// Runs it where it must fail: code and text.
#[track_caller]
fn refused(variables: &[(&str, &str)], input: &[u8]) -> (u64, String) {
    let (answer, fine) = plugin(variables, input);
    let answer = answer.expect("an error");
    assert!(!fine, "{answer}");
    let text = answer["msg"].as_str().expect("a text").to_owned();
    assert!(Version::ALL.iter().any(|version| answer["cniVersion"] == version.name()), "{answer}");
    (answer["code"].as_u64().expect("a code"), text)
}

/// What a runtime sets for a container.
fn container<'a>(command: &'a str, netns: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "3f2a"),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", ""),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
}

fn conf(version: &str, more: Value) -> Vec<u8> {
    let mut conf = json!({"cniVersion": version, "name": "weft", "type": "weft-cni", "socket": "/nonexistent/weft.sock", "waitSeconds": 0});
    if let (Some(conf), Value::Object(more)) = (conf.as_object_mut(), more) {
        conf.extend(more);
    }
    conf.to_string().into_bytes()
}

fn net<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().expect(text)
}

fn result() -> CniResult {
    let interface = |name: &str, sandbox: &str| Interface {
        name: name.to_owned(),
        mac: "02:77:0a:20:00:01".to_owned(),
        mtu: Some(1402),
        sandbox: sandbox.to_owned(),
    };
    let ip = |address: &str, gateway: &str| Ip {
        version: None,
        interface: Some(1),
        address: net(address),
        gateway: Some(net(gateway)),
    };
    CniResult {
        interfaces: vec![interface("weft-abcdefghij", ""), interface("eth0", "/run/netns/a")],
        ips: vec![ip("10.32.0.1/12", "10.32.0.2"), ip("fd00::1/64", "fd00::2")],
        routes: vec![Route { dst: net("0.0.0.0/0"), gw: Some(net("10.32.0.2")) }],
        dns: Dns { nameservers: vec!["10.32.0.2".to_owned()], ..Dns::default() },
    }
}

#[test]
fn a_result_has_the_form_of_the_version_that_was_asked_for() {
    for version in Version::ALL {
        let json = result().to_json(version);
        assert_eq!(json["cniVersion"], version.name());
        let old = version < Version::V1_0_0;
        assert_eq!(json["ips"][0].get("version").and_then(Value::as_str), old.then_some("4"), "{json}");
        assert_eq!(json["ips"][1].get("version").and_then(Value::as_str), old.then_some("6"), "{json}");
        assert_eq!(json["ips"][1]["interface"], 1);
        assert_eq!(json["ips"][0]["address"], "10.32.0.1/12");
        assert_eq!(json["ips"][0]["gateway"], "10.32.0.2");
        assert_eq!(json["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "10.32.0.2"}));
        assert_eq!(json["interfaces"][1]["sandbox"], "/run/netns/a");
        // Whose interface has no sandbox is the host's: so chained plugins find both ends.
        assert!(json["interfaces"][0].get("sandbox").is_none(), "{json}");
        assert_eq!(json["interfaces"][0].get("mtu").is_some(), version == Version::V1_1_0, "{json}");
        assert_eq!(json["dns"]["nameservers"][0], "10.32.0.2");
        // Every form is read back as the same.
        let conf =
            Conf::parse(&conf(version.name(), json!({"prevResult": json})), Command::Check).expect("a configuration");
        let back = conf.previous.expect("a result");
        assert_eq!(back.to_json(Version::LATEST)["ips"], result().to_json(Version::LATEST)["ips"]);
        assert_eq!(back.routes, result().routes);
    }
}

#[test]
fn what_earlier_plugins_answered_is_passed_on_and_nothing_is_said_twice() {
    let ours = result();
    assert_eq!(ours.clone().after(None), ours);
    assert_eq!(ours.clone().after(Some(&ours)), ours, "its own result of an earlier run");
    let mut other = result();
    other.interfaces[1].name = "eth9".to_owned();
    other.interfaces[0].name = "veth9".to_owned();
    other.dns = Dns { domain: "example".to_owned(), ..Dns::default() };
    let both = ours.clone().after(Some(&other));
    assert_eq!(both.interfaces.len(), 4);
    let of: Vec<&str> =
        both.ips.iter().map(|ip| both.interfaces[ip.interface.expect("a place")].name.as_str()).collect();
    assert_eq!(of, ["eth9", "eth9", "eth0", "eth0"]);
    assert_eq!(both.routes, ours.routes);
    assert_eq!(both.dns, ours.dns);
    let silent = CniResult { dns: Dns::default(), ..ours };
    assert_eq!(silent.after(Some(&other)).dns.domain, "example");
}

#[test]
fn version_answers_whatever_it_is_asked_in() {
    for (input, version) in [
        (r#"{"cniVersion":"0.4.0"}"#, "0.4.0"),
        (r#"{"cniVersion":"2.0.0"}"#, "2.0.0"),
        (r#"{"cniVersion":"1.0.0","name":"x"}"#, "1.0.0"),
        ("{}", "1.1.0"),
        ("", "1.1.0"),
    ] {
        let dummy =
            [("CNI_COMMAND", "VERSION"), ("CNI_NETNS", "dummy"), ("CNI_IFNAME", "dummy"), ("CNI_PATH", "dummy")];
        let (answer, fine) = plugin(&dummy, input.as_bytes());
        let answer = answer.expect("an answer");
        assert!(fine, "{answer}");
        assert_eq!(answer["cniVersion"], version);
        assert_eq!(answer["supportedVersions"], json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]));
    }
}

#[test]
fn what_cannot_be_is_refused_by_its_code_and_its_name() {
    let here = "/proc/self/ns/net";
    let add = container("ADD", here);
    let with = |name: &'static str, value: &'static str| -> Vec<(&str, &str)> {
        add.iter().map(|&(known, old)| (known, if known == name { value } else { old })).collect()
    };
    let without = |names: &[&str]| -> Vec<(&str, &str)> {
        add.iter().copied().filter(|(known, _)| !names.contains(known)).collect()
    };
    let good = conf("1.0.0", json!({}));
    let key = |more: Value| conf("1.1.0", more);
    type Environment = Vec<(&'static str, &'static str)>;
    let cases: Vec<(Environment, Vec<u8>, u64, &str)> = vec![
        (without(&["CNI_COMMAND"]), good.clone(), 4, "CNI_COMMAND"),
        (with("CNI_COMMAND", "add"), good.clone(), 4, "`add`"),
        (without(&["CNI_CONTAINERID", "CNI_NETNS"]), good.clone(), 4, "CNI_CONTAINERID, CNI_NETNS must be set"),
        (without(&["CNI_IFNAME"]), good.clone(), 4, "CNI_IFNAME"),
        (with("CNI_CONTAINERID", "../x"), good.clone(), 4, "CNI_CONTAINERID"),
        (with("CNI_IFNAME", "eth0/1"), good.clone(), 4, "CNI_IFNAME"),
        (with("CNI_IFNAME", "0123456789abcdef"), good.clone(), 4, "CNI_IFNAME"),
        (with("CNI_NETNS", "run/netns/a"), good.clone(), 4, "CNI_NETNS"),
        (with("CNI_NETNS", "/nonexistent/ns"), good.clone(), 3, "/nonexistent/ns"),
        (with("CNI_ARGS", "IP=10.32.0"), good.clone(), 4, "IP=10.32.0"),
        (with("CNI_ARGS", "COLOUR=red"), good.clone(), 4, "COLOUR"),
        (with("CNI_ARGS", "IP"), good.clone(), 4, "KEY=VALUE"),
        (add.clone(), b"".to_vec(), 6, "JSON"),
        (add.clone(), b"[]".to_vec(), 6, "object"),
        (add.clone(), b"{\"cniVersion\":\"1.0.0\"} x".to_vec(), 6, "JSON"),
        (add.clone(), conf("0.2.0", json!({})), 1, "0.2.0"),
        (add.clone(), conf("", json!({})), 1, "0.1.0"),
        (add.clone(), conf("1.2.0", json!({})), 1, "0.3.1, 0.4.0, 1.0.0, 1.1.0"),
        (add.clone(), key(json!({"cniVersion": 1})), 7, "cniVersion"),
        (add.clone(), key(json!({"name": ""})), 7, "`name`"),
        (add.clone(), key(json!({"name": "a/b"})), 7, "`a/b`"),
        (add.clone(), key(json!({"name": 7})), 7, "`name`"),
        (add.clone(), key(json!({"socket": "weft.sock"})), 7, "`socket`"),
        (add.clone(), key(json!({"waitSeconds": 9999})), 7, "`waitSeconds`"),
        (add.clone(), key(json!({"waitSeconds": -1})), 7, "`waitSeconds`"),
        (add.clone(), key(json!({"mtu": "1400"})), 7, "`mtu`"),
        (add.clone(), key(json!({"mtu": 70000})), 7, "`mtu`"),
        (add.clone(), key(json!({"hairpinMode": "yes"})), 7, "`hairpinMode`"),
        (add.clone(), key(json!({"isGateway": 1})), 7, "`isGateway`"),
        (add.clone(), key(json!({"subnet": "10.32.0.1/24"})), 7, "10.32.0.1/24"),
        (add.clone(), key(json!({"subnet": ["10.32.0.0/24", "10.33.0.0/24"]})), 7, "at most one"),
        (add.clone(), key(json!({"subnet": 7})), 7, "`subnet`"),
        (add.clone(), key(json!({"routes": [{"dst": "everywhere"}]})), 7, "`routes`"),
        (add.clone(), key(json!({"routes": [{"dst": "0.0.0.0/0", "gw": "fd00::1"}]})), 7, "family"),
        (add.clone(), key(json!({"dns": {"nameservers": "10.32.0.1"}})), 7, "`dns`"),
        (add.clone(), key(json!({"runtimeConfig": {"ips": ["here"]}})), 7, "runtimeConfig.ips"),
        (add.clone(), key(json!({"runtimeConfig": []})), 7, "runtimeConfig"),
        (add.clone(), key(json!({"args": {"cni": {"ips": [7]}}})), 7, "args.cni.ips"),
        (add.clone(), key(json!({"prevResult": {"ips": [{"address": "x"}]}})), 7, "`prevResult`"),
        (add.clone(), key(json!({"ipam": {"type": "host-local"}})), 2, "host-local"),
        (add.clone(), key(json!({"ipMasq": "nftables"})), 7, "`ipMasq`"),
        (add.clone(), key(json!({"ipMasqBackend": "nftables"})), 2, "`ipMasqBackend` is"),
        (add.clone(), key(json!({"runtimeConfig": {"mac": "03:00:00:00:00:01"}})), 7, "03:00:00:00:00:01"),
        (add.clone(), key(json!({"runtimeConfig": {"mac": 7}})), 7, "runtimeConfig.mac"),
        (with("CNI_ARGS", "MAC=02:00:00:00:00"), good.clone(), 4, "MAC=02:00:00:00:00"),
        (add.clone(), key(json!({"isDefaultGatway": true})), 2, "`isDefaultGatway` is true"),
        (container("CHECK", here), key(json!({"bridge": "cni0"})), 2, "`bridge` is \"cni0\""),
        (container("STATUS", ""), key(json!({"mtU": 1400})), 2, "`mtU` is 1400"),
        (container("CHECK", here), conf("0.3.1", json!({})), 1, "0.4.0"),
        (container("STATUS", ""), conf("1.0.0", json!({})), 1, "1.1.0"),
        (container("GC", ""), conf("1.0.0", json!({})), 1, "1.1.0"),
        (container("CHECK", here), good.clone(), 7, "prevResult"),
        (container("GC", ""), key(json!({})), 7, "cni.dev/valid-attachments"),
        (container("GC", ""), key(json!({"cni.dev/valid-attachments": [{"containerID": "a"}]})), 7, "ifname"),
        (container("STATUS", ""), key(json!({})), 51, "/nonexistent/weft.sock"),
        (container("GC", ""), key(json!({"cni.dev/valid-attachments": []})), 11, "/nonexistent/weft.sock"),
    ];
    for (variables, input, code, word) in cases {
        let (found, text) = refused(&variables, &input);
        let input = String::from_utf8_lossy(&input);
        assert_eq!(found, code, "{text}: {variables:?} {input}");
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
    let bytes = |name: &str| match name {
        "CNI_COMMAND" => Some(OsString::from("DEL")),
        "CNI_CONTAINERID" => Some(OsString::from_vec(vec![0xff, b'a'])),
        _ => None,
    };
    let answer = serve(&bytes, &good).0.expect("an error");
    assert!(answer["code"] == 4 && answer["msg"].as_str().is_some_and(|text| text.contains("UTF-8")), "{answer}");
}

#[test]
fn a_configuration_that_is_cut_off_anywhere_is_an_error_of_its_own() {
    let whole = conf("1.0.0", json!({"dns": {"search": ["é"]}, "prevResult": result().to_json(Version::V1_0_0)}));
    for cut in 0..whole.len() {
        let (code, text) = refused(&container("DEL", ""), &whole[..cut]);
        assert_eq!(code, 6, "{text}");
    }
    let long = vec![b' '; 4 << 20 | 1];
    assert_eq!(refused(&container("DEL", ""), &long).0, 6);
}

/// What clients were seen to send; what of it is for others is passed over.
#[test]
fn what_real_runtimes_send_is_understood() {
    let kubelet = json!({
        "capabilities": {"portMappings": true, "bandwidth": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
        "hairpinMode": true, "isDefaultGateway": true, "example.org/key": [1], "promiscMode": false,
        "dns": {}, "ipam": {}, "ipMasq": false,
        "prevResult": result().to_json(Version::V1_0_0),
    });
    let parsed = Conf::parse(&conf("1.0.0", kubelet), Command::Add).expect("kubelet's");
    assert!(parsed.gateway && parsed.default_gateway && parsed.hairpin && !parsed.masquerade);
    let podman = json!({
        "capabilities": {"ips": true},
        "runtimeConfig": {"ips": ["10.32.0.7/16", "fd00::7"]},
        "args": {"podman_labels": {"a": "b"}, "cni": {"ips": ["10.32.0.7"]}},
    });
    let parsed = Conf::parse(&conf("0.4.0", podman), Command::Add).expect("podman's");
    assert_eq!(parsed.ips, [net::<std::net::IpAddr>("10.32.0.7"), net("fd00::7")]);
    let read = |args: &str| {
        let variables = [
            ("CNI_CONTAINERID", "3f2a"),
            ("CNI_NETNS", "/var/run/netns/cni-7d3c"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", args),
        ];
        let get =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(*value));
        super::Environment::read(Command::Add, &get).expect(args)
    };
    for args in [
        "",
        "IgnoreUnknown=1",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=3f2a;K8S_POD_UID=7d3c",
        "K8S_POD_UID=7d3c;K8S_POD_NAME=web-0;IgnoreUnknown=1;K8S_POD_NAMESPACE=default",
        "IgnoreUnknown=true;K8S_POD_NAME=box;IP=",
    ] {
        assert_eq!(read(args).ips, [] as [std::net::IpAddr; 0], "{args}");
    }
    assert_eq!(read("IgnoreUnknown=1;K8S_POD_NAME=box;IP=10.32.0.9").ips, [net::<std::net::IpAddr>("10.32.0.9")]);
    assert_eq!(read("IP=10.32.0.9/12,fd00::9").ips, [net::<std::net::IpAddr>("10.32.0.9"), net("fd00::9")]);
    assert_eq!(read("").holder("k8s"), "cni:k8s/3f2a/eth0");
    assert_eq!(read("IgnoreUnknown=1;MAC=02:42:0a:20:00:05").mac, "02:42:0a:20:00:05");
}

#[test]
fn garbage_is_of_this_network_and_not_named() {
    let owners = [
        "cni:weft/a/eth0",
        "cni:weft/a/eth1",
        "cni:weft/b/eth0",
        "cni:weft2/b/eth0",
        "cni:wef/t/eth0",
        "docker:web",
        "weft:expose",
        "netns:1@2",
    ];
    let valid = [Attachment { container: "a".to_owned(), interface: "eth0".to_owned() }];
    let found = stale("weft", &valid, owners.map(str::to_owned));
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["cni:weft/a/eth1", "cni:weft/b/eth0"]);
}

#[test]
fn a_pod_can_end_without_the_router_and_its_namespace() {
    for more in [json!({}), json!({"prevResult": {"interfaces": []}})] {
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let (answer, fine) = plugin(&container("DEL", ""), &conf(version, more.clone()));
            assert!(fine && answer.is_none(), "{answer:?}");
        }
    }
    // Nor because its configuration has become one that makes no pod.
    let conf = |more| conf("1.0.0", more);
    let (answer, fine) = plugin(&container("DEL", ""), &conf(json!({"colour": "red", "ipam": {"type": "dhcp"}})));
    assert!(fine && answer.is_none(), "{answer:?}");
    let (answer, fine) = plugin(&container("DEL", "/nonexistent/ns"), &conf(json!({})));
    assert!(fine && answer.is_none(), "{answer:?}");
}

/// Runs it beside a router, which needs this thread's runtime.
async fn beside(rig: &Rig, command: &'static str, more: Value) -> (Option<Value>, bool) {
    let mut all = json!({"socket": rig.socket});
    if let (Some(all), Value::Object(more)) = (all.as_object_mut(), more) {
        all.extend(more);
    }
    tokio::task::spawn_blocking(move || plugin(&container(command, ""), &conf("1.1.0", all))).await.expect("no panic")
}

fn start(directory: &Path) -> Rig {
    Rig::start(Options { name: "one", directory, secret: None, targets: Vec::new() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_router_is_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let rig = start(dir.path());
    let silent = (None, true);
    eventually("STATUS is fine", || async { beside(&rig, "STATUS", json!({})).await == (None, true) }).await;
    assert_eq!(beside(&rig, "DEL", json!({})).await, silent);
    assert_eq!(beside(&rig, "DEL", json!({})).await, silent);
    // Addresses whose interface was never made: of two pods of ours, and of another network's.
    let range = crate::router::rig::ranges()[0];
    for owner in ["cni:weft/old/eth0", "cni:weft/kept/eth0", "cni:other/old/eth0"] {
        rig.handle.allocate(owner, range).await.expect("it runs").expect("an address");
    }
    let valid = json!({"cni.dev/valid-attachments": [{"containerID": "kept", "ifname": "eth0"}]});
    assert_eq!(beside(&rig, "GC", valid).await, silent);
    let summary = rig.handle.ipam().await.expect("it runs");
    let owners: Vec<String> = summary.allocations.into_iter().map(|(owner, ..)| owner).collect();
    assert_eq!(owners, ["cni:weft/kept/eth0", "cni:other/old/eth0"]);
    // What the router refuses has its code.
    let name = json!({"name": "n".repeat(600)});
    let (answer, fine) = beside(&rig, "DEL", name).await;
    assert!(!fine && answer.as_ref().is_some_and(|answer| answer["code"] == 7), "{answer:?}");
    rig.stop().await;
}
