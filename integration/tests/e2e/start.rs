//! Routers that cannot start say all that is in the way and what to do, and leave the host as it was.

use std::{
    ffi::OsString,
    fs, io,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::Command,
    thread,
};

use ipnet::IpNet;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{CapabilitySet, UnshareFlags, remove_capability_from_bounding_set},
};
use serde_json::Value;
use weft::{
    config::KEYS,
    lab::{
        Host, Lab, LabConfig,
        router::{Router, RouterConfig, write_secret},
    },
    netlink::{Netlink, Result, VethPeer},
};

use crate::{
    Case, ROUTER,
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, SECRET, new_lab, router_config},
};

pub(crate) const CASES: &[Case] = &[
    ("what_is_in_the_way_is_said_with_what_to_do_and_the_host_stays_as_it_was", 90, in_the_way),
    ("a_driver_and_a_right_that_are_missing_are_named_at_once", 30, nothing_to_work_with),
    ("a_default_range_in_use_is_refused_and_a_given_one_is_warned_about", 30, ranges_in_use),
    ("every_wrong_value_is_named_at_once_by_flag_variable_and_file", 30, wrong_values),
    ("logs_are_json_if_asked_for_and_hold_no_secret", 60, logs),
];

fn on_host(host: &Host, work: impl AsyncFnOnce(Netlink) -> Result<()> + Send) {
    Netlink::block_on_in(host.namespace(), work).must("change the host");
}

fn interfaces(host: &Host) -> Vec<String> {
    let links = Netlink::block_on_in(host.namespace(), async |netlink: Netlink| netlink.links().await);
    links.must("list").into_iter().map(|link| link.name).collect()
}

/// What a router that shall not start says.
#[track_caller]
fn refusal(lab: &Lab, config: RouterConfig) -> String {
    let host = lab.host(0);
    let before = interfaces(host);
    let error = Router::start(lab, host, config).map(drop).expect_err("it must not start").to_string();
    // Each start has the end of the log of the earlier ones before its own.
    let said = error.rsplit_once("--- next ---").map_or(error.as_str(), |(_, said)| said).to_owned();
    assert!(error.contains("ended with exit status: 1") && !error.contains("panicked"), "{error}");
    assert_eq!(interfaces(host), before, "nothing is made and nothing removed: {said}");
    let log = lab.dir().join("host1/log");
    fs::write(&log, "--- next ---\n").must("mark the log");
    said
}

fn arguments(args: &[&str]) -> Vec<OsString> {
    args.iter().map(OsString::from).collect()
}

