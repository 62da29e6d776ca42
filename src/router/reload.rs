//! The configuration file, read again while the router runs (`weft reload`, SIGHUP).
//!
//! What can change without a restart is changed; the rest is refused, key by key, and nothing that
//! runs stops. A file with a mistake changes nothing at all.

use std::path::Path;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::Handle;
use crate::config::{KEYS, Problems, Settings, Sources};
use crate::control::api::Api;
use crate::control::api::types::{ConfigChange, ConfigRefusal, Reloaded};
use crate::control::secret::Secret;
use crate::{logging, metrics};

/// Requests that may wait.
const REQUESTS: usize = 4;

/// Why nothing was read again.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// There is no file.
    #[error(
        "this router was started without a configuration file (--config or WEFT_CONFIG) and without --secret-file: there is nothing to read again"
    )]
    NoFile,
    /// There are mistakes in it.
    #[error("nothing was changed:\n{0}")]
    Wrong(Problems),
    /// The router is stopping.
    #[error(transparent)]
    Stopped(#[from] super::Stopped),
}

type Reply = oneshot::Sender<Result<Reloaded, ReloadError>>;

/// Where to ask for it. Clones share it.
#[derive(Debug, Clone)]
pub struct Reloads(mpsc::Sender<Reply>);

impl Reloads {
    /// The asking end, and the other.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Reply>) {
        let (sender, inbox) = mpsc::channel(REQUESTS);
        (Self(sender), inbox)
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// If there is no file, or a mistake in it; then nothing was changed.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let (reply, answer) = oneshot::channel();
        self.0.send(reply).await.map_err(|_| super::Stopped)?;
        answer.await.map_err(|_| super::Stopped)?
    }
}

/// What carries it out.
#[derive(Debug)]
pub(super) struct Reloader {
    /// Where the settings come from.
    pub(super) sources: Sources,
    /// The settings as they are in force, for whoever follows them.
    pub(super) settings: watch::Sender<Settings>,
    /// The router.
    pub(super) api: Api,
    /// Serves the metrics, if anything does.
    pub(super) metrics: JoinSet<()>,
}

