//! The command line against a running router, and what it says when something is wrong.

use std::{
    ffi::OsStr,
    fs,
    net::{IpAddr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde_json::Value;
use weft::lab::{
    Container,
    router::Router,
    traffic::{Echo, tcp_echo, udp_echo},
    wait_until,
};

use crate::{
    Case, ROUTER,
    mesh::{self, Mesh, MeshConfig, Must as _, PATIENCE, router_config},
};

pub(crate) const CASES: &[Case] = &[
    ("wrong_usage_names_what_and_where_and_exits_with_2", 30, wrong_usage),
    ("wrong_commands_are_refused_and_nothing_stops", 60, wrong_commands),
    ("attach_detach_expose_hide_and_ps_tell_the_same_story", 60, life_of_a_container),
    ("status_has_the_fields_of_the_contract", 60, status_fields),
    ("connect_and_forget_change_whom_is_dialled", 60, connect_and_forget),
    ("reload_changes_what_can_change_and_refuses_the_rest_by_name", 60, reload),
    ("the_demo_runs_through_in_thirty_seconds", 60, demo),
    ("the_demo_runs_through_without_root", 60, demo_without_root),
];

fn weft<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Output {
    let exe = std::env::current_exe().must("find this binary");
    Command::new(exe).env(ROUTER, "1").args(args).output().must("run")
}

fn said(output: &Output) -> String {
    let text = [&output.stderr[..], &output.stdout].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

fn wrong_usage() {
    for (args, words) in [
        (&["up", "--range", "10.32.0.0/33"][..], &["--range", "10.32.0.0/33"][..]),
        (&["up", "--range", "10.32.0.0/12", "--range", "10.40.0.0/16"], &["10.40.0.0/16"]),
        (&["up", "--port", "70000"], &["port", "70000"]),
        (&["up", "--mtu", "12"], &["mtu", "12"]),
        (&["up", "--peer", "host:port:x"], &["--peer", "host:port:x"]),
        (&["up", "--bridge", "a-name-that-is-too-long"], &["bridge", "a-name-that-is-too-long"]),
        (&["attach"], &["TARGET"]),
        (&["frobnicate"], &["frobnicate"]),
    ] {
        refused(&weft(args), 2, words);
    }
    for args in [["up", "--secret-file", "/nonexistent/file"], ["up", "--config", "/nonexistent/file"]] {
        let output = weft(args);
        assert!(!output.status.success());
        assert!(said(&output).contains("/nonexistent/file"), "{}", said(&output));
    }
    let output = weft(["--socket", "/nonexistent/weft.sock", "status"]);
    refused(&output, 1, &["/nonexistent/weft.sock"]);
}

fn wrong_commands() {
    let mut mesh = Mesh::start(&MeshConfig::star(2));
    let target = mesh.containers[0].target();
    let target = target.to_str().must("a path in UTF-8");
    for (args, words) in [
        (&["attach", "/nonexistent/ns"][..], &["/nonexistent/ns"][..]),
        (&["attach", "/proc/self/status"], &["/proc/self/status"]),
        (&["attach", "/proc/self/ns/net"], &["/proc/self/ns/net", "expose"]),
        (&["attach", "4294967295"], &["4294967295"]),
        (&["attach", target, "192.0.2.7"], &["192.0.2.7"]),
        (&["attach", target, "nonsense"], &["nonsense"]),
        (&["detach", "/nonexistent/ns"], &["/nonexistent/ns"]),
        (&["expose", "not-an-address"], &["not-an-address"]),
        (&["connect", "host:with:colons"], &["host:with:colons"]),
    ] {
        let output = mesh.routers[0].cli(args).must("run");
        let code = output.status.code().must("an exit code");
        assert!(code == 1 || code == 2, "{args:?}: {code}: {}", said(&output));
        refused(&output, code, words);
    }
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
    assert!(mesh.routers[0].exited().must("ask").is_none());
}

fn json(router: &Router, command: &str) -> Value {
    let text = router.command([command, "-o", "json"]).must(command);
    serde_json::from_str(&text).must(&text)
}

fn life_of_a_container() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    let router = &mesh.routers[0];
    let container = Container::new("mortal").must("make");
    let addresses = router.attach(&container).must("attach");
    assert_eq!(router.attach(&container).must("attach twice"), addresses, "idempotent");
    let listed = |address: &IpNet| {
        let all = json(router, "ps");
        let list = all.as_array().must("a list").clone();
        list.iter().any(|entry| {
            let texts = entry["addresses"].as_array().into_iter().flatten();
            texts.filter_map(Value::as_str).any(|text| text == address.to_string())
        })
    };
    assert!(addresses.iter().all(listed), "{}", json(router, "ps"));
    let target = container.target();
    router.command([OsStr::new("detach"), target.as_os_str()]).must("detach");
    assert!(!addresses.iter().any(listed));
    assert!(container.link("weft0").must("look").is_none());
    // By process id it is the same.
    let mut sleeper = container.run(|| Command::new("sleep").arg("60").spawn()).must("start a process");
    let pid = sleeper.id().to_string();
    let attached = router.command(["attach", &pid]).must("attach by pid");
    let by_pid: Vec<IpNet> = attached.lines().map(|line| line.trim().parse().must(line)).collect();
    assert!(by_pid.iter().all(listed) && by_pid.len() == 2, "{attached}");
    assert_eq!(router.attach(&container).must("attach by path"), by_pid, "one namespace, one attachment");
    udp_echo(&container, mesh.v4(1), b"by pid", Duration::from_secs(3)).must("UDP");
    router.command(["detach", &pid]).must("detach by pid");
    sleeper.kill().must("end the process");
    sleeper.wait().must("its end");
    assert!(container.link("weft0").must("look").is_none());
    // An address of one's own choice, and another container that wants it, too.
    let chosen = OsStr::new("10.33.44.55");
    router.command([OsStr::new("attach"), target.as_os_str(), chosen]).must("attach with");
    let other = Container::new("rival").must("make");
    let rival = mesh.routers[1].cli([OsStr::new("attach"), other.target().as_os_str(), chosen]);
    let rival = rival.must("run");
    assert!(!rival.status.success(), "an address is given once: {}", said(&rival));
    assert!(said(&rival).contains("10.33.44.55"), "{}", said(&rival));
    udp_echo(&container, mesh.v4(1), b"chosen", Duration::from_secs(3)).must("UDP");
    // More of them while it runs, of both families, and one of them back: the others stay.
    let more = ["10.33.44.56", "fd00:77::4456"];
    let with = |command: &str, addresses: &[&str]| {
        let all = [OsStr::new(command), target.as_os_str()].into_iter().chain(addresses.iter().map(OsStr::new));
        router.command(all).must(command)
    };
    with("attach", &more);
    let answers = |to: &str| {
        let to: IpAddr = to.parse().must("an address");
        tcp_echo(&mesh.containers[1], to, b"to one of many", Duration::from_secs(3))
    };
    let _echo = Echo::start(&container).must("start the echo");
    for address in [&more[..], &["10.33.44.55"]].concat() {
        answers(address).must(address);
    }
    with("detach", &["10.33.44.55"]);
    for address in more {
        answers(address).must(address);
    }
    let entry =
        json(router, "ps").as_array().into_iter().flatten().map(|one| one["addresses"].to_string()).collect::<String>();
    assert!(more.iter().all(|address| entry.contains(address)) && !entry.contains("10.33.44.55"), "{entry}");
    // Who gets that one now is somebody else on the link, too.
    router.command([OsStr::new("attach"), other.target().as_os_str(), chosen]).must("attach the rival");
    let mac = |container: &Container| container.link("weft0").must("look").must("an interface").mac;
    assert_ne!(mac(&container), mac(&other));
    let _rivals_echo = Echo::start(&other).must("start the rival's echo");
    for address in [&more[..], &["10.33.44.55"]].concat() {
        answers(address).must(address);
    }
    // The host itself joins.
    let exposed: Vec<IpNet> =
        router.command(["expose"]).must("expose").lines().map(|line| line.trim().parse().must(line)).collect();
    let host: IpAddr = exposed.first().must("an address").addr();
    assert!(!exposed.is_empty());
    let reaches = |from: IpAddr| {
        let reached = mesh.lab.host(0).namespace().run(|| {
            let socket = UdpSocket::bind((from, 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            socket.send_to(b"from the host", (mesh.v4(1), 7))?;
            socket.recv(&mut [0; 64])
        });
        assert_eq!(reached.must("enter").must("an answer"), 13, "from {from}");
    };
    reaches(host);
    // Another one, which stays without the first.
    router.command(["expose", "10.33.44.60"]).must("expose one more");
    router.command(["hide", &host.to_string()]).must("hide the first");
    reaches("10.33.44.60".parse().must("an address"));
    router.command(["hide"]).must("hide");
}

fn status_fields() {
    let mesh = Mesh::start(&MeshConfig::star(2));
    mesh.wait_established(PATIENCE);
    let output = mesh.routers[0].cli(["status", "-o", "json"]).must("run");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let status = mesh.status(0);
    for field in ["version", "network", "verdict", "encryption"] {
        assert!(status[field].is_string(), "{field} in {status}");
    }
    for field in ["id", "name", "instance"] {
        assert!(status["peer"][field].is_string(), "peer.{field} in {status}");
    }
    assert_eq!((&status["ready"], &status["verdict"]), (&true.into(), &"ok".into()), "{status}");
    assert!(status["mtu"].as_u64().must("mtu") >= 1280);
    assert_eq!(status["range"], serde_json::json!(["10.32.0.0/12", "fd00:77::/64"]));
    let peer = mesh.peer(0, "host2").must("the peer");
    for field in ["id", "name", "state", "carrier", "cipher", "endpoint", "since", "reason"] {
        assert!(peer[field].is_string(), "peers[].{field} in {peer}");
    }
    for field in ["mtu", "rtt_us"] {
        assert!(peer[field].is_u64(), "peers[].{field} in {peer}");
    }
    assert!(peer["loss"].is_number() && peer["encrypted"].is_boolean() && peer["via"].is_null());
    let names = ["frames_in", "frames_out", "bytes_in", "bytes_out", "relayed", "replayed", "unsealed"];
    for name in names {
        assert!(status["counters"][name].is_u64(), "counters.{name} in {status}");
    }
    assert!(status["counters"]["dropped"].is_object());
    let before = mesh.counter(0, "frames_in");
    mesh.reaches(0, 1, Duration::from_secs(2));
    assert!(mesh.counter(0, "frames_in") > before);
}

fn connect_and_forget() {
    let mut config = MeshConfig::star(2);
    config.args = vec!["--no-discovery".into()];
    let mesh = Mesh::start(&config);
    mesh.wait_established(PATIENCE);
    let first = mesh.lab.host(0).v4().to_string();
    mesh.routers[1].command(["forget", &first]).must("forget");
    let gone = |peer: &Value| peer["state"] != "established";
    let parted = wait_until(PATIENCE, || mesh.peer(1, "host1").is_none_or(|p| gone(&p)));
    assert!(parted, "{}", mesh.status(1));
    mesh.routers[1].command(["connect", &first]).must("connect");
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1], Duration::from_secs(2));
}

/// A mesh of two; the second router has a configuration file with these lines.
fn configured(lines: &str) -> (Mesh, PathBuf) {
    let mut config = MeshConfig::star(2);
    let mut mesh = Mesh::start(&config);
    let file = mesh.lab.dir().join("weft.toml");
    fs::write(&file, lines).must("write");
    config.told.clear();
    let args =
        router_config(&mesh.lab, &config, 1, config.secret).with([OsStr::new("--config"), file.as_os_str()]).args;
    mesh.routers[1].set_args(args);
    mesh.routers[1].end();
    mesh.routers[1].restart().must("start with the file");
    mesh.wait_established(PATIENCE);
    (mesh, file)
}

fn targets(mesh: &Mesh, router: usize) -> Vec<String> {
    let status = mesh.status(router);
    let list = status["targets"].as_array().must("targets").iter();
    list.map(|target| target["target"].as_str().must("text").to_owned()).collect()
}

fn reload() {
    let first = r#"peer = ["10.99.0.1"]"#;
    let (mesh, file) = configured(first);
    let router = &mesh.routers[1];
    let scrape = || {
        let connect = || std::net::TcpStream::connect("10.99.0.2:9100");
        mesh.lab.host(1).namespace().run(connect).must("enter").is_ok()
    };
    assert_eq!((targets(&mesh, 1), scrape()), (vec!["10.99.0.1".to_owned()], false));
    let before = mesh.status(1);
    let streams = mesh.streams(&[(0, 1)]);

    // Nothing but the file of the secret there, and that is the same.
    let output = mesh.routers[0].cli(["reload"]).must("run");
    assert_eq!((output.status.code(), said(&output).trim()), (Some(0), "nothing has changed"));
    let output = router.cli(["reload"]).must("run");
    assert_eq!((output.status.code(), said(&output).trim()), (Some(0), "nothing has changed"));

    // One mistake, and nothing is changed.
    fs::write(&file, "peer = []\nlog-level = \"loud\"\nprot = 7\n").must("write");
    refused(&router.cli(["reload"]).must("run"), 1, &["nothing was changed", "`prot`", "weft.toml"]);
    fs::write(&file, "peer = []\nlog-level = \"loud\"\n").must("write");
    refused(&router.cli(["reload"]).must("run"), 1, &["nothing was changed", "log-level", "loud"]);
    fs::remove_file(&file).must("remove");
    refused(&router.cli(["reload"]).must("run"), 1, &["nothing was changed", "weft.toml", "No such file"]);
    assert_eq!(targets(&mesh, 1), ["10.99.0.1"]);

    let second = r#"
        peer = ["10.99.0.1", "nobody.invalid"]
        log-level = "debug"
        metrics = "10.99.0.2:9100"
        advertise = ["10.99.0.2:6783", "192.0.2.7:7000"]
        port = 7000
        mtu = 1300
        detach = true
    "#;
    fs::write(&file, second).must("write");
    let output = router.cli(["reload", "-o", "json"]).must("run");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).must("JSON");
    let keys = |list: &str| {
        let list = answer[list].as_array().must(list).iter();
        list.map(|one| one["key"].as_str().must("a key").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys("changed"), ["peer", "advertise", "metrics", "log-level"], "{answer}");
    assert_eq!(keys("refused"), ["port", "mtu"], "{answer}");
    assert_eq!((&answer["refused"][0]["from"], &answer["refused"][0]["to"]), (&"6783".into(), &"7000".into()));
    refused(&output, 1, &["port stays 6783, not 7000", "mtu stays auto, not 1300", "restart"]);
    assert!(scrape(), "the metrics are served");
    assert_eq!(targets(&mesh, 1), ["10.99.0.1", "nobody.invalid"]);
    let advertised = || mesh.status(1)["endpoints"] == serde_json::json!(["10.99.0.2:6783", "192.0.2.7:7000"]);
    assert!(wait_until(Duration::from_secs(1), advertised), "{}", mesh.status(1));
    assert!(wait_until(PATIENCE, || router.log().contains("DEBUG")), "{}", router.log());

    // An address that cannot be had: the old one stays.
    fs::write(&file, second.replace("10.99.0.2:9100", "10.99.0.9:9100")).must("write");
    refused(&router.cli(["reload"]).must("run"), 1, &["metrics stays 10.99.0.2:9100, not 10.99.0.9:9100"]);
    assert!(scrape(), "they still are");

    // By signal, and back.
    fs::write(&file, first).must("write");
    hang_up(router);
    assert!(wait_until(PATIENCE, || !scrape()), "{}", router.log_tail(2000));
    let same = || mesh.status(1)["endpoints"] == before["endpoints"] && targets(&mesh, 1) == ["10.99.0.1"];
    assert!(wait_until(PATIENCE, same), "{}", mesh.status(1));
    assert_eq!(mesh.status(1)["pid"], before["pid"], "nothing was restarted");
    let reports = mesh::no_gaps(streams);
    assert!(reports.iter().all(|report| report.longest_gap < Duration::from_secs(1)), "{reports:?}");
}

fn hang_up(router: &Router) {
    let pid = router.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.must("a process"), rustix::process::Signal::HUP).must("send the signal");
}

fn demo() {
    let start = Instant::now();
    let output = weft(["demo"]);
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("All well"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

/// A user without rights, in a mount namespace that ends with the program, where all may open the TUN
/// device: so most systems have it.
const AS_NOBODY: &str = "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
    exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";

fn demo_without_root() {
    let mapped = fs::read_to_string("/proc/self/uid_map").must("read");
    if mapped.split_whitespace().nth(2) == Some("1") {
        eprintln!("the harness has no root itself, so every test shows this");
        return;
    }
    let dir = tempfile::tempdir().must("a directory");
    let (program, scratch) = (dir.path().join("weft"), dir.path().join("scratch"));
    // The build's directory may be closed to others.
    fs::copy(std::env::current_exe().must("find this binary"), &program).must("copy this binary");
    fs::create_dir(&scratch).must("make");
    for (path, mode) in [(dir.path(), 0o755), (&program, 0o755), (&scratch, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).must("open to others");
    }
    let run = |args: &[&OsStr]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", AS_NOBODY, "sh"]).args(args);
        command.env(ROUTER, "1").env("TMPDIR", &scratch).current_dir("/").output().must("run")
    };
    let allowed = run(&["unshare".as_ref(), "--user".as_ref(), "true".as_ref()]);
    if !allowed.status.success() {
        eprintln!("not tried: users may not make namespaces here: {}", said(&allowed));
        return;
    }
    let output = run(&[program.as_os_str(), "demo".as_ref(), "--hosts".as_ref(), "2".as_ref()]);
    let text = said(&output);
    assert!(output.status.success() && text.contains("All well"), "{text}");
    let left: Vec<_> = fs::read_dir(&scratch).must("read").flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
