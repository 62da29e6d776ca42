//! Which questions are the mesh's own, and what is answered to them (names N6–N9, N13).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::IpNet;
use mesh_proto::control::names::Found;
use mesh_proto::wire::names::Name as MeshName;
use mesh_proto::wire::services::Service;

use super::message::{Answer, Incoming, Question, Transport, failure, read, reply};
use super::srv::{Asked, read_target, target};
use crate::router::MeshNames;

/// How long an answer may be remembered, in seconds: a container may be gone the next moment.
const TTL: u32 = 1;
/// Which services are to be tried first, and how often each: all alike (RFC 2782).
const PRIORITY: u16 = 0;
const WEIGHT: u16 = 1;

/// What a query leads to.
#[derive(Debug)]
pub enum Reply {
    /// Nothing: it deserves no answer.
    Nothing,
    /// This answer.
    Answer(Vec<u8>),
    /// The same question to the host's resolvers.
    AskOthers(Question),
}

/// The mesh's part of DNS.
#[derive(Debug)]
pub struct Zone {
    domain: Name,
    ranges: Vec<IpNet>,
    names: MeshNames,
    /// Counts answers with IPv4 addresses, IPv6 addresses, and others: each begins with another record
    /// than the one before. (Most clients ask for both at once.)
    turns: [AtomicUsize; 3],
}

impl Zone {
    /// The zone `domain` and the addresses of `ranges`.
    ///
    /// # Errors
    /// If the domain cannot be one.
    pub fn new(domain: &str, ranges: Vec<IpNet>, names: MeshNames) -> anyhow::Result<Self> {
        let mut domain = Name::from_ascii(domain).map_err(|error| anyhow::anyhow!("--dns-domain {domain}: {error}"))?;
        domain.set_fqdn(true);
        Ok(Self { domain, ranges, names, turns: Default::default() })
    }

    /// What a client is answered, as far as that does not depend on others.
    #[must_use]
    pub fn reply(&self, query: &[u8], transport: Transport) -> Reply {
        let question = match read(query) {
            Incoming::Nothing => return Reply::Nothing,
            Incoming::Refusal(bytes) => return Reply::Answer(bytes),
            Incoming::Question(question) => question,
        };
        match self.answer(&question.query) {
            Some(answer) => Reply::Answer(reply(query, &question, &answer, transport)),
            // Who does not want others to be asked is told no more than is known.
            None if !question.recursion_desired() => Reply::Answer(failure(&question, ResponseCode::Refused)),
            None => Reply::AskOthers(question),
        }
    }

    /// What is answered to a question; none if that is for others.
    pub(super) fn answer(&self, query: &Query) -> Option<Answer> {
        if self.domain.zone_of(query.name()) {
            return Some(match query.query_class() {
                DNSClass::IN | DNSClass::ANY => self.forward(query),
                _ => Answer { code: ResponseCode::Refused, ..Answer::default() },
            });
        }
        self.backward(query)
    }

    /// From a name to its addresses.
    fn forward(&self, query: &Query) -> Answer {
        let depth = query.name().iter().len() - self.domain.iter().len();
        if depth == 0 {
            let asks = matches!(query.query_type(), RecordType::SOA | RecordType::ANY);
            let soa = self.soa(&self.domain);
            return if asks { found(vec![soa]) } else { nothing(ResponseCode::NoError, soa) };
        }
        let labels: Vec<_> = query.name().iter().take(depth).map(String::from_utf8_lossy).collect();
        // A dot within a label does not part two.
        let plain = labels.iter().all(|label| !label.contains('.'));
        let Some(name) = labels.join(".").parse::<MeshName>().ok().filter(|_| plain) else {
            return nothing(ResponseCode::NXDomain, self.soa(&self.domain));
        };
        let known = self.names.read().lookup(&name);
        let code = match known {
            Found::Addresses(_) if query.query_type() == RecordType::SRV => {
                let services = self.names.read().services(&name);
                return self.services(query, &name, services);
            }
            Found::Addresses(addresses) => return self.addresses(query, addresses),
            Found::Above => ResponseCode::NoError,
            Found::Nothing => ResponseCode::NXDomain,
        };
        self.derived(query, &name).unwrap_or_else(|| nothing(code, self.soa(&self.domain)))
    }

