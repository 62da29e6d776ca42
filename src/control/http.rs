//! A small HTTP/1.1 client over unix sockets: for our own API and for Docker's.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

/// Largest answer that is read, in bytes: a status of ten thousand peers has about 4 MB.
const ANSWER_MAX: usize = 64 << 20;
/// Longest line of an answer that goes on, in bytes.
const LINE_MAX: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody listens there.
    #[error("cannot connect to {socket}: {source}")]
    Connect {
        /// The socket.
        socket: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// It broke off.
    #[error("{socket} gave no whole answer: {why}")]
    Broken {
        /// The socket.
        socket: String,
        /// At which step.
        why: String,
    },
    /// It took too long.
    #[error("{socket} did not answer within {seconds} s")]
    TimedOut {
        /// The socket.
        socket: String,
        /// How long was waited.
        seconds: u64,
    },
}

/// Sends one request and reads the whole answer, on a connection of its own.
///
/// # Errors
/// If there is no whole answer in time.
pub async fn request(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
    timeout: Duration,
) -> Result<(StatusCode, Bytes), HttpError> {
    let name = socket.display().to_string();
    match tokio::time::timeout(timeout, exchange(socket, &name, method, path, body)).await {
        Ok(answer) => answer,
        Err(_) => Err(HttpError::TimedOut { socket: name, seconds: timeout.as_secs() }),
    }
}

async fn exchange(
    socket: &Path,
    name: &str,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<(StatusCode, Bytes), HttpError> {
    let (response, _driver) = send(socket, name, method, path, body).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(|error| HttpError::Broken { socket: name.to_owned(), why: error.to_string() })?;
    Ok((status, body.to_bytes()))
}

/// What moves a connection's bytes; they stand when it is dropped.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request and reads the head of its answer.
async fn send(
    socket: &Path,
    name: &str,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<(Response<Incoming>, Driver), HttpError> {
    let broken = |why: String| HttpError::Broken { socket: name.to_owned(), why };
    let stream =
        UnixStream::connect(socket).await.map_err(|source| HttpError::Connect { socket: name.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
    // An error of the connection is one of the request, too.
    let driver = Driver(tokio::spawn(async { drop(connection.await) }));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|error| broken(error.to_string()))?;
    let response = sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
    Ok((response, driver))
}

/// An answer that goes on for ever, read line by line.
#[derive(Debug)]
pub struct Lines {
    socket: String,
    body: Incoming,
    read: Vec<u8>,
    _driver: Driver,
}

/// Asks for an answer that goes on, on a connection of its own.
///
/// # Errors
/// If no answer begins in time, or it is not a good one.
pub async fn lines(socket: &Path, path: &str, timeout: Duration) -> Result<Lines, HttpError> {
    let name = socket.display().to_string();
    let Ok(sent) = tokio::time::timeout(timeout, send(socket, &name, Method::GET, path, None)).await else {
        return Err(HttpError::TimedOut { socket: name, seconds: timeout.as_secs() });
    };
    let (response, driver) = sent?;
    if response.status() != StatusCode::OK {
        return Err(HttpError::Broken { socket: name, why: format!("{path}: {}", response.status()) });
    }
    Ok(Lines { socket: name, body: response.into_body(), read: Vec::new(), _driver: driver })
}

impl Lines {
    /// The next line without its end; none when the answer has ended. Nothing is lost if it is not
    /// waited for to the end.
    ///
    /// # Errors
    /// If the answer breaks off, or a line is too long.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, HttpError> {
        let broken = |why: String| HttpError::Broken { socket: self.socket.clone(), why };
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.read.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.read.len() > LINE_MAX {
                return Err(broken(format!("a line has more than {LINE_MAX} bytes")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(error.to_string())),
                Some(Ok(frame)) => self.read.extend(frame.data_ref().into_iter().flatten()),
            }
        }
    }
}
