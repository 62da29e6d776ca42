//! Prometheus metrics, on an address that the operator chose, made anew for each scrape.
//!
//! They say what `weft status -o json` says, as numbers.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

use crate::control::api::types::{Ipam, Peer, Status};
use crate::control::api::{Api, ApiError, ipam, status};

/// What a scraper is told the text is.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// Binds the address.
///
/// # Errors
/// If it is in use or not one of this host.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("--metrics {address} cannot be bound; choose another address or port"))
}

/// Serves `GET /metrics` until the task is aborted.
pub async fn serve(listener: TcpListener, api: Api) {
    let app = Router::new().route("/metrics", get(scrape)).with_state(api);
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "metrics are served no more: restart the router");
    }
}

async fn scrape(State(api): State<Api>) -> Result<Response, ApiError> {
    let snapshot = api.router.snapshot().await?;
    let report = api.data.report().await;
    let guarded = api.guarded().await;
    let status = status(&api.info, &snapshot, report.as_ref(), &guarded);
    let ipam = ipam(&api.info, &snapshot, &api.router.ipam().await?);
    let text =
        render(&status, &ipam).map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

/// The text of a status and of the address space.
///
/// # Errors
/// None that is known: the text is written to memory.
pub fn render(status: &Status, ipam: &Ipam) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("weft");
    about(&mut registry, status);
    peers(&mut registry, &status.peers);
    counters(&mut registry, status);
    addresses(&mut registry, ipam);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn addresses(registry: &mut Registry, ipam: &Ipam) {
    let family = Family::<Labels, Gauge>::default();
    for (state, count) in [
        ("owned", ipam.owned),
        ("free", ipam.free),
        ("used", ipam.used),
        ("cooling", ipam.cooling),
        ("contested", ipam.contested.len() as u64),
    ] {
        family.get_or_create(&vec![("state", state.to_owned())]).set(saturate(count));
    }
    let help = "Addresses of the network that this router owns, can give, gave, must not give yet, and gave though another peer claims them";
    registry.register("ipam_addresses", help, family);
    let owned = Family::<Labels, Gauge>::default();
    let silent = Family::<Labels, Gauge>::default();
    let removal = Family::<Labels, Gauge>::default();
    for peer in &ipam.peers {
        let labels =
            vec![("peer", peer.id.clone()), ("name", peer.name.clone()), ("reachable", peer.reachable.to_string())];
        owned.get_or_create(&labels).set(saturate(peer.owned));
        let labels = vec![("peer", peer.id.clone()), ("name", peer.name.clone())];
        for (family, seconds) in [(&silent, peer.silent_s), (&removal, peer.removal_s)] {
            if let Some(seconds) = seconds {
                family.get_or_create(&labels).set(saturate(seconds));
            }
        }
    }
    registry.register("ipam_owner_addresses", "Addresses that each peer owns", owned);
    let help = "Time since an owner out of reach was heard of";
    registry.register_with_unit("ipam_owner_silent", help, Unit::Seconds, silent);
    let help = "Time until an owner out of reach is removed and its addresses go to others";
    registry.register_with_unit("ipam_owner_removal", help, Unit::Seconds, removal);
}

fn about(registry: &mut Registry, status: &Status) {
    let family = Family::<Labels, Gauge>::default();
    let labels = vec![
        ("version", status.version.clone()),
        ("peer", status.peer.id.clone()),
        ("name", status.peer.name.clone()),
        ("network", status.network.clone()),
        ("encryption", status.encryption.clone()),
    ];
    family.get_or_create(&labels).set(1);
    registry.register("build", "This router; always 1", family);
    let mut gauge = |name: &str, help: &str, value: u64| {
        registry.register(name, help, ConstGauge::new(saturate(value)));
    };
    gauge("ready", "Whether containers can be attached", u64::from(status.ready));
    let problems = status.problems.len() as u64;
    gauge("problems", "Problems that weft status names", problems);
    gauge("incarnation", "Number of this start", status.peer.incarnation);
    gauge("mtu_bytes", "MTU of the overlay", u64::from(status.mtu));
}

fn peers(registry: &mut Registry, peers: &[Peer]) {
    let counts = Family::<Labels, Gauge>::default();
    let rtts = Family::<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    let losses = Family::<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
    // Every state is there from the start, so that an alert on one needs no history.
    for state in ["established", "connecting", "retrying", "removed"] {
        for carrier in ["fast", "wireguard", "sleeve", "relay", "none"] {
            if (state == "established") != (carrier == "none") {
                let _ = counts.get_or_create(&vec![("state", state.to_owned()), ("carrier", carrier.to_owned())]);
            }
        }
    }
    for peer in peers {
        let carrier = peer.carrier.clone().unwrap_or_else(|| "none".to_owned());
        counts.get_or_create(&vec![("state", peer.state.clone()), ("carrier", carrier)]).inc();
        let labels = vec![("peer", peer.id.clone()), ("name", peer.name.clone())];
        if let Some(rtt) = peer.rtt_us {
            rtts.get_or_create(&labels).set(rtt as f64 / 1e6);
        }
        if let Some(loss) = peer.loss {
            losses.get_or_create(&labels).set(loss);
        }
    }
    registry.register("peers", "Other peers by state and carrier", counts);
    let help = "Smoothed round trip of the link";
    registry.register_with_unit("peer_rtt", help, Unit::Seconds, rtts);
    registry.register_with_unit("peer_loss", "Share of probes lost lately", Unit::Ratios, losses);
}

fn counters(registry: &mut Registry, status: &Status) {
    let counters = &status.counters;
    let mut both = |name: &str, help: &str, received: u64, sent: u64| {
        let family = Family::<Labels, Counter>::default();
        for (direction, count) in [("in", received), ("out", sent)] {
            family.get_or_create(&vec![("direction", direction.to_owned())]).inc_by(count);
        }
        registry.register(name, help, family);
    };
    let help = "Frames from (in) and to (out) this host's containers";
    both("frames", help, counters.frames_in, counters.frames_out);
    let help = "Bytes of these frames";
    both("frame_bytes", help, counters.bytes_in, counters.bytes_out);
    let help = "UDP datagrams of the data path";
    both("datagrams", help, counters.datagrams_in, counters.datagrams_out);
    let help = "Messages of the control plane";
    both("control_messages", help, counters.messages_in, counters.messages_out);
    let help = "Bytes of these messages";
    both("control_message_bytes", help, counters.message_bytes_in, counters.message_bytes_out);
    for (name, help, count) in [
        ("carrier_switches", "Changes of carrier, to the fast path and away from it", counters.carrier_switches),
        ("mac_claims_refused", "Claims on MAC addresses of live owners", counters.mac_claims_refused),
        ("relayed_datagrams", "Datagrams passed on for others", counters.relayed),
        ("replayed_datagrams", "Datagrams that came a second time", counters.replayed),
        ("unsealed_refused", "Unsealed frames and sessions refused in a network with a secret", counters.unsealed),
    ] {
        registry.register(name, help, ConstCounter::new(count));
    }
    let dropped = Family::<Labels, Counter>::default();
    for (reason, count) in &counters.dropped {
        dropped.get_or_create(&vec![("reason", reason.clone())]).inc_by(*count);
    }
    registry.register("dropped", "Frames and datagrams dropped, by reason", dropped);
}

fn saturate(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::types::{Counters, IpamPeer, Me};
    use crate::router::rig::{Options, Rig};

    fn sample() -> Status {
        let peer = Peer {
            id: "b".repeat(32),
            name: "host\"2".to_owned(),
            instance: String::new(),
            incarnation: 1,
            state: "established".to_owned(),
            carrier: Some("sleeve".to_owned()),
            via: None,
            via_name: None,
            encrypted: true,
            cipher: None,
            endpoint: None,
            mtu: None,
            rtt_us: Some(1500),
            loss: Some(0.25),
            since: String::new(),
            reason: String::new(),
            links: Vec::new(),
        };
        Status {
            version: "1".to_owned(),
            peer: Me { id: "a".repeat(32), name: "host1".to_owned(), instance: String::new(), incarnation: 3 },
            network: "weft".to_owned(),
            ready: true,
            verdict: "ok".to_owned(),
            problems: Vec::new(),
            encryption: "none".to_owned(),
            fast_path: "on".to_owned(),
            mtu: 1410,
            range: Vec::new(),
            bridge: "weft".to_owned(),
            port: 6783,
            endpoints: Vec::new(),
            pid: 1,
            since: String::new(),
            targets: Vec::new(),
            peers: vec![peer],
            offloads: crate::control::api::types::Offloads::default(),
            counters: Counters {
                frames_in: 7,
                replayed: 5,
                dropped: [("no_route".to_owned(), 2)].into(),
                ..Counters::default()
            },
        }
    }

    fn space() -> Ipam {
        let owner = |id: &str, name: &str, owned| IpamPeer {
            id: id.to_owned(),
            name: name.to_owned(),
            owned,
            free: None,
            reachable: true,
            silent_s: None,
            removal_s: None,
            removed: false,
        };
        let away = IpamPeer { reachable: false, silent_s: Some(70), removal_s: Some(530), ..owner("b", "host2", 4) };
        Ipam {
            range: Vec::new(),
            ready: true,
            waiting_for: None,
            owned: 10,
            free: 7,
            used: u64::MAX,
            cooling: 0,
            peers: vec![owner("a", "host1", 10), away],
            allocations: Vec::new(),
            contested: Vec::new(),
            problems: Vec::new(),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_scraper_gets_the_text_of_a_running_router() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let dir = tempfile::tempdir().expect("a directory");
        let options = Options { name: "one", directory: dir.path(), secret: None, targets: Vec::new() };
        let rig = Rig::start(options);
        let listener = bind("127.0.0.1:0".parse().expect("loopback")).await.expect("bound");
        let address = listener.local_addr().expect("bound");
        assert!(bind(address).await.is_err_and(|error| format!("{error:#}").contains("--metrics")));
        let server = tokio::spawn(serve(listener, rig.api.clone()));
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connected");
        let question = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(question).await.expect("asked");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("name=\"one\"") && answer.contains("# EOF"), "{answer}");
        server.abort();
        let _ = server.await;
        rig.stop().await;
    }

    #[test]
    fn the_text_has_every_family_with_its_unit_and_ends_as_it_must() {
        let text = render(&sample(), &space()).expect("written");
        for line in [
            "weft_frames_total{direction=\"in\"} 7",
            "weft_replayed_datagrams_total 5",
            "weft_dropped_total{reason=\"no_route\"} 2",
            "weft_ipam_addresses{state=\"owned\"} 10",
            "weft_ipam_addresses{state=\"used\"} 9223372036854775807",
            "weft_ipam_addresses{state=\"contested\"} 0",
            "weft_ipam_owner_addresses{peer=\"b\",name=\"host2\",reachable=\"false\"} 4",
            "weft_ipam_owner_silent_seconds{peer=\"b\",name=\"host2\"} 70",
            "weft_ipam_owner_removal_seconds{peer=\"b\",name=\"host2\"} 530",
            "weft_peers{state=\"established\",carrier=\"sleeve\"} 1",
            "weft_peers{state=\"retrying\",carrier=\"none\"} 0",
            "weft_mtu_bytes 1410",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.contains("weft_peer_rtt_seconds{") && text.contains("} 0.0015"), "{text}");
        assert!(text.contains(r#"name="host\"2""#), "labels are escaped:\n{text}");
        assert!(text.ends_with("# EOF\n"));
        let documented = include_str!("../docs/api.md");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().expect("a name");
            assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/api.md");
        }
    }
}
