//! What a router takes before it changes anything on the host.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use mesh_proto::handover::{SessionKey, Suite};
use tokio::net::{TcpListener, UnixListener};

use super::addresses::{self, Lost, Unreadable};
use super::checks::{check_kernel, overlaps};
use super::devices::Devices;
use super::host::{self, Sizes};
use crate::config::{Cipher, Settings};
use crate::control::api::{self, SocketFile};
use crate::control::dns;
use crate::control::secret::Secret;
use crate::control::store::{self, File, Lock, Opened, State};
use crate::data::bind_udp;
use crate::metrics;
use crate::netlink::Netlink;

/// Everything that can be refused, taken.
pub(super) struct Ground {
    pub(super) settings: Settings,
    pub(super) netlink: Netlink,
    pub(super) sizes: Sizes,
    pub(super) socket: Arc<UdpSocket>,
    pub(super) state: State,
    pub(super) secret: Option<SessionKey>,
    pub(super) suites: Vec<Suite>,
    pub(super) listener: UnixListener,
    pub(super) metrics: Option<TcpListener>,
    /// Where names are answered.
    pub(super) dns: Vec<dns::Sockets>,
    pub(super) problems: Vec<String>,
    /// What of the address state was lost.
    pub(super) lost: Lost,
}

/// What nobody else may have while this router is there. Given back in this order: whoever sees
/// the socket gone may take the directory.
pub(super) struct Held {
    _lock: Lock,
    _socket: SocketFile,
}

impl Ground {
    /// Takes it, or says what is wrong; then nothing is held or changed.
    ///
    /// # Errors
    /// Everything that is wrong with this host, or the first thing that cannot be taken.
    pub(super) async fn take(settings: Settings, secret: Option<Secret>) -> anyhow::Result<(Self, File, Held)> {
        let (listener, socket_file, lock) = claim(&settings).await?;
        let mut problems = Vec::new();
        let netlink = Netlink::open()?;
        let sizes = host::sizes(&netlink, &settings, secret.is_some()).await?;
        let address = settings.listen.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        let socket = Arc::new(bind_udp(SocketAddr::new(address, settings.port))?);
        let metrics = match settings.metrics {
            Some(address) => Some(metrics::bind(address).await?),
            None => None,
        };
        let dns = settings.dns_listen.iter().map(|address| dns::Sockets::bind(*address)).collect::<Result<_, _>>()?;
        let secret = match secret {
            Some(secret) => {
                let network = settings.network.clone();
                Some(tokio::task::spawn_blocking(move || secret.stretch(&network)).await??)
            }
            None => None,
        };
        if let (None, Cipher::Only(suite)) = (&secret, settings.cipher) {
            anyhow::bail!(
                "cipher {} is asked for, and there is no secret: nothing would be encrypted; give one with --secret-file or WEFT_SECRET, or leave the cipher out",
                suite.name()
            );
        }
        let suites = if secret.is_some() { settings.cipher.suites() } else { vec![Suite::Plain] };
        let directory = settings.data_dir.clone();
        let Opened { file, mut state, set_aside } =
            tokio::task::spawn_blocking(move || store::open(&directory)).await??;
        // A secret that got lost on the way (a variable that is not set any more) must not open
        // what it closed.
        match (secret.is_some(), state.sealed) {
            (false, true) => anyhow::bail!(
                "the router of {} had a network secret, and none is given now: give it with --secret-file or WEFT_SECRET, or choose another --data-dir to run without encryption",
                settings.data_dir.display()
            ),
            (true, false) => file.remember_secret().map_err(anyhow::Error::msg)?,
            _ => {}
        }
        let mut lost = Lost::Nothing;
        if let Some((kept, why)) = set_aside {
            let text = format!(
                "the state in the data directory was unreadable ({why}); it was kept as {} and this router started as a new peer: attach this host's containers again",
                kept.display()
            );
            tracing::error!("{text}");
            problems.push(text);
            lost = Lost::File;
        }
        if let Some(Unreadable { text, keys }) = addresses::try_state(&settings, &mut state)? {
            tracing::error!("{text}");
            problems.push(text);
            lost = Lost::Entries(keys);
        }
        let held = Held { _lock: lock, _socket: socket_file };
        let ground =
            Self { settings, netlink, sizes, socket, state, secret, suites, listener, metrics, dns, problems, lost };
        Ok((ground, file, held))
    }

    /// The interfaces of a router on this ground.
    pub(super) fn devices(&self) -> Devices {
        Devices::new(self.netlink.clone(), &self.settings, self.sizes.overlay)
    }
}

/// Everything that can be wrong with this host, at once.
async fn claim(settings: &Settings) -> anyhow::Result<(UnixListener, SocketFile, Lock)> {
    let mut wrong: Vec<String> = Vec::new();
    if let Err(missing) = check_kernel() {
        wrong.extend(missing.iter().map(ToString::to_string));
    }
    for overlap in overlaps(&settings.ranges, &settings.bridge, settings.ranges_given) {
        if settings.ranges_given {
            // Taken all the same: the operator has said so.
            tracing::warn!("{overlap}");
        } else {
            wrong.push(overlap.to_string());
        }
    }
    let socket = api::claim(&settings.socket, "socket").await.map_err(|error| wrong.push(error.to_string()));
    let lock = Lock::take(&settings.data_dir).map_err(|error| wrong.push(error.to_string()));
    match (socket, lock) {
        (Ok((listener, socket)), Ok(lock)) if wrong.is_empty() => Ok((listener, socket, lock)),
        _ => Err(anyhow::anyhow!(wrong.join("\n"))),
    }
}
