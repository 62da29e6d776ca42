//! A small HTTP/1.1 client over unix sockets: for our own API and for Docker's.

use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Largest answer that is read, in bytes: a status of ten thousand peers has about 4 MB.
const ANSWER_MAX: usize = 64 << 20;

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
    let broken = |why: String| HttpError::Broken { socket: name.to_owned(), why };
    let stream =
        UnixStream::connect(socket).await.map_err(|source| HttpError::Connect { socket: name.to_owned(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.to_string()))?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body.unwrap_or_default())))
        .map_err(|error| broken(error.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| broken(e.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await
            .map_err(|error| broken(error.to_string()))?;
        Ok((status, body.to_bytes()))
    }
    .await;
    driver.abort();
    answer
}
