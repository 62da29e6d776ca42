//! What a driver of our own shows where others are late, gone, or send what makes no sense.

use std::{
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use weft::lab::{Container, wait_until};

use crate::{
    driven::{code, keys},
    driver::{Driver, Pod},
    world::{Must as _, PATIENCE, Served, World},
};

/// How long the end of a pod may take: what the plugin waits for a router (kubernetes K4), and as much
/// again as a busy machine may add.
const END_LIMIT: Duration = Duration::from_secs(9);

/// A pod with what its runtime knows of it.
struct Made {
    container: Container,
    pod: Pod,
    result: Value,
}

fn make(driver: &Driver<'_>, id: &str) -> Made {
    let container = Container::new(id).must("make a namespace");
    let pod = Pod { id: id.to_owned(), netns: container.target().display().to_string() };
    let result = driver.add(&pod).must("ADD");
    Made { container, pod, result }
}

/// A pod that ends, by what its runtime still knows of it: its namespace, the result, both or nothing.
fn end(world: &World, made: &Made, way: usize) {
    let version = if way == 3 { "0.3.1" } else { "1.0.0" };
    let driver = world.driver(0, version, keys());
    let netns = if way == 0 || way == 1 { made.pod.netns.clone() } else { String::new() };
    let previous = (way == 0 || way == 2).then_some(&made.result);
    let start = Instant::now();
    driver.del(&Pod { netns, ..made.pod.clone() }, previous).must("DEL");
    assert!(start.elapsed() < END_LIMIT, "DEL took {:?}", start.elapsed());
}

/// Several end at once, each in its own way.
fn end_all(world: &World, pods: &[Made]) {
    thread::scope(|scope| {
        for (way, made) in pods.iter().enumerate() {
            scope.spawn(move || end(world, made, way % 4));
        }
    });
}

/// Nothing of them is left, once the router is there again.
#[track_caller]
fn have_gone(world: &World, pods: &[Made]) {
    for made in pods {
        let link = made.container.link("eth0").must("look inside");
        assert!(link.is_none(), "{}: {link:?}", made.pod.id);
    }
    let of = |owner: &String| pods.iter().any(|made| owner.contains(&format!("/{}/", made.pod.id)));
    let gone = || !world.owners(0).iter().any(of) && !world.attached(0).iter().any(of);
    assert!(wait_until(PATIENCE, gone), "{:?} {:?}", world.owners(0), world.attached(0));
    for made in pods {
        assert!(made.container.link("eth0").must("look inside").is_none(), "{} is back", made.pod.id);
    }
}

pub(crate) fn ends() {
    let mut world = World::start();
    let pods = |world: &World, name: &str| -> Vec<Made> {
        let driver = world.driver(0, "1.0.0", keys());
        (0..4).map(|n| make(&driver, &format!("{name}{n}"))).collect()
    };
    // One that nobody touches.
    let kept = make(&world.driver(0, "1.0.0", keys()), "kept");

    // The router hangs, and goes on later.
    let hung = pods(&world, "hung");
    let router = world.routers[0].pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).must("a router");
    kill_process(router, Signal::STOP).must("stop the router");
    end_all(&world, &hung);
    kill_process(router, Signal::CONT).must("let it go on");
    have_gone(&world, &hung);

    // It is killed, and comes back while they end: a little sooner, a little later.
    for delay in [0, 60, 120, 240] {
        let raced = pods(&world, &format!("raced{delay}-"));
        world.routers[0].kill().must("kill");
        world.routers[0].launch().must("start again");
        thread::sleep(Duration::from_millis(delay));
        end_all(&world, &raced);
        world.answers(0);
        have_gone(&world, &raced);
    }

    // A runtime that has waited for long enough kills its plugin, and says DEL.
    let driver = world.driver(0, "1.0.0", keys());
    let killed: Vec<Made> = [2, 8, 20, 50, 120]
        .map(|delay| {
            let (id, result) = (format!("killed{delay}"), Value::Null);
            let container = Container::new(&id).must("make a namespace");
            let pod = Pod { id, netns: container.target().display().to_string() };
            driver.add_killed_after(&pod, Duration::from_millis(delay));
            driver.del(&pod, None).must("DEL");
            Made { container, pod, result }
        })
        .into();
    have_gone(&world, &killed);

    // Somebody else's interface stays where it is, with a router and without.
    let other = Container::new("other").must("make a namespace");
    ip(&other, &["link", "add", "eth0", "type", "veth", "peer", "name", "far0"]);
    let pod = Pod { id: "other".to_owned(), netns: other.target().display().to_string() };
    code(driver.add(&pod), 101, "eth0");
    driver.del(&pod, None).must("DEL");
    drop(driver);
    world.routers[0].kill().must("kill");
    let mut hasty = keys();
    hasty["waitSeconds"] = json!(1);
    world.driver(0, "1.0.0", hasty).del(&pod, None).must("DEL without a router");
    assert!(other.link("eth0").must("look inside").is_some());
    world.routers[0].restart().must("start again");

    let driver = world.driver(0, "1.0.0", keys());
    driver.check(&kept.pod, Some(&kept.result)).must("CHECK");
    driver.del(&kept.pod, Some(&kept.result)).must("DEL");
    drop(driver);
    world.end();
}

