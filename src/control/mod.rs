//! The control path's IO.

pub mod quic;
