//! A whole router for tests, without privileges: the TAP is one end of a socket pair, the
//! underlay is the loopback interface. Nothing of the host is changed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipam::allocator::Birth;
use ipnet::IpNet;
use mesh_proto::control::names::Names;
use mesh_proto::control::{NodeConfig, TrustConfig};
use mesh_proto::data::forwarder::ForwarderConfig;
use mesh_proto::handover::{SessionKey, Suite};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::addresses::{Addresses, Lost};
use super::core::{Core, CoreConfig, CoreIo};
use super::fastpath::Off;
use super::{Handle, MeshNames, Reloads};
use crate::clock::Clock;
use crate::control::api::{self, Api, Info, Stop};
use crate::control::attach::{AttachConfig, Attachments};
use crate::control::events::Events;
use crate::control::firewall::Firewall;
use crate::control::guard::PortGuard;
use crate::control::guests::Guests;
use crate::control::identity::Identity;
use crate::control::ledger::Ledger;
use crate::control::masquerade::Masquerade;
use crate::control::names::Book;
use crate::control::quic::{Quic, QuicConfig};
use crate::control::services::Services;
use crate::control::store::{self, Store};
use crate::data::{DataConfig, DataHandle, bind_udp};
use crate::netlink::Netlink;

/// A router under test.
pub(crate) struct Rig {
    pub(crate) handle: Handle,
    pub(crate) api: Api,
    /// What other parts than attachments hold.
    pub(crate) ledger: Ledger,
    pub(crate) address: SocketAddr,
    /// What the bridge would hold: frames to and from the router.
    pub(crate) bridge: OwnedFd,
    pub(crate) socket: PathBuf,
    stop_core: watch::Sender<bool>,
    core: JoinHandle<()>,
    server: JoinHandle<()>,
}

/// What differs between rigs.
pub(crate) struct Options<'a> {
    pub(crate) name: &'a str,
    pub(crate) directory: &'a Path,
    pub(crate) secret: Option<[u8; 32]>,
    pub(crate) targets: Vec<String>,
}

/// The ranges of every rig.
pub(crate) fn ranges() -> Vec<IpNet> {
    ["10.32.0.0/16", "fd00:7::/64"].iter().map(|range| range.parse().expect("a range")).collect()
}

