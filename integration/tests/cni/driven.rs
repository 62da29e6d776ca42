//! What the driver of our own shows: the commands of the specification, repeated, half done, and with
//! the router gone.

use std::{collections::BTreeSet, net::SocketAddr, thread, time::Duration};

use serde_json::{Value, json};
use weft::lab::{Container, traffic::connect, wait_until};

use crate::{
    driver::{Driver, Pod},
    world::{Must as _, PATIENCE, Served, World, addresses, both_families, text, v4},
};

/// The configuration that `examples/cni/10-weft.conflist` shows, but for names of this test.
pub(crate) fn example() -> Value {
    let text = include_str!("../../../examples/cni/10-weft.conflist");
    serde_json::from_str(text).must("the example is JSON")
}

/// Keys of our plugin in the example.
pub(crate) fn keys() -> Value {
    example()["plugins"][0].clone()
}

#[track_caller]
pub(crate) fn code<T: std::fmt::Debug>(result: Result<T, crate::driver::Refusal>, code: u64, word: &str) {
    let refusal = result.expect_err("a refusal");
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.text.contains(word), "{word:?} is not in {refusal}");
}

pub(crate) fn every_version() {
    let world = World::start();
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        one_version(&world, version);
        world.nothing_is_left();
    }
    world.end();
}

fn one_version(world: &World, version: &str) {
    let [here, there] = [0, 1].map(|host| world.driver(host, version, keys()));
    let [one, two] = ["one", "two"].map(|name| Served::new(&format!("{name}-{version}")));
    let first = here.add(&one.pod).must("ADD");
    let second = there.add(&two.pod).must("ADD");
    assert_eq!(first["cniVersion"], version);
    for (result, pod) in [(&first, &one.pod), (&second, &two.pod)] {
        both_families(&addresses(result));
        form(result, version, pod);
    }
    one.reaches(&addresses(&second));
    two.reaches(&addresses(&first));
    // Everywhere else is behind the host.
    let gateway = text(&first["ips"][0]["gateway"]);
    assert!(first["routes"].as_array().must("routes").contains(&json!({"dst": "0.0.0.0/0", "gw": gateway})), "{first}");

    // A second ADD is refused, whatever the runtime sends with it, and harms nothing.
    code(here.add(&one.pod), 101, "eth0");
    code(here.add_with(&one.pod, Some(&first)), 101, "eth0");
    match version {
        "0.3.1" => code(here.check(&one.pod, Some(&first)), 1, "CHECK"),
        _ => {
            here.check(&one.pod, Some(&first)).must("CHECK");
            code(here.check(&one.pod, None), 7, "prevResult");
            // Somebody takes an address away, sets the interface down, and mends it.
            let address = text(&first["ips"][0]["address"]);
            inside(&one, &["address", "del", &address, "dev", "eth0"]);
            code(here.check(&one.pod, Some(&first)), 102, &address);
            inside(&one, &["address", "add", &address, "dev", "eth0"]);
            code(here.check(&one.pod, Some(&first)), 102, "route");
            inside(&one, &["route", "add", "default", "via", &gateway]);
            inside(&one, &["link", "set", "eth0", "down"]);
            code(here.check(&one.pod, Some(&first)), 102, "eth0");
        }
    }
    let previous = (version != "0.3.1").then_some(&first);
    here.del(&one.pod, previous).must("DEL");
    here.del(&one.pod, previous).must("DEL once more");
    here.del(&Pod { netns: String::new(), ..one.pod.clone() }, None).must("DEL of nobody");
    // As containerd sends it.
    there.del(&Pod { netns: String::new(), ..two.pod.clone() }, None).must("DEL without a namespace");
    assert!(two.container.link("eth0").must("look inside").is_none(), "the interface went with its addresses");
}

/// What chained plugins and runtimes read.
pub(crate) fn form(result: &Value, version: &str, pod: &Pod) {
    let interfaces = result["interfaces"].as_array().must("interfaces");
    assert_eq!(interfaces.len(), 2, "{result}");
    let mac = |one: &Value| text(&one["mac"]).split(':').count() == 6;
    assert!(interfaces.iter().all(mac), "{result}");
    assert_eq!(interfaces[0].get("sandbox"), None);
    assert_eq!((text(&interfaces[1]["sandbox"]), text(&interfaces[1]["name"])), (pod.netns.clone(), "eth0".to_owned()));
    let old = version.starts_with("0.");
    for ip in result["ips"].as_array().must("ips") {
        assert_eq!(ip["interface"], 1, "{ip}");
        assert_eq!(ip.get("version").is_some(), old, "{ip}");
    }
}

