//! The control path's IO, and what the router does for its users.

pub mod api;
pub mod attach;
pub mod dns;
pub mod docker;
pub mod events;
pub mod firewall;
pub mod guard;
pub mod guests;
pub mod http;
pub mod identity;
mod keeper;
pub mod ledger;
pub mod locks;
pub mod masquerade;
pub mod names;
pub mod quic;
pub mod secret;
pub mod services;
pub mod store;
