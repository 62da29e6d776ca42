//! Processor time and memory, as the kernel accounts them.

use std::{fs, io, thread, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{PidfdFlags, getppid, pidfd_open},
};

use super::sys;

/// Ends this process when the one that started it ends: a router must not outlive a benchmark that
/// was killed. It sleeps until then, so that it costs the router nothing.
pub fn end_with_the_parent() {
    let Some(parent) = getppid() else { return };
    thread::spawn(move || {
        if let Ok(handle) = pidfd_open(parent, PidfdFlags::empty()) {
            let mut waits = [PollFd::new(&handle, PollFlags::IN)];
            // The parent may have ended before the handle was opened.
            while getppid() == Some(parent) && poll(&mut waits, None).is_err() {}
        }
        std::process::exit(1);
    });
}

/// Processor time that the whole machine has worked since it started, all processors together:
/// all that /proc/stat counts but idle, waiting for disks, and stolen.
pub(super) fn worked() -> io::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    // user nice system idle iowait irq softirq steal; the guests' time is in user already.
    let fields: Vec<u64> = line.split_whitespace().skip(1).take(7).flat_map(str::parse).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq] = fields[..] else {
        return Err(io::Error::other(format!("/proc/stat begins with {line:?}")));
    };
    let ticks = user + nice + system + irq + softirq;
    Ok(Duration::from_secs_f64(ticks as f64 / sys::ticks_per_second()))
}

/// Processor time of some processes, all their threads together, also of those that have ended.
pub(super) fn worked_by(processes: &[u32]) -> io::Result<Duration> {
    processes.iter().map(|process| sys::processor_time(*process)).sum()
}

/// Resident memory of the largest of some processes, in bytes; `None` if there is none.
pub(super) fn resident(processes: &[u32]) -> Option<u64> {
    let of = |process: &u32| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    };
    processes.iter().filter_map(of).max()
}
