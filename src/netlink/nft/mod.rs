//! Tables of our own in nftables, made and kept by netlink.
//!
//! ```text
//!   table.rs ─┬─ vxlan.rs   the guard in front of the VXLAN port
//!             └─ ports.rs   what the ports of the bridge may send …
//!                └─ networks.rs   … and what those of a network are sent
//!   table.rs ─── masquerade.rs    whose connections to outside go in the host's name
//!   table.rs ─── services.rs      ports of the host that lead elsewhere
//! ```
//!
//! Each is set up, or anew, by one transaction of the kernel's: there is no moment without.

mod masquerade;
mod networks;
mod ports;
mod services;
mod table;
mod vxlan;

pub use masquerade::MasqueradeTable;
pub use networks::Network;
pub use ports::{Kept, Port, PortTable, REASONS};
pub use services::{Redirect, ServiceTable, Transport};
pub use table::Cuts;
pub use vxlan::{Dropped, Guard, Owned, Sources};