fn ip(container: &Container, args: &[&str]) {
    let run = || std::process::Command::new("ip").args(args).env("PATH", crate::busybox::PATH).output();
    let output = container.run(run).must("run ip");
    assert!(output.status.success(), "ip {args:?}: {output:?}");
}

pub(crate) fn bad_input() {
    let world = World::start();
    let driver = |keys: Value| world.driver(0, "1.1.0", keys);
    let pod = Served::new("pod");

    // A key that nobody reads; it keeps nothing from going.
    let with = |key: &str, value: Value| {
        let mut keys = keys();
        keys[key] = value;
        driver(keys)
    };
    let unknown = with("isDefaultGatway", json!(true));
    code(unknown.add(&pod.pod), 2, "isDefaultGatway");
    code(unknown.status(), 2, "isDefaultGatway");
    let result = driver(keys()).add(&pod.pod).must("ADD");
    code(unknown.check(&pod.pod, Some(&result)), 2, "isDefaultGatway");
    unknown.gc(&[&pod.pod]).must("GC");
    unknown.del(&pod.pod, Some(&result)).must("DEL");
    world.nothing_is_left();
    code(with("ipMasq", json!("yes")).add(&pod.pod), 7, "ipMasq");
    with("example.org/colour", json!("red")).add(&pod.pod).must("a key of somebody's");
    driver(keys()).del(&pod.pod, None).must("DEL");

    // An address that cannot be, by each way to ask for one.
    let ips = |ip: &str| with("capabilities", json!({"ips": true})).capable(json!({"ips": [ip]}));
    for ip in ["192.0.2.1", "fd00:99::1", "10.47.255.255"] {
        code(ips(ip).add(&pod.pod), 7, ip);
        code(with("args", json!({"cni": {"ips": [ip]}})).add(&pod.pod), 7, ip);
        code(driver(keys()).args(&format!("IP={ip}")).add(&pod.pod), 4, ip);
    }
    world.nothing_is_left();

    // Input that is cut off, and input that is none.
    let whole = driver(keys()).input();
    for cut in (0..whole.len()).step_by(whole.len() / 8) {
        for command in ["ADD", "DEL", "CHECK"] {
            code(driver(keys()).with_input(command, &pod.pod, &whole[..cut]), 6, "JSON");
        }
    }
    code(driver(keys()).with_input("ADD", &pod.pod, &[0xff; 100]), 6, "JSON");
    world.nothing_is_left();

    // Namespaces that vanish: before, after, and at the very moment.
    let gone = Served::new("gone");
    let pod = gone.pod.clone();
    let result = driver(keys()).add(&pod).must("ADD");
    drop(gone);
    code(driver(keys()).check(&pod, Some(&result)), 3, &pod.netns);
    code(driver(keys()).add(&pod), 3, &pod.netns);
    driver(keys()).del(&pod, Some(&result)).must("DEL");
    for delay in [0, 3, 6, 10, 15, 25] {
        let container = Container::new(&format!("vanishing{delay}")).must("make a namespace");
        let pod = Pod { id: container.label().to_owned(), netns: container.target().display().to_string() };
        let driver = driver(keys());
        let added = thread::scope(|scope| {
            let add = scope.spawn(|| driver.add(&pod));
            thread::sleep(Duration::from_millis(delay));
            drop(container);
            add.join().expect("no panic")
        });
        if let Err(refusal) = added {
            assert!([3, 4, 100, 103].contains(&refusal.code), "{refusal}");
        }
        driver.del(&pod, None).must("DEL");
    }
    // Nor does any of it trouble the router or what it keeps.
    let status = world.json(0, &["status"]);
    assert_eq!(status["verdict"], "ok", "{status}");
    world.end();
}
