//! What the API says and hears: the contract of `weft … -o json` and of `docs/openapi.json`.
//!
//! Fields are added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `GET /v1/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the router.
    pub version: String,
    /// This peer.
    pub peer: Me,
    /// Name of the network.
    pub network: String,
    /// Whether containers can be attached and addresses given.
    pub ready: bool,
    /// `ok`, or `degraded` if there are problems, or `starting` if the router is not ready.
    pub verdict: String,
    /// What is wrong and what to do, one line each.
    pub problems: Vec<String>,
    /// What protects user frames: a cipher's name, or `none`.
    pub encryption: String,
    /// Whether this router has a fast path: `on`, or `off` and why.
    #[serde(default)]
    pub fast_path: String,
    /// MTU of the overlay, in bytes.
    pub mtu: u16,
    /// Ranges of the network.
    pub range: Vec<String>,
    /// Name of the bridge.
    pub bridge: String,
    /// UDP port of control and sleeve.
    pub port: u16,
    /// Addresses at which this peer says it can be dialled.
    pub endpoints: Vec<String>,
    /// Process id of the router.
    pub pid: u32,
    /// When the router started (RFC 3339).
    pub since: String,
    /// Peers that the operator named.
    pub targets: Vec<Target>,
    /// The other peers.
    pub peers: Vec<Peer>,
    /// What is in use of the kernel's offloads.
    #[serde(default)]
    pub offloads: Offloads,
    /// What went through this router since it started.
    pub counters: Counters,
}

/// What the kernel does for the data thread at once that it would else do packet by packet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offloads {
    /// Frames pass the TAP with open checksums.
    pub checksum: bool,
    /// TCP super-frames pass the TAP.
    pub tcp: bool,
    /// UDP super-frames pass the TAP.
    pub udp: bool,
    /// Many datagrams are sent with one call.
    pub udp_segmentation: bool,
    /// What is not in use, and why: a line each.
    pub missing: Vec<String>,
}

/// `POST /v1/reload`: what came of the configuration file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Keys whose new value is in force.
    pub changed: Vec<ConfigChange>,
    /// Keys whose old value stays in force.
    pub refused: Vec<ConfigRefusal>,
}

/// A key of the configuration with a new value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigChange {
    /// Its name.
    pub key: String,
    /// The value before.
    pub from: String,
    /// The value now.
    pub to: String,
}

/// A key of the configuration whose new value was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigRefusal {
    /// Its name.
    pub key: String,
    /// The value that stays.
    pub from: String,
    /// The value in the file.
    pub to: String,
    /// Why it was refused.
    pub reason: String,
}

/// This peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Me {
    /// Its id, 32 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Instance of its data directory, 16 hexadecimal digits.
    pub instance: String,
    /// Number of this start.
    pub incarnation: u64,
}

/// A peer that the operator named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// As it was written.
    pub target: String,
    /// What the name stands for, as far as it is known.
    pub addresses: Vec<String>,
    /// Whether there is a link to one of the addresses.
    pub connected: bool,
    /// The last thing that went wrong, or empty.
    pub reason: String,
}

/// Another peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its id, 32 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Instance of its data directory, 16 hexadecimal digits.
    pub instance: String,
    /// Number of its start.
    pub incarnation: u64,
    /// `established`, `connecting`, `retrying` or `removed`.
    pub state: String,
    /// How frames reach it: `fast`, `wireguard`, `sleeve`, `relay`, or null if they do not.
    pub carrier: Option<String>,
    /// Id of the neighbour that relays to it.
    pub via: Option<String>,
    /// Name of the neighbour that relays to it.
    pub via_name: Option<String>,
    /// Whether user frames to it are encrypted.
    pub encrypted: bool,
    /// The cipher of the session, or null without one.
    pub cipher: Option<String>,
    /// Its address, if there is a link.
    pub endpoint: Option<String>,
    /// Largest UDP payload, in bytes, that the path to it carries whole.
    pub mtu: Option<u16>,
    /// Smoothed round trip of the link, in microseconds.
    pub rtt_us: Option<u64>,
    /// Share of probes lost lately, 0 to 1.
    pub loss: Option<f64>,
    /// When the state last changed (RFC 3339).
    pub since: String,
    /// Why the state is what it is.
    pub reason: String,
    /// Ids of the peers it has links with.
    pub links: Vec<String>,
}

