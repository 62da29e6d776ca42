//! What is measured, and how.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use weft::netlink::NetNs;

use super::{
    contestant::Standing,
    machine,
    options::{Mode, Options},
    rtt::{self, Awake},
    tcp::Bulk,
    udp::Flood,
};

/// Streams of the figure with several.
const STREAMS: usize = 4;
/// Congestion control is past its start by then.
const WARM_UP: Duration = Duration::from_millis(400);
/// On a lossy path a stream stands still for 200 ms and more at a time: it is watched for this many
/// times as long as others.
const LOSSY: u32 = 5;
/// Idle is measured for longer than the routers' slowest regular work (5 s).
const IDLE: Duration = Duration::from_secs(6);

/// A measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Figure {
    /// One TCP stream, processor time per GB, and that of a router meanwhile.
    Tcp1,
    /// Four TCP streams.
    Tcp4,
    /// Four TCP streams of one thread at each end, as iperf3 runs them before version 3.16.
    Tcp4Shared,
    /// One TCP stream the other way.
    Reverse,
    /// Datagrams of 64 bytes a second, one way, without loss.
    Pps,
    /// 64 concurrent round trips.
    Rr64,
    /// Round trips one after the other.
    Rtt,
    /// The same beside one TCP stream.
    RttLoaded,
    /// One TCP stream while the network between the hosts loses 1 % in each direction.
    Loss1,
    /// The same with 5 %.
    Loss5,
    /// Processor time of the routers when nothing is to do.
    Idle,
}

impl Figure {
    pub(super) const ALL: &[Self] = &[
        Self::Tcp1,
        Self::Tcp4,
        Self::Tcp4Shared,
        Self::Reverse,
        Self::Pps,
        Self::Rr64,
        Self::Rtt,
        Self::RttLoaded,
        Self::Loss1,
        Self::Loss5,
        Self::Idle,
    ];
    pub(super) const QUICK: &[Self] = &[Self::Tcp1, Self::Tcp4, Self::Pps, Self::Rr64, Self::Rtt];

    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Tcp4Shared => "tcp4-shared",
            Self::Reverse => "reverse",
            Self::Pps => "pps",
            Self::Rr64 => "rr64",
            Self::Rtt => "rtt",
            Self::RttLoaded => "rtt-loaded",
            Self::Loss1 => "loss1",
            Self::Loss5 => "loss5",
            Self::Idle => "idle",
        }
    }

    /// Where segments pass whole, one loss would be that of 64 KiB.
    pub(super) fn applies(self, mode: Mode) -> bool {
        mode == Mode::Wire || !matches!(self, Self::Loss1 | Self::Loss5)
    }
}

/// A column of the tables: what one figure, or a part of it, is in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Metric {
    Tcp1,
    Tcp4,
    Tcp4Shared,
    Reverse,
    CpuPerGigabyte,
    Routers,
    Pps,
    Rr64,
    RttMedian,
    Rtt99,
    LoadedMedian,
    Loaded99,
    Loss1,
    Loss5,
    Idle,
    Memory,
}

impl Metric {
    /// Its name in JSON.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp4 => "tcp4",
            Self::Tcp4Shared => "tcp4-shared",
            Self::Reverse => "reverse",
            Self::CpuPerGigabyte => "cpu",
            Self::Routers => "routers",
            Self::Pps => "pps",
            Self::Rr64 => "rr64",
            Self::RttMedian => "rtt-p50",
            Self::Rtt99 => "rtt-p99",
            Self::LoadedMedian => "rtt-loaded-p50",
            Self::Loaded99 => "rtt-loaded-p99",
            Self::Loss1 => "loss1",
            Self::Loss5 => "loss5",
            Self::Idle => "idle",
            Self::Memory => "memory",
        }
    }

    /// Title of its column, and unit.
    pub(super) fn title(self) -> (&'static str, &'static str) {
        match self {
            Self::Tcp1 => ("TCP 1", "Gbit/s"),
            Self::Tcp4 => ("TCP 4", "Gbit/s"),
            Self::Tcp4Shared => ("TCP 4 shared", "Gbit/s"),
            Self::Reverse => ("TCP 1 back", "Gbit/s"),
            Self::CpuPerGigabyte => ("CPU", "s/GB"),
            Self::Routers => ("a router", "% CPU"),
            Self::Pps => ("64 B UDP", "k/s"),
            Self::Rr64 => ("64 round trips", "k/s"),
            Self::RttMedian => ("RTT p50", "µs"),
            Self::Rtt99 => ("RTT p99", "µs"),
            Self::LoadedMedian => ("loaded p50", "µs"),
            Self::Loaded99 => ("loaded p99", "µs"),
            Self::Loss1 => ("at 1 % loss", "Gbit/s"),
            Self::Loss5 => ("at 5 % loss", "Gbit/s"),
            Self::Idle => ("idle", "% CPU"),
            Self::Memory => ("memory", "MB"),
        }
    }

    /// A value with the digits that mean something.
    pub(super) fn digits(value: f64) -> String {
        match value.abs() {
            100.0.. => format!("{value:.0}"),
            10.0.. => format!("{value:.1}"),
            0.095.. => format!("{value:.2}"),
            _ => format!("{value:.3}"),
        }
    }

    /// A value with its title and unit.
    pub(super) fn show(self, value: f64) -> String {
        let (title, unit) = self.title();
        format!("{title} {} {unit}", Self::digits(value))
    }
}

