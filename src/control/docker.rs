//! What Docker knows of a container: its id and the process whose namespace it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::{Method, StatusCode};
use mesh_proto::wire::services::Service;
use serde::Deserialize;

use super::http;

/// Where Docker listens, unless `DOCKER_HOST` says otherwise.
const SOCKET: &str = "/var/run/docker.sock";
/// How long Docker may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id: 64 hexadecimal digits.
    pub id: String,
    /// A process in its namespace.
    pub pid: u32,
    /// Its name, and its hostname if somebody chose one.
    pub names: Vec<String>,
    /// The ports that its image or whoever started it exposes.
    pub services: Vec<Service>,
}

/// Why a container cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// That cannot be a container's name.
    #[error("`{0}` is not a name of a Docker container (letters, digits, `_`, `.`, `-`)")]
    Name(String),
    /// `DOCKER_HOST` is no unix socket.
    #[error("DOCKER_HOST={0}: only unix:// sockets are supported")]
    Host(String),
    /// Docker does not answer.
    #[error("Docker cannot be asked for container `{name}`: {source}; name the namespace by path or pid instead")]
    Unreachable {
        /// The container.
        name: String,
        /// Why.
        source: http::HttpError,
    },
    /// There is none of that name.
    #[error("there is no Docker container `{0}`")]
    Unknown(String),
    /// It does not run, so it has no namespace.
    #[error("the Docker container `{0}` is not running; start it first")]
    Stopped(String),
    /// The answer makes no sense.
    #[error("Docker's answer about container `{name}` is not understood: {why}")]
    Answer {
        /// The container.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspect {
    id: String,
    state: State,
    #[serde(default)]
    name: String,
    #[serde(default)]
    config: Config,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    exposed_ports: Option<Exposed>,
}

/// Ports that a container exposes, as Docker writes them: `{"80/tcp": {}}`.
pub type Exposed = BTreeMap<String, serde::de::IgnoredAny>;

/// Which services these are: of those that neither TCP nor UDP carries (SCTP), none.
#[must_use]
pub fn exposed(ports: Option<Exposed>) -> Vec<Service> {
    ports.unwrap_or_default().keys().filter_map(|port| port.parse().ok()).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    pid: u32,
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

/// Looks a container up by name or id.
///
/// # Errors
/// If there is no such container, it does not run, or Docker does not answer.
pub async fn inspect(name: &str) -> Result<Container, DockerError> {
    inspect_at(&socket()?, name).await
}

async fn inspect_at(socket: &Path, name: &str) -> Result<Container, DockerError> {
    check_name(name)?;
    let path = format!("/containers/{name}/json");
    let (status, body) = http::request(socket, Method::GET, &path, None, TIMEOUT)
        .await
        .map_err(|source| DockerError::Unreachable { name: name.to_owned(), source })?;
    understand(name, status, &body)
}

/// Where Docker listens.
///
/// # Errors
/// If `DOCKER_HOST` is no unix socket.
pub fn socket() -> Result<PathBuf, DockerError> {
    match std::env::var("DOCKER_HOST") {
        Ok(host) if !host.is_empty() => match host.strip_prefix("unix://") {
            Some(path) => Ok(PathBuf::from(path)),
            None => Err(DockerError::Host(host)),
        },
        _ => Ok(PathBuf::from(SOCKET)),
    }
}

fn check_name(name: &str) -> Result<(), DockerError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if name.is_empty() || name.len() > 255 || !name.chars().all(fine) || name.starts_with('.') {
        return Err(DockerError::Name(name.to_owned()));
    }
    Ok(())
}

fn understand(name: &str, status: StatusCode, body: &[u8]) -> Result<Container, DockerError> {
    let answer = |why: String| DockerError::Answer { name: name.to_owned(), why };
    if status == StatusCode::NOT_FOUND {
        return Err(DockerError::Unknown(name.to_owned()));
    }
    if status != StatusCode::OK {
        let message = serde_json::from_slice::<Message>(body).map(|body| body.message);
        return Err(answer(format!("{status} {}", message.unwrap_or_default())));
    }
    let inspect: Inspect = serde_json::from_slice(body).map_err(|error| answer(error.to_string()))?;
    if !inspect.state.running || inspect.state.pid == 0 {
        return Err(DockerError::Stopped(name.to_owned()));
    }
    let names = chosen(&inspect.id, [&*inspect.name, &*inspect.config.hostname]);
    let services = exposed(inspect.config.exposed_ports);
    Ok(Container { pid: inspect.state.pid, names, services, id: inspect.id })
}

/// Of what a container is called, that which somebody chose: Docker writes a slash before the name, and
/// makes a hostname and an alias of the id.
#[must_use]
pub fn chosen<'a>(id: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let names = names.into_iter().map(|name| name.trim_start_matches('/'));
    names.filter(|name| !name.is_empty() && !id.starts_with(name)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_container_is_understood_and_others_are_told_apart() {
        let body = br#"{"Id":"abcd","State":{"Running":true,"Pid":42,"Status":"running"},"X":1}"#;
        let container = understand("c", StatusCode::OK, body).expect("running");
        assert_eq!(container, Container { id: "abcd".to_owned(), pid: 42, names: Vec::new(), services: Vec::new() });
        let body = br#"{"Id":"abcd","Name":"/web","Config":{"Hostname":"abc"},"State":{"Running":true,"Pid":42}}"#;
        assert_eq!(understand("c", StatusCode::OK, body).expect("running").names, ["web"]);
        let body = br#"{"Id":"abcd","Name":"/web","Config":{"Hostname":"www"},"State":{"Running":true,"Pid":42}}"#;
        assert_eq!(understand("c", StatusCode::OK, body).expect("running").names, ["web", "www"]);
        let body = br#"{"Id":"abcd","Config":{"ExposedPorts":{"80/tcp":{},"53/udp":{},"9/sctp":{}}},"State":{"Running":true,"Pid":42}}"#;
        let services = understand("c", StatusCode::OK, body).expect("running").services;
        assert_eq!(services.iter().map(ToString::to_string).collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
        let stopped = br#"{"Id":"abc","State":{"Running":false,"Pid":0}}"#;
        let error = |status, body: &[u8]| understand("c", status, body).expect_err("no container").to_string();
        assert!(error(StatusCode::OK, stopped).contains("not running"));
        assert!(error(StatusCode::NOT_FOUND, b"").contains("no Docker container `c`"));
        assert!(error(StatusCode::OK, b"[]").contains("not understood"));
        let refusal = error(StatusCode::INTERNAL_SERVER_ERROR, br#"{"message":"busy"}"#);
        assert!(refusal.contains("busy"), "{refusal}");
    }

    #[tokio::test]
    async fn the_question_is_asked_over_the_socket() {
        use axum::routing::get;

        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&socket).expect("bound");
        let body = r#"{"Id":"abc","State":{"Running":true,"Pid":7}}"#;
        let app = axum::Router::new().route("/containers/web/json", get(move || async move { body }));
        let server = tokio::spawn(axum::serve(listener, app).into_future());
        assert_eq!(inspect_at(&socket, "web").await.expect("running").pid, 7);
        assert!(matches!(inspect_at(&socket, "db").await, Err(DockerError::Unknown(_))));
        server.abort();
        let error = inspect_at(&dir.path().join("none"), "web").await.expect_err("nobody there");
        assert!(error.to_string().contains("by path or pid"), "{error}");
    }

    #[test]
    fn a_name_cannot_reach_into_the_path() {
        for name in ["", "../info", "a/b", "a b", "a?x=1", ".hidden", "a%2f"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("web-1.prod_x").is_ok());
    }
}
