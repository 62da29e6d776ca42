//! What the engine says: what it has, asked only about what may have gone while the router was away, for it
//! does not tell that afterwards; and what its containers are called.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::{Method, StatusCode};
use ipnet::IpNet;
use mesh_proto::wire::services::Service;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::book::{Endpoint, Network};
use crate::control::attach::parse_mac;
use crate::control::docker::{Exposed, chosen, exposed};
use crate::control::http;

/// How long the engine may take for one answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that the engine has in networks whose addresses are not its own.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// The networks of drivers besides its own, by id.
    pub(super) networks: BTreeMap<String, Network>,
    /// Their endpoints.
    pub(super) endpoints: BTreeMap<String, Endpoint>,
    /// The addresses of these, and those that were set aside for other use.
    pub(super) addresses: BTreeSet<IpAddr>,
}

/// Where the engine is asked.
#[derive(Debug, Clone)]
pub struct Engine {
    /// Its API socket.
    pub socket: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    #[serde(default)]
    internal: bool,
    /// Only in the answer about one network.
    #[serde(default)]
    containers: Option<BTreeMap<String, Resource>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    #[serde(default)]
    driver: String,
    #[serde(default)]
    config: Option<Vec<Config>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    subnet: String,
    #[serde(default, rename = "AuxiliaryAddresses")]
    auxiliary: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Resource {
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(default)]
    mac_address: String,
    #[serde(default, rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(default, rename = "IPv6Address")]
    ipv6_address: String,
}

/// What a container is called, and where.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Called {
    /// Its name, and its hostname if somebody chose one.
    pub(super) names: Vec<String>,
    /// Its endpoints, by id, with what it is called besides in the network of each.
    pub(super) endpoints: BTreeMap<String, Vec<String>>,
    /// What it serves: the ports that it exposes.
    pub(super) services: Vec<Service>,
    /// A process in it; 0 while it does not run.
    pub(super) pid: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    #[serde(default)]
    state: State,
    #[serde(default)]
    config: Configured,
    #[serde(default)]
    network_settings: NetworkSettings,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct State {
    pid: u32,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Configured {
    hostname: String,
    exposed_ports: Option<Exposed>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkSettings {
    networks: Option<BTreeMap<String, Joined>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Joined {
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    aliases: Option<Vec<String>>,
}

impl From<Inspected> for Called {
    fn from(inspected: Inspected) -> Self {
        let names = chosen(&inspected.id, [&*inspected.name, &*inspected.config.hostname]);
        let of = |joined: Joined| {
            let aliases = joined.aliases.unwrap_or_default();
            (joined.endpoint_id, chosen(&inspected.id, aliases.iter().map(String::as_str)))
        };
        let joined = inspected.network_settings.networks.unwrap_or_default();
        let services = exposed(inspected.config.exposed_ports);
        Self { names, endpoints: joined.into_values().map(of).collect(), services, pid: inspected.state.pid }
    }
}

/// What the engine tells by itself.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Event {
    r#type: String,
    actor: Actor,
}

#[derive(Debug, Deserialize)]
struct Actor {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Attributes", default)]
    attributes: BTreeMap<String, String>,
}

impl Event {
    /// The container that it is about.
    pub(super) fn container(mut self) -> Option<String> {
        match self.r#type.as_str() {
            "container" => Some(self.actor.id),
            _ => self.actor.attributes.remove("container"),
        }
    }
}

/// The engine's events, as they come.
#[derive(Debug)]
pub(super) struct Events(http::Lines);

impl Events {
    /// The next one; none when the engine ends.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, String> {
        let Some(line) = self.0.next().await.map_err(|error| error.to_string())? else { return Ok(None) };
        serde_json::from_slice(&line).map(Some).map_err(|error| format!("/events: {error}"))
    }
}

impl Engine {
    /// Listens to containers that join a network or get another name.
    ///
    /// # Errors
    /// If the engine does not answer; in one line.
    pub(super) async fn events(&self) -> Result<Events, String> {
        // {"type":["network","container"],"event":["connect","rename"]}
        let path = "/events?filters=%7B%22type%22%3A%5B%22network%22%2C%22container%22%5D%2C\
                    %22event%22%3A%5B%22connect%22%2C%22rename%22%5D%7D";
        http::lines(&self.socket, path, TIMEOUT).await.map(Events).map_err(|error| error.to_string())
    }

    /// The containers that run in a network.
    ///
    /// # Errors
    /// As [`Self::events`].
    pub(super) async fn containers(&self, network: &str) -> Result<Vec<String>, String> {
        let listed = get::<Listed>(&self.socket, &format!("/networks/{network}")).await?;
        Ok(listed.and_then(|listed| listed.containers).unwrap_or_default().into_keys().collect())
    }

    /// What a container is called; none if there is no such container.
    ///
    /// # Errors
    /// As [`Self::events`].
    pub(super) async fn called(&self, container: &str) -> Result<Option<Called>, String> {
        let inspected = get::<Inspected>(&self.socket, &format!("/containers/{container}/json")).await?;
        Ok(inspected.map(Called::from))
    }

    /// Asks for all of it.
    ///
    /// # Errors
    /// If the engine does not answer, or not so that it is understood; in one line.
    pub(super) async fn claims(&self) -> Result<Claims, String> {
        let mut claims = Claims::default();
        let listed: Vec<Listed> = get(&self.socket, "/networks").await?.unwrap_or_default();
        let foreign = |network: &&Listed| !["", "default", "null"].contains(&network.ipam.driver.as_str());
        for network in listed.iter().filter(foreign) {
            // Gone meanwhile: then it has nothing.
            let Some(network) = get::<Listed>(&self.socket, &format!("/networks/{}", network.id)).await? else {
                continue;
            };
            claims.add(network);
        }
        Ok(claims)
    }
}

