//! What kubelet's probes are answered (kubernetes K16).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// The loop is stuck if it said nothing for so long.
const BEAT: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Inner {
    unready: Option<String>,
    beat: Instant,
}

/// How things are. Clones share it.
#[derive(Debug, Clone)]
pub struct Health(Arc<Mutex<Inner>>);

impl Default for Health {
    fn default() -> Self {
        let unready = Some("the router was not asked yet".to_owned());
        Self(Arc::new(Mutex::new(Inner { unready, beat: Instant::now() })))
    }
}

impl Health {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The loop goes round.
    pub(crate) fn beat(&self) {
        self.with(|inner| inner.beat = Instant::now());
    }

    /// Why the node is not ready; none if it is. Says whether that is news.
    pub(crate) fn set(&self, unready: Option<String>) -> bool {
        self.with(|inner| {
            let news = inner.unready.is_some() != unready.is_some();
            inner.unready = unready;
            news
        })
    }
}

type Answer = (StatusCode, String);

fn answer(wrong: Option<String>) -> Answer {
    match wrong {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn readyz(State(health): State<Health>) -> Answer {
    answer(health.with(|inner| inner.unready.clone()))
}

async fn livez(State(health): State<Health>) -> Answer {
    let silent = health.with(|inner| inner.beat.elapsed());
    answer((silent > BEAT).then(|| format!("weft-kube has been stuck for {} s", silent.as_secs())))
}

/// Answers probes until it is dropped.
pub(crate) async fn serve(listener: TcpListener, health: Health) {
    let app = Router::new().route("/readyz", get(readyz)).route("/livez", get(livez)).with_state(health);
    // It goes on after errors of single connections, and ends never.
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!("probes are not answered any more: {error}");
    }
}
