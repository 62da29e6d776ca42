//! One function a route.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri};
use ipnet::IpNet;
use mesh_proto::control::names::Listed;
use mesh_proto::wire::control::NAME_MAX;
use mesh_proto::wire::names::{InvalidName, Name};
use mesh_proto::wire::services::Service;

use super::error::Body;
use super::types::{
    Addresses, AddressesRequest, AttachRequest, Attachment, CheckRequest, DnsAddRequest, DnsEntry, DnsList, DnsName,
    DnsQuery, DnsRequest, DnsService, DownRequest, EventList, EventsQuery, ExposeRequest, Held, HoldRequest, Holding,
    Ipam, IpamCheck, Peer, PeersRequest, Released, ReloadRequest, Reloaded, RemoveRequest, RemovedPeer, RevokeRequest,
    RevokedPeer, Status, Stopping, TargetRequest, Targets, UnholdRequest,
};
use super::{Api, ApiError, REQUEST_TIMEOUT, Stop, view};
use crate::config::peer;
use crate::control::attach::{AttachError, Hold, Record, mac_text};
use crate::control::guests::Connected;
use crate::router::{RemoveError, Whom};

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

/// The interface inside a container of Docker's: the engine gives it the first number that is free there.
const DOCKERS: &str = "eth*";
/// Most peers of one request.
const PEERS_MAX: usize = 256;
/// How long other peers have to answer what is theirs.
const ANSWERS: Duration = Duration::from_secs(1);
/// Longest wait for events.
const WAIT_MAX: Duration = Duration::from_secs(60);

pub(super) async fn status(State(api): State<Api>) -> Answer<Status> {
    let snapshot = api.router.snapshot().await?;
    let report = api.data.report().await;
    let guarded = api.guarded().await;
    Ok(Json(view::status(&api.info, &snapshot, report.as_ref(), &guarded)))
}

pub(super) async fn peers(state: State<Api>) -> Answer<Vec<Peer>> {
    Ok(Json(status(state).await?.0.peers))
}

pub(super) async fn ps(State(api): State<Api>) -> Json<Vec<Attachment>> {
    let mut list: Vec<Attachment> = api.attachments.list().iter().map(attachment).collect();
    let guest = |(host_interface, one): (String, Connected)| Attachment {
        target: one.owner.clone(),
        interface: DOCKERS.to_owned(),
        mac: mac_text(one.mac),
        addresses: texts(&one.addresses),
        names: api.guests.names_at(&host_interface).iter().map(ToString::to_string).collect(),
        services: api.guests.services_at(&host_interface).iter().map(ToString::to_string).collect(),
        owner: one.owner,
        host_interface,
    };
    list.extend(api.guests.connected().into_iter().map(guest));
    Json(list)
}

pub(super) async fn ipam(State(api): State<Api>) -> Answer<Ipam> {
    let snapshot = api.router.snapshot().await?;
    let summary = api.router.ipam().await?;
    Ok(Json(view::ipam(&api.info, &snapshot, &summary)))
}

