//! Answers of the host's resolvers, remembered for as long as they say themselves (names N14).
//!
//! ```text
//!   question, DO, CD, AD ─► young ─ full ─► old ─ full ─► forgotten
//!                             ▲──── asked again ┘
//! ```
//!
//! What is kept is the answer's bytes but for its OPT record, and where in them the TTLs are. So an answer
//! out of here is the one that came, whatever is in it, under another id and with less time left.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

use super::message::{Question, Transport, UDP_MAX, fitted, passed_on, room};

/// Longest time that an answer is kept, in seconds: as long as others do for what is not there (RFC 2308, 5).
const TTL_MAX: u32 = 3600;
/// Longest answer that is kept, in bytes.
const ANSWER_MAX: usize = 4096;
/// Most answers of each of the two halves, and most bytes of them.
const HALF: usize = 2048;
const HALF_BYTES: usize = 1 << 20;

/// Length of the header, in bytes.
const HEADER: usize = 12;
/// Bits of the header's third and fourth byte.
const AUTHORITATIVE: u8 = 0x04;
const TRUNCATED: u8 = 0x02;
const CODE: u8 = 0x0f;
/// That the client knows what AD says (RFC 6840), and does not want data to be checked.
const AD_AND_CD: u8 = 0x30;
/// The first of the flags of EDNS: that the client wants signatures.
const DNSSEC_OK: u8 = 0x80;
/// Options of EDNS that are between two neighbours and have no part in the answer: cookie, keepalive, padding.
const OF_THE_LINK: [u16; 3] = [10, 11, 12];
/// Types that are no records of a zone: transfers, and what is made for one message only (RFC 6895).
const TRANSIENT: std::ops::RangeInclusive<u16> = 249..=254;
const SIG: u16 = 24;

/// What of a query decides what is answered to it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The question in small letters, and the bits that change its answer.
    key: Box<[u8]>,
    /// Type of the records that are asked for.
    kind: RecordType,
    /// The most that the client takes over UDP, and whether it wants signatures; without EDNS nothing.
    edns: Option<(u16, u8)>,
}

impl Asked {
    /// None if the answer may be for this client only, or cannot be kept.
    #[must_use]
    pub fn read(query: &[u8], question: &Question) -> Option<Self> {
        let head = query.first_chunk::<HEADER>()?;
        let asked = query.get(question.bytes.clone())?;
        let (name, kind_and_class) = asked.split_last_chunk::<4>()?;
        let kind = question.query.query_type();
        let fits = question.query.query_class() == DNSClass::IN && !TRANSIENT.contains(&u16::from(kind));
        if !fits || !is_plain(name) || head[2] & TRUNCATED != 0 || head[6..10] != [0; 4] {
            return None;
        }
        let edns = match (&head[10..], query.get(question.bytes.end..)?) {
            ([0, 0], []) => None,
            ([0, 1], rest) => Some(edns(rest)?),
            _ => return None,
        };
        let bits = head[3] & AD_AND_CD | edns.map_or(0, |(_, flags)| flags & DNSSEC_OK);
        let key = [&name.to_ascii_lowercase()[..], kind_and_class, &[bits]].concat();
        Some(Self { key: key.into(), kind, edns })
    }
}

/// Whether a name is written out: what is abbreviated means another one in another message.
fn is_plain(name: &[u8]) -> bool {
    let mut rest = name;
    while let Some((&length, behind)) = rest.split_first() {
        match (length, behind.get(length.into()..)) {
            (0, _) => return behind.is_empty(),
            (1..=63, Some(next)) => rest = next,
            _ => return false,
        }
    }
    false
}

/// What an OPT record says, if it is the last of the message and the answer does not depend on its options.
fn edns(record: &[u8]) -> Option<(u16, u8)> {
    let (fixed, mut options) = record.split_first_chunk::<11>()?;
    let &[0, 0, 41, p0, p1, 0, 0, flags, _, l0, l1] = fixed else { return None };
    if options.len() != usize::from(u16::from_be_bytes([l0, l1])) {
        return None;
    }
    while !options.is_empty() {
        let (&[c0, c1, l0, l1], rest) = options.split_first_chunk::<4>()?;
        options = rest.get(u16::from_be_bytes([l0, l1]).into()..)?;
        if !OF_THE_LINK.contains(&u16::from_be_bytes([c0, c1])) {
            return None;
        }
    }
    Some((u16::from_be_bytes([p0, p1]), flags))
}