    /// What is answered to names that nobody gave, but that follow from one that somebody did.
    fn derived(&self, query: &Query, name: &MeshName) -> Option<Answer> {
        if let Some((address, of)) = read_target(name) {
            let Found::Addresses(all) = self.names.read().lookup(&of) else { return None };
            return all.contains(&address).then(|| self.addresses(query, vec![address]));
        }
        let asked = Asked::read(name)?;
        let mut services = self.names.read().services(&asked.name);
        services.retain(|(service, _)| asked.fits(service));
        if services.is_empty() {
            return None;
        }
        match asked.service {
            Some(_) => Some(self.services(query, &asked.name, services)),
            None => Some(nothing(ResponseCode::NoError, self.soa(&self.domain))),
        }
    }

    /// Where services of a name are, each address under a name of its own: others may serve at other ports.
    fn services(&self, query: &Query, of: &MeshName, services: Vec<(Service, IpAddr)>) -> Answer {
        let mut targets = BTreeMap::new();
        let mut data = Vec::new();
        if matches!(query.query_type(), RecordType::SRV | RecordType::ANY) {
            for (service, address) in services {
                let Some(target) = target(of, address).and_then(|name| self.full(&name)) else { continue };
                data.push(RData::SRV(SRV::new(PRIORITY, WEIGHT, service.port(), target.clone())));
                targets.insert(target, address);
            }
        }
        let mut answer = self.records(query, data.into_iter(), &self.domain);
        for record in &answer.records {
            let RData::SRV(srv) = &record.data else { continue };
            // Once, though it serves at several ports.
            if let Some(address) = targets.remove(&srv.target) {
                answer.additional.push(Record::from_rdata(srv.target.clone(), TTL, address_data(address)));
            }
        }
        answer
    }

    fn addresses(&self, query: &Query, addresses: Vec<IpAddr>) -> Answer {
        let wanted = |address: &IpAddr| match query.query_type() {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            kind => kind == RecordType::ANY,
        };
        self.records(query, addresses.into_iter().filter(wanted).map(address_data), &self.domain)
    }

    /// From an address to its names.
    fn backward(&self, query: &Query) -> Option<Answer> {
        let net = query.name().parse_arpa_name().ok()?;
        let range = self.ranges.iter().find(|range| range.contains(&net));
        if net.prefix_len() < net.max_prefix_len() {
            // Between the range and its addresses there are names, with nothing to them.
            return range.map(|range| nothing(ResponseCode::NoError, self.soa(&arpa_zone(*range))));
        }
        let names = self.names.read().reverse(net.addr());
        let zone = range.map_or_else(|| query.name().clone(), |range| arpa_zone(*range));
        if names.is_empty() {
            return range.map(|_| nothing(ResponseCode::NXDomain, self.soa(&zone)));
        }
        let data = names.iter().filter(|_| matches!(query.query_type(), RecordType::PTR | RecordType::ANY));
        let data = data.filter_map(|name| self.full(name)).map(|name| RData::PTR(PTR(name)));
        Some(self.records(query, data, &zone))
    }

    fn full(&self, name: &MeshName) -> Option<Name> {
        Name::from_ascii(name.as_str()).and_then(|name| name.append_domain(&self.domain)).ok()
    }

    /// The records, each time beginning with another one.
    fn records(&self, query: &Query, data: impl Iterator<Item = RData>, zone: &Name) -> Answer {
        let record = |data| Record::from_rdata(query.name().clone(), TTL, data);
        let mut records: Vec<Record> = data.map(record).collect();
        if records.is_empty() {
            return nothing(ResponseCode::NoError, self.soa(zone));
        }
        let [v4, v6, others] = &self.turns;
        let turn = match query.query_type() {
            RecordType::A => v4,
            RecordType::AAAA => v6,
            _ => others,
        };
        let turn = turn.fetch_add(1, Ordering::Relaxed) % records.len();
        records.rotate_left(turn);
        found(records)
    }

    fn soa(&self, zone: &Name) -> Record {
        let admin = self.domain.prepend_label("hostmaster").unwrap_or_else(|_| self.domain.clone());
        // Nobody transfers the zone: the numbers are the usual ones, but for how long it is
        // remembered that there is nothing.
        let soa = SOA::new(self.domain.clone(), admin, 1, 3600, 600, 86_400, TTL);
        Record::from_rdata(zone.clone(), TTL, RData::SOA(soa))
    }
}

/// The zone of the reverse tree with whole labels that holds a range.
fn arpa_zone(range: IpNet) -> Name {
    let bits_of_label = if range.addr().is_ipv4() { 8 } else { 4 };
    // And those of `in-addr.arpa` or `ip6.arpa`.
    Name::from(range.addr()).trim_to(usize::from(range.prefix_len() / bits_of_label) + 2)
}

const fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

const fn found(records: Vec<Record>) -> Answer {
    Answer { code: ResponseCode::NoError, records, soa: None, additional: Vec::new() }
}

