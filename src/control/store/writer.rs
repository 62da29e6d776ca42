//! The thread that makes writes durable, in order, as many at a time as wait.
//!
//! ```text
//!  router ─► queue 1024 ─► thread `weft-store`: take all that wait, one transaction, one fsync
//!     ▲                                            │
//!     └────────────── Stored, in the same order ◄──┘
//! ```
//!
//! If the combined transaction fails, each write is tried by itself, so that one that is at
//! fault does not take others with it.

use std::thread;

use ipam::Ticket;
use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::{Edit, File};

/// Most writes that wait for the disk.
const QUEUE: usize = 1024;
/// Most writes in one transaction.
const BATCH: usize = 256;

/// Who waits for a write.
#[derive(Debug)]
pub enum Done {
    /// The address protocol, which names the write so: told over the queue of [`Stored`].
    Ipam(Ticket),
    /// A request.
    Reply(oneshot::Sender<Result<(), String>>),
    /// Nobody: it can be made again.
    Nobody,
}

/// A write of the address protocol is durable, or failed.
#[derive(Debug)]
pub struct Stored {
    /// The allocator's name for the write.
    pub ticket: Ticket,
    /// What came of it.
    pub result: Result<(), String>,
}

struct Write {
    edits: Vec<Edit>,
    done: Done,
}

/// The disk does not keep up, or the thread has ended: the write was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the disk under the data directory does not keep up ({QUEUE} writes wait)")]
pub struct StoreClosed;

/// The router's hold on the file. Clones share it; when the last is gone and all writes are
/// done, the file is closed.
#[derive(Debug, Clone)]
pub struct Store {
    queue: mpsc::Sender<Write>,
}

impl Store {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread to spare.
    pub fn start(file: File) -> std::io::Result<(Self, mpsc::Receiver<Stored>)> {
        let (queue, writes) = mpsc::channel(QUEUE);
        // As many as can wait: the thread is never held up by a slow router.
        let (tell, stored) = mpsc::channel(QUEUE + BATCH);
        let File(database) = file;
        thread::Builder::new().name("weft-store".to_owned()).spawn(move || run(&database, writes, &tell))?;
        Ok((Self { queue }, stored))
    }

    /// Hands a write over; all its edits become durable, or none. Does not block.
    ///
    /// # Errors
    /// If too many writes wait. Nobody is told then but the caller.
    pub fn write(&self, edits: Vec<Edit>, done: Done) -> Result<(), StoreClosed> {
        self.queue.try_send(Write { edits, done }).map_err(|_| StoreClosed)
    }

    /// Hands a write over and waits until it is durable.
    ///
    /// # Errors
    /// What the disk said.
    pub async fn write_and_wait(&self, edits: Vec<Edit>) -> Result<(), String> {
        let (done, wait) = oneshot::channel();
        self.write(edits, Done::Reply(done)).map_err(|closed| closed.to_string())?;
        wait.await.unwrap_or_else(|_| Err("the store has stopped".to_owned()))
    }
}

fn run(database: &Database, mut writes: mpsc::Receiver<Write>, tell: &mpsc::Sender<Stored>) {
    let mut batch = Vec::new();
    while let Some(first) = writes.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH
            && let Ok(next) = writes.try_recv()
        {
            batch.push(next);
        }
        let together = commit(database, batch.iter());
        for write in batch.drain(..) {
            let result = match &together {
                Ok(()) => Ok(()),
                Err(_) => commit(database, [&write].into_iter()),
            };
            report(write.done, result, tell);
        }
    }
}

fn report(done: Done, result: Result<(), String>, tell: &mpsc::Sender<Stored>) {
    match done {
        Done::Ipam(ticket) => {
            // Fails only when the router is gone, and then nobody waits.
            let _ = tell.blocking_send(Stored { ticket, result });
        }
        Done::Reply(reply) => {
            let _ = reply.send(result);
        }
        Done::Nobody => {
            if let Err(error) = result {
                tracing::warn!(%error, "a write to the data directory failed");
            }
        }
    }
}

fn commit<'a>(database: &Database, writes: impl Iterator<Item = &'a Write>) -> Result<(), String> {
    let apply = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        for edit in writes.flat_map(|write| &write.edits) {
            let mut table = transaction.open_table(edit.table.definition())?;
            match &edit.value {
                Some(value) => table.insert(edit.key.as_slice(), value.as_slice())?,
                None => table.remove(edit.key.as_slice())?,
            };
        }
        transaction.commit()?;
        Ok(())
    };
    apply().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::{Table, open};
    use super::*;

    #[tokio::test]
    async fn writes_are_durable_in_their_order_and_reported_in_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, mut stored) = Store::start(open(dir.path()).expect("made").file).expect("started");
        for number in 0..500_u64 {
            let edit = Edit::set(Table::Ipam, *b"key", number.to_be_bytes());
            store.write(vec![edit], Done::Ipam(Ticket(number))).expect("taken");
        }
        for number in 0..500 {
            let done = stored.recv().await.expect("reported");
            assert_eq!((done.ticket, done.result), (Ticket(number), Ok(())));
        }
        drop(store);
        assert!(stored.recv().await.is_none(), "the thread ends with its last owner");
        let state = open(dir.path()).expect("opened").state;
        assert_eq!(state.ipam, [(b"key".to_vec(), 499_u64.to_be_bytes().to_vec())]);
    }

    #[tokio::test]
    async fn a_deleted_key_is_gone_after_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let (store, mut stored) = Store::start(open(dir.path()).expect("made").file).expect("started");
        let set = |key: &[u8]| Edit::set(Table::Attachments, key, *b"v");
        store.write_and_wait(vec![set(b"a"), set(b"b")]).await.expect("written");
        store.write_and_wait(vec![Edit::delete(Table::Attachments, *b"a")]).await.expect("written");
        drop(store);
        assert!(stored.recv().await.is_none());
        let state = open(dir.path()).expect("opened").state;
        assert_eq!(state.attachments.keys().collect::<Vec<_>>(), [b"b"]);
    }
}
