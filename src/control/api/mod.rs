//! The local API: HTTP/1.1 and JSON on a unix socket that only the router's user may open.
//!
//! Its description is `docs/openapi.json`; a test holds the two together.

mod error;
mod handlers;
mod listen;
mod services;
#[cfg(test)]
mod tests;
pub mod types;
mod view;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use tokio::sync::watch;

pub use error::ApiError;
pub use listen::{ListenError, SocketFile, claim};
pub use view::{Info, ipam, status};

use crate::control::attach::Attachments;
use crate::control::events::Events;
use crate::control::guard::Guarded;
use crate::control::guests::Guests;
use crate::control::names::Book;
use crate::control::services::Services;
use crate::data::DataHandle;
use crate::router::{Handle, MeshNames, Reloads};

/// Largest request body, in bytes.
pub const BODY_MAX: usize = 64 << 10;
/// How long a request may take, waiting for addresses included.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// What the handlers work with. Clones share it.
#[derive(Debug, Clone)]
pub struct Api {
    /// The router's loop.
    pub router: Handle,
    /// The data thread.
    pub data: DataHandle,
    /// What is attached.
    pub attachments: Attachments,
    /// What Docker's networks have connected.
    pub guests: Guests,
    /// The names of the mesh.
    pub names: MeshNames,
    /// Those that the operator gave here.
    pub book: Book,
    /// What this host exports and imports.
    pub services: Services,
    /// What happened.
    pub events: Events,
    /// What does not change.
    pub info: Arc<Info>,
    /// Reads the configuration again.
    pub reloads: Reloads,
    /// Turned true by `down`.
    pub stop: Arc<watch::Sender<Stop>>,
}

impl Api {
    /// What was dropped of what containers sent, and what in the host's filter is not as it should be.
    pub async fn guarded(&self) -> Guarded {
        let mut guarded = self.attachments.guarded().await;
        guarded.problems.extend(self.services.problem());
        guarded
    }
}

/// What the router was told to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Stop {
    /// Go on.
    #[default]
    No,
    /// Stop, and leave bridge and attachments for the next start.
    Keep,
    /// Stop, and leave nothing.
    Remove,
}

/// The routes, once for the server and once for those who check its description.
macro_rules! routes {
    ($($method:ident $path:literal => $handler:path,)*) => {
        /// Every route: method and path.
        pub const ROUTES: &[(&str, &str)] = &[$((stringify!($method), $path)),*];

        fn routes() -> Router<Api> {
            Router::new()$(.route($path, axum::routing::$method($handler)))*
        }
    };
}

routes! {
    get "/v1/status" => handlers::status,
    get "/v1/peers" => handlers::peers,
    get "/v1/ps" => handlers::ps,
    get "/v1/ipam" => handlers::ipam,
    post "/v1/ipam/check" => handlers::ipam_check,
    get "/v1/events" => handlers::events,
    post "/v1/connect" => handlers::connect,
    post "/v1/forget" => handlers::forget,
    post "/v1/revoke" => handlers::revoke,
    post "/v1/peers/remove" => handlers::remove_peer,
    post "/v1/attach" => handlers::attach,
    post "/v1/detach" => handlers::detach,
    post "/v1/hold" => handlers::hold,
    post "/v1/unhold" => handlers::unhold,
    post "/v1/expose" => handlers::expose,
    post "/v1/hide" => handlers::hide,
    get "/v1/services" => services::list,
    post "/v1/services/export" => services::export,
    post "/v1/services/import" => services::import,
    post "/v1/services/remove" => services::remove,
    get "/v1/dns" => handlers::dns,
    post "/v1/dns/add" => handlers::dns_add,
    post "/v1/dns/remove" => handlers::dns_remove,
    post "/v1/reload" => handlers::reload,
    post "/v1/down" => handlers::down,
}

/// The whole API.
pub fn app(api: Api) -> Router {
    routes()
        .fallback(handlers::unknown_path)
        .method_not_allowed_fallback(handlers::wrong_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(api)
}

/// Serves the API until `stop` says so; requests under way are finished first, for at most two
/// seconds.
pub async fn serve(listener: tokio::net::UnixListener, api: Api, mut stop: watch::Receiver<Stop>) {
    let mut again = stop.clone();
    let stopping = async move {
        // An error means that nobody can stop us but the end of the process.
        let _ = stop.wait_for(|stop| *stop != Stop::No).await;
    };
    let server = axum::serve(listener, app(api)).with_graceful_shutdown(stopping);
    let late = async move {
        let _ = again.wait_for(|stop| *stop != Stop::No).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    tokio::select! {
        result = server.into_future() => {
            if let Err(error) = result {
                tracing::error!(%error, "the API has stopped: restart the router");
            }
        }
        () = late => {}
    }
}
