//! The Weft router process: all IO, no decisions.
//!
//! ```text
//!  data/     one thread: TAP ⇄ mesh_proto::data::Forwarder ⇄ UDP socket        per frame
//!  control/  tokio: QUIC connections, API, store … ⇄ router ⇄ mesh_proto::control::Node,
//!            ipam::Allocator                                                    per change
//! ```

pub mod cli;
pub mod clock;
pub mod cni;
pub mod config;
pub mod control;
pub mod data;
pub mod docker;
pub mod fastpath;
pub mod lab;
pub mod logging;
pub mod metrics;
pub mod netlink;
pub mod router;