/// What went through a router since it started.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Frames that came from containers of this host.
    pub frames_in: u64,
    /// Frames that were delivered to containers of this host.
    pub frames_out: u64,
    /// Bytes of `frames_in`.
    pub bytes_in: u64,
    /// Bytes of `frames_out`.
    pub bytes_out: u64,
    /// Datagrams passed on for others.
    pub relayed: u64,
    /// Datagrams that came a second time, dropped.
    pub replayed: u64,
    /// Unsealed frames and sessions that were refused because the network has a secret.
    pub unsealed: u64,
    /// Drops by reason.
    pub dropped: BTreeMap<String, u64>,
    /// UDP datagrams sent by the data path.
    pub datagrams_out: u64,
    /// UDP datagrams received.
    pub datagrams_in: u64,
    /// Changes of carrier, to the fast path and away from it.
    #[serde(default)]
    pub carrier_switches: u64,
    /// Claims on MAC addresses of live owners that were not granted.
    #[serde(default)]
    pub mac_claims_refused: u64,
    /// Messages of the control plane sent.
    pub messages_out: u64,
    /// Messages of the control plane received.
    pub messages_in: u64,
    /// Bytes of `messages_out`.
    pub message_bytes_out: u64,
    /// Bytes of `messages_in`.
    pub message_bytes_in: u64,
}

/// `GET /v1/ipam`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipam {
    /// Ranges of the network.
    pub range: Vec<String>,
    /// Whether addresses can be given.
    pub ready: bool,
    /// What is waited for, if they cannot.
    pub waiting_for: Option<String>,
    /// Addresses that this peer owns.
    pub owned: u64,
    /// Of these, those that can be given.
    pub free: u64,
    /// Of these, those that are given.
    pub used: u64,
    /// Of these, those that were freed too recently to be given again.
    pub cooling: u64,
    /// Who owns how much.
    pub peers: Vec<IpamPeer>,
    /// What this peer gave.
    pub allocations: Vec<Allocation>,
    /// Addresses given here that another peer gave too, or owns.
    pub contested: Vec<Contested>,
    /// What is wrong with the address space, a line each.
    pub problems: Vec<String>,
}

/// Share of one peer in the address space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamPeer {
    /// Its id.
    pub id: String,
    /// Its name, or the id where the name is not known.
    pub name: String,
    /// Addresses that it owns.
    pub owned: u64,
    /// Of these, those that can be given; known of this peer only.
    pub free: Option<u64>,
    /// Whether it can be reached.
    pub reachable: bool,
    /// Seconds since it was heard of, or since this router began to listen for it; null if it is in
    /// reach, or was not heard of since the start of a router that removes nobody for silence.
    pub silent_s: Option<u64>,
    /// Seconds until the voters remove it, if they do not hear of it either; null: not without an
    /// operator.
    pub removal_s: Option<u64>,
    /// It was removed, and others are about to get its space.
    pub removed: bool,
}

/// An address that two peers claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contested {
    /// The address.
    pub address: String,
    /// Who has it here.
    pub owner: String,
    /// Id of the other peer.
    pub peer: String,
    /// Its name, or the id where the name is not known.
    pub peer_name: String,
    /// Who has it there; null: nobody, or the peer has not said.
    pub peer_owner: Option<String>,
    /// Whether it belongs to the other peer: then frames from here with it are dropped by others.
    pub fenced: bool,
}

/// `POST /v1/ipam/check`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Whether to make what is recorded and what is there one.
    #[serde(default)]
    pub repair: bool,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpamCheck {
    /// Given, and used by nobody on this host.
    pub leaked: Vec<Holding>,
    /// Used on this host, and not given.
    pub missing: Vec<Holding>,
    /// Used here and claimed by another peer.
    pub contested: Vec<Contested>,
    /// Of the leaked and missing ones, those that are in order now.
    pub repaired: Vec<String>,
}

/// An address and who has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holding {
    /// The address with the prefix length of its range.
    pub address: String,
    /// Who has it.
    pub owner: String,
}

/// One address that was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Whom to: `docker:ID`, `netns:INODE@BOOT`, `cni:NETWORK/CONTAINER/INTERFACE`, `weft:expose`.
    pub owner: String,
    /// The address with the prefix length of its range.
    pub address: String,
    /// When (RFC 3339); null if before the router started.
    pub since: Option<String>,
}