pub(super) async fn events(
    State(api): State<Api>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Answer<EventList> {
    let Query(query) = query.map_err(|rejection| ApiError::bad(rejection.body_text()))?;
    if query.wait > 0 {
        let wait = Duration::from_secs(query.wait).min(WAIT_MAX);
        // Elapsed: then the list is empty.
        let _ = tokio::time::timeout(wait, api.events.wait_after(query.after)).await;
    }
    Ok(Json(EventList { events: api.events.after(query.after) }))
}

pub(super) async fn connect(State(api): State<Api>, Body(request): Body<PeersRequest>) -> Answer<Targets> {
    let peers = check_peers(request.peers)?;
    match api.router.connect(peers).await? {
        Ok(targets) => Ok(Json(Targets { targets })),
        Err(refused) => Err(ApiError::new(
            StatusCode::CONFLICT,
            format!(
                "too many peers are named already for: {}; forget some, discovery finds the rest",
                refused.join(", ")
            ),
        )),
    }
}

pub(super) async fn forget(State(api): State<Api>, Body(request): Body<PeersRequest>) -> Answer<Targets> {
    let peers = check_peers(request.peers)?;
    match api.router.forget(peers).await? {
        Ok(targets) => Ok(Json(Targets { targets })),
        Err(unknown) => Err(ApiError::new(
            StatusCode::NOT_FOUND,
            format!(
                "not a peer that this router was told to connect to: {}; `weft status -o json` lists the targets",
                unknown.join(", ")
            ),
        )),
    }
}

pub(super) async fn revoke(State(api): State<Api>, Body(request): Body<RevokeRequest>) -> Answer<RevokedPeer> {
    let peer = request.peer;
    if peer.is_empty() || peer.len() > NAME_MAX || peer.chars().any(char::is_control) {
        return Err(ApiError::bad(format!("`peer` is the name or the id of a peer: 1 to {NAME_MAX} printable bytes")));
    }
    let Whom { id, name } = api.router.revoke(peer).await??;
    Ok(Json(RevokedPeer { id: id.to_string(), name }))
}

/// Compares what was given with what is there, and asks other peers about what is theirs.
pub(super) async fn ipam_check(State(api): State<Api>, Body(request): Body<CheckRequest>) -> Answer<IpamCheck> {
    api.router.ask_about_strays().await?;
    tokio::time::sleep(ANSWERS).await;
    let attachments = api.attachments;
    let repair = request.repair;
    let found = to_the_end(async move { attachments.check(repair).await }).await?;
    let (snapshot, summary) = (api.router.snapshot().await?, api.router.ipam().await?);
    let holding = |(owner, address): (String, IpNet)| Holding { address: address.to_string(), owner };
    Ok(Json(IpamCheck {
        leaked: found.leaked.into_iter().map(holding).collect(),
        missing: found.missing.into_iter().map(holding).collect(),
        contested: view::contested(&snapshot, &summary),
        repaired: found.repaired.iter().map(ToString::to_string).collect(),
    }))
}

pub(super) async fn remove_peer(State(api): State<Api>, Body(request): Body<RemoveRequest>) -> Answer<RemovedPeer> {
    use ipam::allocator::RemoveError::NotYet;
    // It may have to ask the other members first.
    let deadline = Instant::now() + ANSWERS * 3;
    let removed = loop {
        match api.router.remove_peer(&request.peer).await? {
            Err(RemoveError::Addresses(NotYet(_))) if Instant::now() < deadline => {
                tokio::time::sleep(ANSWERS / 4).await
            }
            result => break result,
        }
    };
    match removed {
        Ok((id, name)) => Ok(Json(RemovedPeer { id: id.to_string(), name })),
        Err(error) => {
            let status = match error {
                RemoveError::Unknown => StatusCode::NOT_FOUND,
                RemoveError::Ambiguous | RemoveError::Addresses(_) => StatusCode::CONFLICT,
            };
            Err(ApiError::new(status, error.to_string()))
        }
    }
}

pub(super) async fn attach(State(api): State<Api>, Body(request): Body<AttachRequest>) -> Answer<Attachment> {
    let attachments = api.attachments;
    let work = async move {
        let AttachRequest { target, addresses, names, services } = request;
        attachments.attach(&target, &addresses, &names, &services).await
    };
    Ok(Json(attachment(&to_the_end(work).await?)))
}

pub(super) async fn detach(State(api): State<Api>, Body(request): Body<TargetRequest>) -> Answer<Released> {
    let attachments = api.attachments;
    let work = async move { attachments.detach(&request.target, &request.addresses).await };
    Ok(Json(Released { released: texts(&to_the_end(work).await?) }))
}

/// Attaches a namespace for a holder.
pub(super) async fn hold(State(api): State<Api>, Body(request): Body<HoldRequest>) -> Answer<Held> {
    let HoldRequest {
        holder,
        target,
        interface,
        addresses,
        subnets,
        routes,
        mtu,
        mac,
        hairpin,
        may_spoof,
        masquerade,
        translated,
    } = request;
    let attachments = api.attachments;
    let hold = Hold {
        holder,
        target,
        interface,
        addresses,
        subnets,
        routes: routes.clone(),
        mtu,
        mac,
        hairpin,
        may_spoof,
        masquerade,
        translated,
    };
    let work = async move {
        let record = attachments.hold(&hold).await?;
        let end = attachments.host_end(&record).await?;
        Ok::<_, AttachError>((record, end))
    };
    let (record, end) = to_the_end(work).await?;
    Ok(Json(Held {
        attachment: attachment(&record),
        host_mac: mac_text(end.mac.unwrap_or_default()),
        mtu: record.held.map_or(0, |terms| terms.mtu),
        routes,
    }))
}

/// Releases what a holder holds.
pub(super) async fn unhold(State(api): State<Api>, Body(request): Body<UnholdRequest>) -> Answer<Released> {
    let attachments = api.attachments;
    let work = async move { attachments.unhold(&request.holder).await };
    Ok(Json(Released { released: texts(&to_the_end(work).await?) }))
}

pub(super) async fn expose(State(api): State<Api>, Body(request): Body<ExposeRequest>) -> Answer<Addresses> {
    let attachments = api.attachments;
    let work = async move { attachments.expose(&request.addresses, request.masquerade).await };
    Ok(Json(Addresses { addresses: texts(&to_the_end(work).await?) }))
}

pub(super) async fn hide(State(api): State<Api>, Body(request): Body<AddressesRequest>) -> Answer<Released> {
    let Api { attachments, services, .. } = api;
    let work = async move {
        let released = attachments.hide(&request.addresses).await?;
        services.hide().await?;
        Ok::<_, ApiError>(released)
    };
    Ok(Json(Released { released: texts(&to_the_end(work).await?) }))
}

pub(super) async fn dns(State(api): State<Api>, query: Result<Query<DnsQuery>, QueryRejection>) -> Answer<DnsList> {
    let Query(query) = query.map_err(|rejection| ApiError::bad(rejection.body_text()))?;
    let peers = api.router.snapshot().await?.peers;
    let mut listed = api.names.read().list();
    if let Some(asked) = &query.name {
        match asked.parse::<IpAddr>() {
            Ok(address) => listed.retain(|listed| listed.records.addresses.list().contains(&address)),
            Err(_) => {
                let name = mesh_name(&api, asked)?;
                listed.retain(|listed| listed.name == name);
            }
        }
    }
    let entry = |listed: Listed| DnsEntry {
        name: full_name(&api, &listed.name),
        addresses: listed.records.addresses.list().iter().map(ToString::to_string).collect(),
        services: services(listed.records.services().map(|(service, at)| (service.clone(), at))),
        peer: listed.peer.to_string(),
        peer_name: peers.iter().find(|peer| peer.id == listed.peer).map(|peer| peer.name.clone()).unwrap_or_default(),
        served: listed.served,
    };
    let names = listed.into_iter().map(entry).collect();
    let listen = api.info.dns.iter().map(ToString::to_string).collect();
    Ok(Json(DnsList { domain: api.info.domain.clone(), listen, names }))
}

pub(super) async fn dns_add(State(api): State<Api>, Body(request): Body<DnsAddRequest>) -> Answer<DnsName> {
    let name = mesh_name(&api, &request.name)?;
    let addresses = plain_addresses(&request.addresses)?;
    let read = |text: &String| text.parse::<Service>().map_err(|error| ApiError::bad(error.to_string()));
    let served = request.services.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    if addresses.is_empty() {
        return Err(ApiError::bad("`addresses` is empty: name at least one IP address"));
    }
    let all = api.book.add(name.clone(), &addresses, &served).await?;
    let at = |(at, services): (&IpAddr, &BTreeSet<Service>)| -> Vec<(Service, IpAddr)> {
        services.iter().map(|service| (service.clone(), *at)).collect()
    };
    Ok(Json(DnsName {
        name: full_name(&api, &name),
        addresses: all.keys().map(ToString::to_string).collect(),
        services: services(all.iter().flat_map(at)),
    }))
}

/// Each service once, with all its addresses.
fn services(list: impl Iterator<Item = (Service, IpAddr)>) -> Vec<DnsService> {
    let mut places: BTreeMap<Service, Vec<String>> = BTreeMap::new();
    for (service, address) in list {
        places.entry(service).or_default().push(address.to_string());
    }
    let entry = |(service, addresses): (Service, Vec<String>)| DnsService {
        service: service.name().to_owned(),
        protocol: service.protocol().as_str().to_owned(),
        port: service.port(),
        addresses,
    };
    places.into_iter().map(entry).collect()
}

pub(super) async fn dns_remove(State(api): State<Api>, Body(request): Body<DnsRequest>) -> Answer<Released> {
    let name = mesh_name(&api, &request.name)?;
    let taken = api.book.remove(name, &plain_addresses(&request.addresses)?).await?;
    Ok(Json(Released { released: taken.iter().map(ToString::to_string).collect() }))
}

/// A name as people write it: with the domain, and maybe the dot at its end, or without.
pub(super) fn mesh_name(api: &Api, text: &str) -> Result<Name, ApiError> {
    let domain = format!(".{}", api.info.domain);
    let short = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let name = short.strip_suffix(&domain).unwrap_or(&short);
    name.parse().map_err(|error: InvalidName| ApiError::bad(error.to_string()))
}

pub(super) fn full_name(api: &Api, name: &Name) -> String {
    format!("{name}.{}", api.info.domain)
}

/// Addresses without a prefix length: a service may be anywhere.
fn plain_addresses(texts: &[String]) -> Result<Vec<IpAddr>, ApiError> {
    let read = |text: &String| match text.parse::<IpAddr>() {
        Ok(address) if !address.is_unspecified() && !address.is_multicast() => Ok(address),
        _ => {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
            Err(ApiError::bad(format!("`{shown}` is not the IP address of a service; give one such as 192.0.2.7")))
        }
    };
    texts.iter().map(read).collect()
}

pub(super) async fn reload(State(api): State<Api>, Body(ReloadRequest {}): Body<ReloadRequest>) -> Answer<Reloaded> {
    Ok(Json(api.reloads.reload().await?))
}

pub(super) async fn down(State(api): State<Api>, Body(DownRequest {}): Body<DownRequest>) -> Answer<Stopping> {
    let Api { attachments, services, .. } = api.clone();
    let work = async move {
        let mut removed = attachments.remove_all().await;
        match services.hide().await {
            Ok(gone) => removed.extend(gone.iter().map(|one| format!("{} {}", one.kind, one.place()))),
            Err(error) => tracing::warn!(%error, "services stay recorded for the next start"),
        }
        Ok::<_, ApiError>(removed)
    };
    let removed = to_the_end(work).await?;
    api.stop.send_replace(Stop::Remove);
    Ok(Json(Stopping { pid: std::process::id(), removed }))
}

pub(super) async fn unknown_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {path} in this API; docs/openapi.json describes it"))
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{method} is not for {}; what reads is GET, what changes is POST", uri.path()),
    )
}