/// One answer.
#[derive(Debug)]
struct Kept {
    bytes: Box<[u8]>,
    /// Where in it the TTLs are.
    ttls: Box<[usize]>,
    since: Instant,
    /// For how long it may be kept, in seconds.
    ttl: u32,
}

impl Kept {
    fn new(asked: &Asked, question: &Question, answer: &[u8], now: Instant) -> Option<Self> {
        let head = answer.first_chunk::<HEADER>()?;
        let code = head[3] & CODE;
        let [no_error, no_name] = [ResponseCode::NoError, ResponseCode::NXDomain].map(|code| code.low());
        let is_whole = head[2] & TRUNCATED == 0 && head[4..6] == [0, 1] && answer.len() <= ANSWER_MAX;
        if !is_whole || ![no_error, no_name].contains(&code) {
            return None;
        }
        let count = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
        let (answers, authorities) = (count(6), count(6) + count(8));
        let all = authorities + count(10);
        let mut decoder = BinDecoder::new(answer);
        decoder.read_slice(question.bytes.end).ok()?;
        let (mut ttls, mut least, mut found, mut negative) = (Vec::new(), u32::MAX, false, None);
        let mut end = answer.len();
        let mut additional = all - authorities;
        for number in 0..all {
            let start = decoder.index();
            Name::read(&mut decoder).ok()?;
            let kind = decoder.read_u16().ok()?.unverified();
            decoder.read_u16().ok()?;
            let at = decoder.index();
            let ttl = decoder.read_u32().ok()?.unverified();
            let length = decoder.read_u16().ok()?.unverified();
            let data = decoder.read_slice(length.into()).ok()?.unverified();
            if kind == u16::from(RecordType::OPT) {
                // Were there something behind it, names in that could not be moved.
                if number + 1 < all || number < authorities || ttl >> 24 != 0 {
                    return None;
                }
                (end, additional) = (start, additional - 1);
                continue;
            }
            if TRANSIENT.contains(&kind) || kind == SIG {
                return None;
            }
            // One with the highest bit is none (RFC 2181, 8).
            let ttl = if i32::try_from(ttl).is_ok() { ttl } else { 0 };
            ttls.push(at);
            least = least.min(ttl);
            if number < answers {
                found |= asked.kind == RecordType::ANY || kind == u16::from(asked.kind);
            } else if number < authorities && kind == u16::from(RecordType::SOA) {
                negative = data.last_chunk().map(|minimum| u32::from_be_bytes(*minimum).min(ttl));
            }
        }
        // That there is nothing is remembered for as long as the zone's SOA says, and without one not at all.
        let ttl = if code == no_error && found { least } else { least.min(negative?) }.min(TTL_MAX);
        if !decoder.is_empty() || ttl == 0 {
            return None;
        }
        let mut bytes: Box<[u8]> = answer.get(..end)?.into();
        // Who answers out of memory is no authority.
        bytes[2] &= !AUTHORITATIVE;
        // It was less than one more before.
        bytes[10..HEADER].copy_from_slice(&(additional as u16).to_be_bytes());
        Some(Self { bytes, ttls: ttls.into(), since: now, ttl })
    }

    /// Whole seconds that it is old; none if that is too many.
    fn age(&self, now: Instant) -> Option<u32> {
        let age = u32::try_from(now.saturating_duration_since(self.since).as_secs()).ok()?;
        (age < self.ttl).then_some(age)
    }

    /// As the answer to that query.
    fn answer(
        &self,
        query: &[u8],
        question: &Question,
        asked: &Asked,
        over: Transport,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let age = self.age(now)?;
        let mut bytes = Vec::with_capacity(self.bytes.len() + 11);
        bytes.extend_from_slice(&self.bytes);
        for &at in &self.ttls {
            let place = bytes.get_mut(at..)?.first_chunk_mut::<4>()?;
            *place = (u32::from_be_bytes(*place).min(self.ttl) - age).to_be_bytes();
        }
        if let Some((_, flags)) = asked.edns {
            let [p0, p1] = UDP_MAX.to_be_bytes();
            bytes.extend([0, 0, 41, p0, p1, 0, 0, flags & DNSSEC_OK, 0, 0, 0]);
            let count = bytes.get_mut(10..)?.first_chunk_mut::<2>()?;
            *count = (u16::from_be_bytes(*count) + 1).to_be_bytes();
        }
        let bytes = passed_on(bytes, query, question);
        let room = room(over, asked.edns.map(|(payload, _)| payload));
        if bytes.len() <= room {
            return Some(bytes);
        }
        let fitted = fitted(Message::from_vec(&bytes).ok()?, room);
        (!fitted.is_empty()).then_some(fitted)
    }
}

