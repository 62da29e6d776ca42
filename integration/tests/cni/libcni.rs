//! libcni, the library by which container runtimes run plugins, in a program of our own: `libcni/main.go`, which
//! `scripts/setup` builds. The library reads the list of plugins, gives each what it can use, and remembers the
//! result.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};
use weft::lab::Host;

use crate::{
    PLUGINS,
    busybox::PATH,
    driven::{echo, form, inside},
    driver::Pod,
    runtimes::conflist,
    world::{Must as _, PATIENCE, Served, World, addresses, both_families},
};

const HOST_PORT: u16 = 8080;
/// Where a pod's echo is.
const ECHO: u16 = 7;

/// Where `scripts/setup` puts the program.
pub(crate) fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/libcni-driver")
}

/// A host's runtime.
struct Library<'a> {
    host: &'a Host,
    dir: PathBuf,
    path: String,
}

impl<'a> Library<'a> {
    /// With the network of the example, and the same without `portmap`, in one version.
    fn new(world: &'a World, host: usize, version: &str) -> Self {
        let dir = world.lab.dir().join(format!("libcni{host}-{version}"));
        let mut list = conflist(world, host);
        list["cniVersion"] = json!(version);
        for lists in ["net.d", "alone.d"] {
            fs::create_dir_all(dir.join(lists)).must("make a directory");
            fs::write(dir.join(lists).join("10-weft.conflist"), list.to_string()).must("write the list");
            list["plugins"].as_array_mut().must("plugins").truncate(1);
        }
        Self { host: world.lab.host(host), dir, path: format!("{}:{PLUGINS}", world.bin.display()) }
    }

    /// Runs a command for a container that may have ports of its host.
    fn run(&self, lists: &str, command: &str, pod: &Pod, ports: &Value) -> io::Result<Value> {
        let mut process = Command::new(program());
        process.arg(command).arg(self.dir.join(lists)).args(["weft", &pod.id, &pod.netns]);
        process.env("PATH", PATH).env("CNI_PATH", &self.path).env("CNI_CACHE", self.dir.join("cache"));
        process.env("CAP_ARGS", json!({"portMappings": ports}).to_string());
        let output = self.host.namespace().run(|| process.output()).map_err(io::Error::other)??;
        answer(&output).map_err(|error| io::Error::other(format!("{command} of {}: {error}", pod.id)))
    }

    /// What the library remembers.
    fn remembered(&self) -> usize {
        fs::read_dir(self.dir.join("cache/results")).into_iter().flatten().count()
    }
}

/// What the program printed, or why it failed: the plugin's error object, and what the library says of it.
fn answer(output: &Output) -> Result<Value, String> {
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap_or_default());
    }
    let [object, said] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    Err(format!("{}: {}", said.trim(), object.trim()))
}

pub(crate) fn every_version() {
    let world = World::start();
    for version in ["0.3.1", "0.4.0", "1.0.0"] {
        one_version(&world, version);
        world.nothing_is_left();
    }
    world.end();
}

fn one_version(world: &World, version: &str) {
    let [here, there] = [0, 1].map(|host| Library::new(world, host, version));
    let [one, two] = ["one", "two"].map(|name| Served::new(&format!("{name}-{version}")));
    let (ports, none) = (json!([{"hostPort": HOST_PORT, "containerPort": ECHO, "protocol": "tcp"}]), json!([]));
    let first = here.run("net.d", "ADD", &one.pod, &ports).must("ADD");
    let second = there.run("net.d", "ADD", &two.pod, &none).must("ADD");
    for (result, pod) in [(&first, &one.pod), (&second, &two.pod)] {
        assert_eq!(result["cniVersion"], version);
        both_families(&addresses(result));
        form(result, version, pod);
    }
    one.reaches(&addresses(&second));
    two.reaches(&addresses(&first));
    let at = [IpAddr::from(world.lab.host(0).v4()), world.lab.host(0).v6()].map(|ip| SocketAddr::new(ip, HOST_PORT));
    let knock = |at: &SocketAddr| {
        let connect = || TcpStream::connect_timeout(at, PATIENCE);
        world.lab.host(1).namespace().run(connect).must("enter the host")
    };
    at.iter().for_each(|at| echo(knock(at).must("a port of the host leads to the pod")));

    let again = here.run("net.d", "ADD", &one.pod, &ports).expect_err("the interface is there").to_string();
    assert!(again.contains("\"code\": 101"), "{again}");
    let check = |lists| there.run(lists, "CHECK", &two.pod, &none);
    if version == "0.3.1" {
        // The library knows that this version has no such command.
        let refused = check("net.d").expect_err("no CHECK in 0.3.1").to_string();
        assert!(refused.contains("does not support the CHECK command"), "{refused}");
    } else {
        check("net.d").must("CHECK");
        // (The CHECK of portmap 1.1.1 looks for IPv4 rules among those of IPv6: here it is ours alone.)
        here.run("alone.d", "CHECK", &one.pod, &ports).must("CHECK");
        inside(&two, &["-6", "address", "flush", "dev", "eth0", "scope", "global"]);
        let differs = check("net.d").expect_err("its address is gone").to_string();
        assert!(differs.contains("\"code\": 102"), "{differs}");
    }
    assert_eq!((here.remembered(), there.remembered()), (1, 1));
    for attempt in ["DEL", "DEL once more"] {
        here.run("net.d", "DEL", &one.pod, &ports).must(attempt);
    }
    for at in &at {
        let closed = knock(at).expect_err("the port is closed").kind();
        assert_eq!(closed, io::ErrorKind::ConnectionRefused, "{at}");
    }
    // As containerd sends it when the container has ended.
    there.run("net.d", "DEL", &Pod { netns: String::new(), ..two.pod.clone() }, &none).must("DEL without a namespace");
    assert!(two.container.link("eth0").must("look inside").is_none(), "the interface went with its addresses");
    assert_eq!((here.remembered(), there.remembered()), (0, 0));
}
