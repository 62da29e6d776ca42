//! The name server of a router: the mesh's names, and for all others the host's resolvers.
//!
//! ```text
//!   query ─► read ─► the mesh's domain, or an address of its ranges? ─yes─► Zone ─► answer
//!                              └─no─► Cache ─not known─► Forward ─► a resolver of the host ─► its answer
//! ```
//!
//! What is answered is specified in docs/names.md, rules N6 to N14. The messages' format is
//! hickory's; who is asked, and how long, is decided here.

mod cache;
mod forward;
mod message;
mod resolvers;
mod serve;
mod srv;
#[cfg(test)]
mod tests;
mod zone;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::task::JoinSet;

pub use cache::{Asked, Cache};
pub use message::{Question, Transport, answers, passed_on};
pub use serve::Sockets;
pub use zone::{Reply, Zone};

use self::forward::Forward;
use self::resolvers::Resolvers;
use self::serve::{Responder, serve_tcp, serve_udp};
use crate::router::MeshNames;

/// What a name server is made with.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The mesh's domain, such as `weft.local`.
    pub domain: String,
    /// Ranges of the network: the names of their addresses are the mesh's too.
    pub ranges: Vec<IpNet>,
    /// The names of the mesh.
    pub names: MeshNames,
    /// The file that names the host's resolvers.
    pub resolv_conf: PathBuf,
}

/// Answers at these sockets, until the tasks are aborted.
///
/// # Errors
/// If the domain cannot be one.
pub fn serve(config: DnsConfig, sockets: Vec<Sockets>, tasks: &mut JoinSet<()>) -> anyhow::Result<()> {
    let own: Vec<SocketAddr> = sockets.iter().map(Sockets::address).collect();
    let responder = Arc::new(Responder {
        zone: Zone::new(&config.domain, config.ranges, config.names)?,
        forward: Forward::new(Resolvers::new(config.resolv_conf, own)),
    });
    for Sockets { address, udp, tcp } in sockets {
        tracing::info!(%address, domain = config.domain, "names are answered");
        tasks.spawn(serve_udp(udp, Arc::clone(&responder)));
        tasks.spawn(serve_tcp(tcp, Arc::clone(&responder)));
    }
    Ok(())
}