impl Rig {
    pub(crate) fn start(options: Options<'_>) -> Self {
        let clock = Clock::start();
        let opened = store::open(options.directory).expect("a store");
        let state = opened.state.clone();
        let (store, stored) = Store::start(opened.file).expect("a store");
        let socket = Arc::new(bind_udp("127.0.0.1:0".parse().expect("loopback")).expect("bound"));
        let address = socket.local_addr().expect("bound");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (tap, bridge) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a pair");
        let sealed = options.secret.is_some();
        let forwarder =
            ForwarderConfig { sealed, macs_max: 1024, mac_age: Duration::from_secs(300), payload_max: 1472 };
        let (data, outputs) = DataHandle::start(DataConfig {
            tap: tap.into(),
            socket: socket.clone(),
            forwarder,
            seed: 1,
            busy_poll: Duration::ZERO,
            clock,
        })
        .expect("a thread");
        let (quic, quic_events) = Quic::start(QuicConfig {
            seed: state.sign_seed.clone(),
            socket,
            data: data.clone(),
            incoming: outputs.quic,
        })
        .expect("an endpoint");
        let identity = Identity::new(&state.sign_seed, &state.box_secret).expect("keys");
        let id = identity.peer();
        let suites = if sealed { vec![Suite::ChaCha20Poly1305] } else { vec![Suite::Plain] };
        let config = CoreConfig {
            node: NodeConfig {
                name: options.name.to_owned(),
                instance: state.instance,
                incarnation: state.incarnation,
                network: "test".to_owned(),
                secret: options.secret.map(|key| SessionKey(Zeroizing::new(key))),
                suites: suites.clone(),
                endpoints: vec![address],
                targets: options.targets.clone(),
                discovery: true,
                links_max: 8,
                trust: TrustConfig::default(),
            },
            hints: BTreeSet::new(),
            identity,
            ranges: ranges(),
            addresses: Addresses {
                named: options.targets.len(),
                birth: Birth::ByItself,
                lost: Lost::Nothing,
                remembered: 0,
                dead_after: None,
            },
            ipam: state.ipam.clone(),
            port: address.port(),
            problems: Vec::new(),
        };
        let events = Events::default();
        let names = MeshNames::new(Names::new(id, state.incarnation, [1; 32], clock.now()));
        let io = CoreIo {
            clock,
            quic,
            quic_events,
            data: data.clone(),
            data_events: outputs.events,
            store: store.clone(),
            stored,
            events: events.clone(),
            fast: Err(Off::Unwanted),
            names: names.clone(),
        };
        let (handle, requests) = Handle::new();
        let core = Core::new(config, io, requests).expect("a core");
        let (stop_core, stopped) = watch::channel(false);
        let core = tokio::spawn(core.run(stopped));
        let ledger = Ledger::default();
        let attachments = Attachments::new(AttachConfig {
            router: handle.clone(),
            store: store.clone(),
            netlink: Netlink::open().expect("netlink"),
            // No interface can have that name: whatever reaches for it fails.
            bridge: "no bridge".to_owned(),
            mtu: 1410,
            ranges: ranges(),
            others: ledger.clone(),
            guard: PortGuard::new("no bridge"),
            masquerade: Masquerade::new("no bridge", &ranges()),
            firewall: Firewall::new("no bridge", watch::channel(false).1),
        })
        .expect("/proc");
        let services = Services::new(
            store.clone(),
            &state.services,
            attachments.clone(),
            "no bridge",
            &ranges(),
            watch::channel(false).0,
        );
        let info = Arc::new(Info {
            id,
            name: options.name.to_owned(),
            instance: state.instance,
            incarnation: state.incarnation.0,
            network: "test".to_owned(),
            sealed,
            suites,
            mtu: 1410,
            bridge: "weft".to_owned(),
            port: address.port(),
            endpoints: vec![address],
            domain: "weft.local".to_owned(),
            dns: Vec::new(),
            clock,
        });
        let (stop, stopped) = watch::channel(Stop::No);
        // Nobody reads a configuration again.
        let (reloads, _) = Reloads::new();
        let book = Book::new(store, &state.names);
        let api = Api {
            router: handle.clone(),
            data,
            attachments,
            guests: Guests::default(),
            names,
            book,
            services,
            events,
            info,
            reloads,
            stop: Arc::new(stop),
        };
        let socket = options.directory.join("api.sock");
        let listener = tokio::net::UnixListener::bind(&socket).expect("bound");
        let server = tokio::spawn(api::serve(listener, api.clone(), stopped));
        Self { handle, api, ledger, address, bridge, socket, stop_core, core, server }
    }

    /// Ends it the way a router ends.
    pub(crate) async fn stop(self) {
        self.api.stop.send_replace(Stop::Keep);
        self.server.await.expect("the API ended by itself");
        self.stop_core.send_replace(true);
        self.core.await.expect("the loop ended by itself");
        self.api.data.stop();
    }
}

