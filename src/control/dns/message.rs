//! DNS messages: what of a query decides who answers it, and answers that fit.
//!
//! ```text
//!   0    2       4         12                        12 + question
//!  ┌────┬───────┬─────────┬─────────────────────────┬───────────────────────────┐
//!  │ id │ flags │ counts  │ question: name type class │ records, OPT among them │
//!  └────┴───────┴─────────┴─────────────────────────┴───────────────────────────┘
//! ```
//!
//! Of a query for others no more than the question is read: its bytes travel as they are.

use std::ops::Range;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinDecodable as _, BinDecoder};

/// Length of the header, in bytes.
const HEADER: usize = 12;
/// Where the response code is.
const CODE_AT: usize = 3;
/// What every client takes over UDP (RFC 1035).
const UDP_MIN: u16 = 512;
/// What passes without being cut into fragments nearly everywhere: more is not sent, nor offered.
pub(super) const UDP_MAX: u16 = 1232;

/// What came in.
#[derive(Debug)]
pub(super) enum Incoming {
    /// Nothing that deserves an answer.
    Nothing,
    /// It is answered so, whatever it asks.
    Refusal(Vec<u8>),
    /// A question.
    Question(Question),
}

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// The message's header.
    pub(super) metadata: Metadata,
    /// What is asked.
    pub(super) query: Query,
    /// Where in the message that stands.
    pub(super) bytes: Range<usize>,
}

impl Question {
    /// Whether its sender wants others to be asked.
    pub(super) const fn recursion_desired(&self) -> bool {
        self.metadata.recursion_desired
    }
}

/// What is answered out of this router's own knowledge.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Answer {
    /// The response code.
    pub(super) code: ResponseCode,
    /// The records asked for.
    pub(super) records: Vec<Record>,
    /// The zone's SOA: how long it may be remembered that there are none.
    pub(super) soa: Option<Record>,
    /// What whoever gets these records will ask for next.
    pub(super) additional: Vec<Record>,
}

/// Over what it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A datagram, which has a bound.
    Udp,
    /// A stream.
    Tcp,
}

/// Reads as much of a query as decides who answers it.
pub(super) fn read(bytes: &[u8]) -> Incoming {
    let mut decoder = BinDecoder::new(bytes);
    let Ok(Header { metadata, counts, .. }) = Header::read(&mut decoder) else { return Incoming::Nothing };
    // Whoever answers answers could be played off against another who does.
    if metadata.message_type == MessageType::Response {
        return Incoming::Nothing;
    }
    if metadata.op_code != OpCode::Query {
        return Incoming::Refusal(bare(&metadata, ResponseCode::NotImp));
    }
    match Query::read(&mut decoder) {
        Ok(query) if counts.queries == 1 => {
            Incoming::Question(Question { metadata, query, bytes: HEADER..decoder.index() })
        }
        _ => Incoming::Refusal(bare(&metadata, ResponseCode::FormErr)),
    }
}

fn bare(metadata: &Metadata, code: ResponseCode) -> Vec<u8> {
    let mut message = Message::response(metadata.id, metadata.op_code);
    message.metadata = Metadata::response_from_request(metadata);
    message.metadata.response_code = code;
    encoded(&message)
}

/// The header and the question with a response code: for what could not be asked of others.
pub(super) fn failure(question: &Question, code: ResponseCode) -> Vec<u8> {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata = Metadata::response_from_request(&question.metadata);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_query(question.query.clone());
    encoded(&message)
}

/// The message that answers a query, in as many bytes as its sender takes. Records that do not
/// fit are left out, and it says so: not every resolver asks again over TCP.
pub(super) fn reply(query: &[u8], question: &Question, answer: &Answer, transport: Transport) -> Vec<u8> {
    let Ok(whole) = Message::from_vec(query) else {
        return failure(question, ResponseCode::FormErr);
    };
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata = Metadata::response_from_request(&question.metadata);
    message.metadata.authoritative = true;
    message.metadata.recursion_available = true;
    message.metadata.response_code = answer.code;
    message.add_query(question.query.clone());
    let room = room(transport, whole.edns.as_ref().map(Edns::max_payload));
    if let Some(asked) = &whole.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_MAX).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
        message.set_edns(edns);
        if asked.version() > 0 {
            message.metadata.response_code = ResponseCode::BADVERS;
            return encoded(&message);
        }
    }
    message.add_authorities(answer.soa.clone());
    message.add_answers(answer.records.iter().cloned());
    message.add_additionals(answer.additional.iter().cloned());
    fitted(message, room)
}

