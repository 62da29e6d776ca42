//! The DaemonSet's pod on two nodes, each a host of the lab with an engine: from the image that the engine itself
//! builds by the [Dockerfile], with the commands, mounts, capabilities and read-only root that the manifest says.
//!
//! ```text
//!   API server of the tests ─ 127.0.0.1:6443 of each host ─► init, kube ─ file ─► weft
//!                                                              └ installs ─► weft-cni ◄─ run by the test, as kubelet's runtime does
//! ```
//!
//! What is not as in a cluster: nothing is compiled in the build, for that would take a registry and many minutes. In
//! the place of the first stage's image is a root with a shell, in which `cargo` lays down this test's own binary
//! and the libraries that it needs.
//!
//! [Dockerfile]: ../../../Dockerfile

use std::{
    fs,
    io::{self, Write as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weft::lab::{Host, Lab, LabConfig, wait_until};

use crate::{
    CONTAINED, KUBE, Must as _, PATIENCE, ROUTER,
    apiserver::{ApiServer, TOKEN},
    busybox::{find, make_root},
    engine::Engine,
    image::copy_libraries,
    start_engines,
};

const DOCKERFILE: &str = include_str!("../../../Dockerfile");
const MANIFEST: &str = include_str!("../../../packaging/kubernetes/weft.yaml");
/// In the place of the compiler: what would be built is here already.
const CARGO: &str = r#"#!/bin/sh
set -e
while [ $# -gt 0 ]; do
  case $1 in
    --target) target=$2; shift ;;
    --bin) bin=$2; shift ;;
  esac
  shift
done
mkdir -p "target/$target/release" /out
cp /built/weft "target/$target/release/$bin"
cp -a /built/libraries/. /out/
"#;
/// What the root of the build needs besides.
const APPLETS: [&str; 5] = ["sh", "uname", "mkdir", "ln", "cp"];
/// Capabilities by their bit (capabilities(7)).
const CAPABILITIES: [(&str, u32); 4] = [("NET_ADMIN", 12), ("NET_RAW", 13), ("SYS_ADMIN", 21), ("SYS_NICE", 23)];
const PAGE: &str = "a page of the other node\n";

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(|one| one.as_str().must("text").to_owned()).collect()
}

fn named<'a>(list: &'a Value, name: &Value) -> &'a Value {
    list.as_array().into_iter().flatten().find(|one| one["name"] == *name).must("an object of that name")
}

/// The manifest's objects of that kind; one each.
fn object(kind: &str) -> Value {
    let all: Vec<Value> = serde_saphyr::from_multiple(MANIFEST).must("the manifest is YAML");
    all.into_iter().find(|one| one["kind"] == kind).must(kind)
}

/// A root for the first stage of the build.
fn toolchain(dir: &Path) -> io::Result<PathBuf> {
    let root = dir.join("toolchain");
    make_root(&root, &APPLETS, "none", b"")?;
    let cargo = root.join("bin/cargo");
    fs::write(&cargo, CARGO)?;
    fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755))?;
    // A busybox may be without it.
    let install = find("install").must("install");
    fs::copy(&install, root.join("bin/install"))?;
    copy_libraries(&install, &root)?;
    let built = root.join("built");
    fs::create_dir_all(built.join("libraries"))?;
    let exe = std::env::current_exe()?;
    // Symbols are most of it, and each layer is a copy.
    let stripped = Command::new("strip").arg("-o").arg(built.join("weft")).arg(&exe).status()?;
    assert!(stripped.success(), "strip: {stripped}");
    copy_libraries(&exe, &built.join("libraries"))?;
    Ok(root)
}

/// A node: a host and its engine, and what kubelet would lay down there.
struct Node<'a> {
    engine: &'a Engine,
    host: &'a Host,
    spec: Value,
    /// Where the folders of the node are that the pod mounts, but for those below `/run` and `/dev`.
    root: PathBuf,
    config: PathBuf,
    secret: PathBuf,
    account: PathBuf,
}

