//! Carries out what the machines ask for.

use std::net::SocketAddr;
use std::time::Duration;

use ipam::{Change, Output as IpamOutput};
use mesh_proto::control::{Event, Output};
use mesh_proto::handover::Command;
use mesh_proto::id::PeerId;

use super::Peer;
use super::core::{Core, known_key};
use super::dial::{Known, wall_clock};
use crate::config::host_port;
use crate::control::store::{Done, Edit, Table};
use crate::logging::rfc3339;

/// First byte of an application message: the address protocol.
const CHANNEL_IPAM: u8 = 1;
/// The same: the fast path.
pub(super) const CHANNEL_FASTPATH: u8 = 2;
/// The same: names.
pub(super) const CHANNEL_NAMES: u8 = 3;
/// How long a name may take to resolve.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

impl Core {
    /// Until neither machine has anything to ask for.
    pub(super) fn drain(&mut self) {
        loop {
            let mut idle = true;
            while let Some(output) = self.node.poll_output() {
                self.carry_out(output);
                idle = false;
            }
            if self.reachability_changed {
                self.update_reachable(self.clock.now());
                idle = false;
            }
            while let Some(output) = self.ipam.poll_output() {
                self.carry_out_ipam(output);
                idle = false;
            }
            idle &= !self.drain_fast();
            idle &= !self.drain_names();
            if idle {
                return;
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Dial { dial, hop } => self.quic.dial(dial, hop),
            Output::Resolve { target } => self.resolve(target),
            Output::Send { conn, bytes } => {
                self.messages.sent += 1;
                self.messages.sent_bytes += bytes.len() as u64;
                self.quic.send(conn, bytes);
            }
            Output::Close { conn, reason } => self.quic.close(conn, &reason),
            Output::Data(command) => {
                // Who is reached through relays only counts as soon as there are keys for it.
                let changes = matches!(command, Command::Tables(_) | Command::Install(_) | Command::Remove(_));
                self.reachability_changed |= changes;
                if let (Some(fast), Command::Tables(tables)) = (&mut self.fast, &command) {
                    fast.set_tables(tables, self.clock.now());
                }
                self.data.command(command);
            }
            Output::App { from, incarnation, payload } => match payload.split_first() {
                Some((&CHANNEL_IPAM, message)) => {
                    let now = self.clock.now();
                    self.ipam.handle_message(Peer(from), incarnation.0, message, now);
                }
                Some((&CHANNEL_FASTPATH, message)) => {
                    if let Some(fast) = &mut self.fast {
                        fast.machine.handle_message(from, message, self.clock.now());
                    }
                }
                Some((&CHANNEL_NAMES, message)) => {
                    self.names.handle_message(from, incarnation, message, self.clock.now());
                }
                Some((channel, _)) => {
                    tracing::debug!(peer = %from, channel, "message of an application that this version does not know");
                }
                None => tracing::debug!(peer = %from, "empty application message"),
            },
            Output::Keep { key, value } => self.write_later(Edit { table: Table::Trust, key, value }),
            Output::Event(event) => self.tell(event),
        }
    }

    fn carry_out_ipam(&mut self, output: IpamOutput<Peer>) {
        let now = self.clock.now();
        let tagged = |bytes: &[u8]| [&[CHANNEL_IPAM], bytes].concat();
        match output {
            IpamOutput::Store { ticket, changes } => {
                let edit = |change: Change| Edit { table: Table::Ipam, key: change.key, value: change.value };
                let edits = changes.into_iter().map(edit).collect();
                let done = Done::Ipam(ticket);
                self.writes += 1;
                if let Err(error) = self.store.write(edits, done) {
                    self.writes -= 1;
                    tracing::error!(%error, "the address state could not be written");
                    self.ipam.handle_stored(ticket, Err(error.to_string()), now);
                }
            }
            IpamOutput::Send { to, bytes } => self.node.send_app(to.0, tagged(&bytes), now),
            IpamOutput::Broadcast { bytes } => self.node.broadcast_app(tagged(&bytes), now),
            IpamOutput::Reply { request, result } => {
                if let Some(reply) = self.waiting.remove(&request) {
                    // Whoever asked holds the owner; an address that nobody waits for any more
                    // stays with that owner until it is freed or audited.
                    let _ = reply.send(result);
                }
            }
            IpamOutput::Fences(fences) => self.fence(fences),
            IpamOutput::Notice(text) => {
                tracing::info!("addresses: {text}");
                self.record("addresses", text);
            }
        }
    }

    fn resolve(&self, target: String) {
        let (answer, default_port) = (self.resolver.clone(), self.port);
        tokio::spawn(async move {
            let addresses = look_up(&target, default_port).await;
            // The loop may have ended meanwhile.
            let _ = answer.send((target, addresses)).await;
        });
    }

    pub(super) fn record(&self, kind: &str, message: String) {
        self.events.push(rfc3339(self.clock.wall(self.clock.now())), kind, message);
    }

    /// Logs, keeps and acts on what happened in the mesh.
    fn tell(&mut self, event: Event) {
        let (kind, message) = match event {
            Event::PeerAppeared { peer, name, incarnation } => {
                let text = format!("peer {name} ({}) appeared, start {}", peer.short(), incarnation.0);
                tracing::info!("{text}");
                ("peer-appeared", text)
            }
            Event::PeerUnreachable { peer, name } => {
                let text = format!("peer {name} ({}) can be reached no more", peer.short());
                tracing::warn!("{text}");
                ("peer-unreachable", text)
            }
            Event::PeerReachable { peer, name } => {
                let text = format!("peer {name} ({}) can be reached", peer.short());
                tracing::info!("{text}");
                ("peer-reachable", text)
            }
            Event::PeerForgotten { peer, name } => {
                self.write_later(Edit::delete(Table::Peers, known_key(peer)));
                self.names.forget(peer, self.clock.now());
                if let Some(fast) = &mut self.fast {
                    fast.machine.forget(peer, self.clock.now());
                }
                let text = format!("peer {name} ({}) was away for long and is forgotten", peer.short());
                tracing::info!("{text}");
                ("peer-forgotten", text)
            }
            Event::LinkUp { peer, name, address, rtt } => {
                self.remember_peer(peer, &name, address);
                let ms = rtt.as_secs_f64() * 1000.0;
                let text = format!("link to {name} ({}) at {address} is up, round trip {ms:.2} ms", peer.short());
                tracing::info!("{text}");
                ("link-up", text)
            }
            Event::LinkDown { peer, name, reason } => {
                let text = format!("link to {name} ({}) is down: {reason}", peer.short());
                tracing::warn!("{text}");
                ("link-down", text)
            }
            Event::Refused { hop, reason } => {
                let other = match hop {
                    mesh_proto::data::Hop::Direct(address) => address.to_string(),
                    mesh_proto::data::Hop::Relayed(peer) => format!("{} through relays", peer.short()),
                };
                let text = format!("refused {other}: {reason}");
                if !self.refusals.is_news(&text, self.clock.now()) {
                    tracing::debug!("{text}");
                    return;
                }
                tracing::warn!("{text}");
                ("refused", text)
            }
            Event::Revoked { peer, name, by } => {
                self.write_later(Edit::delete(Table::Peers, known_key(peer)));
                let text = format!("peer {name} ({}) was revoked by {}", peer.short(), by.short());
                tracing::warn!("{text}");
                ("revoked", text)
            }
            Event::ShutOut { peer } => {
                self.names.forget(peer, self.clock.now());
                // What follows is told by the events of links and peers.
                if let Some(fast) = &mut self.fast {
                    fast.machine.forget(peer, self.clock.now());
                }
                return;
            }
            Event::IncarnationRaised { to } => {
                self.write_later(Edit::set(Table::Meta, "incarnation", to.0.to_be_bytes()));
                let text = format!(
                    "the mesh knows a later start of this peer than its data directory: an old copy? Going on as start {}",
                    to.0
                );
                tracing::warn!("{text}");
                self.ipam.raise_incarnation(to.0, self.clock.now());
                self.names.raise_incarnation(to);
                ("incarnation-raised", text)
            }
            other => {
                tracing::info!(event = ?other);
                ("other", format!("{other:?}"))
            }
        };
        self.reachability_changed = true;
        self.record(kind, message);
    }

    fn remember_peer(&self, peer: PeerId, name: &str, address: SocketAddr) {
        if !self.discovery {
            return;
        }
        let known = Known { name: name.to_owned(), address, seen: wall_clock() };
        match serde_json::to_vec(&known) {
            Ok(value) => self.write_later(Edit::set(Table::Peers, known_key(peer), value)),
            Err(error) => tracing::debug!(%error, "a known peer was not kept"),
        }
    }

    /// Keeps what is only of use later; if the disk does not keep up, it is left out.
    pub(super) fn write_later(&self, edit: Edit) {
        if let Err(error) = self.store.write(vec![edit], Done::Nobody) {
            tracing::warn!(%error, "a write to the data directory was left out");
        }
    }
}

/// The addresses of `HOST[:PORT]`; none if there are none, or it takes too long.
async fn look_up(target: &str, default_port: u16) -> Vec<SocketAddr> {
    let (host, port) = match host_port(target) {
        Ok((host, port)) => (host, port.unwrap_or(default_port)),
        Err(error) => {
            tracing::warn!(peer = target, %error, "cannot be a peer");
            return Vec::new();
        }
    };
    let lookup = tokio::net::lookup_host((host.as_str(), port));
    match tokio::time::timeout(RESOLVE_TIMEOUT, lookup).await {
        Ok(Ok(found)) => {
            let mut addresses: Vec<_> = found.map(mesh_proto::address::canonical).collect();
            addresses.sort_unstable();
            addresses.dedup();
            addresses
        }
        Ok(Err(error)) => {
            tracing::debug!(peer = target, %error, "the name does not resolve");
            Vec::new()
        }
        Err(_) => {
            tracing::debug!(peer = target, "the name server does not answer");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_resolve_to_themselves_and_nonsense_to_nothing() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(look_up("192.0.2.1", 6783).await, [address("192.0.2.1:6783")]);
        assert_eq!(look_up("192.0.2.1:1", 6783).await, [address("192.0.2.1:1")]);
        assert_eq!(look_up("::1", 7).await, [address("[::1]:7")]);
        assert_eq!(look_up("[2001:db8::1]:9", 7).await, [address("[2001:db8::1]:9")]);
        assert_eq!(look_up("not a host", 7).await, []);
    }
}
