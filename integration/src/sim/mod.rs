//! The simulator: whole peers in virtual time, everything from one seed.
//!
//! ```text
//!   faults ──►┌────────────────────────── World ──────────────────────────┐
//!   (Plan)    │  Host 0            Host 1                    Host n        │
//!             │  Node Forwarder    Node Forwarder            …             │
//!   traffic ─►│  Allocator         Allocator                               │──► Trace (hash)
//!             │  Transport         Transport                               │──► Ledger, Book,
//!             │     └──────────┬───────┘                                   │    agreed(): what
//!             │          Net: delay, loss, cuts …      Queue: (time, seq)  │    may never happen
//!             └────────────────────────────────────────────────────────────┘
//! ```
//!
//! The machines are those of `mesh-proto` and `ipam`, not models of them. Only what is around them
//! is made up: the underlay, the stand-in for QUIC, keys, disks, clocks. See `docs/testing.md`.

mod book;
mod clock;
mod conn;
mod dice;
mod env;
mod faults;
mod graph;
mod host;
mod identity;
mod ledger;
mod net;
mod options;
mod queue;
mod run;
mod stream;
mod sweep;
mod trace;
mod traffic;
mod view;
mod world;

pub use faults::Kind;
pub use options::{Ablation, Options, Underlay, number};
pub use run::{CONVERGE, IDLE_DIALS, IDLE_PER_LINK, Measured, Outcome, run};
pub use sweep::{Summary, run_caught, sweep};
pub use trace::Detail;