pub(crate) fn inside(served: &Served, args: &[&str]) {
    let run = || std::process::Command::new("ip").args(args).env("PATH", crate::busybox::PATH).output();
    let output = served.container.run(run).must("run ip");
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}

pub(crate) fn wishes() {
    let world = World::start();
    let driver = |keys: Value| world.driver(0, "1.0.0", keys);
    let pod = Served::new("wish");
    let made = |driver: &Driver<'_>| {
        let result = driver.add(&pod.pod).must("ADD");
        driver.check(&pod.pod, Some(&result)).must("CHECK");
        let link = pod.container.link("eth0").must("look inside").must("eth0");
        let mac = link.mac.map(weft::control::attach::mac_text);
        assert_eq!(mac.as_deref(), result["interfaces"][1]["mac"].as_str());
        let mtu = link.mtu;
        driver.del(&pod.pod, Some(&result)).must("DEL");
        let texts: Vec<String> = addresses(&result).iter().map(ToString::to_string).collect();
        (texts, mtu, result)
    };
    // Where from, which, how large.
    let (texts, ..) = made(&driver(json!({"subnet": "10.33.7.0/24"})));
    assert_eq!(texts.len(), 1);
    assert!(texts[0].starts_with("10.33.7.") && texts[0].ends_with("/12"), "{texts:?}");
    let (texts, ..) = made(&driver(json!({})).args("IgnoreUnknown=1;IP=10.33.8.9;K8S_POD_NAME=box"));
    assert!(texts.len() == 2 && texts[0] == "10.33.8.9/12", "the other family is given besides: {texts:?}");
    let ips = json!({"ips": ["10.33.8.10/24", "fd00:32::77"]});
    let (texts, ..) = made(&driver(json!({"capabilities": {"ips": true}})).capable(ips));
    assert_eq!(texts, ["10.33.8.10/12", "fd00:32::77/64"]);
    let dns = json!({"nameservers": ["10.32.0.9"], "search": ["example"]});
    let routes = json!([{"dst": "192.0.2.0/24"}, {"dst": "198.51.100.0/24", "gw": "10.33.8.1"}]);
    let ips = json!({"cni": {"ips": ["10.33.8.11"]}});
    let more = json!({"mtu": 1300, "dns": dns, "routes": routes, "args": ips, "subnet": "10.32.0.0/12"});
    let (texts, mtu, result) = made(&driver(more));
    assert_eq!((texts, mtu), (vec!["10.33.8.11/12".to_owned()], 1300));
    assert_eq!(result["dns"], dns);
    assert_eq!(result["routes"], routes);

    // By what hardware address; as the runtime says it, and as podman does.
    let capable = || driver(json!({"capabilities": {"mac": true}}));
    for (driver, mac) in [
        (capable().capable(json!({"mac": "02:42:C0:00:02:07"})), "02:42:c0:00:02:07"),
        (capable().args("IgnoreUnknown=1;MAC=02:42:c0:00:02:08"), "02:42:c0:00:02:08"),
    ] {
        let (.., result) = made(&driver);
        assert_eq!(result["interfaces"][1]["mac"], mac, "{result}");
    }
    code(capable().capable(json!({"mac": "03:42:c0:00:02:07"})).add(&pod.pod), 7, "03:42:c0:00:02:07");

    // What cannot be is refused, and nothing of it stays.
    code(driver(json!({})).args("IP=192.0.2.1").add(&pod.pod), 4, "192.0.2.1");
    code(driver(json!({"subnet": "192.0.2.0/24"})).add(&pod.pod), 7, "192.0.2.0/24");
    code(driver(json!({"mtu": 9000})).add(&pod.pod), 7, "9000");
    code(driver(json!({"ipam": {"type": "host-local"}})).add(&pod.pod), 2, "host-local");
    let routes = json!([{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]);
    code(driver(json!({"routes": routes})).add(&pod.pod), 103, "192.0.2.0/24");
    let gone = Pod { netns: "/run/netns/not-there".to_owned(), ..pod.pod.clone() };
    code(driver(json!({})).add(&gone), 3, "/run/netns/not-there");
    let file = Pod { netns: "/etc/passwd".to_owned(), ..pod.pod.clone() };
    code(driver(json!({})).add(&file), 4, "not a network namespace");
    world.nothing_is_left();

    // As kubelet does where a sandbox cannot be made: ADD and DEL, over and over, with what it has.
    let holder = Served::new("holder");
    let plain = driver(json!({}));
    let held = plain.add(&holder.pod).must("ADD");
    let taken = v4(&addresses(&held)).to_string();
    for _ in 0..5 {
        let again = driver(json!({})).args(&format!("IP={taken}"));
        code(again.add(&pod.pod), 100, &taken);
        again.del(&pod.pod, Some(&held)).must("DEL");
    }
    plain.check(&holder.pod, Some(&held)).must("the other pod is as it was");
    // Only its runtime takes an attachment away.
    let output = world.routers[0].cli(["detach", &holder.pod.netns]).must("run weft");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("cni:weft/holder/eth0"), "{output:?}");
    plain.check(&holder.pod, Some(&held)).must("CHECK");
    plain.del(&holder.pod, Some(&held)).must("DEL");
    world.end();
}

