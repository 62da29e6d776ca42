//! The Weft mesh as pure state machines.
//!
//! ```text
//!  DATA     frame ──► data::Forwarder ──► datagram           per frame, never blocks, never allocates
//!  CONTROL  message ─► control::Node ───► message, dial …    per change of the mesh
//!                          └── handover::Command ──► Forwarder ── handover::DataEvent ──► Node
//! ```
//!
//! Rules of use, the same for both machines:
//!
//! 1. Time is an argument: `now` is a [`Duration`](core::time::Duration) since an epoch that the
//!    caller chose once, and it never goes back.
//! 2. Randomness is an argument: a machine is made with a seed and draws from nothing else.
//! 3. After each input the caller drains the outputs until there are none, then asks
//!    `poll_timeout` when, and why, it wants to be called next.
//! 4. No input makes a machine panic, block, or grow without a bound.
//! 5. `control` and `data` never call each other; values of [`handover`] travel between them.

pub mod address;
pub mod control;
pub mod data;
pub mod handover;
pub mod id;
pub mod wire;
