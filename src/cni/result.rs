//! What ADD answers, in the form of each version, and what is read back of it.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::version::Version;

/// A result. Forms differ in what is written, never in what is read.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct CniResult {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) interfaces: Vec<Interface>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) ips: Vec<Ip>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) routes: Vec<Route>,
    #[serde(default)]
    pub(super) dns: Dns,
}

/// An interface; without a sandbox it is the host's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Interface {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) mac: String,
    /// Since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) sandbox: String,
}

/// An address of one of the interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ip {
    /// `4` or `6`; before 1.0.0 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) interface: Option<usize>,
    pub(super) address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gateway: Option<IpAddr>,
}

/// A route inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Route {
    pub(super) dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gw: Option<IpAddr>,
}

/// What the runtime shall write into the container's resolver configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Dns {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) nameservers: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) domain: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) search: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) options: Vec<String>,
}

impl CniResult {
    /// This after what plugins before this one answered; what is in both is kept once.
    pub(super) fn after(mut self, earlier: Option<&Self>) -> Self {
        let Some(earlier) = earlier else { return self };
        let same = |a: &Interface, b: &Interface| a.name == b.name && a.sandbox == b.sandbox;
        let mut merged = Self { dns: earlier.dns.clone(), routes: earlier.routes.clone(), ..Self::default() };
        let mut places = Vec::new();
        for interface in &earlier.interfaces {
            let ours = self.interfaces.iter().any(|our| same(our, interface));
            places.push((!ours).then_some(merged.interfaces.len()));
            if !ours {
                merged.interfaces.push(interface.clone());
            }
        }
        for ip in &earlier.ips {
            // The place of its interface may have changed; the addresses of ours are said anew.
            match ip.interface.map(|at| places.get(at).copied().flatten()) {
                Some(None) => {}
                place => merged.ips.push(Ip { interface: place.flatten(), ..ip.clone() }),
            }
        }
        let first = merged.interfaces.len();
        merged.interfaces.append(&mut self.interfaces);
        merged.ips.extend(self.ips.into_iter().map(|ip| Ip { interface: ip.interface.map(|at| at + first), ..ip }));
        for route in self.routes {
            if !merged.routes.contains(&route) {
                merged.routes.push(route);
            }
        }
        if self.dns != Dns::default() {
            merged.dns = self.dns;
        }
        merged
    }

    /// As that version writes it.
    pub(super) fn to_json(&self, version: Version) -> Value {
        let mut form = self.clone();
        for ip in &mut form.ips {
            let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
            ip.version = (version < Version::V1_0_0).then(|| family.to_owned());
        }
        for interface in &mut form.interfaces {
            interface.mtu = interface.mtu.filter(|_| version >= Version::V1_1_0);
        }
        let mut json = json!(form);
        json["cniVersion"] = json!(version.name());
        json
    }
}
