//! Bytes ⇄ values: one file per format, each opening with the picture of its bytes.

pub mod cbor;
pub mod control;
pub mod datagram;
pub mod fastpath;
pub mod gossip;
pub mod names;
pub mod record;
mod rows;
pub mod services;
pub mod trust;
