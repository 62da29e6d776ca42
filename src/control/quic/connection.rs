//! One connection: a stream of messages each way (quic Q8 to Q12), a reader and a writer.
//!
//! ```text
//!  stream   │ 0 (u32) │ length (u32, big endian) │ message │ length │ message │ …
//!             └ opens the stream: written by the dialler, so that the other end sees it at once
//! ```

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mesh_proto::control::{ConnId, Connected, DialId, MESSAGE_MAX};
use mesh_proto::data::Hop;
use quinn::{Connection, ConnectionError, ReadError, ReadExactError, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{QuicEvent, Shared, tls};

/// Bytes that may wait in one connection's queue.
const QUEUE_BYTES: usize = 8 << 20;
/// Messages that may wait in one connection's queue.
const QUEUE_MESSAGES: usize = 256;
/// How long the stream may take to come about after the handshake: a round trip, and what is lost.
const OPEN: Duration = Duration::from_secs(1);
/// How long the end of a connection waits for what is still under way.
const LINGER: Duration = Duration::from_millis(500);
/// Longest reason, in bytes, that is sent or believed.
const REASON_MAX: usize = 256;
/// What is allocated before a byte of a message has come.
const FIRST_READ: usize = 16 << 10;

/// What the writer gets.
enum Out {
    Message(Vec<u8>),
    Close,
}

/// What the endpoint holds of a connection.
pub(super) struct Link {
    connection: Connection,
    queue: mpsc::UnboundedSender<Out>,
    /// Bytes and messages in the queue: its bound, counted here because a close must always fit.
    bytes: AtomicUsize,
    messages: AtomicUsize,
    /// Why it was closed at this end.
    closed: OnceLock<String>,
}

impl Link {
    /// Queues a message.
    pub(super) fn send(&self, bytes: Vec<u8>) {
        if self.closed.get().is_some() || bytes.is_empty() {
            return;
        }
        if bytes.len() > MESSAGE_MAX {
            return self.close_now(&format!("a message of {} bytes is over the limit of {MESSAGE_MAX}", bytes.len()));
        }
        let waiting = self.bytes.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        let messages = self.messages.fetch_add(1, Ordering::Relaxed) + 1;
        if waiting > QUEUE_BYTES || messages > QUEUE_MESSAGES {
            return self.close_now("too slow: messages pile up for this connection");
        }
        // Err: the writer has ended because the connection is gone, which the reader reports.
        let _ = self.queue.send(Out::Message(bytes));
    }

    /// Closes after what is queued has been sent.
    pub(super) fn close(&self, reason: &str) {
        if self.closed.set(clean(reason)).is_ok() && self.queue.send(Out::Close).is_err() {
            self.finish();
        }
    }

    fn close_now(&self, reason: &str) {
        let _ = self.closed.set(clean(reason));
        self.finish();
    }

    fn finish(&self) {
        let reason = self.closed.get().map_or("", String::as_str);
        close(&self.connection, reason);
    }

    /// Why the connection ended, for the event.
    fn reason(&self, error: &ConnectionError) -> String {
        match (error, self.closed.get()) {
            (ConnectionError::LocallyClosed, Some(reason)) => format!("closed at this end: {reason}"),
            _ => explain(error),
        }
    }
}

/// Serves a connection whose TLS handshake is complete, until it ends.
pub(super) async fn serve(shared: Arc<Shared>, connection: Connection, hop: Hop, dial: Option<DialId>) {
    // Bounded, because the other end decides whether a stream may be opened, and when.
    let opened = match dial {
        Some(_) => timeout(OPEN, open(&connection)).await,
        None => timeout(OPEN, accept(&connection)).await,
    };
    let opened = opened.unwrap_or_else(|_| Err("no stream was opened".to_owned()));
    let (proven, streams) = match (tls::proven(&connection), opened) {
        (Ok(proven), Ok(streams)) => (proven, streams),
        (Err(reason), _) => return abandon(&shared, &connection, dial, reason.to_owned()).await,
        (_, Err(reason)) => return abandon(&shared, &connection, dial, reason).await,
    };
    let (sign_key, exporter) = proven;
    let (send, receive) = streams;
    let (queue, queued) = mpsc::unbounded_channel();
    let link = Arc::new(Link {
        connection: connection.clone(),
        queue,
        bytes: AtomicUsize::new(0),
        messages: AtomicUsize::new(0),
        closed: OnceLock::new(),
    });
    let Some(conn) = shared.add(link.clone()) else {
        return abandon(&shared, &connection, dial, "this peer is shutting down".to_owned()).await;
    };
    let connected = Connected { hop, dial, sign_key, exporter };
    if shared.events.send(QuicEvent::Connected(conn, connected)).await.is_ok() {
        let writer = tokio::spawn(write(link.clone(), send, queued));
        read(&shared, conn, &connection, receive).await;
        writer.abort();
    }
    close(&connection, "the stream broke");
    let reason = link.reason(&connection.closed().await);
    shared.remove(conn);
    let _ = shared.events.send(QuicEvent::Disconnected(conn, reason)).await;
}

/// A connection that came to nothing before anybody heard of it.
async fn abandon(shared: &Shared, connection: &Connection, dial: Option<DialId>, reason: String) {
    close(connection, &reason);
    if let Some(dial) = dial {
        let _ = shared.events.send(QuicEvent::DialFailed(dial, reason)).await;
    }
}

type Streams = (SendStream, RecvStream);

async fn open(connection: &Connection) -> Result<Streams, String> {
    let (mut send, receive) = connection.open_bi().await.map_err(|error| explain(&error))?;
    // Makes the stream known to the other end, which may be the first to speak.
    send.write_all(&[0; 4]).await.map_err(|error| error.to_string())?;
    Ok((send, receive))
}

async fn accept(connection: &Connection) -> Result<Streams, String> {
    connection.accept_bi().await.map_err(|error| explain(&error))
}

async fn write(link: Arc<Link>, mut stream: SendStream, mut queued: mpsc::UnboundedReceiver<Out>) {
    while let Some(Out::Message(bytes)) = queued.recv().await {
        link.messages.fetch_sub(1, Ordering::Relaxed);
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
        let written = match stream.write_all(&length).await {
            Ok(()) => stream.write_all(&bytes).await,
            error => error,
        };
        link.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
        if written.is_err() {
            // The connection is gone; the reader reports it.
            return;
        }
    }
    let _ = stream.finish();
    let _ = timeout(LINGER, stream.stopped()).await;
    link.finish();
}

/// Reads messages until the connection or the stream ends.
async fn read(shared: &Shared, conn: ConnId, connection: &Connection, mut stream: RecvStream) {
    loop {
        let mut length = [0; 4];
        match stream.read_exact(&mut length).await {
            Ok(()) => {}
            // The other end has no more to say: its close, with the reason, follows.
            Err(ReadExactError::FinishedEarly(0)) => {
                let _ = timeout(2 * LINGER, connection.closed()).await;
                return;
            }
            Err(_) => return,
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length == 0 {
            continue;
        }
        if length > MESSAGE_MAX {
            let reason = format!("a message of {length} bytes is over the limit of {MESSAGE_MAX}");
            close(connection, &reason);
            return;
        }
        let Ok(Some(message)) = read_message(&mut stream, length).await else { return };
        if shared.events.send(QuicEvent::Message(conn, message)).await.is_err() {
            return;
        }
    }
}

/// A message grows as it comes: a stranger's announced length costs nothing. `None` if the stream
/// ends within it.
async fn read_message(stream: &mut RecvStream, length: usize) -> Result<Option<Vec<u8>>, ReadError> {
    let mut message = Vec::with_capacity(length.min(FIRST_READ));
    while message.len() < length {
        match stream.read_chunk(length - message.len(), true).await? {
            Some(chunk) => message.extend_from_slice(&chunk.bytes),
            None => return Ok(None),
        }
    }
    Ok(Some(message))
}

/// Closes a connection that has not ended yet: a second close would hide the first one's reason.
fn close(connection: &Connection, reason: &str) {
    if connection.close_reason().is_none() {
        connection.close(tls::CLOSE, clean(reason).as_bytes());
    }
}

/// What ended a connection, in words for people.
pub(super) fn explain(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(close) => match clean(&String::from_utf8_lossy(&close.reason)) {
            reason if reason.is_empty() => "closed by the other end".to_owned(),
            reason => reason,
        },
        ConnectionError::TimedOut => "the other end does not answer any more".to_owned(),
        ConnectionError::Reset => "the other end was started again".to_owned(),
        ConnectionError::LocallyClosed => "closed at this end".to_owned(),
        ConnectionError::VersionMismatch => "the other end speaks another version of QUIC".to_owned(),
        other => clean(&other.to_string()),
    }
}

/// A reason as it may stand in a log: one line, bounded, without control characters.
pub(super) fn clean(reason: &str) -> String {
    let mut text: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.truncate(text.floor_char_boundary(REASON_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_short_line_whatever_the_other_end_sent() {
        assert_eq!(clean("wrong\nsecret\u{1b}[0m"), "wrong secret [0m");
        assert_eq!(clean(&"é".repeat(1000)).len(), REASON_MAX);
        assert_eq!(clean(&format!("a{}", "é".repeat(1000))).len(), REASON_MAX - 1);
    }
}
