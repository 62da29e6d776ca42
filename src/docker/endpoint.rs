//! The network driver's endpoints: a container's place in a network.
//!
//! ```text
//!   CreateEndpoint ─► addresses held ─► reserved ─► veth pair ─► book ─► answer
//!   Join           ─► which interface to move, what goes through it
//!   (the engine moves it into the container; out again, before Leave's answer or after)
//!   DeleteEndpoint ─► veth pair gone ─► book ─► answer;  the addresses: ReleaseAddress
//! ```

use ipnet::IpNet;
use serde_json::{Value, json};

use super::addresses::only_dockers;
use super::book::{Endpoint, Network};
use super::network::check_id;
use super::pool::{Pool, inside};
use super::port::{far, near};
use super::refusal::{Refusal, short};
use super::wire::{CreateEndpoint, EndpointOnly, Interface, InterfaceName, JoinAnswer, StaticRoute};
use super::{Docker, Place, Ports};
use crate::control::attach::{mac_text, parse_mac};
use crate::control::guests::Connected;
use crate::netlink::{Mac, container};

/// How interfaces are called in containers: as Docker's own are.
const DST_PREFIX: &str = "eth";
/// What goes to groups goes through the mesh, not out of the host.
const MULTICAST_V4: &str = "224.0.0.0/4";

impl<P: Ports> Docker<P> {
    pub(super) async fn create_endpoint(&self, request: &CreateEndpoint) -> Result<Value, Refusal> {
        check_id(&request.endpoint_id)?;
        for name in request.options.iter().flat_map(|options| options.keys()) {
            only_dockers(name, "leave it out of --driver-opt, the network driver takes none")?;
        }
        let none = Interface::default();
        let interface = request.interface.as_ref().unwrap_or(&none);
        let addresses = self.addresses(interface)?;
        let Some(first) = addresses.first() else { return Err(Refusal::NoAddress(short(&request.endpoint_id))) };
        let wanted = wanted_mac(&interface.mac_address)?;
        let endpoint = Endpoint {
            id: request.endpoint_id.clone(),
            network: request.network_id.clone(),
            mac: wanted.unwrap_or_else(|| container::container_mac(first.addr())),
            addresses,
        };
        self.know_network(&endpoint).await?;
        let lock = self.inner.locks.of(&endpoint.id);
        let _busy = lock.lock().await;
        match self.inner.book.endpoint(&endpoint.id) {
            Some(there) if there == endpoint => self.plug(&endpoint).await?,
            Some(_) => return Err(Refusal::EndpointExists(short(&endpoint.id))),
            None => self.make_endpoint(&endpoint, true).await?,
        }
        // The engine refuses an answer that repeats what it has said itself.
        Ok(match wanted {
            Some(_) => json!({ "Interface": {} }),
            None => json!({ "Interface": { "MacAddress": mac_text(endpoint.mac) } }),
        })
    }

    /// Writes an endpoint down whose interface is in a container already.
    pub(super) async fn adopt_endpoint(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        self.make_endpoint(endpoint, false).await
    }

    /// All of it, or nothing; the interface of a container that runs is not taken away (`unplug`).
    async fn make_endpoint(&self, endpoint: &Endpoint, unplug: bool) -> Result<(), Refusal> {
        self.inner.book.reserve(endpoint)?;
        let mut fresh = Vec::new();
        let made = async {
            for address in &endpoint.addresses {
                // A router that lost its disk takes what the engine has.
                if self.inner.book.hold(address.addr()).is_none() {
                    let pool = Pool { net: address.trunc(), part: address.trunc() };
                    self.take(&pool, Some(address.addr())).await?;
                    fresh.push(address.addr());
                }
            }
            self.plug(endpoint).await?;
            self.inner.book.keep_endpoint(endpoint).await?;
            self.inner.guests.connect(&near(&endpoint.id), connected(endpoint));
            Ok::<_, Refusal>(())
        }
        .await;
        if made.is_err() {
            if unplug && let Err(error) = self.inner.ports.unplug(&near(&endpoint.id)).await {
                tracing::warn!(%error, "an interface was left behind; it is removed later");
            }
            self.inner.book.forget_endpoint(&endpoint.id);
            for address in fresh {
                if let Err(error) = self.release(address).await {
                    tracing::warn!(%error, %address, "stays held; it is released later");
                }
            }
        }
        made
    }

    /// Makes or completes the interface.
    async fn plug(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        Ok(self.inner.ports.plug(&endpoint.id, endpoint.mac, self.apart(&endpoint.network)).await?)
    }