impl<'a> Node<'a> {
    fn new(engine: &'a Engine, host: &'a Host, server: &ApiServer) -> io::Result<Self> {
        let of = |name: &str| engine.dir().join(name);
        let node = Self {
            engine,
            host,
            spec: object("DaemonSet")["spec"]["template"]["spec"].clone(),
            root: of("node"),
            config: of("config"),
            secret: of("secret"),
            account: of("account"),
        };
        for dir in [&node.root, &node.config, &node.secret, &node.account] {
            fs::create_dir_all(dir)?;
        }
        for (name, text) in object("ConfigMap")["data"].as_object().must("data") {
            fs::write(node.config.join(name), text.as_str().must("text"))?;
        }
        let secret = node.secret.join("secret");
        fs::write(&secret, "the same on every host 2718281828")?;
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o400))?;
        for (name, text) in [("token", TOKEN), ("ca.crt", server.certificate()), ("namespace", "kube-system")] {
            fs::write(node.account.join(name), text)?;
        }
        // As systemd leaves it: what is mounted there later comes to be seen in containers.
        node.inside(&["mount", "--make-rshared", "/run"])?;
        Ok(node)
    }

    /// A command where the engine is.
    fn command(&self, command: &[&str]) -> Command {
        let mut enter = self.engine.enter();
        enter.args(command);
        enter
    }

    fn inside(&self, command: &[&str]) -> io::Result<String> {
        let output = self.command(command).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("{}: {command:?}: {}", self.host.name(), said.trim())))
    }

    fn host_path(&self, path: &str) -> String {
        match path.starts_with("/run/") || path.starts_with("/dev/") {
            true => path.to_owned(),
            false => self.root.join(path.trim_start_matches('/')).display().to_string(),
        }
    }

    fn mount(&self, mount: &Value) -> String {
        let volume = named(&self.spec["volumes"], &mount["name"]);
        let source = match (volume["hostPath"]["path"].as_str(), volume.get("configMap"), volume.get("secret")) {
            (Some(path), ..) => self.host_path(path),
            (None, Some(_), _) => self.config.display().to_string(),
            (None, None, Some(_)) => self.secret.display().to_string(),
            _ => panic!("a volume of another kind: {volume}"),
        };
        let mut options = Vec::new();
        options.extend((mount["readOnly"] == true).then_some("ro"));
        options.extend((mount["mountPropagation"] == "HostToContainer").then_some("rslave"));
        let target = mount["mountPath"].as_str().must("a path");
        if options.is_empty() {
            format!("{source}:{target}")
        } else {
            format!("{source}:{target}:{}", options.join(","))
        }
    }

    /// What `docker run` is told of a container of the pod.
    fn arguments(&self, container: &Value) -> Vec<String> {
        assert_eq!(self.spec["hostNetwork"], true);
        let security = &container["securityContext"];
        assert!(security["privileged"].is_null(), "it needs no more than it names");
        let pair = |flag: &str, value: String| [flag.to_owned(), value];
        let mut all = Vec::from(pair("--network", "host".to_owned()));
        all.extend(pair("--name", container["name"].as_str().must("a name").to_owned()));
        if security["readOnlyRootFilesystem"] == true {
            all.push("--read-only".to_owned());
        }
        if security["allowPrivilegeEscalation"] == false {
            all.extend(pair("--security-opt", "no-new-privileges".to_owned()));
        }
        for (flag, list) in [("--cap-drop", "drop"), ("--cap-add", "add")] {
            all.extend(texts(&security["capabilities"][list]).into_iter().flat_map(|one| pair(flag, one)));
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("spec.nodeName") => self.host.name(),
                Some(other) => panic!("a field of another kind: {other}"),
                None => variable["value"].as_str().must("a value"),
            };
            all.extend(pair("-e", format!("{}={value}", variable["name"].as_str().must("a name"))));
        }
        // What kubelet adds to each.
        for variable in ["KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=6443"] {
            all.extend(pair("-e", variable.to_owned()));
        }
        let account = self.account.display();
        all.extend(pair("-v", format!("{account}:/var/run/secrets/kubernetes.io/serviceaccount:ro")));
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            all.extend(pair("-v", self.mount(mount)));
        }
        let command = texts(&container["command"]);
        // The binary is the harness: this tells it what it is.
        let role = if command[0].ends_with("weft-kube") { KUBE } else { ROUTER };
        all.extend(pair("-e", format!("{role}={CONTAINED}")));
        all.extend(pair("--entrypoint", command[0].clone()));
        all.push(container["image"].as_str().must("an image").to_owned());
        all.extend(command.into_iter().skip(1));
        all
    }

    fn run(&self, container: &Value, how: &[&str]) -> io::Result<String> {
        let arguments = self.arguments(container);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.engine.docker(&[&["run"], how, &arguments].concat())
    }

    /// As kubelet starts the pod: what prepares, to its end, then the rest at once.
    fn start(&self) -> io::Result<()> {
        for init in self.spec["initContainers"].as_array().into_iter().flatten() {
            self.run(init, &["--rm"])?;
        }
        for container in self.spec["containers"].as_array().into_iter().flatten() {
            self.run(container, &["-d"])?;
        }
        Ok(())
    }

    /// Ends the pod as kubelet does, and starts another.
    fn replace(&self) -> io::Result<()> {
        let grace = self.spec["terminationGracePeriodSeconds"].to_string();
        self.engine.docker(&["stop", "-t", &grace, "kube", "weft"])?;
        self.engine.docker(&["rm", "kube", "weft"])?;
        self.start()
    }

    /// The readiness probe of the manifest.
    fn is_ready(&self) -> bool {
        let probe = &named(&self.spec["containers"], &json!("kube"))["readinessProbe"]["httpGet"];
        let [host, path] = ["host", "path"].map(|key| probe[key].as_str().must(key));
        let url = format!("http://{host}:{}{path}", probe["port"]);
        self.inside(&["busybox", "wget", "-q", "-O", "-", &url]).is_ok()
    }

    fn logs(&self) -> String {
        ["weft", "kube"].map(|name| self.engine.logs(name)).join("\n")
    }

    /// Runs the plugin that was installed, as the node's runtime does.
    fn plugin(&self, command: &str, pod: &str) -> io::Result<Value> {
        let conflist = fs::read(self.root.join("etc/cni/net.d/10-weft.conflist"))?;
        let conflist: Value = serde_json::from_slice(&conflist)?;
        let mut conf = conflist["plugins"][0].clone();
        for key in ["name", "cniVersion"] {
            conf[key] = conflist[key].clone();
        }
        let folder = self.root.join("opt/cni/bin");
        let mut process = self.command(&[&folder.join("weft-cni").display().to_string()]);
        process
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", folder)
            .env("CNI_CONTAINERID", pod)
            .env("CNI_NETNS", namespace(pod))
            .env("CNI_IFNAME", "eth0");
        let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        child.stdin.take().must("its input").write_all(conf.to_string().as_bytes())?;
        let output = child.wait_with_output()?;
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap_or_default()),
            false => Err(io::Error::other(String::from_utf8_lossy(&output.stdout).into_owned())),
        }
    }

    /// Effective capabilities of a container's process, and whether it can gain more.
    fn rights(&self, name: &str) -> (u64, bool) {
        let pid = self.engine.docker(&["inspect", "-f", "{{.State.Pid}}", name]).must("inspect");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).must("read the process' status");
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).must(name).trim();
        (u64::from_str_radix(field("CapEff:"), 16).must("a number"), field("NoNewPrivs:") == "0")
    }
}

