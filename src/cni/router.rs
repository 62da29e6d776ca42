//! Speaks with the router, and waits for one that starts.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{CniError, Kind};
use crate::control::api::types::ErrorBody;
use crate::control::http::{HttpError, request};

/// First pause before it is tried again, and the longest.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A router's API, as the plugin sees it.
#[derive(Debug, Clone)]
pub(super) struct Router {
    socket: PathBuf,
    /// Until when all that is asked may take, waiting included.
    deadline: Instant,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Nobody listens, or nobody answers: it may be about to start.
    Absent(String),
    /// It may be there, but cannot be asked.
    Unusable(String),
    /// It says no.
    Said(StatusCode, String),
}

impl Refusal {
    /// As CNI tells it.
    pub(super) fn error(self) -> CniError {
        let (kind, text) = match self {
            Self::Absent(text) => (Kind::TryAgain, text),
            Self::Unusable(text) => (Kind::Io, text),
            Self::Said(status, text) => (kind_of(status), text),
        };
        CniError::new(kind, text)
    }

    fn is_passing(&self) -> bool {
        match self {
            Self::Absent(_) => true,
            Self::Unusable(_) => false,
            Self::Said(status, _) => *status == StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn kind_of(status: StatusCode) -> Kind {
    match status {
        StatusCode::BAD_REQUEST => Kind::Config,
        StatusCode::NOT_FOUND => Kind::UnknownContainer,
        StatusCode::CONFLICT => Kind::Refused,
        StatusCode::SERVICE_UNAVAILABLE => Kind::TryAgain,
        _ => Kind::Failed,
    }
}

impl Router {
    pub(super) fn new(socket: PathBuf, wait: Duration) -> Self {
        Self { socket, deadline: Instant::now() + wait }
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Refusal> {
        self.ask(Method::GET, path, None).await
    }

    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Refusal> {
        let body = serde_json::to_vec(body).map_err(|error| Refusal::Unusable(error.to_string()))?;
        self.ask(Method::POST, path, Some(body)).await
    }

    /// Asks until there is an answer or the time is over. What the plugin asks for may be asked twice:
    /// a router that was killed may have done it without saying so.
    async fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<T, Refusal> {
        let mut pause = PAUSE;
        loop {
            // At the end one answer is still waited for: without any patience, too.
            let left = self.deadline.saturating_duration_since(Instant::now()).max(PAUSE_MAX);
            let refusal = match self.once(method.clone(), path, body.clone(), left).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => refusal,
            };
            if !refusal.is_passing() || Instant::now() + pause >= self.deadline {
                return Err(refusal);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn once<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        timeout: Duration,
    ) -> Result<T, Refusal> {
        let (status, answer) = request(&self.socket, method, path, body, timeout).await.map_err(explain)?;
        if status != StatusCode::OK {
            let said = serde_json::from_slice::<ErrorBody>(&answer).map(|body| body.error);
            return Err(Refusal::Said(status, said.unwrap_or_else(|_| format!("the router answers {status}"))));
        }
        serde_json::from_slice(&answer).map_err(|error| {
            let socket = self.socket.display();
            Refusal::Unusable(format!(
                "the answer of the router at {socket} is not understood (another version?): {error}"
            ))
        })
    }
}

fn explain(error: HttpError) -> Refusal {
    use std::io::ErrorKind;
    match &error {
        HttpError::Connect { source, socket } => match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => Refusal::Absent(format!(
                "no router answers at {socket}: start it (`weft up`), or set `socket` in the network configuration"
            )),
            // Its queue is full.
            ErrorKind::WouldBlock => Refusal::Absent(format!("the router at {socket} has too much to do")),
            _ => Refusal::Unusable(format!("{error}; this plugin must run as the router's user")),
        },
        HttpError::Broken { .. } | HttpError::TimedOut { .. } => Refusal::Absent(error.to_string()),
    }
}
