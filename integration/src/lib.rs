//! Everything around Weft that tests it: the simulator, the lab of namespaces, measurements.

pub mod dns;
pub mod sim;

pub mod fuzz;
pub mod path;