const fn nothing(code: ResponseCode, soa: Record) -> Answer {
    Answer { code, records: Vec::new(), soa: Some(soa), additional: Vec::new() }
}

#[cfg(test)]
mod tests {
    use mesh_proto::control::names::Names;
    use mesh_proto::id::{Incarnation, PeerId};
    use mesh_proto::wire::services::NameRecords;

    use super::*;

    /// Names with their addresses; behind an address may stand what it serves.
    fn zone(names: &[(&str, &[&str])]) -> Zone {
        let place = |text: &&str| -> (IpAddr, Option<Service>) {
            let (address, service) = text.split_once(' ').unwrap_or((text, ""));
            (address.parse().expect("an address"), service.parse().ok())
        };
        let entry = |&(name, list): &(&str, &[&str])| {
            let places: Vec<_> = list.iter().map(place).collect();
            let served: Vec<_> = places.iter().filter_map(|(at, service)| Some((service.clone()?, *at))).collect();
            (name.parse().expect("a name"), NameRecords::new(places.iter().map(|(at, _)| *at), served))
        };
        let own: BTreeMap<MeshName, NameRecords> = names.iter().map(entry).collect();
        let mut names = Names::new(PeerId([1; 16]), Incarnation(1), [0; 32], std::time::Duration::ZERO);
        names.set_own(&own);
        let ranges = ["10.32.0.0/12", "fd00::/64"].map(|range| range.parse().expect("a range")).to_vec();
        Zone::new("weft.local", ranges, MeshNames::new(names)).expect("a domain")
    }

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>, bool)> {
        let query = Query::query(Name::from_ascii(name).expect("a name"), kind);
        let Answer { code, records, soa, .. } = zone.answer(&query)?;
        Some((code, records.iter().map(|record| record.data.to_string()).collect(), soa.is_some()))
    }

    #[test]
    fn what_is_known_is_answered_and_what_is_not_is_told_apart() {
        use ResponseCode::{NXDomain, NoError};
        let zone = zone(&[("web", &["10.32.0.1"]), ("db.prod", &["10.32.0.2", "fd00::2"])]);
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (name, kind, code, records) in [
            ("WEB.weft.local.", RecordType::A, NoError, &["10.32.0.1"][..]),
            ("web.weft.local.", RecordType::AAAA, NoError, &[]),
            ("web.weft.local.", RecordType::TXT, NoError, &[]),
            ("db.prod.weft.local.", RecordType::AAAA, NoError, &["fd00::2"]),
            ("prod.weft.local.", RecordType::A, NoError, &[]),
            ("rod.weft.local.", RecordType::A, NXDomain, &[]),
            ("x.web.weft.local.", RecordType::A, NXDomain, &[]),
            ("no_such.weft.local.", RecordType::AAAA, NXDomain, &[]),
            ("*.weft.local.", RecordType::A, NXDomain, &[]),
            ("db\\.prod.weft.local.", RecordType::A, NXDomain, &[]),
            ("weft.local.", RecordType::A, NoError, &[]),
            ("1.0.32.10.in-addr.arpa.", RecordType::PTR, NoError, &["web.weft.local."]),
            ("1.0.32.10.in-addr.arpa.", RecordType::A, NoError, &[]),
            ("9.0.32.10.in-addr.arpa.", RecordType::PTR, NXDomain, &[]),
            ("32.10.in-addr.arpa.", RecordType::PTR, NoError, &[]),
        ] {
            let expected = Some((code, texts(records), records.is_empty()));
            assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
        }
        let v6 = Name::from("fd00::2".parse::<IpAddr>().expect("an address")).to_ascii();
        assert_eq!(ask(&zone, &v6, RecordType::PTR), Some((NoError, texts(&["db.prod.weft.local."]), false)));
    }

    #[test]
    fn services_are_found_at_the_port_of_each_address_and_under_its_name() {
        use ResponseCode::{NXDomain, NoError};
        let zone = zone(&[
            ("web", &["10.32.0.1 http=80", "10.32.0.2 http=8080", "fd00::2 http=8080", "10.32.0.1 9100", "10.32.0.3"]),
            ("bare", &["10.32.0.9"]),
            ("ip-10-32-0-3.web", &["10.32.0.7"]),
        ]);
        let query = |name: &str, kind| Query::query(Name::from_ascii(name).expect("a name"), kind);
        let answer = zone.answer(&query("_HTTP._tcp.web.weft.local.", RecordType::SRV)).expect("known");
        let mut said: Vec<String> = answer.records.iter().map(|record| record.data.to_string()).collect();
        said.sort_unstable();
        assert_eq!(
            said,
            [
                "0 1 80 ip-10-32-0-1.web.weft.local.",
                "0 1 8080 ip-10-32-0-2.web.weft.local.",
                "0 1 8080 ip-fd00-0-0-0-0-0-0-2.web.weft.local.",
            ]
        );
        let mut besides: Vec<String> = answer.additional.iter().map(ToString::to_string).collect();
        besides.sort_unstable();
        assert_eq!(besides.len(), 3);
        assert!(besides[0].starts_with("ip-10-32-0-1.web.weft.local. 1 IN A 10.32.0.1"), "{besides:?}");
        assert!(besides[2].contains("AAAA fd00::2"), "{besides:?}");
        // Each time beginning with another one, and what is added begins as the answer does.
        let first = |_| {
            let answer = zone.answer(&query("_http._tcp.web.weft.local.", RecordType::SRV)).expect("known");
            let RData::SRV(srv) = &answer.records[0].data else { panic!("{:?}", answer.records) };
            assert_eq!(srv.target, answer.additional[0].name);
            srv.target.clone()
        };
        let firsts: std::collections::BTreeSet<Name> = (0..3).map(first).collect();
        assert_eq!(firsts.len(), 3);
        let all = zone.answer(&query("web.weft.local.", RecordType::SRV)).expect("known");
        assert_eq!((all.records.len(), all.additional.len()), (4, 3), "all services, each address once");
        for (name, kind, code, records) in [
            ("_9100._tcp.web.weft.local.", RecordType::SRV, NoError, &["0 1 9100 ip-10-32-0-1.web.weft.local."][..]),
            ("_http._tcp.web.weft.local.", RecordType::A, NoError, &[]),
            ("_http._udp.web.weft.local.", RecordType::SRV, NXDomain, &[]),
            ("_https._tcp.web.weft.local.", RecordType::SRV, NXDomain, &[]),
            ("_http._tcp.none.weft.local.", RecordType::SRV, NXDomain, &[]),
            ("_tcp.web.weft.local.", RecordType::SRV, NoError, &[]),
            ("_udp.web.weft.local.", RecordType::SRV, NXDomain, &[]),
            ("bare.weft.local.", RecordType::SRV, NoError, &[]),
            ("ip-10-32-0-2.web.weft.local.", RecordType::A, NoError, &["10.32.0.2"]),
            ("ip-10-32-0-2.web.weft.local.", RecordType::AAAA, NoError, &[]),
            ("IP-FD00-0-0-0-0-0-0-2.web.weft.local.", RecordType::AAAA, NoError, &["fd00::2"]),
            ("ip-10-32-0-9.web.weft.local.", RecordType::A, NXDomain, &[]),
            ("ip-10-32-0-3.web.weft.local.", RecordType::A, NoError, &["10.32.0.7"]),
        ] {
            let records: Vec<String> = records.iter().map(ToString::to_string).collect();
            let empty = records.is_empty();
            assert_eq!(ask(&zone, name, kind), Some((code, records, empty)), "{name} {kind}");
        }
    }

    #[test]
    fn what_is_not_the_meshs_is_for_others() {
        let zone = zone(&[("web", &["10.32.0.1", "192.0.2.7"])]);
        for name in ["local.", "example.com.", "weft.local.example.", "xweft.local.", "web."] {
            assert_eq!(ask(&zone, name, RecordType::A), None, "{name}");
        }
        assert_eq!(ask(&zone, "8.2.0.192.in-addr.arpa.", RecordType::PTR), None);
        assert_eq!(ask(&zone, "10.in-addr.arpa.", RecordType::NS), None);
        // But an outside service that was named here has that name.
        let named = ask(&zone, "7.2.0.192.in-addr.arpa.", RecordType::PTR).expect("known here");
        assert_eq!(named.1, ["web.weft.local."]);
        let mut chaos = Query::query(Name::from_ascii("web.weft.local.").expect("a name"), RecordType::A);
        chaos.set_query_class(DNSClass::CH);
        assert_eq!(zone.answer(&chaos).map(|answer| answer.code), Some(ResponseCode::Refused));
    }

    #[test]
    fn answers_begin_with_each_address_in_turn() {
        let zone = zone(&[("web", &["10.32.0.1", "10.32.0.2", "10.32.0.3"])]);
        let mut first = Vec::new();
        for _ in 0..6 {
            let (_, records, _) = ask(&zone, "web.weft.local.", RecordType::A).expect("known");
            assert_eq!(records.len(), 3);
            first.push(records[0].clone());
        }
        assert_eq!(first[..3], first[3..]);
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 3);
    }
}