/// Runs a change to its end, even if whoever asked for it goes away: a change that stops half-way
/// would leave an address without an interface.
pub(super) async fn to_the_end<T: Send + 'static, E: Into<ApiError> + Send + 'static>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, tokio::spawn(work)).await {
        Ok(Ok(result)) => result.map_err(Into::into),
        Ok(Err(panicked)) => {
            tracing::error!(%panicked, "a request failed in a way that nobody foresaw");
            let text = "the request failed in a way that nobody foresaw; the log has more";
            Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text))
        }
        Err(_) => Err(ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not done within {} s; it goes on, ask again to see what came of it", REQUEST_TIMEOUT.as_secs()),
        )),
    }
}

fn check_peers(peers: Vec<String>) -> Result<Vec<String>, ApiError> {
    if peers.is_empty() {
        return Err(ApiError::bad("`peers` is empty: name at least one, as HOST[:PORT]"));
    }
    if peers.len() > PEERS_MAX {
        return Err(ApiError::bad(format!("at most {PEERS_MAX} peers at once")));
    }
    for one in &peers {
        peer(one).map_err(|why| {
            let shown: String = one.chars().filter(|c| !c.is_control()).take(80).collect();
            ApiError::bad(format!("peer `{shown}`: {why}"))
        })?;
    }
    Ok(peers)
}

fn attachment(record: &Record) -> Attachment {
    Attachment {
        target: record.target.clone(),
        interface: record.interface.clone(),
        mac: mac_text(record.mac),
        addresses: record.address_texts(),
        owner: record.owner.clone(),
        host_interface: record.host_interface.clone(),
        names: record.names.clone(),
        services: record.services.clone(),
    }
}

fn texts(addresses: &[IpNet]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}