impl Claims {
    fn add(&mut self, network: Listed) {
        let configs = network.ipam.config.unwrap_or_default();
        let auxiliary = configs.iter().filter_map(|config| config.auxiliary.as_ref()).flat_map(BTreeMap::values);
        self.addresses.extend(auxiliary.filter_map(|text| text.parse::<IpAddr>().ok()));
        for resource in network.containers.unwrap_or_default().into_values() {
            let texts = [&resource.ipv4_address, &resource.ipv6_address];
            let addresses: Vec<IpNet> = texts.into_iter().filter_map(|text| text.parse().ok()).collect();
            self.addresses.extend(addresses.iter().map(IpNet::addr));
            let endpoint = Endpoint {
                id: resource.endpoint_id.clone(),
                network: network.id.clone(),
                addresses,
                mac: parse_mac(&resource.mac_address).unwrap_or_default(),
            };
            self.endpoints.insert(resource.endpoint_id, endpoint);
        }
        let pools = configs.iter().filter_map(|config| config.subnet.parse().ok()).collect();
        let known = Network { id: network.id.clone(), pools, internal: network.internal };
        self.networks.insert(network.id, known);
    }
}

async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<Option<T>, String> {
    let (status, body) =
        http::request(socket, Method::GET, path, None, TIMEOUT).await.map_err(|error| error.to_string())?;
    match status {
        StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(|error| format!("{path}: {error}")),
        StatusCode::NOT_FOUND => Ok(None),
        other => Err(format!("{path}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_called_what_somebody_chose() {
        let text = r#"{"Id":"0123456789abcdef","Name":"/web","Config":{"Hostname":"0123456789ab","ExposedPorts":{"80/tcp":{}}},"State":{"Pid":42},
            "NetworkSettings":{"Networks":{"mesh":{"EndpointID":"e1","Aliases":["www","0123456789ab"]},
            "other":{"EndpointID":"e2","Aliases":null}}}}"#;
        let called = Called::from(serde_json::from_str::<Inspected>(text).expect("understood"));
        let services = vec!["80/tcp".parse().expect("a service")];
        let endpoints = [("e1".to_owned(), vec!["www".to_owned()]), ("e2".to_owned(), Vec::new())];
        assert_eq!(called, Called { names: vec!["web".to_owned()], endpoints: endpoints.into(), services, pid: 42 });
        let stopped = r#"{"Id":"01","Name":"/web","Config":{"Hostname":"box"},"NetworkSettings":{"Networks":null}}"#;
        let called = Called::from(serde_json::from_str::<Inspected>(stopped).expect("understood"));
        assert_eq!(called.names, ["web", "box"]);
    }

    #[test]
    fn events_name_their_container() {
        for (text, container) in [
            (r#"{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"c"}}}"#, Some("c")),
            (r#"{"Type":"container","Action":"rename","Actor":{"ID":"c","Attributes":{"name":"new"}}}"#, Some("c")),
            (r#"{"Type":"network","Action":"connect","Actor":{"ID":"n"}}"#, None),
        ] {
            let event: Event = serde_json::from_str(text).expect("understood");
            assert_eq!(event.container().as_deref(), container, "{text}");
        }
    }

    #[tokio::test]
    async fn networks_endpoints_and_addresses_are_found_and_those_of_others_left_out() {
        use axum::extract::Path as Id;
        use axum::routing::get;

        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&socket).expect("bound");
        let list = r#"[{"Id":"b","IPAM":{"Driver":"default","Config":[]}},{"Id":"a","IPAM":{"Driver":"weft","Config":null}},
            {"Id":"gone","IPAM":{"Driver":"weft"}}]"#;
        let one = r#"{"Id":"a","Internal":true,"IPAM":{"Driver":"weft","Config":[{"Subnet":"10.32.0.0/16",
            "AuxiliaryAddresses":{"x":"10.32.0.9"}}]},"Containers":{"c1":{"Name":"web","EndpointID":"e1",
            "MacAddress":"02:77:0a:20:00:05","IPv4Address":"10.32.0.5/16","IPv6Address":""}}}"#;
        let about = move |Id(id): Id<String>| async move {
            if id == "a" { (StatusCode::OK, one) } else { (StatusCode::NOT_FOUND, "{}") }
        };
        let app = axum::Router::new()
            .route("/networks", get(move || async move { list }))
            .route("/networks/{id}", get(about));
        let server = tokio::spawn(axum::serve(listener, app).into_future());
        let engine = Engine { socket };
        let claims = engine.claims().await.expect("an answer");
        assert_eq!(claims.networks.keys().collect::<Vec<_>>(), ["a"]);
        assert!(claims.networks["a"].internal);
        let endpoint = &claims.endpoints["e1"];
        assert_eq!((endpoint.network.as_str(), endpoint.mac), ("a", [2, 0x77, 10, 32, 0, 5]));
        let addresses: Vec<String> = claims.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.32.0.5", "10.32.0.9"]);
        server.abort();
        let error = Engine { socket: dir.path().join("none") }.claims().await.expect_err("nobody");
        assert!(error.contains("cannot connect"), "{error}");
    }
}