fn namespace(pod: &str) -> String {
    format!("/run/netns/{pod}")
}

/// A page that a pod serves, until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn the_image_of_the_dockerfile_runs_as_the_manifest_says() {
    let runtime = Runtime::new().must("a runtime");
    let server = ApiServer::new();
    let lab = Lab::new(&LabConfig::hosts(2)).must("make two hosts");
    let engines = start_engines(&lab);
    for host in lab.hosts() {
        // A socket stays in the namespace in which it was made.
        let listener = host.namespace().run(|| TcpListener::bind("127.0.0.1:6443"));
        server.serve(runtime.handle(), listener.must("enter the host").must("listen"));
        server.apply(host.name(), &format!("uid-{}", host.name()), &[&host.v4().to_string()]);
    }

    // Both stages are built by each engine, from a directory with the Dockerfile.
    let root = toolchain(lab.dir()).must("make the root of the build");
    let context = lab.dir().join("context");
    fs::create_dir(&context).must("make a directory");
    fs::write(context.join("Dockerfile"), DOCKERFILE).must("write");
    let image = named(&object("DaemonSet")["spec"]["template"]["spec"]["containers"], &json!("weft"))["image"].clone();
    let image = image.as_str().must("an image");
    thread::scope(|scope| {
        for engine in &engines {
            let (root, context) = (&root, context.display().to_string());
            scope.spawn(move || {
                engine.import(root, "toolchain", &[]).must("import the root of the build");
                let build = ["build", "--network", "none", "--build-arg", "TOOLCHAIN=toolchain", "-t", image, &context];
                engine.patient(&build).must("build the image");
            });
        }
    });

    let nodes: Vec<Node<'_>> =
        engines.iter().zip(lab.hosts()).map(|(engine, host)| Node::new(engine, host, &server).must("a node")).collect();
    for node in &nodes {
        node.start().must("start the pod");
    }
    let ready = |when: &str| {
        let ready = wait_until(2 * PATIENCE, || nodes.iter().all(Node::is_ready));
        assert!(ready, "{when}: {}", nodes.iter().map(Node::logs).collect::<String>());
    };
    ready("started");
    for node in &nodes {
        rights_are_as_named(node);
        let probe = &named(&node.spec["containers"], &json!("weft"))["livenessProbe"]["exec"]["command"];
        let probe = texts(probe);
        node.engine.exec("weft", &probe.iter().map(String::as_str).collect::<Vec<_>>()).must("the probe of the router");
    }

    // Pods come after the router.
    let mut addresses = Vec::new();
    let mut servers = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        let pod = format!("pod{number}");
        let make = format!("mkdir -p /run/netns && touch {0} && unshare --net={0} true", namespace(&pod));
        node.inside(&["sh", "-c", &make]).must("make the pod's namespace");
        let result = node.plugin("ADD", &pod).must(&node.logs());
        let address = result["ips"][0]["address"].as_str().must("an address").to_owned();
        addresses.push(address.split('/').next().must("an address").to_owned());
        let page = node.root.join("page");
        fs::write(&page, PAGE).must("write the page");
        let serve = [&format!("--net={}", namespace(&pod)), "busybox", "httpd", "-f", "-p", "80", "-h"];
        let folder = node.root.display().to_string();
        let mut serve = node.command(&[&["nsenter"], &serve[..], &[&folder]].concat());
        servers.push(Server(serve.stdin(Stdio::null()).spawn().must("serve")));
    }
    pods_reach_each_other(&nodes, &addresses);
    // As a rolling update does it, with pods that stay.
    nodes[0].replace().must("replace the pod");
    ready("replaced");
    pods_reach_each_other(&nodes, &addresses);
    drop(servers);
    for (number, node) in nodes.iter().enumerate() {
        let pod = format!("pod{number}");
        node.plugin("DEL", &pod).must("DEL");
        let left = node.engine.exec("weft", &["/usr/bin/weft", "ps"]).must("ask the router");
        assert!(!left.contains(&pod), "{left}");
    }
}

