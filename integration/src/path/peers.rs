//! The contestants that are programs of others: started as their manuals say, where installed.

use std::{
    ffi::OsStr,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{anyhow, ensure};
use aws_lc_rs::agreement;
use ipnet::IpNet;
use weft::{
    lab::{CableLab, wait_until},
    netlink::{NetNs, Netlink},
};

use super::contestant::Standing;

const PATIENCE: Duration = Duration::from_secs(10);
const WIREGUARD_PORT: u16 = 51820;
/// What WireGuard adds at most: outer IPv6 and UDP, header and tag.
const WIREGUARD_OVERHEAD: u32 = 80;
/// Room for what tinc and vpncloud add: outer headers, inner Ethernet header, padding, tags.
const TAP_OVERHEAD: u32 = 100;

/// WireGuard in userspace, by the interface that all its implementations have. It carries IP and no
/// frames, so its own devices are the ends of the path: no bridge, no container, less to do.
pub(super) fn wireguard(built: &mut Standing, program: &str, mtu: u32) -> anyhow::Result<()> {
    // A benchmark has nothing to hide; keys need not be random.
    let keys = [[1; 32], [2; 32]];
    let mut public = Vec::new();
    for key in &keys {
        let private = agreement::PrivateKey::from_private_key(&agreement::X25519, key)?;
        public.push(hex(private.compute_public_key()?.as_ref()));
    }
    let mut addresses = [IpAddr::V4(Ipv4Addr::UNSPECIFIED); 2];
    for end in [0, 1] {
        // The name of the socket, and so of the device, is the machine's and not the namespace's.
        let device = format!("{}{end}", &program[..4]);
        let host = built.hosts.host(end);
        let mut command = Command::new(program);
        command.env("LOG_LEVEL", "error").arg("--foreground");
        if program.starts_with("boringtun") {
            command.arg("--disable-drop-privileges");
        }
        let child = spawn(host, command.arg(&device))?;
        let namespace = host.try_clone()?;
        built.keep(child);
        let socket = format!("/var/run/wireguard/{device}.sock");
        let settings = format!(
            "set=1\nprivate_key={}\nlisten_port={WIREGUARD_PORT}\npublic_key={}\nendpoint={}:{WIREGUARD_PORT}\n\
             allowed_ip=10.33.0.0/24\n\n",
            hex(&keys[end]),
            public[1 - end],
            CableLab::address(0, 1 - end)
        );
        let connected = wait_until(PATIENCE, || UnixStream::connect(&socket).is_ok());
        ensure!(connected, "nobody answers at {socket}");
        let answer = ask(Path::new(&socket), &settings)?;
        ensure!(answer.contains("errno=0"), "{program} says {answer:?} to its settings");
        addresses[end] = IpAddr::V4(Ipv4Addr::new(10, 33, 0, end as u8 + 1));
        Netlink::block_on_in(&namespace, async |netlink: Netlink| {
            let link = netlink.need_link(&device).await?;
            netlink.set_mtu(&link, mtu - WIREGUARD_OVERHEAD).await?;
            netlink.add_address(&link, IpNet::new_assert(addresses[end], 24)).await?;
            netlink.set_up(&link).await
        })?;
    }
    built.between_hosts(addresses);
    let inner = mtu - WIREGUARD_OVERHEAD;
    built.said = format!("{}, no containers, MTU {inner}", version(program, "--version"));
    Ok(())
}

fn ask(socket: &Path, text: &str) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(text.as_bytes())?;
    let (mut answer, mut byte) = (String::new(), [0]);
    while !answer.ends_with("\n\n") && stream.read(&mut byte)? == 1 {
        answer.push(char::from(byte[0]));
    }
    Ok(answer)
}

/// tinc 1.0, as a switch with its default cipher.
pub(super) fn tinc(built: &mut Standing, mtu: u32) -> anyhow::Result<()> {
    let names = ["near", "far"];
    let dirs = names.map(|name| built.hosts.dir().join(format!("tinc-{name}")));
    for (end, (name, dir)) in names.iter().zip(&dirs).enumerate() {
        fs::create_dir_all(dir.join("hosts"))?;
        let other = if end == 1 { "ConnectTo = near\n" } else { "" };
        let config =
            format!("Name = {name}\nMode = switch\nDeviceType = tap\nInterface = tinc0\nAddressFamily = ipv4\n{other}");
        fs::write(dir.join("tinc.conf"), config)?;
        fs::write(dir.join("hosts").join(name), format!("Address = {}\n", CableLab::address(0, end)))?;
        let mut command = Command::new("tincd");
        command.arg("-c").arg(dir).arg("-K2048").stdin(Stdio::null());
        let output = command.output().map_err(|error| missing("tincd", &error))?;
        ensure!(output.status.success(), "tincd -K: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    for (end, dir) in dirs.iter().enumerate() {
        let (other, name) = (&dirs[1 - end], names[1 - end]);
        fs::copy(other.join("hosts").join(name), dir.join("hosts").join(name))?;
        let mut command = Command::new("tincd");
        command.arg("-c").arg(dir).arg("-D").arg("--pidfile").arg(dir.join("pid"));
        let child = spawn(built.hosts.host(end), &mut command)?;
        built.keep(child);
    }
    tap(built, "tinc0", mtu)?;
    built.said = format!("{}, default cipher, MTU {}", version("tincd", "--version"), mtu - TAP_OVERHEAD);
    Ok(())
}

/// vpncloud, as a switch with the cipher that it chooses itself.
pub(super) fn vpncloud(built: &mut Standing, mtu: u32) -> anyhow::Result<()> {
    for end in [0, 1] {
        let peer = format!("{}:3210", CableLab::address(0, 1 - end));
        let mut command = Command::new("vpncloud");
        command.args(["--type", "tap", "--mode", "switch", "--device", "vpncloud0", "--listen", "0.0.0.0:3210"]);
        command.args(["--password", "path-benchmark", "--no-port-forwarding", "--peer", &peer]);
        let child = spawn(built.hosts.host(end), &mut command)?;
        built.keep(child);
    }
    tap(built, "vpncloud0", mtu)?;
    let inner = mtu - TAP_OVERHEAD;
    built.said = format!("{}, the cipher that it finds fastest, MTU {inner}", version("vpncloud", "--version"));
    Ok(())
}

/// Containers behind the TAPs that programs make in both hosts.
fn tap(built: &mut Standing, device: &str, mtu: u32) -> anyhow::Result<()> {
    for end in [0, 1] {
        let host = built.hosts.host(end);
        let there = || {
            Netlink::block_on_in(host, async |netlink: Netlink| netlink.link(device).await)
                .is_ok_and(|link| link.is_some())
        };
        ensure!(wait_until(PATIENCE, there), "no {device} in {}", host.label());
    }
    built.containers_behind(device, mtu - TAP_OVERHEAD)
}

fn spawn(host: &NetNs, command: &mut Command) -> anyhow::Result<Child> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let program = command.get_program().to_owned();
    // A child is born in the namespace of the thread that starts it.
    host.run(|| command.spawn())?.map_err(|error| missing(&program, &error))
}

fn missing(program: impl AsRef<OsStr>, error: &std::io::Error) -> anyhow::Error {
    let program = program.as_ref().display();
    match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!("{program} is not installed"),
        _ => anyhow!("{program}: {error}"),
    }
}

/// First line of what a program says of its version.
fn version(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let said = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    said.lines().find(|line| !line.trim().is_empty()).unwrap_or(program).trim().to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