/// One entry of `GET /v1/ps`, and the answer to `POST /v1/attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// As it was attached; `docker-endpoint:ID` of what Docker connected.
    pub target: String,
    /// Name of the interface inside; `eth*` where Docker chose the number.
    pub interface: String,
    /// Its hardware address.
    pub mac: String,
    /// Its addresses, each with the prefix length of its range.
    pub addresses: Vec<String>,
    /// What it is called in the mesh, without the domain.
    #[serde(default)]
    pub names: Vec<String>,
    /// What it serves, as `[NAME=]PORT/PROTOCOL`, as far as somebody has said so.
    #[serde(default)]
    pub services: Vec<String>,
    /// Whose the addresses are, as in `GET /v1/ipam`; Docker's endpoints have theirs from requests of other names.
    #[serde(default)]
    pub owner: String,
    /// Name of the end on the bridge.
    #[serde(default)]
    pub host_interface: String,
}

/// Body of `POST /v1/hold`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldRequest {
    /// Whose the addresses shall be: `KIND:NAME`.
    pub holder: String,
    /// Absolute path of a network namespace, or process id.
    pub target: String,
    /// Name of the interface inside.
    pub interface: String,
    /// Addresses to have.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Parts of the ranges, of each of which a free address is taken, unless one of its family is
    /// among the addresses; none means every range.
    #[serde(default)]
    pub subnets: Vec<String>,
    /// Routes, as `DESTINATION` or `DESTINATION via GATEWAY`.
    #[serde(default)]
    pub routes: Vec<String>,
    /// MTU of the interface; 0: that of the overlay.
    #[serde(default)]
    pub mtu: u16,
    /// Hardware address of the interface inside; empty: one that follows from its address.
    #[serde(default)]
    pub mac: String,
    /// Whether the bridge gives back to it what it sends to itself.
    #[serde(default)]
    pub hairpin: bool,
    /// Whether it may send from addresses that are not its own.
    // A router of before does not know it, and need not, where it is not set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_spoof: bool,
    /// Whether its connections to outside of the mesh go in the host's name.
    // As above.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masquerade: bool,
    /// Whether the host translates addresses for it: its filter of IP sees what the bridge carries.
    // As above.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub translated: bool,
}

/// Answer to `POST /v1/hold`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// As `GET /v1/ps` lists it.
    pub attachment: Attachment,
    /// Hardware address of the end on the bridge.
    pub host_mac: String,
    /// MTU of both ends.
    pub mtu: u16,
    /// Routes that were asked for.
    pub routes: Vec<String>,
}

/// Body of `POST /v1/unhold`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnholdRequest {
    /// The holder.
    pub holder: String,
}

/// Body of `POST /v1/connect` and `POST /v1/forget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeersRequest {
    /// Peers, as `HOST[:PORT]`.
    pub peers: Vec<String>,
}

/// Answer to `POST /v1/connect` and `POST /v1/forget`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// The peers that are dialled from now on.
    pub targets: Vec<String>,
}

/// Body of `POST /v1/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// Name or id of the peer.
    pub peer: String,
}

/// Answer to `POST /v1/revoke`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedPeer {
    /// Id of the peer that is shut out.
    pub id: String,
    /// Its name; empty if this router does not know it.
    pub name: String,
}

/// Body of `POST /v1/attach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {
    /// Path of a network namespace, process id, `docker:NAME` or name of a Docker container.
    pub target: String,
    /// Addresses; none means one of each range.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Names in the mesh's domain, besides those that it has.
    #[serde(default)]
    pub names: Vec<String>,
    /// What it serves, as `[NAME=]PORT[/tcp|/udp]`, besides what is known of it.
    #[serde(default)]
    pub services: Vec<String>,
}

/// Body of `POST /v1/detach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetRequest {
    /// Path of a network namespace, process id, `docker:NAME` or name of a Docker container.
    pub target: String,
    /// Addresses; none means all.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// Body of `POST /v1/expose`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExposeRequest {
    /// Addresses; none means one of each range, or those that the host has already.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whether the connections of the whole mesh that leave it here go in the host's name from now on.
    // A router of before does not know it, and need not, where it is not set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masquerade: bool,
}

/// Body of `POST /v1/hide`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressesRequest {
    /// Addresses; none means all.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// Answer to `POST /v1/expose`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Addresses of this host, each with the prefix length of its range.
    pub addresses: Vec<String>,
}

