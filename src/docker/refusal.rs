//! Why a call of the engine is refused: what Docker shows to its user.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use ipam::AllocError;
use ipnet::IpNet;
use serde_json::json;

use crate::netlink::NetlinkError;
use crate::router::Stopped;

/// A refusal. Nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The body is not what the protocol says.
    #[error("Weft was sent a request that it does not understand: {0}")]
    Malformed(String),
    /// There is no such call, or it is of swarm mode.
    #[error("Weft's Docker driver does not know the call {0}")]
    Call(String),
    /// An option that means nothing.
    #[error("Weft has no option `{name}`: {hint}")]
    Option {
        /// Its name.
        name: String,
        /// What to do.
        hint: &'static str,
    },
    /// The MTU is the mesh's.
    #[error(
        "an MTU of {wanted} is asked for, but that of the mesh is {mtu}: leave the option out, or change `mtu` of the routers"
    )]
    Mtu {
        /// As it was given.
        wanted: String,
        /// That of the mesh.
        mtu: u16,
    },
    /// A pool that is not of the mesh.
    #[error("pool {pool}: {why}")]
    Pool {
        /// As it was given.
        pool: String,
        /// What is wrong and what to do.
        why: String,
    },
    /// The engine has its addresses from elsewhere.
    #[error(
        "the addresses of pool {pool} are not Weft's, and could be given twice: create the network with --ipam-driver weft besides -d weft"
    )]
    OtherIpam {
        /// The pool.
        pool: String,
    },
    /// The mesh has no gateway.
    #[error("{0} is asked for as gateway, but a Weft network has none, it is one link: leave --gateway out")]
    Gateway(String),
    /// There is a network of these addresses already.
    #[error(
        "this router has the Docker network {other} already, whose subnet {theirs} has addresses in common with {ours}: choose another part of the mesh's range as --subnet, use that network (`docker network ls` shows its name), or remove it first (`docker network rm {other}`)"
    )]
    Overlap {
        /// The id of the one there is.
        other: String,
        /// Its subnet.
        theirs: IpNet,
        /// That of the new one.
        ours: IpNet,
    },
    /// There is no such network.
    #[error("Weft does not know the network {0}: create it anew")]
    NoNetwork(String),
    /// It is in use.
    #[error("network {network} is in use by the endpoints {endpoints}: remove or disconnect their containers first")]
    Used {
        /// The network.
        network: String,
        /// Whom it is used by.
        endpoints: String,
    },
    /// There is no such endpoint.
    #[error("Weft does not know the endpoint {0}: start its container anew")]
    NoEndpoint(String),
    /// Another one has its id.
    #[error("endpoint {0} exists already, with another address")]
    EndpointExists(String),
    /// The engine gave no address.
    #[error("endpoint {0} has no address: create the network with --ipam-driver weft")]
    NoAddress(String),
    /// Somebody has it.
    #[error(
        "{address} is in use by the endpoint {endpoint} on this host: choose another address, or none to get a free one"
    )]
    Taken {
        /// The address.
        address: IpNet,
        /// Who has it.
        endpoint: String,
    },
    /// The address protocol refused.
    #[error("{0}")]
    Address(#[from] AllocError),
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// The disk refused.
    #[error("what Docker was given could not be written to the router's data directory: {0}")]
    Storage(String),
    /// The router is stopping.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// It takes too long.
    #[error("Weft has not done it within {0} s and goes on; look at `weft status`")]
    Late(u64),
    /// A bug.
    #[error("Weft failed in a way that nobody foresaw; its log has more")]
    Unforeseen,
}

impl Refusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(_) | Self::Option { .. } | Self::Mtu { .. } | Self::Pool { .. } | Self::Gateway(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::Call(_) | Self::NoNetwork(_) | Self::NoEndpoint(_) => StatusCode::NOT_FOUND,
            Self::OtherIpam { .. }
            | Self::Overlap { .. }
            | Self::Used { .. }
            | Self::EndpointExists(_)
            | Self::NoAddress(_)
            | Self::Taken { .. }
            | Self::Address(_) => StatusCode::CONFLICT,
            Self::Kernel(_) | Self::Storage(_) | Self::Unforeseen => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Stopped(_) | Self::Late(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status(), Json(json!({ "Err": self.to_string() }))).into_response()
    }
}

/// As much of an id as people use.
pub(super) fn short(id: &str) -> String {
    id.chars().filter(|c| !c.is_control()).take(12).collect()
}
