//! The IPAM driver: addresses for the engine, from the ring that all addresses of the mesh are from.
//!
//! ```text
//!   RequestAddress ─► owner "docker-network:NONCE" ─► ring ─► book ─► answer
//!                           on failure: ◄─ free ◄──────┘
//! ```
//!
//! The engine does not say whom an address is for, so its owner is a name of the request's own. Later calls
//! name the address, and the book knows its owner.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aws_lc_rs::rand;
use ipnet::IpNet;

use super::book::Hold;
use super::pool::Pool;
use super::refusal::{Refusal, short};
use super::wire::{PoolAnswer, ReleaseAddress, RequestAddress, RequestPool};
use super::{Docker, Ports};

/// The address space of every pool.
pub(super) const SPACE: &str = "weft";
/// In the options of a request: what the address is for.
const TYPE: &str = "RequestAddressType";
/// The key and the value of what is about a gateway.
const GATEWAY: &str = "com.docker.network.gateway";

impl<P: Ports> Docker<P> {
    pub(super) fn request_pool(&self, request: &RequestPool) -> Result<PoolAnswer, Refusal> {
        if request.address_space != SPACE {
            let why = format!("is asked for in the address space `{}`, which is not Weft's", request.address_space);
            return Err(Refusal::Pool { pool: request.pool.clone(), why });
        }
        for name in request.options.iter().flatten().map(|(name, _)| name) {
            only_dockers(name, "leave --ipam-opt out, the IPAM driver takes none")?;
        }
        let pool = Pool::new(&request.pool, &request.sub_pool, request.v6, &self.inner.ranges)?;
        // Told here, so that the engine asks for no address to be the gateway.
        let data = BTreeMap::from([(GATEWAY.to_owned(), pool.no_gateway().to_string())]);
        Ok(PoolAnswer { pool_id: pool.to_string(), pool: pool.net.to_string(), data })
    }

    pub(super) async fn request_address(&self, request: &RequestAddress) -> Result<IpNet, Refusal> {
        let pool = Pool::from_id(&request.pool_id, &self.inner.ranges)?;
        let gateway = request.options.iter().flatten().any(|(name, value)| name == TYPE && value == GATEWAY);
        if gateway {
            let none = pool.no_gateway();
            return match request.address.as_str() {
                "" => Ok(none),
                text if text.parse() == Ok(none.addr()) => Ok(none),
                text => Err(Refusal::Gateway(super::pool::shown(text))),
            };
        }
        if request.address.is_empty() {
            return self.take(&pool, None).await;
        }
        let address = pool.address(&request.address)?;
        let lock = self.inner.locks.of(&address.addr().to_string());
        let _busy = lock.lock().await;
        if let Some(endpoint) = self.inner.book.user_of(address.addr()) {
            return Err(Refusal::Taken { address, endpoint: short(&endpoint) });
        }
        // Held, and not yet used: by this request, whose answer was lost, or by one that ended half-way.
        if self.inner.book.hold(address.addr()).is_some() {
            return Ok(address);
        }
        self.take(&pool, Some(address.addr())).await
    }

    /// Takes an address from the ring, this one or any, and holds it.
    pub(super) async fn take(&self, pool: &Pool, wanted: Option<IpAddr>) -> Result<IpNet, Refusal> {
        let owner = new_owner()?;
        let ledger = &self.inner.ledger;
        ledger.expect(&owner);
        let given = match wanted {
            Some(address) => self.inner.router.claim(&owner, address).await,
            None => self.inner.router.allocate(&owner, pool.part).await,
        };
        let kept = match given {
            Ok(Ok(given)) => {
                let hold = Hold { owner: owner.clone(), address: pool.with_prefix(given.addr()) };
                ledger.enter(&owner, given.addr());
                let kept = self.inner.book.keep_hold(hold.clone()).await;
                if kept.is_err() {
                    // A router that stops frees nothing; what nobody holds is freed at its next start.
                    let _ = self.inner.router.free(&owner, None).await;
                }
                kept.map(|()| hold.address)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(stopped) => Err(stopped.into()),
        };
        if kept.is_err() {
            ledger.strike(&owner);
        }
        kept
    }

    pub(super) async fn release_address(&self, request: &ReleaseAddress) -> Result<(), Refusal> {
        let Ok(address) = request.address.parse::<IpAddr>() else {
            let shown = super::pool::shown(&request.address);
            return Err(Refusal::Malformed(format!("`{shown}` is not an IP address")));
        };
        self.release(address).await
    }

    /// Gives an address back that no endpoint uses.
    pub(super) async fn release(&self, address: IpAddr) -> Result<(), Refusal> {
        let lock = self.inner.locks.of(&address.to_string());
        let _busy = lock.lock().await;
        let Some(hold) = self.inner.book.hold(address) else { return Ok(()) };
        if let Some(endpoint) = self.inner.book.user_of(address) {
            // Of a second request for the same address, which was refused when its endpoint was made.
            tracing::debug!(%address, endpoint = short(&endpoint), "stays with its endpoint");
            return Ok(());
        }
        self.inner.book.drop_hold(&hold).await?;
        // A router that stops frees nothing; what nobody holds is freed at its next start.
        let _ = self.inner.router.free(&hold.owner, None).await;
        self.inner.ledger.strike(&hold.owner);
        Ok(())
    }
}

/// A name that no other request has.
fn new_owner() -> Result<String, Refusal> {
    let mut nonce = [0; 8];
    rand::fill(&mut nonce).map_err(|_| Refusal::Unforeseen)?;
    Ok(format!("docker-network:{:016x}", u64::from_be_bytes(nonce)))
}

/// Options of Docker's own are Docker's business; others are somebody's wish that would not come true.
pub(super) fn only_dockers(name: &str, hint: &'static str) -> Result<(), Refusal> {
    if name.starts_with("com.docker.") {
        return Ok(());
    }
    Err(Refusal::Option { name: super::pool::shown(name), hint })
}
