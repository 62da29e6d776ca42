//! The container image: that what the [Dockerfile] puts together runs as its head says.
//!
//! ```text
//!   engine 1 ─ "weft" (host's network, three capabilities) ─┐      ┌─ the same on host 2
//!            └ "box1" ─ weft0 ─────────── bridge ───────────┘      └─ "box2"
//! ```
//!
//! Nothing is pulled: the last stage begins from nothing, and what it copies is laid out here, with
//! this test's own binary, and the libraries that it needs, in the place of the static one.
//!
//! [Dockerfile]: ../../../Dockerfile

use std::{fs, io, net::IpAddr, path::Path, process::Command};

use weft::lab::{Lab, LabConfig, wait_until};

use crate::{CONTAINED, Must as _, PATIENCE, ROUTER, engine::Engine, start_engines};

const DOCKERFILE: &str = include_str!("../../../Dockerfile");
const SECRET: &str = "WEFT_SECRET=the same on every host 2718281828";

/// The instructions of the last stage that are not about files.
fn instructions() -> Vec<&'static str> {
    let (_, last) = DOCKERFILE.rsplit_once("FROM scratch").must("the last stage begins from nothing");
    last.lines().filter(|line| line.starts_with("ENTRYPOINT") || line.starts_with("CMD")).collect()
}

/// The arguments of `docker` that the head of the Dockerfile shows, up to the image's name.
fn shown() -> Vec<String> {
    let comment = DOCKERFILE.lines().take_while(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
    let text: String =
        comment.skip_while(|line| !line.contains("docker run")).map(|line| line.replace('\\', " ")).collect();
    let mut words: Vec<String> = text.split_whitespace().skip(1).map(str::to_owned).collect();
    assert_eq!(words.pop().as_deref(), Some("up"), "{text}");
    assert_eq!(words.pop().as_deref(), Some("weft"), "{text}");
    words
}

/// What the build stage leaves, with a binary that is there.
fn lay_out(root: &Path) -> io::Result<()> {
    for folder in ["usr/bin", "var/lib/weft", "run/weft"] {
        assert!(DOCKERFILE.contains(&format!("/out/{folder}")), "{folder}");
        fs::create_dir_all(root.join(folder))?;
    }
    let exe = std::env::current_exe()?;
    fs::copy(&exe, root.join("usr/bin/weft"))?;
    assert!(DOCKERFILE.contains(&format!("ln -s weft /out/usr/bin/{}", weft::cni::NAME)));
    std::os::unix::fs::symlink("weft", root.join("usr/bin").join(weft::cni::NAME))?;
    copy_libraries(&exe, root)
}

/// Copies the libraries that a binary needs to where it looks for them below a root.
pub(crate) fn copy_libraries(exe: &Path, root: &Path) -> io::Result<()> {
    let listed = Command::new("ldd").arg(exe).output()?;
    for library in String::from_utf8_lossy(&listed.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap_or(root))?;
        fs::copy(library, to)?;
    }
    Ok(())
}

