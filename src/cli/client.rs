//! Speaks with the router.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::api::REQUEST_TIMEOUT;
use crate::control::api::types::ErrorBody;
use crate::control::http::{HttpError, request};

/// How long a reading command waits for the router.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A router's API, as its clients see it.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads something.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.get_within(path, READ_TIMEOUT).await
    }

    /// Reads something that may take a while.
    pub(super) async fn get_within<T: DeserializeOwned>(&self, path: &str, timeout: Duration) -> anyhow::Result<T> {
        self.exchange(Method::GET, path, None, timeout).await
    }

    /// Changes something.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body)?;
        let timeout = REQUEST_TIMEOUT + Duration::from_secs(5);
        self.exchange(Method::POST, path, Some(body), timeout).await
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> anyhow::Result<T> {
        let (status, answer) =
            request(&self.socket, method, path, body, timeout).await.map_err(|error| explain(error, &self.socket))?;
        if status != StatusCode::OK {
            match serde_json::from_slice::<ErrorBody>(&answer) {
                Ok(body) => bail!("{}", body.error),
                Err(_) => bail!("the router refused with {status}"),
            }
        }
        serde_json::from_slice(&answer).with_context(|| {
            format!("the answer of the router at {} is not understood (another version?)", self.socket.display())
        })
    }
}

fn explain(error: HttpError, socket: &Path) -> anyhow::Error {
    let path = socket.display();
    match &error {
        HttpError::Connect { source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => anyhow::anyhow!(
                "no router is running at {path}: start one with `weft up`, or name its socket with --socket or WEFT_SOCKET"
            ),
            std::io::ErrorKind::PermissionDenied => {
                anyhow::anyhow!("the router at {path} belongs to another user: run this command as that user (root?)")
            }
            _ => error.into(),
        },
        _ => error.into(),
    }
}