/// Each fetches the other's page.
fn pods_reach_each_other(nodes: &[Node<'_>], addresses: &[String]) {
    for (from, to) in [(0, 1), (1, 0)] {
        let pod = format!("--net={}", namespace(&format!("pod{from}")));
        let url = format!("http://{}/page", addresses[to]);
        // Debian's busybox crashes by its own limit of time.
        let fetch = || nodes[from].inside(&["nsenter", &pod, "timeout", "3", "busybox", "wget", "-q", "-O", "-", &url]);
        let fetched = wait_until(PATIENCE, || fetch().is_ok_and(|page| page == PAGE));
        assert!(fetched, "{url}: {:?}\n{}", fetch(), nodes[from].logs());
    }
}

/// Each container has what the manifest names, and not more.
fn rights_are_as_named(node: &Node<'_>) {
    for container in node.spec["containers"].as_array().into_iter().flatten() {
        let added = texts(&container["securityContext"]["capabilities"]["add"]);
        let bit = |name: &String| CAPABILITIES.iter().find(|(known, _)| known == name).must(name).1;
        let named = added.iter().fold(0_u64, |bits, name| bits | 1 << bit(name));
        let gains = container["securityContext"]["allowPrivilegeEscalation"] != false;
        let name = container["name"].as_str().must("a name");
        assert_eq!(node.rights(name), (named, gains), "{name}");
    }
}
