//! The data thread.
use std::io;
use std::sync::Arc;

use mesh_proto::handover::Command;
use mesh_proto::id::PeerId;

use super::{DataConfig, DataOutputs, Report};

pub(super) struct Shared {}

impl Shared {
    pub(super) fn command(&self, command: Command) {
        drop(command);
    }
    pub(super) fn relay_quic(&self, to: PeerId, bytes: &[u8]) -> bool {
        let _ = (to, bytes);
        false
    }
    pub(super) async fn report(&self) -> Option<Report> {
        std::future::ready(None).await
    }
    pub(super) fn stop(&self) {}
}

pub(super) fn start(config: DataConfig) -> io::Result<(Arc<Shared>, DataOutputs)> {
    let _ = config;
    Err(io::Error::from(io::ErrorKind::Unsupported))
}
