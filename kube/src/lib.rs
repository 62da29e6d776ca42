//! Runs beside a Weft router in the pod of a DaemonSet and gives it its peers from the Kubernetes
//! API. The router itself knows nothing of Kubernetes: it is spoken to by its configuration file
//! and its API, as an operator would. The rules are in docs/kubernetes.md (K12 to K16).

pub mod api;
pub mod cli;
pub mod files;
pub mod health;
pub mod init;
pub mod install;
pub mod node;
pub mod peers;
pub mod roster;
pub mod router;
pub mod run;