pub(crate) fn status_and_gc() {
    let mut world = World::start();
    let pods: Vec<Served> = ["kept", "old", "gone"].iter().map(|id| Served::new(id)).collect();
    let results: Vec<Value> = {
        let driver = world.driver(0, "1.1.0", keys());
        driver.status().must("STATUS");
        pods.iter().map(|pod| driver.add(&pod.pod).must("ADD")).collect()
    };
    // One whose namespace is gone without a DEL; one that the runtime has forgotten.
    let mut pods = pods.into_iter();
    let (kept, old) = (pods.next().must("one"), pods.next().must("another"));
    drop(pods);
    let another = Served::new("another-network");
    let driver = world.driver(0, "1.1.0", keys());
    let by_hand = world.routers[0].attach(&another.container).must("weft attach");
    driver.gc(&[&kept.pod]).must("GC");
    driver.gc(&[&kept.pod]).must("GC once more");
    assert_eq!(world.owners(0).iter().filter(|owner| owner.starts_with("cni:")).count(), 1, "{:?}", world.owners(0));
    assert!(old.container.link("eth0").must("look inside").is_none());
    driver.check(&kept.pod, Some(&results[0])).must("CHECK");
    assert_eq!(world.routers[0].attach(&another.container).must("attach"), by_hand, "what CNI did not make stays");

    // Without a router: no ADD, and everything can end.
    let left = Served::new("left");
    let last = driver.add(&left.pod).must("ADD");
    drop(driver);
    assert!(world.routers[0].end());
    let mut hasty = keys();
    hasty["waitSeconds"] = json!(1);
    let driver = world.driver(0, "1.1.0", hasty.clone());
    code(driver.status(), 51, "weft.sock");
    code(driver.add(&old.pod), 11, "weft.sock");
    code(driver.check(&kept.pod, Some(&results[0])), 11, "weft.sock");
    code(driver.gc(&[]), 11, "weft.sock");
    driver.del(&kept.pod, Some(&results[0])).must("DEL without a router");
    assert!(kept.container.link("eth0").must("look inside").is_none());
    driver.del(&Pod { netns: String::new(), ..left.pod.clone() }, Some(&last)).must("DEL without anything");
    assert!(left.container.link("eth0").must("look inside").is_none());
    drop(driver);
    world.routers[0].restart().must("start again");
    let freed = wait_until(PATIENCE, || world.owners(0).iter().all(|owner| !owner.starts_with("cni:")));
    assert!(freed, "{:?}", world.owners(0));
    let target = another.container.target();
    world.routers[0].command(["detach".as_ref(), target.as_os_str()]).must("detach");
    world.end();
}