/// The most bytes that an answer may have. `payload` is what the client's EDNS0 says that it takes.
pub(super) fn room(transport: Transport, payload: Option<u16>) -> usize {
    let room = match (transport, payload) {
        (Transport::Tcp, _) => u16::MAX,
        (Transport::Udp, None) => UDP_MIN,
        (Transport::Udp, Some(payload)) => payload.clamp(UDP_MIN, UDP_MAX),
    };
    room.into()
}

/// A message in so many bytes, with as many of its records as fit.
pub(super) fn fitted(mut message: Message, room: usize) -> Vec<u8> {
    let whole = encoded(&message);
    if whole.len() <= room {
        return whole;
    }
    // What is only added may be missing without a word: it can be asked for (RFC 2181, 9).
    cut(&mut message, room, |message| &mut message.additionals);
    let answers = cut(&mut message, room, |message| &mut message.answers);
    let authorities = cut(&mut message, room, |message| &mut message.authorities);
    message.metadata.truncation = answers || authorities;
    encoded(&message)
}

/// Leaves out as many records of a list as it takes for the message to be no longer than that; says whether
/// any had to be.
fn cut(message: &mut Message, limit: usize, list: fn(&mut Message) -> &mut Vec<Record>) -> bool {
    let mut length = encoded(message).len();
    if length <= limit {
        return false;
    }
    let records = std::mem::take(list(message));
    let without = encoded(message).len();
    let before = records.len();
    *list(message) = records;
    while length > limit && !list(message).is_empty() {
        let left = list(message).len();
        let each = (length.saturating_sub(without) / left).max(1);
        list(message).truncate(left.saturating_sub((length - limit).div_ceil(each)));
        length = encoded(message).len();
    }
    list(message).len() < before
}

fn encoded(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_else(|error| {
        // Names and records that were read, or made here, can be written.
        tracing::error!(%error, "an answer could not be written");
        Vec::new()
    })
}

/// A query under another id, for another server.
pub(super) fn renumbered(query: &[u8], id: u16) -> Vec<u8> {
    let mut query = query.to_vec();
    if let Some(place) = query.first_chunk_mut() {
        *place = id.to_be_bytes();
    }
    query
}

/// Whether a message answers the query that was sent under that id.
#[must_use]
pub fn answers(message: &[u8], id: u16, query: &[u8], question: &Question) -> bool {
    let question = &question.bytes;
    let (Some(head), Some(asked)) = (message.first_chunk::<HEADER>(), query.get(question.clone())) else {
        return false;
    };
    let is_answer = head[2] & 0x80 != 0 && u16::from_be_bytes([head[0], head[1]]) == id;
    // Some servers leave the question out of what they refuse.
    let refused = head[4..6] == [0, 0] && head[CODE_AT] & 0x0f != 0;
    let same = message.get(question.clone()).is_some_and(|found| found.eq_ignore_ascii_case(asked));
    is_answer && (refused || head[4..6] == [0, 1] && same)
}

/// Another server's answer, as the one to the query: with its id, and with its question in the
/// very letters in which it was asked.
#[must_use]
pub fn passed_on(mut message: Vec<u8>, query: &[u8], question: &Question) -> Vec<u8> {
    let question = &question.bytes;
    if let (Some(place), Some(id)) = (message.first_chunk_mut::<2>(), query.first_chunk::<2>()) {
        *place = *id;
    }
    if let (Some(place), Some(asked)) = (message.get_mut(question.clone()), query.get(question.clone()))
        && place.eq_ignore_ascii_case(asked)
    {
        place.copy_from_slice(asked);
    }
    message
}