fn in_the_way() {
    let config = MeshConfig::star(1);
    let lab = new_lab(&config);
    let host = lab.host(0);
    let with = |args: &[&str]| router_config(&lab, &config, 0, config.secret).with(arguments(args));
    let open = |args: &[&str]| router_config(&lab, &config, 0, None).with(arguments(args));
    let check = |config: RouterConfig, words: &[&str]| {
        let said = refusal(&lab, config);
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    };

    // Ports and addresses.
    let taken = host.namespace().run(|| UdpSocket::bind("[::]:6783")).must("enter").must("bind");
    check(with(&[]), &["6783", "in use", "--port"]);
    drop(taken);
    let taken = host.namespace().run(|| TcpListener::bind("10.99.0.1:9100")).must("enter").must("bind");
    check(with(&["--metrics", "10.99.0.1:9100"]), &["--metrics 10.99.0.1:9100", "choose another"]);
    drop(taken);
    check(with(&["--metrics", "192.0.2.1:9100"]), &["--metrics 192.0.2.1:9100", "choose another"]);
    check(with(&["--listen", "192.0.2.1"]), &["192.0.2.1", "not one of this machine's", "--listen"]);

    // Interfaces of others.
    on_host(host, async |netlink| {
        let peer = VethPeer { name: "far", mac: [2, 1, 1, 1, 1, 1], namespace: None };
        netlink.add_veth("weft", 1500, &peer).await.map(drop)
    });
    check(with(&[]), &["weft", "veth", "--bridge"]);
    on_host(host, async |netlink| netlink.delete_link("weft").await.map(drop));
    on_host(host, async |netlink| netlink.ensure_bridge("weft", 1500, [2, 0xaa, 0, 0, 0, 1]).await.map(drop));
    check(with(&[]), &["weft", "--bridge"]);
    check(with(&["--bridge", "eth0"]), &["eth0", "--bridge"]);
    on_host(host, async |netlink| netlink.delete_link("weft").await.map(drop));

    // Files.
    let file = |name: &str, text: &str| -> PathBuf {
        let path = lab.dir().join(name);
        fs::write(&path, text).must("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).must("close");
        path
    };
    for (name, text, word) in [("empty", "", "empty"), ("two", "one\ntwo\n", "line"), ("nowhere", "", "No such file")] {
        let path = if name == "nowhere" { lab.dir().join(name) } else { file(name, text) };
        let path = path.to_str().must("UTF-8");
        check(open(&["--secret-file", path]), &[path, word]);
    }
    let (data, socket) = (lab.dir().join("host1/data"), lab.dir().join("host1/weft.sock"));
    fs::remove_dir_all(&data).must("remove the directory");
    for (path, word) in [(&data, "--data-dir"), (&socket, "--socket")] {
        fs::write(path, "somebody else's").must("write");
        check(with(&[]), &[path.to_str().must("UTF-8"), word]);
        assert_eq!(fs::read_to_string(path).must("read"), "somebody else's");
        fs::remove_file(path).must("remove the file");
    }

    // Encryption that was asked for and would not be.
    check(open(&["--cipher", "aes-256-gcm"]), &["aes-256-gcm", "no secret", "--secret-file"]);
    drop(Router::start(&lab, host, with(&[])).must("with a secret it starts"));
    on_host(host, async |netlink| {
        netlink.delete_link("weft").await?;
        netlink.delete_link("weft-tap").await.map(drop)
    });
    check(open(&[]), &["had a network secret", "--secret-file", "--data-dir"]);

    // Two routers, one directory and one socket.
    let mut first = Router::start(&lab, host, with(&[])).must("start");
    let before = first.status().must("status");
    let mut second = Router::prepare(&lab, lab.host(0), with(&["--port", "7000"])).must("prepare");
    second.launch().must("launch");
    let ended = second.wait_for_exit(PATIENCE).must("it ends");
    let said = second.log();
    assert_eq!(ended.code(), Some(1), "{said}");
    for word in ["a router is running at", "--socket", "data directory", "--data-dir"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert!(first.exited().must("ask").is_none(), "the first one runs on");
    assert_eq!(first.status().must("status")["pid"], before["pid"]);
}

/// Runs with neither `/dev/net/tun` nor the right to make interfaces, for all that is started.
#[expect(deprecated, reason = "its successor is unsafe for flags that are not used here")]
fn without_tun_and_rights<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let deprive = || -> io::Result<()> {
        rustix::thread::unshare(UnshareFlags::NEWNS)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("none", "/dev/net", "tmpfs", MountFlags::empty(), None)?;
        Ok(remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN)?)
    };
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            deprive().must("take driver and right away");
            work()
        });
        worker.join().expect("no panic")
    })
}