pub(crate) fn hundred_at_once() {
    const PODS: usize = 100;
    let mut world = World::start();

    let containers: Vec<Container> = (0..PODS).map(|n| Container::new(&format!("p{n}")).must("a namespace")).collect();
    let pods: Vec<Pod> = containers
        .iter()
        .map(|one| Pod { id: one.label().to_owned(), netns: one.target().display().to_string() })
        .collect();

    let socket = world.routers[0].socket();
    let mut conf = keys();
    conf["socket"] = json!(socket);
    let bin = world.bin.clone();
    let results: Vec<Value> = {
        let driver = Driver::new(world.lab.host(0), &bin, "1.0.0", &conf);
        thread::scope(|scope| {
            let threads: Vec<_> = pods.iter().map(|pod| scope.spawn(|| driver.add(pod))).collect();
            // In the middle of it the router is killed without a word.
            thread::sleep(Duration::from_millis(400));
            world.routers[0].kill().must("kill");
            world.routers[0].restart().must("start again");
            threads.into_iter().map(|one| one.join().expect("no panic").must("ADD")).collect()
        })
    };
    let distinct: BTreeSet<_> = results.iter().flat_map(addresses).collect();
    assert_eq!(distinct.len(), 2 * PODS, "no address twice");
    assert_eq!(world.attached(0).len(), PODS);
    assert_eq!(world.owners(0).len(), PODS);
    // All of them are whole, and one of them reaches the other host.
    let driver = world.driver(0, "1.0.0", keys());
    thread::scope(|scope| {
        let checks: Vec<_> =
            pods.iter().zip(&results).map(|(pod, result)| scope.spawn(|| driver.check(pod, Some(result)))).collect();
        checks.into_iter().for_each(|one| one.join().expect("no panic").must("CHECK"));
    });
    let far = Served::new("far");
    let there = world.driver(1, "1.0.0", keys());
    let result = there.add(&far.pod).must("ADD");
    let one = weft::lab::traffic::tcp_echo(&containers[PODS - 1], v4(&addresses(&result)), b"hello", PATIENCE);
    one.must("a pod reaches the other host");
    there.del(&far.pod, Some(&result)).must("DEL");
    drop(driver);
    drop(there);
    // And while they end, it is restarted as an upgrade does it.
    {
        let driver = Driver::new(world.lab.host(0), &bin, "1.0.0", &conf);
        thread::scope(|scope| {
            let threads: Vec<_> =
                pods.iter().zip(&results).map(|(pod, result)| scope.spawn(|| driver.del(pod, Some(result)))).collect();
            thread::sleep(Duration::from_millis(200));
            world.routers[0].restart().must("restart");
            threads.into_iter().for_each(|one| one.join().expect("no panic").must("DEL"));
        });
    }
    world.end();
}

pub(crate) fn host_port() {
    let world = World::start();
    let mapping = json!({"portMappings": [{"hostPort": 8080, "containerPort": 7, "protocol": "tcp"}]});
    let chain = example()["plugins"].as_array().must("plugins").clone();
    let limit = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let rate = json!({"ingressRate": 80_000_000, "ingressBurst": 8_000_000, "egressRate": 80_000_000, "egressBurst": 8_000_000});
    let mut capabilities = mapping.clone();
    capabilities["bandwidth"] = rate;
    let driver = world.driver(0, "1.0.0", keys()).then(chain[1].clone()).then(limit).capable(capabilities);
    let before = world.rules(0);
    let pod = Served::new("web");
    let result = driver.add(&pod.pod).must("ADD");
    // (The CHECK of portmap 1.1.1 looks for IPv4 rules among those of IPv6: here it is ours alone.)
    world.driver(0, "1.0.0", keys()).check(&pod.pod, Some(&result)).must("CHECK");
    // From the other host, which knows nothing of the pod's address.
    let at = SocketAddr::from((world.lab.host(0).v4(), 8080));
    let namespace = world.lab.host(1).namespace();
    let there = || namespace.run(|| std::net::TcpStream::connect_timeout(&at, PATIENCE)).must("enter the host");
    echo(there().must("a port of the host leads to the pod"));
    // And from the pod itself: to the host's port, and back by the same way.
    echo(connect(&pod.container, at, PATIENCE).must("the pod reaches itself by the host's port"));
    driver.del(&pod.pod, Some(&result)).must("DEL");
    driver.del(&pod.pod, Some(&result)).must("DEL once more");
    assert!(there().is_err(), "the port is closed");
    let after = world.rules(0);
    let new: Vec<&str> = after.lines().filter(|line| !before.contains(line) && line.contains("8080")).collect();
    assert!(new.is_empty(), "{new:?}");
    world.end();
}

/// The pod's echo answers.
pub(crate) fn echo(mut stream: std::net::TcpStream) {
    use std::io::{Read as _, Write as _};
    stream.set_read_timeout(Some(PATIENCE)).must("a time-out");
    stream.write_all(b"hello pod").must("send");
    let mut answer = [0; 9];
    stream.read_exact(&mut answer).must("an answer");
    assert_eq!(&answer, b"hello pod");
}