/// Measures.
pub(super) struct Bench {
    lasting: Duration,
    awake: bool,
}

impl Bench {
    pub(super) fn new(options: &Options) -> Self {
        Self { lasting: options.lasting(), awake: options.awake }
    }

    /// Measures a figure once with one contestant.
    pub(super) fn measure(&self, figure: Figure, course: &Standing) -> anyhow::Result<Vec<(Metric, f64)>> {
        let (near, far) = (course.end(0), course.far(1));
        let watched = |bulk: Bulk, lasting| {
            thread::sleep(WARM_UP);
            bulk.watch(lasting)
        };
        let streams = |count, lasting| watched(Bulk::start(near, far, count)?, lasting);
        let short = self.lasting.min(Duration::from_millis(400));
        Ok(match figure {
            Figure::Tcp1 => {
                let (seen, routers) = busy(&course.processes, || streams(1, self.lasting))?;
                let mut samples = vec![(Metric::Tcp1, seen.gigabits), (Metric::CpuPerGigabyte, seen.cpu_per_gigabyte)];
                samples.extend(routers.map(|share| (Metric::Routers, share)));
                samples
            }
            Figure::Tcp4 => vec![(Metric::Tcp4, streams(STREAMS, self.lasting)?.gigabits)],
            Figure::Tcp4Shared => {
                let bulk = Bulk::start_shared(near, far, STREAMS)?;
                vec![(Metric::Tcp4Shared, watched(bulk, self.lasting)?.gigabits)]
            }
            Figure::Reverse => {
                let bulk = Bulk::start(course.end(1), course.far(0), 1)?;
                vec![(Metric::Reverse, watched(bulk, self.lasting)?.gigabits)]
            }
            Figure::Pps => vec![(Metric::Pps, Flood::open(near, far)?.search(short)? / 1e3)],
            Figure::Rr64 => {
                let _awake = self.awake()?;
                vec![(Metric::Rr64, rtt::concurrent(near, far, self.lasting)? / 1e3)]
            }
            Figure::Rtt => {
                let _awake = self.awake()?;
                let times = rtt::alone(near, far, self.lasting)?;
                vec![(Metric::RttMedian, quantile(&times, 0.5)), (Metric::Rtt99, quantile(&times, 0.99))]
            }
            Figure::RttLoaded => {
                let _bulk = Bulk::start(near, far, 1)?;
                thread::sleep(WARM_UP);
                let times = rtt::alone(near, far, self.lasting)?;
                vec![(Metric::LoadedMedian, quantile(&times, 0.5)), (Metric::Loaded99, quantile(&times, 0.99))]
            }
            Figure::Loss1 | Figure::Loss5 => {
                let (metric, percent) = if figure == Figure::Loss1 { (Metric::Loss1, 1) } else { (Metric::Loss5, 5) };
                let _loss = Loss::start(course, percent)?;
                vec![(metric, streams(1, self.lasting * LOSSY)?.gigabits)]
            }
            Figure::Idle => {
                let ((), routers) = busy(&course.processes, || {
                    thread::sleep(IDLE);
                    Ok(())
                })?;
                routers.map(|share| (Metric::Idle, share)).into_iter().collect()
            }
        })
    }

    fn awake(&self) -> anyhow::Result<Option<Awake>> {
        Ok(if self.awake { Some(Awake::start()?) } else { None })
    }
}

/// Does something, and says how many per cent of a processor one of some processes worked meanwhile;
/// `None` if there is none.
pub(super) fn busy<T>(processes: &[u32], work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Option<f64>)> {
    let (start, before) = (Instant::now(), machine::worked_by(processes)?);
    let done = work()?;
    let worked = machine::worked_by(processes)?.saturating_sub(before);
    let share = worked.as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
    let count = processes.len();
    Ok((done, (count > 0).then(|| share / count as f64)))
}

/// In microseconds, of sorted times.
fn quantile(times: &[Duration], share: f64) -> f64 {
    let index = (times.len() as f64 * share) as usize;
    times.get(index).or(times.last()).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

/// Loss on the cables of a contestant while it is held, by the hosts' packet filter.
struct Loss<'a> {
    hosts: Vec<&'a NetNs>,
}

impl<'a> Loss<'a> {
    fn start(course: &'a Standing, percent: u32) -> anyhow::Result<Self> {
        let hosts: Vec<&NetNs> = [0, 1].map(|end| course.hosts.host(course.end_host(end))).into();
        let loss = Self { hosts };
        for host in &loss.hosts {
            let rules = format!(
                "table netdev loss {{\n chain in {{\n  type filter hook ingress device eth0 priority 0;\n  \
                 numgen random mod 1000 < {} drop\n }}\n}}\n",
                percent * 10
            );
            nft(host, &rules)?;
        }
        Ok(loss)
    }
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        for host in &self.hosts {
            // What was not made need not go.
            let _ = nft(host, "delete table netdev loss");
        }
    }
}

fn nft(host: &NetNs, rules: &str) -> anyhow::Result<()> {
    let run = || -> std::io::Result<_> {
        let mut command = Command::new("nft");
        let mut child =
            command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(rules.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = host.run(run)?.context("run nft (package nftables)")?;
    ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
