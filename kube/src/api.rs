//! The Kubernetes API.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1 as core;
use kube::api::ListParams;
use kube::{Api, Client, Config};

use crate::node::{Node, Selector};

/// How long a list may take, all its pages together.
const LIST_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Nodes in one page of a list.
const PAGE: u32 = 500;

/// The nodes of the cluster.
#[derive(Clone)]
pub struct Nodes {
    api: Api<core::Node>,
    selector: Selector,
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nodes").field("selector", &self.selector).finish_non_exhaustive()
    }
}

impl Nodes {
    /// The API server of the pod that this is (or of `KUBECONFIG`). Nothing is asked yet.
    ///
    /// # Errors
    /// If there is no such configuration.
    pub async fn of_this_pod(selector: Selector) -> anyhow::Result<Self> {
        let mut config = Config::infer()
            .await
            .context("no API server is known: this runs in a pod with a service account, or with KUBECONFIG set")?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        Self::of(config, selector)
    }

    /// An API server.
    ///
    /// # Errors
    /// If the configuration cannot be used.
    pub fn of(config: Config, selector: Selector) -> anyhow::Result<Self> {
        let client = Client::try_from(config).context("the configuration for the API server cannot be used")?;
        Ok(Self { api: Api::all(client), selector })
    }

    pub(crate) fn api(&self) -> Api<core::Node> {
        self.api.clone()
    }

    pub(crate) fn read(&self, object: &core::Node) -> Option<Node> {
        Node::read(object, &self.selector)
    }

    /// All nodes as they are now: read by quorum, not from a cache, and all pages of one state.
    ///
    /// # Errors
    /// If a page is missing.
    pub async fn list(&self) -> anyhow::Result<Vec<Node>> {
        let pages = async {
            let mut nodes = Vec::new();
            let mut params = ListParams::default().limit(PAGE);
            loop {
                let page = self.api.list(&params).await.context("the nodes could not be listed")?;
                nodes.extend(page.items.iter().filter_map(|object| self.read(object)));
                match page.metadata.continue_.filter(|token| !token.is_empty()) {
                    Some(token) => params = ListParams::default().limit(PAGE).continue_token(&token),
                    None => return Ok(nodes),
                }
            }
        };
        let listed = tokio::time::timeout(LIST_TIMEOUT, pages).await;
        listed.unwrap_or_else(|_| anyhow::bail!("the API server did not list the nodes within {LIST_TIMEOUT:?}"))
    }
}