/// Runs the image as the Dockerfile shows it, with the directories of this engine.
fn run(engine: &Engine, up: &[&str]) -> io::Result<()> {
    let dir = engine.dir().display();
    let mut args = shown();
    for word in &mut args {
        *word = match word.as_str() {
            "/var/run/docker.sock:/var/run/docker.sock" => format!("{dir}/docker.sock:/var/run/docker.sock"),
            "/var/lib/weft:/var/lib/weft" => format!("{dir}/lib:/var/lib/weft"),
            "/run/weft:/run/weft" => format!("{dir}/run:/run/weft"),
            other => other.to_owned(),
        };
    }
    let role = format!("{ROUTER}={CONTAINED}");
    args.extend(["-e", SECRET, "-e", &role, "weft"].map(str::to_owned));
    args.extend(["up"].iter().chain(up).map(|&word| word.to_owned()));
    engine.docker(&args.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
}

fn weft(engine: &Engine, args: &[&str]) -> io::Result<String> {
    engine.exec("weft", &[&["/usr/bin/weft"], args].concat())
}

pub(crate) fn the_image_runs_with_the_capabilities_it_names() {
    let lab = Lab::new(&LabConfig::hosts(2)).must("make two hosts");
    let engines = start_engines(&lab);
    let root = lab.dir().join("image");
    lay_out(&root).must("lay the image out");
    let first = lab.host(0).v4().to_string();
    for (number, engine) in engines.iter().enumerate() {
        engine.import(&root, "weft", &instructions()).must("make the image");
        let range = ["--range", "10.32.0.0/12", "--range", "fd00:32::/64"];
        let peer = ["--peer", first.as_str()];
        run(engine, &[&range[..], &peer[..2 * number]].concat()).must("run the router");
        let name = format!("box{number}");
        // One on Docker's own bridge: then the engine filters what the host forwards.
        let network: &[&str] = if number == 0 { &[] } else { &["--network", "none"] };
        engine.run(&name, network).must("run a container");
    }
    for engine in &engines {
        let up = wait_until(PATIENCE, || weft(engine, &["status"]).is_ok());
        assert!(up, "{:?}\n{}", weft(engine, &["status"]), engine.logs("weft"));
    }
    let mut addresses: Vec<Vec<IpAddr>> = Vec::new();
    for (number, engine) in engines.iter().enumerate() {
        let printed = weft(engine, &["attach", &format!("box{number}")]);
        let printed = printed.unwrap_or_else(|error| panic!("attach: {error}\n{}", engine.logs("weft")));
        let nets = printed.lines().map(|line| line.trim().parse::<ipnet::IpNet>().must(line).addr());
        addresses.push(nets.collect());
        assert_eq!(addresses[number].len(), 2, "{printed}");
    }
    for (from, to) in [(0, 1), (1, 0)] {
        for ip in &addresses[to] {
            let ping = || engines[from].exec(&format!("box{from}"), &["ping", "-c", "1", "-W", "1", &ip.to_string()]);
            assert!(wait_until(PATIENCE, || ping().is_ok()), "box{from} cannot ping {ip}: {:?}", ping());
        }
    }
    // The rule for the host's filter needs no program, for there is none in the image.
    let rules = crate::forward_rules(&lab, 0);
    assert!(rules.contains("-P FORWARD DROP") && rules.contains("-A FORWARD -i weft -o weft -j ACCEPT"), "{rules}");
    // The same binary is the plugin for CNI.
    let plugin = ["exec", "-e", "CNI_COMMAND=VERSION", "weft", "/usr/bin/weft-cni"];
    let versions = engines[0].docker(&plugin).must("ask the plugin");
    assert!(versions.contains(r#""supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]"#), "{versions}");
    // It has what is named, and not more: the three bits of NET_ADMIN, SYS_PTRACE and SYS_ADMIN.
    let pid = engines[0].docker(&["inspect", "-f", "{{.State.Pid}}", "weft"]).must("inspect");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).must("read the process' status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).must("its capabilities");
    let bits = u64::from_str_radix(effective.trim(), 16).must("a number");
    assert_eq!(bits, 1 << 12 | 1 << 19 | 1 << 21, "{effective}");
    // The same binary is the client from the host. With the router its container ends.
    let exe = std::env::current_exe().must("find this binary");
    let socket = engines[0].dir().join("run/weft.sock");
    let down = Command::new(exe).arg("down").env(ROUTER, "1").env("WEFT_SOCKET", socket).output().must("run");
    assert!(down.status.success(), "{down:?}");
    let state =
        || engines[0].docker(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "weft"]).must("inspect");
    assert!(wait_until(PATIENCE, || state() == "exited 0"), "{}", state());
    assert!(!crate::forward_rules(&lab, 0).contains("weft"), "nothing is left of it");
}