/// The answers. There is room for so many, and those go first that nobody has asked for again.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Halves>);

#[derive(Debug, Default)]
struct Halves {
    /// Of which resolvers they are.
    version: u64,
    young: HashMap<Box<[u8]>, Arc<Kept>>,
    young_bytes: usize,
    old: HashMap<Box<[u8]>, Arc<Kept>>,
}

impl Cache {
    /// What is answered to a query, if that is known of these resolvers.
    pub fn get(
        &self,
        version: u64,
        (query, question): (&[u8], &Question),
        asked: &Asked,
        over: Transport,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let kept = {
            let mut halves = self.halves();
            halves.be_of(version);
            match halves.young.get(&asked.key) {
                Some(kept) => Arc::clone(kept),
                None => {
                    let (key, kept) = halves.old.remove_entry(&asked.key)?;
                    kept.age(now)?;
                    halves.put(key, Arc::clone(&kept));
                    kept
                }
            }
        };
        kept.answer(query, question, asked, over, now)
    }

    /// Keeps what these resolvers answered, if it may be.
    pub fn put(&self, version: u64, asked: &Asked, question: &Question, answer: &[u8], now: Instant) {
        let Some(kept) = Kept::new(asked, question, answer, now) else { return };
        let mut halves = self.halves();
        // Else it was asked of others than there are now.
        if halves.be_of(version) {
            halves.put(asked.key.clone(), Arc::new(kept));
        }
    }

    fn halves(&self) -> MutexGuard<'_, Halves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Halves {
    /// Forgets what earlier resolvers said; says whether these are not earlier ones themselves.
    fn be_of(&mut self, version: u64) -> bool {
        if version > self.version {
            *self = Self { version, ..Self::default() };
        }
        version == self.version
    }

    fn put(&mut self, key: Box<[u8]>, kept: Arc<Kept>) {
        let length = key.len();
        let size = |kept: &Kept| kept.bytes.len() + length;
        let bytes = size(&kept);
        if self.young.len() >= HALF || self.young_bytes + bytes > HALF_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        if let Some(before) = self.young.insert(key, kept) {
            self.young_bytes = self.young_bytes.saturating_sub(size(&before));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use hickory_proto::op::{Edns, Query};
    use hickory_proto::rr::rdata::opt::EdnsOption;
    use hickory_proto::rr::rdata::{A, CNAME, NS, SOA};
    use hickory_proto::rr::{RData, Record};

    use super::super::message::{Incoming, read};
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).expect("a name")
    }

