//! What needs WireGuard in the kernel, which this machine's has not: run in a guest that has it.

use std::time::Duration;

use crate::{Case, GUEST, kernel::Guest};

pub(crate) const CASES: &[Case] =
    &[("the_sealed_fast_path_holds_in_a_kernel_that_has_wireguard", LIMIT.as_secs() + 30, sealed)];

const LIMIT: Duration = Duration::from_secs(570);
const MODULES: &[&str] = &["tun", "veth", "bridge", "vxlan", "wireguard", "nf_tables", "nft_*"];

fn sealed() {
    let guest = Guest { variable: GUEST, modules: MODULES, files: Vec::new(), applets: &[], limit: LIMIT };
    let console = guest.run();
    for line in console.lines().filter(|line| line.contains("sealed::") || line.contains("measured")) {
        eprintln!("in the guest: {line}");
    }
}