/// Whether a server could not, or would not, find out: another one may.
pub(super) fn is_failure(message: &[u8]) -> bool {
    let code = message.get(CODE_AT).map_or(0, |flags| flags & 0x0f);
    [ResponseCode::ServFail, ResponseCode::NotImp, ResponseCode::Refused].iter().any(|failure| failure.low() == code)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, RecordType};

    use super::*;

    fn query(edns: Option<u16>) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii("WeB.weft.local.").expect("a name"), RecordType::A));
        if let Some(payload) = edns {
            let mut edns = Edns::new();
            edns.set_max_payload(payload).set_version(0);
            message.set_edns(edns);
        }
        message.to_vec().expect("encoded")
    }

    fn question(bytes: &[u8]) -> Question {
        match read(bytes) {
            Incoming::Question(question) => question,
            other => panic!("{other:?}"),
        }
    }

    fn answer(count: u8) -> Answer {
        let name = Name::from_ascii("WeB.weft.local.").expect("a name");
        let record = |last| Record::from_rdata(name.clone(), 1, RData::A(A(Ipv4Addr::new(10, 0, 0, last))));
        Answer { records: (0..count).map(record).collect(), ..Answer::default() }
    }

    #[test]
    fn an_answer_is_filled_as_far_as_its_sender_takes_and_then_says_so() {
        for (edns, transport, most, whole) in [
            (None, Transport::Udp, 512, false),
            (Some(512), Transport::Udp, 512, false),
            (Some(0), Transport::Udp, 512, false),
            (Some(4096), Transport::Udp, 1232, true),
            (None, Transport::Tcp, 65_535, true),
        ] {
            let query = query(edns);
            let bytes = reply(&query, &question(&query), &answer(50), transport);
            assert!(bytes.len() <= most, "{} bytes for {edns:?}", bytes.len());
            let message = Message::from_vec(&bytes).expect("an answer");
            assert_eq!(message.metadata.truncation, !whole, "{edns:?}");
            assert_eq!(message.answers.len() == 50, whole, "{} for {edns:?}", message.answers.len());
            assert!(whole || most - bytes.len() < 16, "{} bytes are not as many as could be", bytes.len());
            assert_eq!(message.edns.is_some(), edns.is_some());
            assert!(message.metadata.authoritative && message.metadata.recursion_desired);
            assert!(message.queries[0].name().eq_case(question(&query).query.name()), "the letters are kept");
        }
    }

    #[test]
    fn what_is_added_is_left_out_first_and_without_a_word() {
        let query = query(None);
        let mut answer = answer(10);
        let name = Name::from_ascii("target.weft.local.").expect("a name");
        let record = |last| Record::from_rdata(name.clone(), 1, RData::A(A(Ipv4Addr::new(10, 0, 1, last))));
        answer.additional = (0..50).map(record).collect();
        let bytes = reply(&query, &question(&query), &answer, Transport::Udp);
        let message = Message::from_vec(&bytes).expect("an answer");
        let counts = (message.answers.len(), message.additionals.len());
        assert!(counts.0 == 10 && (5..50).contains(&counts.1) && !message.metadata.truncation, "{counts:?}");
        assert!((490..=512).contains(&bytes.len()), "{} bytes", bytes.len());
    }

    #[test]
    fn what_is_no_question_is_refused_or_left_without_an_answer() {
        assert!(matches!(read(&[]), Incoming::Nothing));
        assert!(matches!(read(&[0; 11]), Incoming::Nothing));
        let mut response = query(None);
        response[2] |= 0x80;
        assert!(matches!(read(&response), Incoming::Nothing));
        let code = |bytes: &[u8]| match read(bytes) {
            Incoming::Refusal(bytes) => Message::from_vec(&bytes).expect("an answer").metadata.response_code,
            other => panic!("{other:?}"),
        };
        let mut update = query(None);
        update[2] |= 5 << 3;
        assert_eq!(code(&update), ResponseCode::NotImp);
        let mut two = query(None);
        two[5] = 2;
        assert_eq!(code(&two), ResponseCode::FormErr);
        assert_eq!(code(&query(None)[..20]), ResponseCode::FormErr);
        let mut newer = query(Some(1232));
        // The version is in the TTL of the OPT record, which is last and has no data.
        let at = newer.len() - 5;
        newer[at] = 1;
        let bytes = reply(&newer, &question(&newer), &answer(1), Transport::Udp);
        let code = Message::from_vec(&bytes).expect("an answer").metadata.response_code;
        // The number stands for another failure too, which the library takes it for.
        assert_eq!(u16::from(code), u16::from(ResponseCode::BADVERS));
    }

    #[test]
    fn an_answer_of_another_server_is_taken_only_for_what_was_asked() {
        let asked = query(Some(1232));
        let question = question(&asked);
        let sent = renumbered(&asked, 99);
        let mut other = Message::from_vec(&sent).expect("a query");
        other.metadata.message_type = MessageType::Response;
        other.queries[0].name = Name::from_ascii("web.weft.local.").expect("a name");
        let answer = other.to_vec().expect("encoded");
        assert!(answers(&answer, 99, &sent, &question));
        assert!(!answers(&answer, 98, &sent, &question));
        assert!(!answers(&sent, 99, &sent, &question), "a query is no answer");
        assert!(!answers(&answer[..14], 99, &sent, &question));
        let mut wrong = answer.clone();
        wrong[14] = b'x';
        assert!(!answers(&wrong, 99, &sent, &question));
        let passed = passed_on(answer, &asked, &question);
        assert_eq!(passed[..2], asked[..2]);
        assert_eq!(passed[question.bytes.clone()], asked[question.bytes.clone()]);
        assert!(!is_failure(&passed));
        let refused = failure(&question, ResponseCode::Refused);
        assert!(is_failure(&refused));
    }
}
