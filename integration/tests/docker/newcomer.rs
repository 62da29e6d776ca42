//! What docs/docker.md tells a newcomer, and the example for compose, done to the end with real engines: the
//! very commands, on images of the test's own that bear the names of those that would be pulled.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
};

use weft::lab::wait_until;

use crate::{
    Must as _, PATIENCE, RESOLVERS, World,
    busybox::{PATH, make_root},
    on_two_hosts,
};

const PAGE: &str = include_str!("../../../docs/docker.md");
/// What the server of the examples serves.
const SERVED: &str = "served by a container of host A\n";
/// Where the container of host A is in the page's example.
const SHOWN: &str = "10.32.0.1";

pub(crate) fn what_the_page_tells_a_newcomer_works_to_the_end() {
    on_two_hosts(|world| {
        world.wait_until_established();
        images(&world);
        first_containers(&world);
        compose(&world);
    });
}

/// The images that the page and the example name.
fn images(world: &World) {
    let root = world.lab.dir().join("newcomer");
    make_root(&root, &["sh", "httpd", "wget", "ping"], "index.html", SERVED.as_ref()).must("make a root");
    for engine in &world.engines {
        engine.import(&root, "alpine", &[]).must("import");
        let serves = ["CMD [\"httpd\", \"-f\", \"-p\", \"80\", \"-h\", \"/srv\"]", "EXPOSE 80"];
        engine.import(&root, "nginx:alpine", &serves).must("import");
    }
}

/// The commands of a section of the page, as `A` or `B` types them, each with what it prints there.
fn commands(section: &str) -> Vec<(usize, &'static str, Vec<&'static str>)> {
    let (_, rest) = PAGE.split_once(&format!("\n## {section}\n")).must(section);
    let (text, _) = rest.split_once("\n## ").unwrap_or((rest, ""));
    let mut all: Vec<(usize, &str, Vec<&str>)> = Vec::new();
    let mut open = false;
    for line in text.lines().map(str::trim) {
        match (line.strip_prefix("A$ "), line.strip_prefix("B$ ")) {
            (Some(command), _) => all.push((0, command, Vec::new())),
            (_, Some(command)) => all.push((1, command, Vec::new())),
            _ if line == "```" => open = !open,
            _ if open => all.last_mut().must(line).2.push(line),
            _ => {}
        }
    }
    all
}

/// Types a command on a host, whose programs find the engine and the router of that host.
#[track_caller]
fn types(world: &World, host: usize, command: &str) -> String {
    let mut shell = Command::new("timeout");
    shell.args(["60", "sh", "-c", command]).env("PATH", PATH).env("DOCKER_HOST", world.engines[host].host());
    let output = shell.stdin(Stdio::null()).output().must("run a shell");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// From nothing to two containers that talk. The routers are there: how they are started is what `World` does.
fn first_containers(world: &World) {
    let all = commands("From nothing to two containers that talk");
    let starts = |(_, command, _): &&(usize, &str, Vec<&str>)| command.starts_with("weft up ");
    let routers: Vec<_> = all.iter().filter(starts).collect();
    assert_eq!(routers.len(), 2);
    for (_, command, _) in routers {
        assert!(command.contains("--secret-file") && command.contains("--docker-socket"), "{command}");
    }
    let mut address = SHOWN.to_owned();
    let mut last = String::new();
    let typed: Vec<_> = all.iter().filter(|(_, command, _)| command.starts_with("docker ")).collect();
    assert!(typed.len() >= 5, "{all:?}");
    for (host, command, prints) in typed {
        last = types(world, *host, &command.replace(SHOWN, &address));
        if !prints.is_empty() {
            assert_eq!(prints, &[SHOWN], "{command}");
            address = last.trim().parse::<IpAddr>().must(command).to_string();
        }
    }
    assert_eq!(last, SERVED, "the container of host A");
    types(world, 0, "docker rm -f web");
    for host in [0, 1] {
        types(world, host, "docker network rm mesh");
        assert!(wait_until(PATIENCE, || world.empty(host)), "{}", world.json(host, "ipam"));
    }
}

/// The example as its head tells, with compose as Debian has it.
fn compose(world: &World) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/compose.yaml");
    let text = fs::read_to_string(&file).must("the example");
    let create = text.lines().find_map(|line| line.strip_prefix("#   docker network create")).must("its first command");
    for (host, resolver) in RESOLVERS.into_iter().enumerate() {
        types(world, host, &format!("docker network create {create}"));
        world.routers[host].command(["expose", resolver]).must("expose");
    }
    let compose = format!("docker-compose --ansi never -p newcomer -f {}", file.display());
    types(world, 0, &format!("{compose} up -d web"));
    let fetched = || types(world, 1, &format!("RESOLVER={} {compose} run -T --rm client", RESOLVERS[1]));
    assert_eq!(fetched(), SERVED);
    // On its host it is found by Docker's own resolver, and its port is published.
    assert_eq!(types(world, 0, &format!("{compose} run -T --rm client")), SERVED);
    let url = format!("http://{}:8080/", world.lab.host(0).v4());
    let fetch = || Command::new("busybox").args(["wget", "-q", "-O", "-", &url]).env("PATH", PATH).output();
    let page = world.lab.host(1).namespace().run(fetch).must("enter the host").must("run busybox");
    assert_eq!(String::from_utf8_lossy(&page.stdout), SERVED, "{page:?}");
    // The page's own way to ask a router; `ping` alone goes on for ever.
    let ping = commands("Names").into_iter().find(|(_, command, _)| command.ends_with(" ping web")).must("the ping").1;
    types(world, 0, &ping.replace(" ping web", " ping -c 1 web"));
    for host in [0, 1] {
        types(world, host, &format!("{compose} down"));
        world.routers[host].command(["hide"]).must("hide");
        types(world, host, "docker network rm mesh");
        assert!(wait_until(PATIENCE, || world.empty(host)), "{} {:?}", world.json(host, "ipam"), world.ports(host));
        world.clean(host);
    }
    world.named("web", &[]);
}
