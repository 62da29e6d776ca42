//! STATUS: whether a pod could be added now.

use std::time::Duration;

use super::conf::Conf;
use super::error::{CniError, Kind};
use super::router::{Refusal, Router};
use crate::control::api::types::Status;

/// Asks the router, and waits for nothing: a runtime asks again (kubernetes K8).
pub(super) async fn status(conf: &Conf) -> Result<(), CniError> {
    let router = Router::new(conf.socket.clone(), Duration::ZERO);
    match router.get::<Status>("/v1/status").await {
        Ok(status) if status.ready => Ok(()),
        Ok(status) => Err(CniError::new(Kind::NotAvailable, status.problems.join("; "))),
        // Without its router a host is reached by what the kernel still knows, if at all.
        Err(Refusal::Absent(text)) => Err(CniError::new(Kind::Limited, text)),
        Err(refusal) => {
            let CniError { text, .. } = refusal.error();
            Err(CniError::new(Kind::NotAvailable, text))
        }
    }
}
