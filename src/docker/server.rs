//! Docker's plugin protocol, version 1: HTTP/1.1 on a unix socket, a POST with a JSON body for each call.
//!
//! The engine sends an empty `Host`, no `Content-Type`, and no body at all with some calls.

use std::path::PathBuf;
use std::time::Duration;

use axum::body::{self, Body};
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::addresses::SPACE;
use super::refusal::Refusal;
use super::{Docker, Ports};
use crate::control::api;

/// Largest body, in bytes: a container may publish thousands of ports.
const BODY_MAX: usize = 4 << 20;
/// How long a call may take: the engine gives up after 30 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(25);
/// How soon the socket is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// What the engine calls an answer.
const ANSWER_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");
/// Name of the problem in `status`.
const CONCERN: &str = "docker";

/// Serves the drivers at a path, for ever. A path that cannot be had is tried again and again, and
/// `weft status` says why: the mesh does without.
pub async fn serve<P: Ports>(docker: Docker<P>, path: PathBuf) {
    let router = docker.inner.router.clone();
    let mut complaint = None;
    loop {
        let said = match api::claim(&path, "docker-socket").await {
            Ok((listener, _file)) => {
                // A router that stops shows no problems.
                let _ = router.set_concern(CONCERN, None).await;
                tracing::info!(path = %path.display(), "Docker's network and IPAM driver");
                match axum::serve(listener, app(docker.clone())).await {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                }
            }
            Err(error) => error.to_string(),
        };
        let text = format!("Docker does not find Weft's drivers: {said}");
        if complaint.as_ref() != Some(&text) {
            tracing::error!("{text}");
            let _ = router.set_concern(CONCERN, Some(text.clone())).await;
            complaint = Some(text);
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The whole protocol.
pub(super) fn app<P: Ports>(docker: Docker<P>) -> Router {
    Router::new().fallback(handle::<P>).with_state(docker)
}

async fn handle<P: Ports>(State(docker): State<Docker<P>>, request: Request) -> Response {
    let call = request.uri().path().trim_start_matches('/').to_owned();
    if request.method() != Method::POST {
        return Refusal::Call(format!("{} {}", request.method(), super::pool::shown(&call))).into_response();
    }
    let answer = match read(request.into_body()).await {
        Ok(body) => to_the_end(docker, call, body).await,
        Err(refusal) => Err(refusal),
    };
    let mut response = match answer {
        Ok(value) => Json(value).into_response(),
        Err(refusal) => refusal.into_response(),
    };
    response.headers_mut().insert(CONTENT_TYPE, ANSWER_TYPE);
    response
}

async fn read(body: Body) -> Result<Vec<u8>, Refusal> {
    match body::to_bytes(body, BODY_MAX).await {
        Ok(bytes) => Ok(bytes.to_vec()),
        Err(error) => {
            Err(Refusal::Malformed(format!("its body is longer than {BODY_MAX} bytes, or broke off: {error}")))
        }
    }
}

/// Carries a call out to its end, even if the engine goes away: half of one would leave an address without an
/// endpoint.
async fn to_the_end<P: Ports>(docker: Docker<P>, call: String, body: Vec<u8>) -> Result<Value, Refusal> {
    let name = call.clone();
    let work = tokio::spawn(async move { docker.call(&call, &body).await });
    let answer = match tokio::time::timeout(CALL_TIMEOUT, work).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panicked)) => {
            tracing::error!(%panicked, "a call of Docker's failed in a way that nobody foresaw");
            Err(Refusal::Unforeseen)
        }
        Err(_) => Err(Refusal::Late(CALL_TIMEOUT.as_secs())),
    };
    match &answer {
        Ok(_) => tracing::debug!(call = name, "Docker"),
        Err(refusal) => tracing::warn!(call = super::pool::shown(&name), "Docker is refused: {refusal}"),
    }
    answer
}

impl<P: Ports> Docker<P> {
    /// Answers one call.
    pub(super) async fn call(&self, call: &str, body: &[u8]) -> Result<Value, Refusal> {
        match call {
            "Plugin.Activate" => Ok(json!({ "Implements": ["NetworkDriver", "IpamDriver"] })),
            "IpamDriver.GetCapabilities" => Ok(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false })),
            "IpamDriver.GetDefaultAddressSpaces" => {
                Ok(json!({ "LocalDefaultAddressSpace": SPACE, "GlobalDefaultAddressSpace": SPACE }))
            }
            "IpamDriver.RequestPool" => value(&self.request_pool(&parse(body)?)?),
            // It is told in the pool's id all that there is to know, and keeps nothing for it.
            "IpamDriver.ReleasePool" => Ok(json!({})),
            "IpamDriver.RequestAddress" => {
                let address = self.request_address(&parse(body)?).await?;
                Ok(json!({ "Address": address.to_string(), "Data": {} }))
            }
            "IpamDriver.ReleaseAddress" => self.release_address(&parse(body)?).await.map(nothing),
            "NetworkDriver.GetCapabilities" => Ok(json!({ "Scope": "local", "ConnectivityScope": "global" })),
            "NetworkDriver.CreateNetwork" => self.create_network(&parse(body)?).await.map(nothing),
            "NetworkDriver.DeleteNetwork" => self.delete_network(&parse(body)?).await.map(nothing),
            "NetworkDriver.CreateEndpoint" => self.create_endpoint(&parse(body)?).await,
            "NetworkDriver.EndpointOperInfo" => self.oper_info(&parse(body)?),
            "NetworkDriver.DeleteEndpoint" => self.delete_endpoint(&parse(body)?).await.map(nothing),
            "NetworkDriver.Join" => value(&self.join(&parse(body)?).await?),
            // The engine takes the interface out of the container itself, and deletes the endpoint next. Ports
            // are published on Docker's own bridge, and hosts are found by the mesh.
            "NetworkDriver.Leave"
            | "NetworkDriver.DiscoverNew"
            | "NetworkDriver.DiscoverDelete"
            | "NetworkDriver.ProgramExternalConnectivity"
            | "NetworkDriver.RevokeExternalConnectivity" => Ok(json!({})),
            other => Err(Refusal::Call(super::pool::shown(other))),
        }
    }
}

fn nothing((): ()) -> Value {
    json!({})
}

fn value(answer: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(answer).map_err(|_| Refusal::Unforeseen)
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let text: &[u8] = if body.trim_ascii().is_empty() { b"{}" } else { body };
    // A list of the fields' values would do for the parser.
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::Malformed("the body is no JSON object".to_owned()));
    }
    serde_json::from_slice(text)
        .map_err(|error| Refusal::Malformed(format!("the body is not what is expected: {error}")))
}
