//! What is done before the router of a node starts (kubernetes K13).

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::Nodes;
use crate::peers::File;

/// Longest pause between questions to the API server.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What to prepare.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of this node.
    pub node: String,
    /// The router's configuration file.
    pub file: PathBuf,
    /// How long a router that was here before waits for an API server that does not answer.
    pub api_wait: Duration,
}

/// Writes the router's configuration from the list of nodes. Waits for the API server: a router that
/// does not know the others would found a network of its own.
///
/// # Errors
/// If the file cannot be written.
pub async fn init(nodes: &Nodes, options: &Options) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(500);
    loop {
        let why = match nodes.list().await {
            Ok(listed) if listed.iter().any(|node| node.name == options.node) => {
                let file = File::founding(&options.node, &listed);
                file.write(&options.file)?;
                tracing::info!("{} nodes, {} of them named to the router", listed.len(), file.peer.len());
                return Ok(());
            }
            Ok(listed) => format!("of {} nodes in the list none is called {}", listed.len(), options.node),
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() >= options.api_wait && was_here_before(options) {
            tracing::warn!("{why}; the router starts with the peers of its last start");
            return Ok(());
        }
        tracing::warn!("{why}; the router waits for the list of nodes");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn was_here_before(options: &Options) -> bool {
    match File::read(&options.file) {
        Ok(Some(file)) => file.name == crate::node::peer_name(&options.node),
        Ok(None) => false,
        Err(error) => {
            tracing::warn!("{error}");
            false
        }
    }
}
