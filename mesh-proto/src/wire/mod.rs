//! Bytes ⇄ values: one file per format, each opening with the picture of its bytes.

pub mod datagram;
pub mod record;
pub mod cbor;
pub mod control;
pub mod gossip;
