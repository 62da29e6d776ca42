//! The control side's end of the queues to the data thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use mesh_proto::handover::Command;
use mesh_proto::id::PeerId;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use super::Report;

/// Commands that may wait. Control makes a handful per change of the mesh.
const COMMANDS: usize = 1024;
/// QUIC datagrams for relays that may wait: 1.2 MB.
const RELAYED: usize = 1024;
/// Report requests that may wait.
const REPORTS: usize = 16;
/// How long a report is waited for: a thread that takes longer is stuck.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// The thread's end: looked at when the eventfd says so, never per frame.
pub(super) struct Inbox {
    pub(super) commands: Receiver<Command>,
    pub(super) relayed: Receiver<(PeerId, Vec<u8>)>,
    pub(super) reports: Receiver<oneshot::Sender<Report>>,
}

/// What the handles share.
pub(super) struct Shared {
    commands: SyncSender<Command>,
    relayed: SyncSender<(PeerId, Vec<u8>)>,
    reports: SyncSender<oneshot::Sender<Report>>,
    wake: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Shared {
    /// The two ends, the eventfd that wakes the thread, and the flag that ends it.
    pub(super) fn new() -> io::Result<(Self, Inbox, Arc<OwnedFd>, Arc<AtomicBool>)> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (commands, commands_end) = sync_channel(COMMANDS);
        let (relayed, relayed_end) = sync_channel(RELAYED);
        let (reports, reports_end) = sync_channel(REPORTS);
        let inbox = Inbox { commands: commands_end, relayed: relayed_end, reports: reports_end };
        let thread = Mutex::new(None);
        let shared = Self { commands, relayed, reports, wake: wake.clone(), stop: stop.clone(), thread };
        Ok((shared, inbox, wake, stop))
    }

    pub(super) fn set_thread(&self, thread: JoinHandle<()>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    pub(super) fn command(&self, command: Command) {
        match self.commands.try_send(command) {
            Ok(()) => self.wake(),
            Err(TrySendError::Full(command)) => {
                self.wake();
                // The thread drains the queue in each turn of its loop, so this waits for one.
                // It fails only when the thread has been stopped: then nobody needs the command.
                let _ = self.commands.send(command);
                self.wake();
            }
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    pub(super) fn relay_quic(&self, to: PeerId, bytes: &[u8]) -> bool {
        let queued = self.relayed.try_send((to, bytes.to_vec())).is_ok();
        self.wake();
        queued
    }

    pub(super) async fn report(&self) -> Option<Report> {
        let (answer, answered) = oneshot::channel();
        self.reports.try_send(answer).ok()?;
        self.wake();
        tokio::time::timeout(REPORT_PATIENCE, answered).await.ok()?.ok()
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Err would be a panic of the thread, which it has logged itself.
            let _ = thread.join();
        }
    }

    fn wake(&self) {
        // EAGAIN means that the counter is at its maximum: the thread is as awake as can be.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}