fn nothing_to_work_with() {
    let config = MeshConfig::star(1);
    let lab = new_lab(&config);
    let range: IpNet = "10.40.1.1/24".parse().must("a network");
    on_host(lab.host(0), async |netlink| netlink.add_address(&netlink.need_link("eth0").await?, range).await);
    let wanted = RouterConfig { args: Vec::new(), ..router_config(&lab, &config, 0, None) };
    let said = without_tun_and_rights(|| refusal(&lab, wanted));
    for word in ["/dev/net/tun", "modprobe tun", "CAP_NET_ADMIN", "10.32.0.0/12", "10.40.1.0/24", "--range"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

fn ranges_in_use() {
    let config = MeshConfig::star(1);
    let lab = new_lab(&config);
    let used: IpNet = "10.40.1.1/24".parse().must("a network");
    on_host(lab.host(0), async |netlink| netlink.add_address(&netlink.need_link("eth0").await?, used).await);
    let bare = RouterConfig { args: Vec::new(), ..router_config(&lab, &config, 0, None) };
    let said = refusal(&lab, bare.clone());
    for word in ["10.32.0.0/12", "10.40.1.0/24", "eth0", "--range", "explicitly"] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    let router = Router::start(&lab, lab.host(0), bare.with(["--range", "10.32.0.0/12"])).must("as told");
    let log = router.log();
    let warned = log.lines().any(|line| line.contains("WARN") && line.contains("10.40.1.0/24"));
    assert!(warned, "{log}");
}

/// For each key a value that it cannot take. (A flag without a value cannot have a wrong one.)
const WRONG: &[(&str, &str)] = &[
    ("name", "a b"),
    ("network", "a/b"),
    ("peer", "host:0"),
    ("listen", "224.0.0.1"),
    ("port", "70000"),
    ("advertise", "127.0.0.1"),
    ("range", "10.32.0.1/12"),
    ("ipalloc-init", "quorum=3"),
    ("dead-after", "9s"),
    ("secret-file", ""),
    ("data-dir", ""),
    ("socket", ""),
    ("metrics", "6782"),
    ("docker-socket", ""),
    ("bridge", "a-name-that-is-too-long"),
    ("mtu", "12"),
    ("cipher", "rot13"),
    ("busy-poll", "1 ms"),
    ("no-discovery", "maybe"),
    ("no-fast-path", "maybe"),
    ("trusted-subnet", "10.0.0.1/8"),
    ("dns-listen", "0.0.0.0:53"),
    ("dns-domain", "weft local"),
    ("dns-resolv-conf", ""),
    ("detach", "maybe"),
    ("log-level", "loud"),
    ("log-format", "xml"),
];

fn wrong_values() {
    assert_eq!(
        WRONG.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
        KEYS.iter().map(|key| key.name).collect::<Vec<_>>()
    );
    let switches = ["no-discovery", "no-fast-path", "detach"];
    let up = || {
        let mut command = Command::new(std::env::current_exe().must("find this binary"));
        command.env(ROUTER, "1").arg("up");
        command
    };
    let dir = Lab::new(&LabConfig::hosts(1)).must("a directory");
    let file = dir.dir().join("weft.toml");
    let lines = WRONG.iter().map(|(key, value)| format!("{key} = \"{value}\"\n")).collect::<String>();
    fs::write(&file, lines).must("write");

    let mut by_flag = up();
    for (key, value) in WRONG.iter().filter(|(key, _)| !switches.contains(key)) {
        by_flag.arg(format!("--{key}={value}"));
    }
    let mut by_variable = up();
    by_variable.envs(WRONG.iter().map(|(key, value)| (variable(key), *value)));
    let mut by_file = up();
    by_file.arg("--config").arg(&file);
    // An empty variable counts as unset.
    type Named = fn(&str, &str) -> Option<String>;
    let ways: [(Command, Named); 3] = [
        (by_flag, |key, value| {
            (!["no-discovery", "no-fast-path", "detach"].contains(&key)).then(|| format!("--{key} {value}"))
        }),
        (by_variable, |key, value| (!value.is_empty()).then(|| format!("{}={value}", variable(key)))),
        (by_file, |key, value| Some(format!("`{key}` = {value} in "))),
    ];
    for (mut command, named) in ways {
        let output = command.output().must("run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        for (key, value) in WRONG {
            let Some(named) = named(key, value) else { continue };
            let line = said.lines().find(|line| line.contains(&named));
            // What is wrong and what to do stand behind it.
            let why = line.and_then(|line| line.split_once(&named)).map(|(_, why)| why.trim_start_matches(':').trim());
            assert!(why.is_some_and(|why| why.len() > 10), "{named:?} has no line of its own in: {said}");
        }
    }
    for switch in switches {
        let output = up().arg(format!("--{switch}=maybe")).output().must("run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(&format!("--{switch}")), "{said}");
    }
}

fn variable(key: &str) -> String {
    format!("WEFT_{}", key.to_uppercase().replace('-', "_"))
}

fn logs() {
    let mut config = MeshConfig::star(2);
    config.args = arguments(&["--log-format", "json", "--log-level", "trace"]);
    let mut mesh = Mesh::start(&config);
    mesh.wait_established(PATIENCE);
    mesh.all_reach(&[0, 1], PATIENCE);
    // And where something is refused, taken anew and told.
    write_secret(&mesh.lab.dir().join("secret-1"), "a secret of its own 4711").must("write");
    mesh.routers[1].command(["reload"]).must("reload");
    for command in ["status", "peers", "ps", "ipam", "events"] {
        let output = mesh.routers[1].cli([command, "-o", "json"]).must("run");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.is_empty() && !text.contains(SECRET) && !text.contains("4711"), "{text}");
    }
    assert!(mesh.routers[1].end());
    for router in &mesh.routers {
        let log = router.log();
        assert!(!log.contains(SECRET) && !log.contains("a secret of its own 4711"));
        let mut levels = Vec::new();
        for line in log.lines() {
            let event: Value = serde_json::from_str(line).must(&format!("one object a line, not {line:?}"));
            // What libraries say at this level need not be a sentence.
            let ours = event["target"].as_str().must("a target").starts_with("weft");
            for field in ["timestamp", "level", "message"].iter().take(if ours { 3 } else { 2 }) {
                assert!(event[field].is_string(), "{field} in {line}");
            }
            levels.push(event["level"].as_str().must("text").to_owned());
        }
        for level in ["INFO", "DEBUG"] {
            assert!(levels.iter().any(|found| found == level), "{level} in {log:.2000}");
        }
    }
}
