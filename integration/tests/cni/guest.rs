//! What needs IPVS in the kernel, which this machine's has not: run in a guest that has it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{GUEST, PLUGINS, busybox::find, kernel::Guest, world::Must as _};

/// Shorter than the test's, which could not end the guest.
const LIMIT: Duration = Duration::from_secs(200);
/// What the router and the rules need of its kernel, and which programs.
const MODULES: &[&str] = &[
    "tun",
    "veth",
    "bridge",
    "br_netfilter",
    "vxlan",
    "dummy",
    "nf_tables",
    "nft_*",
    "nf_conntrack_netlink",
    "ip_vs",
    "ip_vs_rr",
    "ip_set",
    "ip_set_bitmap_port",
    "ip_set_hash_ip",
    "ip_set_hash_ipport",
    "ip_set_hash_ipportip",
    "xt_*",
    "ipt_REJECT",
    "ip6t_REJECT",
];
const PROGRAMS: [&str; 8] =
    ["ip", "iptables", "iptables-restore", "ip6tables", "ip6tables-restore", "nft", "ipset", "ipvsadm"];

/// `services::by_ipvs`.
pub(crate) fn services() {
    let mut files: Vec<PathBuf> = PROGRAMS.iter().map(|name| find(name).must(name)).collect();
    // `ipset` knows protocols by name from there.
    files.extend([Path::new(PLUGINS).join("portmap"), "/etc/protocols".into()]);
    // What `iptables` and `ip6tables` load for what the rules name; where Debian keeps that.
    let extensions = format!("/usr/lib/{}-linux-gnu/xtables", env::consts::ARCH);
    let extensions = fs::read_dir(&extensions).must(&extensions).map(|entry| entry.must("an entry").path());
    files.extend(extensions.filter(|path| path.extension().is_some_and(|ending| ending == "so")));
    let guest = Guest { variable: GUEST, modules: MODULES, files, applets: &["mount", "umount"], limit: LIMIT };
    let console = guest.run();
    for line in console.lines().filter(|line| line.contains("test result")) {
        eprintln!("in the guest: {line}");
    }
}