impl Reloader {
    /// Until the router stops. `hangup` is the signal that asks for it, if one does.
    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Reply>,
        mut hangup: Option<tokio::signal::unix::Signal>,
    ) {
        loop {
            let signal = async {
                match &mut hangup {
                    Some(signal) => signal.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(reply) = inbox.recv() => {
                    // Whoever asked may have gone; the log has the answer too.
                    let _ = reply.send(self.reload().await);
                }
                Some(()) = signal => {
                    let _ = self.reload().await;
                }
                else => return,
            }
        }
    }

    async fn reload(&mut self) -> Result<Reloaded, ReloadError> {
        let result = self.read_and_apply().await;
        match &result {
            Ok(done) if done.changed.is_empty() && done.refused.is_empty() => {
                tracing::info!("the configuration was read again: nothing has changed");
            }
            Ok(done) => {
                for ConfigChange { key, from, to } in &done.changed {
                    tracing::info!("the configuration was read again: {key} was `{from}` and is `{to}` now");
                }
                for ConfigRefusal { key, from, to, reason } in &done.refused {
                    tracing::warn!(
                        "the configuration was read again: {key} stays `{from}` and is not `{to}`: {reason}"
                    );
                }
            }
            Err(error) => {
                let line = error.to_string().replace(":\n", ": ").replace('\n', "; ");
                tracing::warn!("the configuration was not read again: {line}");
            }
        }
        result
    }

    async fn read_and_apply(&mut self) -> Result<Reloaded, ReloadError> {
        if self.sources.file.is_none() && self.settings.borrow().secret_file.is_none() {
            return Err(ReloadError::NoFile);
        }
        let sources = self.sources.clone();
        let read = tokio::task::spawn_blocking(move || sources.read()).await;
        let new = read.map_err(|_| super::Stopped)?.map_err(ReloadError::Wrong)?;
        let mut done = Reloaded::default();
        let old = self.settings.borrow().clone();
        for ((key, from), (_, to)) in old.values().into_iter().zip(new.values()) {
            // How `weft up` returned is over.
            if from == to || key == "detach" {
                continue;
            }
            let live = KEYS.iter().any(|known| known.name == key && known.live);
            let applied = if live { self.apply(key, &new).await } else { Err(NEEDS_RESTART.to_owned()) };
            let key = key.to_owned();
            match applied {
                Ok(()) => done.changed.push(ConfigChange { key, from, to }),
                Err(reason) => done.refused.push(ConfigRefusal { key, from, to, reason }),
            }
        }
        self.read_secret_again(&old, &new, &mut done).await;
        Ok(done)
    }

    /// The file of the secret may hold another one, under the same name.
    async fn read_secret_again(&self, old: &Settings, new: &Settings, done: &mut Reloaded) {
        let Some(path) = new.secret_file.as_ref().filter(|path| old.secret_file.as_ref() == Some(path)) else {
            return;
        };
        let [key, from, to] =
            ["secret-file", "the secret that it held", "the one that it holds now"].map(ToOwned::to_owned);
        match self.take_secret(path).await {
            Ok(true) => done.changed.push(ConfigChange { key, from, to }),
            Ok(false) => {}
            Err(reason) => done.refused.push(ConfigRefusal { key, from, to, reason }),
        }
    }

    /// Has newcomers prove the secret in a file from now on; tells whether it is another one.
    async fn take_secret(&self, path: &Path) -> Result<bool, String> {
        if !self.api.info.sealed {
            return Err(format!("the network has no secret so far, and to have one {NEEDS_RESTART}"));
        }
        let (path, network) = (path.to_owned(), self.api.info.network.clone());
        let stretched = tokio::task::spawn_blocking(move || {
            let loaded = Secret::from_file(&path)?;
            if let Some(warning) = loaded.warning {
                tracing::warn!("{warning}");
            }
            loaded.secret.stretch(&network)
        });
        let secret = stretched.await.map_err(|_| super::Stopped.to_string())?.map_err(|error| error.to_string())?;
        self.api.router.set_secret(secret).await.map_err(|stopped| stopped.to_string())
    }

    /// Puts one key of the new settings in force, or says why it cannot be.
    async fn apply(&mut self, key: &str, new: &Settings) -> Result<(), String> {
        match key {
            "peer" => {
                let old = self.settings.borrow().peers.clone();
                change_peers(&self.api.router, &old, &new.peers).await?;
                self.settings.send_modify(|settings| settings.peers.clone_from(&new.peers));
            }
            "advertise" => self.settings.send_modify(|settings| settings.advertise.clone_from(&new.advertise)),
            "secret-file" => {
                let Some(path) = &new.secret_file else { return Err(NEEDS_RESTART.to_owned()) };
                self.take_secret(path).await?;
                self.settings.send_modify(|settings| settings.secret_file.clone_from(&new.secret_file));
            }
            "metrics" => {
                self.serve_metrics(new).await?;
                self.settings.send_modify(|settings| settings.metrics = new.metrics);
            }
            "log-level" => {
                if !logging::set_level(new.log_level) {
                    return Err("the log of this process is not the router's own".to_owned());
                }
                self.settings.send_modify(|settings| settings.log_level = new.log_level);
            }
            _ => return Err(NEEDS_RESTART.to_owned()),
        }
        Ok(())
    }

    /// Serves them where the new settings say; on failure where the old ones did.
    async fn serve_metrics(&mut self, new: &Settings) -> Result<(), String> {
        // Ended first: the new address may be the old port.
        self.metrics.shutdown().await;
        let Some(address) = new.metrics else { return Ok(()) };
        let (listener, failure) = match metrics::bind(address).await {
            Ok(listener) => (Some(listener), None),
            Err(error) => {
                let before = self.settings.borrow().metrics;
                let again = match before {
                    Some(before) => metrics::bind(before).await.ok(),
                    None => None,
                };
                (again, Some(format!("{error:#}")))
            }
        };
        if let Some(listener) = listener {
            self.metrics.spawn(metrics::serve(listener, self.api.clone()));
        }
        failure.map_or(Ok(()), Err)
    }
}

/// Why most keys are refused.
const NEEDS_RESTART: &str = "it needs a restart of the router, which does not disturb the containers";

async fn change_peers(router: &Handle, old: &[String], new: &[String]) -> Result<(), String> {
    let only_in = |these: &[String], those: &[String]| {
        these.iter().filter(|peer| !those.contains(peer)).cloned().collect::<Vec<_>>()
    };
    for gone in only_in(old, new) {
        // One that was forgotten by hand already is no target.
        let _ = router.forget(vec![gone]).await.map_err(|stopped| stopped.to_string())?;
    }
    let fresh = only_in(new, old);
    if fresh.is_empty() {
        return Ok(());
    }
    match router.connect_as_configured(fresh).await.map_err(|stopped| stopped.to_string())? {
        Ok(_) => Ok(()),
        Err(too_many) => Err(format!("too many peers are named already for: {}", too_many.join(", "))),
    }
}