    /// The addresses that the engine asks for.
    fn addresses(&self, interface: &Interface) -> Result<Vec<IpNet>, Refusal> {
        let texts = [&interface.address, &interface.address_ipv6];
        let read = |text: &String| {
            let address = text.parse::<IpNet>().map_err(|_| {
                Refusal::Malformed(format!("`{}` is not an address with its prefix length", super::pool::shown(text)))
            })?;
            inside(&address.trunc().to_string(), &self.inner.ranges)?;
            Ok(address)
        };
        texts.into_iter().filter(|text| !text.is_empty()).map(read).collect()
    }

    /// A network that the router does not know, of addresses that are the mesh's, is one that it has forgotten
    /// with its disk: the engine does not create it again.
    async fn know_network(&self, endpoint: &Endpoint) -> Result<(), Refusal> {
        check_id(&endpoint.network)?;
        if self.inner.book.network(&endpoint.network).is_some() {
            return Ok(());
        }
        let asked = match &self.inner.engine {
            Some(engine) => engine.claims().await.ok(),
            None => None,
        };
        let pools: Vec<IpNet> = endpoint.addresses.iter().map(IpNet::trunc).collect();
        // An engine that cannot be asked has nothing to say of a network that was internal.
        let internal = asked.and_then(|claims| Some(claims.networks.get(&endpoint.network)?.internal));
        let network = Network { id: endpoint.network.clone(), pools, internal: internal.unwrap_or(false) };
        tracing::warn!(network = short(&network.id), "is not known, and taken as one of this router's");
        self.add_network(network).await
    }

    pub(super) async fn join(&self, request: &EndpointOnly) -> Result<JoinAnswer, Refusal> {
        let lock = self.inner.locks.of(&request.endpoint_id);
        let _busy = lock.lock().await;
        let endpoint = self.known(&request.endpoint_id)?;
        let network =
            self.inner.book.network(&endpoint.network).ok_or_else(|| Refusal::NoNetwork(short(&endpoint.network)))?;
        if self.inner.ports.place(&endpoint.id).await? == Place::Nowhere {
            self.plug(&endpoint).await?;
        }
        let v4 = endpoint.addresses.iter().any(|address| address.addr().is_ipv4());
        let route = StaticRoute { destination: MULTICAST_V4.to_owned(), route_type: 1, next_hop: String::new() };
        Ok(JoinAnswer {
            interface_name: InterfaceName { src_name: far(&endpoint.id), dst_prefix: DST_PREFIX.to_owned() },
            static_routes: v4.then_some(route).into_iter().collect(),
            disable_gateway_service: network.internal,
        })
    }

    pub(super) fn oper_info(&self, request: &EndpointOnly) -> Result<Value, Refusal> {
        let endpoint = self.known(&request.endpoint_id)?;
        Ok(json!({ "Value": { "HostInterface": near(&endpoint.id) } }))
    }

    pub(super) async fn delete_endpoint(&self, request: &EndpointOnly) -> Result<(), Refusal> {
        check_id(&request.endpoint_id)?;
        self.remove_endpoint(&request.endpoint_id).await
    }

    /// Removes interface and record; its addresses stay held. One that is not known has neither.
    pub(super) async fn remove_endpoint(&self, id: &str) -> Result<(), Refusal> {
        let lock = self.inner.locks.of(id);
        let _busy = lock.lock().await;
        self.inner.ports.unplug(&near(id)).await?;
        if let Some(endpoint) = self.inner.book.endpoint(id) {
            self.inner.book.drop_endpoint(&endpoint).await?;
        }
        self.inner.guests.strike(&near(id));
        Ok(())
    }

    fn known(&self, id: &str) -> Result<Endpoint, Refusal> {
        self.inner.book.endpoint(id).ok_or_else(|| Refusal::NoEndpoint(short(id)))
    }
}

/// As the rest of the router sees it.
pub(super) fn connected(endpoint: &Endpoint) -> Connected {
    let owner = format!("docker-endpoint:{}", short(&endpoint.id));
    Connected { owner, mac: endpoint.mac, addresses: endpoint.addresses.clone() }
}

fn wanted_mac(text: &str) -> Result<Option<Mac>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    parse_mac(text).map(Some).ok_or_else(|| {
        let shown = super::pool::shown(text);
        Refusal::Malformed(format!(
            "MAC address `{shown}` is none that an interface can have: six bytes such as 02:42:0a:20:00:05, the first one even"
        ))
    })
}
