//! What a router needs with three peers, and what with ten: memory, and time when nothing is to do.

use std::{net::IpAddr, thread, time::Duration};

use anyhow::{Context as _, ensure};
use weft::lab::{
    Container, Lab, LabConfig,
    router::{Router, write_secret},
    traffic::{Echo, tcp_transfer},
    wait_until,
};

use super::{
    contestant::{SECRET, router_of},
    figures::{Metric, busy},
    machine,
    options::Options,
};

/// Linked peers of the router that is looked at, in turn.
const PEERS: [usize; 2] = [3, 10];
const PATIENCE: Duration = Duration::from_secs(30);
/// What each peer sends, so that its session is used and its path measured.
const BYTES: u64 = 32 << 20;
/// Searches for the path MTU and first rekeying are over by then.
const CALM: Duration = Duration::from_secs(5);
/// Longer than the slowest regular work of a router (5 s).
const IDLE: Duration = Duration::from_secs(20);

/// Hosts in one network, sealed, by sleeve: all are linked with all.
struct Crowd {
    routers: Vec<Router>,
    boxes: Vec<(Container, IpAddr)>,
    lab: Lab,
}

/// Measures and gives a table.
///
/// # Errors
/// If the hosts cannot be made, or traffic does not pass.
pub(super) fn measure(options: &Options) -> anyhow::Result<String> {
    let lab = Lab::new(&LabConfig::hosts(PEERS[PEERS.len() - 1] + 1)).context("make the hosts")?;
    let mut crowd = Crowd { routers: Vec::new(), boxes: Vec::new(), lab };
    let mut table = format!("{:>6} {:>12} {:>14}\n", "peers", "memory, MB", "idle, % CPU");
    let mut grown = Vec::new();
    for peers in PEERS {
        while crowd.routers.len() <= peers {
            crowd.join(options)?;
        }
        let process = crowd.work(peers)?;
        thread::sleep(CALM);
        let ((), idle) = busy(&[process], || {
            thread::sleep(IDLE);
            Ok(())
        })?;
        let idle = idle.unwrap_or(f64::NAN);
        let memory = machine::resident(&[process]).context("the router has ended")? as f64;
        grown.push(memory);
        table += &format!("{peers:>6} {:>12} {:>14}\n", Metric::digits(memory / 1e6), Metric::digits(idle));
    }
    let each = (grown[1] - grown[0]) / (PEERS[1] - PEERS[0]) as f64 / 1e3;
    Ok(table + &format!("each further peer: {} kB\n", Metric::digits(each)))
}

impl Crowd {
    /// Starts one more router, which knows the first, and a container behind it.
    fn join(&mut self, options: &Options) -> anyhow::Result<()> {
        let secret = self.lab.dir().join("secret");
        write_secret(&secret, SECRET)?;
        let mut config = router_of(options)?
            .with(["--no-fast-path", "--range", "10.32.0.0/12"])
            .with(["--secret-file".into(), secret.into_os_string()]);
        let index = self.routers.len();
        if index > 0 {
            config = config.with(["--peer".to_owned(), self.lab.host(0).v4().to_string()]);
        }
        let router = Router::start(&self.lab, self.lab.host(index), config)?;
        let container = Container::new(&format!("box{index}"))?;
        let addresses = router.attach(&container)?;
        let v4 = addresses.iter().map(ipnet::IpNet::addr).find(IpAddr::is_ipv4);
        let v4 = v4.with_context(|| format!("{addresses:?} has no IPv4 address"))?;
        self.routers.push(router);
        self.boxes.push((container, v4));
        Ok(())
    }

    /// Every peer sends something to the first host's container. Gives the first router's process.
    fn work(&self, peers: usize) -> anyhow::Result<u32> {
        let linked = || {
            self.routers[0].status().is_ok_and(|status| {
                let all = status["peers"].as_array().map_or(&[][..], Vec::as_slice);
                all.iter().filter(|peer| peer["state"] == "established").count() == peers
            })
        };
        ensure!(wait_until(PATIENCE, linked), "{peers} peers are not linked within {PATIENCE:?}");
        let (first, address) = &self.boxes[0];
        let _echo = Echo::start(first)?;
        for (container, _) in &self.boxes[1..] {
            tcp_transfer(container, *address, BYTES, PATIENCE, PATIENCE)?;
        }
        self.routers[0].pid().context("the router has ended")
    }
}