/// Answer to `POST /v1/detach`, `POST /v1/unhold` and `POST /v1/hide`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    /// Addresses that were given back.
    pub released: Vec<String>,
}

/// Answer to `GET /v1/services`, and to `POST /v1/services/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceList {
    /// In the order of their places.
    pub services: Vec<HostService>,
}

/// A service of this host: a port that leads elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostService {
    /// `export`: from this host into the mesh; `import`: from the mesh to outside.
    pub kind: String,
    /// Where it is found, as `[ADDRESS:]PORT/PROTOCOL`; without an address: at any of this host's.
    pub at: String,
    /// Where it leads, as `ADDRESS:PORT`.
    pub to: String,
    /// What an import is called in the mesh, with the domain; null of an export.
    pub name: Option<String>,
}

/// Body of `POST /v1/services/export`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// Where it leads, in the mesh, as `ADDRESS:PORT[/tcp|/udp]`.
    pub to: String,
    /// Where it is found, as `[ADDRESS:]PORT`; empty: the same port, at any address of this host.
    #[serde(default)]
    pub at: String,
}

/// Body of `POST /v1/services/import`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// What it is called in the mesh, with or without the domain.
    pub name: String,
    /// Where it leads, outside, as `ADDRESS:PORT[/tcp|/udp]`.
    pub to: String,
    /// Where it is found, as `[ADDRESS:]PORT`, with an address that the host has in the mesh; empty: the same
    /// port, at the first of these.
    #[serde(default)]
    pub at: String,
}

/// Body of `POST /v1/services/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceRemoveRequest {
    /// Where it is found, as `[ADDRESS:]PORT[/tcp|/udp]`; without an address: all with this port.
    pub at: String,
}

/// Query of `GET /v1/dns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsQuery {
    /// Only this name, with or without the domain, or the names of this address.
    pub name: Option<String>,
}

/// Answer to `GET /v1/dns`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsList {
    /// Domain of all these names.
    pub domain: String,
    /// Where this router answers to them.
    pub listen: Vec<String>,
    /// In the order of the names.
    pub names: Vec<DnsEntry>,
}

/// A name of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsEntry {
    /// The name, with the domain.
    pub name: String,
    /// Its addresses at that peer.
    pub addresses: Vec<String>,
    /// What is served there, as far as somebody has said so.
    pub services: Vec<DnsService>,
    /// Id of the peer.
    pub peer: String,
    /// Name of the peer.
    pub peer_name: String,
    /// Whether it is given as an answer: false while the peer cannot be reached.
    pub served: bool,
}

/// A service of a name, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsService {
    /// What it is called in questions for it; the number of its port if nobody called it anything.
    pub service: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Its port.
    pub port: u16,
    /// The addresses of the name at which it is.
    pub addresses: Vec<String>,
}

/// Body of `POST /v1/dns/add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsAddRequest {
    /// The name, with or without the domain.
    pub name: String,
    /// Addresses to give to it.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// What is served at each of these, as `[NAME=]PORT[/tcp|/udp]`.
    #[serde(default)]
    pub services: Vec<String>,
}

/// Body of `POST /v1/dns/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsRequest {
    /// The name, with or without the domain.
    pub name: String,
    /// Addresses to take away, with what they serve; none means all.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// Answer to `POST /v1/dns/add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsName {
    /// The name, with the domain.
    pub name: String,
    /// All that it has at this host.
    pub addresses: Vec<String>,
    /// What is served there.
    pub services: Vec<DnsService>,
}

/// Body of `POST /v1/down`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DownRequest {}

/// Body of `POST /v1/reload`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReloadRequest {}

/// Answer to `POST /v1/down`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// Process id of the router that stops.
    pub pid: u32,
    /// What was taken away on the way, one line each.
    pub removed: Vec<String>,
}

/// Answer to `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventList {
    /// Oldest first.
    pub events: Vec<crate::control::events::Record>,
}

/// Query of `GET /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Only those after this number.
    #[serde(default)]
    pub after: u64,
    /// Wait at most so many seconds (60 at most) until there is one.
    #[serde(default)]
    pub wait: u64,
}

/// Every error of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was wrong, where, and what to do.
    pub error: String,
}

/// `POST /v1/peers/remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    /// Name of the peer, or its id, of which eight digits do.
    pub peer: String,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemovedPeer {
    /// Id of the peer.
    pub id: String,
    /// Its name, or the id where the name is not known.
    pub name: String,
}