    fn query(text: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(name(text), kind));
        message
    }

    fn with_edns(mut message: Message, payload: u16, dnssec_ok: bool) -> Message {
        let mut edns = Edns::new();
        edns.set_max_payload(payload).set_version(0).set_dnssec_ok(dnssec_ok);
        message.set_edns(edns);
        message
    }

    fn address(last: u8, ttl: u32) -> Record {
        Record::from_rdata(name("www.example.com."), ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, last))))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let data = SOA::new(name("ns.example.com."), name("root.example.com."), 1, 7200, 600, 86_400, minimum);
        Record::from_rdata(name("example.com."), ttl, RData::SOA(data))
    }

    fn alias(ttl: u32) -> Record {
        Record::from_rdata(name("www.example.com."), ttl, RData::CNAME(CNAME(name("web.example.com."))))
    }

    fn said(query: &Message, code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
        let mut message = query.clone().into_response();
        message.metadata.response_code = code;
        message.metadata.authoritative = true;
        message.add_answers(answers);
        message.add_authorities(authorities);
        message
    }

    fn bytes(message: &Message) -> Vec<u8> {
        message.to_vec().expect("encoded")
    }

    fn question(query: &[u8]) -> Question {
        match read(query) {
            Incoming::Question(question) => question,
            other => panic!("{other:?}"),
        }
    }

    fn asked(query: &[u8]) -> Option<Asked> {
        Asked::read(query, &question(query))
    }

    /// What a cache gives to a query after so many seconds, of the first resolvers.
    fn got(cache: &Cache, query: &Message, start: Instant, seconds: u64) -> Option<Message> {
        let query = bytes(query);
        let asked = asked(&query).expect("an answer to it may be kept");
        let now = start + Duration::from_secs(seconds);
        let answer = cache.get(1, (&query, &question(&query)), &asked, Transport::Udp, now)?;
        Some(Message::from_vec(&answer).expect("an answer"))
    }

    fn put(cache: &Cache, query: &Message, answer: &Message, now: Instant) {
        let query = bytes(query);
        if let Some(asked) = asked(&query) {
            cache.put(1, &asked, &question(&query), &bytes(answer), now);
        }
    }

    #[test]
    fn an_answer_is_kept_for_as_long_as_it_says_and_that_there_is_none_as_the_soa_says() {
        use ResponseCode::{NXDomain, NoError, Refused, ServFail};
        let ns = Record::from_rdata(name("example.com."), 300, RData::NS(NS(name("ns.example.com."))));
        for (what, code, answers, authorities, seconds) in [
            ("the least of its records", NoError, vec![address(1, 60), address(2, 40)], vec![], 40),
            ("of an alias too", NoError, vec![alias(30), address(2, 40)], vec![], 30),
            ("what may not be kept", NoError, vec![address(1, 0)], vec![], 0),
            ("what is negative by its bits", NoError, vec![address(1, u32::MAX)], vec![], 0),
            ("no longer than that", NoError, vec![address(1, 1_000_000)], vec![], TTL_MAX.into()),
            ("no name: the minimum", NXDomain, vec![], vec![soa(300, 60)], 60),
            ("no name: the TTL", NXDomain, vec![], vec![soa(30, 60)], 30),
            ("no name: a bound", NXDomain, vec![], vec![soa(1_000_000, 1_000_000)], TTL_MAX.into()),
            ("no name, without an SOA", NXDomain, vec![], vec![], 0),
            ("no name at the end of an alias", NXDomain, vec![alias(20)], vec![soa(300, 60)], 20),
            ("no such record", NoError, vec![], vec![soa(300, 60)], 60),
            ("no such record, without an SOA", NoError, vec![], vec![], 0),
            ("no such record at the end of an alias", NoError, vec![alias(90)], vec![soa(300, 60)], 60),
            ("an alias and no word of its end", NoError, vec![alias(90)], vec![], 0),
            ("whom else to ask", NoError, vec![], vec![ns], 0),
            ("a failure", ServFail, vec![], vec![soa(300, 60)], 0),
            ("a refusal", Refused, vec![], vec![soa(300, 60)], 0),
        ] {
            let (cache, start) = (Cache::default(), Instant::now());
            let query = query("www.example.com.", RecordType::A);
            put(&cache, &query, &said(&query, code, answers, authorities), start);
            let known = |second| got(&cache, &query, start, second).is_some();
            assert_eq!(known(0), seconds > 0, "{what}");
            assert!(seconds == 0 || known(seconds - 1), "{what}: for {seconds} s");
            assert!(!known(seconds), "{what}: no longer than {seconds} s");
        }
    }

    #[test]
    fn what_is_given_out_is_what_came_with_less_time_left_for_whoever_asks() {
        let (cache, start) = (Cache::default(), Instant::now());
        let first = with_edns(query("www.EXAMPLE.com.", RecordType::A), 4096, false);
        let answer =
            with_edns(said(&first, ResponseCode::NoError, vec![address(1, 60), address(2, 90)], vec![]), 512, false);
        put(&cache, &first, &answer, start);
        let mut second = query("WWW.example.com.", RecordType::A);
        second.metadata.id = 99;
        let given = got(&cache, &second, start, 13).expect("known");
        assert_eq!((given.metadata.id, given.metadata.authoritative), (99, false));
        assert!(given.queries[0].name().eq_case(second.queries[0].name()), "in the letters of the question");
        assert_eq!(given.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [47, 47]);
        assert_eq!(
            given.answers.iter().map(|record| &record.data).collect::<Vec<_>>(),
            [&address(1, 0).data, &address(2, 0).data]
        );
        assert!(given.edns.is_none(), "who sent none gets none");
        let given = got(&cache, &with_edns(second, 1232, false), start, 13).expect("known");
        assert_eq!(given.edns.map(|edns| edns.max_payload()), Some(UDP_MAX));
        // That there is nothing becomes older too.
        let none = query("none.example.com.", RecordType::A);
        put(&cache, &none, &said(&none, ResponseCode::NXDomain, vec![], vec![soa(300, 60)]), start);
        let given = got(&cache, &none, start, 59).expect("known");
        assert_eq!((given.metadata.response_code, given.authorities[0].ttl), (ResponseCode::NXDomain, 1));
    }

    #[test]
    fn another_question_has_another_answer_and_some_are_never_kept() {
        let (cache, start) = (Cache::default(), Instant::now());
        let plain = query("www.example.com.", RecordType::A);
        put(&cache, &plain, &said(&plain, ResponseCode::NoError, vec![address(1, 60)], vec![]), start);
        let mut unchecked = plain.clone();
        unchecked.metadata.checking_disabled = true;
        let mut knows = plain.clone();
        knows.metadata.authentic_data = true;
        for other in [
            query("www.example.com.", RecordType::AAAA),
            query("www.example.org.", RecordType::A),
            query("ww.example.com.", RecordType::A),
            with_edns(plain.clone(), 1232, true),
            unchecked,
            knows,
        ] {
            assert!(got(&cache, &other, start, 0).is_none(), "{other}");
        }
        // Types are no letters: these two differ as a large and a small one do.
        let https = query("t.example.com.", RecordType::from(65));
        put(&cache, &https, &said(&https, ResponseCode::NXDomain, vec![], vec![soa(60, 60)]), start);
        assert!(got(&cache, &https, start, 0).is_some());
        assert!(got(&cache, &query("t.example.com.", RecordType::from(97)), start, 0).is_none());
        let with = |code: u16| {
            let mut message = with_edns(plain.clone(), 1232, false);
            let edns = message.edns.as_mut().expect("it has one");
            edns.options_mut().insert(EdnsOption::Unknown(code, vec![1, 2, 3, 4, 5, 6, 7, 8]));
            message
        };
        assert!(got(&cache, &with(10), start, 0).is_some(), "a cookie is between two neighbours");
        assert!(asked(&bytes(&with(8))).is_none(), "the client's network may decide the answer");
        assert!(asked(&bytes(&query("example.com.", RecordType::AXFR))).is_none());
        let mut chaos = plain.clone();
        chaos.queries[0].set_query_class(DNSClass::CH);
        assert!(asked(&bytes(&chaos)).is_none());
        let mut more = plain.clone();
        more.add_additional(address(1, 60));
        assert!(asked(&bytes(&more)).is_none());
        // A name that is abbreviated is another one under another id.
        let mut short = bytes(&plain);
        short.splice(12..12 + 17, [1, b'w', 0xc0, 0]);
        short[..2].copy_from_slice(&[0, 0]);
        assert!(is_plain(&bytes(&plain)[12..12 + 17]) && !is_plain(&short[12..16]));
        assert!(asked(&short).is_none());
        // Cut by who said it: the rest has to be asked for.
        let cut = query("cut.example.com.", RecordType::A);
        let mut answer = said(&cut, ResponseCode::NoError, vec![address(1, 60)], vec![]);
        answer.metadata.truncation = true;
        put(&cache, &cut, &answer, start);
        assert!(got(&cache, &cut, start, 0).is_none());
    }

    #[test]
    fn what_came_by_tcp_is_cut_for_who_asks_over_udp() {
        let (cache, start) = (Cache::default(), Instant::now());
        let plain = query("www.example.com.", RecordType::A);
        let answer = said(&plain, ResponseCode::NoError, (0..100).map(|last| address(last, 60)).collect(), vec![]);
        put(&cache, &plain, &answer, start);
        let given = got(&cache, &plain, start, 0).expect("known");
        assert!(given.metadata.truncation && (25..35).contains(&given.answers.len()), "{}", given.answers.len());
        let given = got(&cache, &with_edns(plain.clone(), 4096, false), start, 0).expect("known");
        assert!(given.metadata.truncation && (70..100).contains(&given.answers.len()), "{}", given.answers.len());
        let plain = bytes(&plain);
        let (question, asked) = (question(&plain), asked(&plain).expect("it may"));
        let whole = cache.get(1, (&plain, &question), &asked, Transport::Tcp, start).expect("known");
        assert_eq!(Message::from_vec(&whole).expect("an answer").answers.len(), 100);
    }

    #[test]
    fn other_resolvers_have_other_answers_and_what_comes_late_is_of_the_former() {
        let (cache, start) = (Cache::default(), Instant::now());
        let message = query("www.example.com.", RecordType::A);
        let answer = bytes(&said(&message, ResponseCode::NoError, vec![address(1, 60)], vec![]));
        let query = bytes(&message);
        let (question, asked) = (question(&query), asked(&query).expect("it may"));
        let known = |version| cache.get(version, (&query, &question), &asked, Transport::Udp, start).is_some();
        cache.put(1, &asked, &question, &answer, start);
        assert!(known(1));
        assert!(!known(2));
        cache.put(1, &asked, &question, &answer, start);
        assert!(!known(2));
        assert!(!known(1), "nothing of them comes back");
        cache.put(2, &asked, &question, &answer, start);
        assert!(known(2));
    }

    #[test]
    fn there_is_room_for_so_many_and_what_is_asked_for_again_stays() {
        let (cache, start) = (Cache::default(), Instant::now());
        let keep = |text: &str, records: u8| {
            let query = query(text, RecordType::A);
            let answers = (0..records).map(|last| address(last, 60)).collect();
            put(&cache, &query, &said(&query, ResponseCode::NoError, answers, vec![]), start);
        };
        let known = |text: &str| got(&cache, &query(text, RecordType::A), start, 1).is_some();
        let size = || {
            let halves = cache.halves();
            let bytes = |half: &HashMap<Box<[u8]>, Arc<Kept>>| {
                half.iter().map(|(key, kept)| key.len() + kept.bytes.len()).sum::<usize>()
            };
            assert_eq!(halves.young_bytes, bytes(&halves.young));
            (halves.young.len() + halves.old.len(), bytes(&halves.young) + bytes(&halves.old))
        };
        keep("often.example.com.", 1);
        keep("once.example.com.", 1);
        for number in 0..3 * HALF {
            keep(&format!("n{number}.example.com."), 1);
            keep(&format!("n{number}.example.com."), 1);
            assert!(known("often.example.com."), "{number}");
        }
        assert!(size().0 <= 2 * HALF && known(&format!("n{}.example.com.", 3 * HALF - 1)));
        assert!(!known("once.example.com."));
        // Long ones are fewer, and too long ones are not kept at all.
        for number in 0..HALF {
            keep(&format!("l{number}.example.com."), 100);
        }
        let (count, bytes) = size();
        assert!(bytes <= 2 * HALF_BYTES && count < HALF, "{count} of {bytes} bytes");
        let query = query("long.example.com.", RecordType::A);
        let answers = (0..=255).map(|last| address(last, 60)).collect();
        put(&cache, &query, &said(&query, ResponseCode::NoError, answers, vec![]), start);
        assert!(!known("long.example.com."));
    }

    #[test]
    fn nonsense_is_not_kept_or_given_out_as_it_came() {
        let (cache, start) = (Cache::default(), Instant::now());
        let message = with_edns(query("www.example.com.", RecordType::A), 1232, false);
        let answer = said(&message, ResponseCode::NoError, vec![alias(60), address(1, 60)], vec![soa(60, 60)]);
        let (query, answer) = (bytes(&message), bytes(&with_edns(answer, 1232, false)));
        let (question, asked) = (question(&query), asked(&query).expect("it may"));
        for end in 0..answer.len() {
            cache.put(1, &asked, &question, &answer[..end], start);
            assert!(cache.get(1, (&query, &question), &asked, Transport::Udp, start).is_none(), "{end} bytes");
        }
        for at in 0..answer.len() {
            for flip in [1, 0x40, 0x80, 0xff] {
                let mut changed = answer.clone();
                changed[at] ^= flip;
                cache.put(1, &asked, &question, &changed, start);
                let given = cache.get(1, (&query, &question), &asked, Transport::Udp, start);
                assert!(given.is_none_or(|given| given.len() <= 1232));
            }
        }
        for end in 0..query.len() {
            if let Incoming::Question(question) = read(&query[..end]) {
                assert!(Asked::read(&query[..end], &question).is_none(), "{end} bytes");
            }
        }
    }
}
