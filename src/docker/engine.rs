//! What the engine says that it has: the router asks it only about what may have gone while the router was
//! away, for the engine does not tell that afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::{Method, StatusCode};
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::book::{Endpoint, Network};
use crate::control::http;
use crate::netlink::Mac;

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

impl Engine {
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
                mac: mac(&resource.mac_address).unwrap_or_default(),
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

/// Reads a hardware address.
pub(super) fn mac(text: &str) -> Option<Mac> {
    let mut bytes = text.split(':').map(|part| {
        let hex = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    });
    let mut next = || bytes.next().flatten();
    let mac = [next()?, next()?, next()?, next()?, next()?, next()?];
    bytes.next().is_none().then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read_whole_or_not_at_all() {
        assert_eq!(mac("02:77:0a:20:00:05"), Some([2, 0x77, 10, 32, 0, 5]));
        for text in
            ["", "02:77:0a:20:00", "02:77:0a:20:00:05:06", "02:77:0a:20:00:5", "02-77-0a-20-00-05", "+2:77:0a:20:00:05"]
        {
            assert_eq!(mac(text), None, "{text}");
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
