//! What the engine asks and what it is answered: JSON, as Docker's plugin protocol has it.
//!
//! The engine leaves fields out, sends `null` for an empty list or map, and adds fields with its versions: all
//! of that is taken. What an absent field means is for the driver to say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// `/IpamDriver.RequestPool`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RequestPool {
    pub(super) address_space: String,
    pub(super) pool: String,
    pub(super) sub_pool: String,
    pub(super) options: Option<BTreeMap<String, String>>,
    pub(super) v6: bool,
}

/// Its answer.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PoolAnswer {
    #[serde(rename = "PoolID")]
    pub(super) pool_id: String,
    pub(super) pool: String,
    pub(super) data: BTreeMap<String, String>,
}

/// `/IpamDriver.RequestAddress`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RequestAddress {
    #[serde(rename = "PoolID")]
    pub(super) pool_id: String,
    pub(super) address: String,
    pub(super) options: Option<BTreeMap<String, String>>,
}

/// `/IpamDriver.ReleaseAddress`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ReleaseAddress {
    pub(super) address: String,
}

/// `/NetworkDriver.CreateNetwork`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct CreateNetwork {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
    pub(super) options: Option<Map<String, Value>>,
    #[serde(rename = "IPv4Data")]
    pub(super) ipv4_data: Option<Vec<PoolData>>,
    #[serde(rename = "IPv6Data")]
    pub(super) ipv6_data: Option<Vec<PoolData>>,
}

/// A pool of a network.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct PoolData {
    pub(super) address_space: String,
    pub(super) pool: String,
}

/// `/NetworkDriver.DeleteNetwork`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NetworkOnly {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
}

/// `/NetworkDriver.CreateEndpoint`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct CreateEndpoint {
    #[serde(rename = "NetworkID")]
    pub(super) network_id: String,
    #[serde(rename = "EndpointID")]
    pub(super) endpoint_id: String,
    pub(super) interface: Option<Interface>,
    pub(super) options: Option<Map<String, Value>>,
}

/// The interface that an endpoint shall have.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Interface {
    pub(super) address: String,
    #[serde(rename = "AddressIPv6")]
    pub(super) address_ipv6: String,
    pub(super) mac_address: String,
}

/// `/NetworkDriver.Join`, `Leave`, `DeleteEndpoint`, `EndpointOperInfo`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EndpointOnly {
    #[serde(rename = "EndpointID")]
    pub(super) endpoint_id: String,
}

/// The answer to `Join`.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct JoinAnswer {
    pub(super) interface_name: InterfaceName,
    pub(super) static_routes: Vec<StaticRoute>,
    /// Whether the engine is to give the container no other way out.
    pub(super) disable_gateway_service: bool,
}

/// Which interface to move into the container, and how to call it there: the prefix and a number.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InterfaceName {
    pub(super) src_name: String,
    pub(super) dst_prefix: String,
}

/// A route through the interface.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StaticRoute {
    pub(super) destination: String,
    /// 0: through `next_hop`; 1: on the link.
    pub(super) route_type: u8,
    pub(super) next_hop: String,
}