/// Waits until something holds, for at most ten seconds.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds().await {
        assert!(Instant::now() < deadline, "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

mod tests {
    use mesh_proto::control::node::PeerState;

    use super::*;
    use crate::control::attach::Audit;

    async fn linked(rig: &Rig) -> bool {
        let snapshot = rig.handle.snapshot().await.expect("it runs");
        snapshot.peers.iter().any(|peer| peer.state == PeerState::Established && peer.direct.is_some())
    }

    fn options<'a>(name: &'a str, directory: &'a Path, secret: Option<[u8; 32]>, to: &[&Rig]) -> Options<'a> {
        Options { name, directory, secret, targets: to.iter().map(|rig| rig.address.to_string()).collect() }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_routers_link_share_the_addresses_and_carry_a_frame() {
        let (one, two) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
        let one = Rig::start(options("one", one.path(), Some([7; 32]), &[]));
        let two = Rig::start(options("two", two.path(), Some([7; 32]), &[&one]));
        for rig in [&one, &two] {
            eventually("a link", || linked(rig)).await;
        }
        let mut given = BTreeSet::new();
        for rig in [&one, &two] {
            for range in ranges() {
                let address = rig.handle.allocate("test:a", range).await.expect("it runs").expect("an address");
                assert!(given.insert(address), "{address} was given twice");
                let again = rig.handle.allocate("test:a", range).await.expect("it runs");
                assert_eq!(again, Ok(address), "the same owner keeps its address");
            }
        }
        let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], &[0x5a; 100]].concat();
        let (mut got, mut length) = (vec![0; 2048], 0);
        // Sent again until the broadcast trees stand at both ends.
        eventually("a frame", || {
            use rustix::net::{RecvFlags, SendFlags, recv, send};
            send(&one.bridge, &frame, SendFlags::empty()).expect("sent");
            length = recv(&two.bridge, &mut got[..], RecvFlags::empty()).map_or(0, |(_, count)| count);
            std::future::ready(length > 0)
        })
        .await;
        assert_eq!(&got[..length], &frame[..], "the frame arrives as it was sent");
        let snapshot = two.handle.snapshot().await.expect("it runs");
        let status = api::status(&two.api.info, &snapshot, two.api.data.report().await.as_ref(), &Default::default());
        assert_eq!(status.verdict, "ok", "{:?}", status.problems);
        let peer = &status.peers[0];
        assert_eq!((peer.name.as_str(), peer.carrier.as_deref()), ("one", Some("sleeve")));
        assert_eq!(peer.cipher.as_deref(), Some("chacha20-poly1305"));
        assert!(peer.encrypted && peer.rtt_us.is_some() && peer.loss.is_some(), "{peer:?}");
        assert!(snapshot.targets[0].connected, "{:?}", snapshot.targets);
        assert!(snapshot.messages.received > 0 && snapshot.messages.sent > 0);
        one.stop().await;
        two.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn hosts_that_are_replaced_under_one_name_are_removed_by_it_each() {
        let directory = tempfile::tempdir().expect("a directory");
        let one = Rig::start(options("one", directory.path(), None, &[]));
        let mut removed = BTreeSet::new();
        for _ in 0..3 {
            let directory = tempfile::tempdir().expect("a directory");
            let two = Rig::start(options("two", directory.path(), None, &[&one]));
            eventually("a link", || linked(&two)).await;
            two.handle.allocate("test:a", ranges()[0]).await.expect("it runs").expect("an address");
            let id = two.api.info.id;
            two.stop().await;
            let answer = one.handle.remove_peer("two").await.expect("it runs");
            assert_eq!(answer, Ok((id, "two".to_owned())));
            // Whoever is asked a second time has done it already.
            let again = one.handle.remove_peer("two").await.expect("it runs");
            assert!(again.is_ok(), "{again:?}");
            removed.insert(id);
        }
        assert_eq!(removed.len(), 3);
        one.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn routers_with_other_secrets_do_not_link_and_both_say_so() {
        let (one, two) = (tempfile::tempdir().expect("a"), tempfile::tempdir().expect("b"));
        let one = Rig::start(options("one", one.path(), Some([7; 32]), &[]));
        let two = Rig::start(options("two", two.path(), Some([8; 32]), &[&one]));
        for rig in [&one, &two] {
            eventually("a refusal", || async { rig.api.events.after(0).iter().any(|event| event.kind == "refused") })
                .await;
            assert!(!linked(rig).await);
        }
        let snapshot = two.handle.snapshot().await.expect("it runs");
        assert!(!snapshot.targets[0].connected && !snapshot.targets[0].reason.is_empty());
        one.stop().await;
        two.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn addresses_and_keys_survive_a_restart() {
        let dir = tempfile::tempdir().expect("a directory");
        let rig = Rig::start(options("one", dir.path(), None, &[]));
        let range = ranges()[0];
        let address = rig.handle.allocate("test:a", range).await.expect("it runs").expect("an address");
        let id = rig.api.info.id;
        for number in 0..20 {
            let owner = if number % 2 == 0 { "test:gone" } else { "test:away" };
            let mortal = rig.handle.allocate(owner, range).await.expect("it runs").expect("an address");
            assert_eq!(rig.handle.free(owner, None).await, Ok(vec![mortal]));
        }
        rig.stop().await;
        std::fs::remove_file(dir.path().join("api.sock")).expect("removed");
        let deadline = Instant::now() + Duration::from_secs(5);
        // The store's thread closes the file when its last owner is gone.
        while store::Lock::take(dir.path()).is_err() || redb_is_open(dir.path()) {
            assert!(Instant::now() < deadline, "the store is still open");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let rig = Rig::start(options("one", dir.path(), None, &[]));
        assert_eq!(rig.api.info.id, id);
        for owner in ["test:gone", "test:away"] {
            assert_eq!(rig.handle.lookup(owner).await, Ok(vec![]), "what was freed last stays free");
        }
        assert_eq!(rig.handle.lookup("test:a").await, Ok(vec![address]));
        rig.handle.survey(vec![("test:a".to_owned(), address.addr())]).await.expect("it runs");
        let other = rig.handle.allocate("test:b", range).await.expect("it runs").expect("an address");
        assert_ne!(other, address);
        rig.stop().await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_nobody_uses_is_named_and_given_back_if_asked_and_what_is_used_is_recorded_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let rig = Rig::start(options("one", dir.path(), None, &[]));
        let range = ranges()[0];
        let check = async |repair| rig.api.attachments.check(repair).await.expect("it runs");
        let leaked = rig.handle.allocate("test:leaked", range).await.expect("it runs").expect("an address");
        let used = rig.handle.allocate("test:used", range).await.expect("it runs").expect("an address");
        rig.ledger.enter("test:used", used.addr());
        for _ in 0..2 {
            let found = check(false).await;
            assert_eq!(found.leaked, [("test:leaked".to_owned(), leaked)], "it is only named");
            assert_eq!((found.missing, found.repaired), (vec![], vec![]));
        }
        assert_eq!(rig.handle.free("test:used", None).await, Ok(vec![used]));
        let found = check(true).await;
        assert_eq!(found.leaked, [("test:leaked".to_owned(), leaked)]);
        assert_eq!(found.missing.iter().map(|(_, net)| net.addr()).collect::<Vec<_>>(), [used.addr()]);
        assert_eq!(found.repaired.len(), 2, "{:?}", found.repaired);
        assert_eq!(check(false).await, Audit::default(), "all is in order");
        assert_eq!(rig.handle.lookup("test:leaked").await, Ok(vec![]));
        assert_eq!(rig.handle.lookup("test:used").await, Ok(vec![used]));
        // Somebody else has the address by now: that cannot be repaired, and is named each time.
        assert_eq!(rig.handle.free("test:used", None).await, Ok(vec![used]));
        let other = rig.handle.claim("test:other", used.addr()).await.expect("it runs");
        assert_eq!(other.map(|net| net.addr()), Ok(used.addr()));
        rig.ledger.enter("test:other", used.addr());
        for _ in 0..2 {
            let found = check(true).await;
            assert_eq!((found.missing.len(), found.repaired.len()), (1, 0), "{found:?}");
        }
        rig.stop().await;
    }

    fn redb_is_open(directory: &Path) -> bool {
        redb::Database::open(directory.join("weft.redb")).is_err()
    }
}
