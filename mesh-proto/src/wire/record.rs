//! The inside of a SLEEVE datagram: records, one after the other until its end.
//!
//! ```text
//! every record   ┌──────┬──────────────┬─ body ──────────────────────────────────────────────────┐
//!                │ kind │ length (u24) │                                                         │
//!                └──────┴──────────────┴─────────────────────────────────────────────────────────┘
//! 1 FRAME        │ an Ethernet frame for the receiver
//! 2 FLOOD        │ origin (16) │ incarnation (u64) │ sequence (u64) │ hops left (u8) │ a frame for all
//! 3 PROBE        │ id (u32) │ size of the UDP payload it came in (u16) │ padding
//! 4 ECHO         │ id (u32) │ size (u16), both as they came
//! 5 FRAGMENT     │ id (u32) │ total (u24) │ offset (u24) │ bytes of a record, its header included
//! 7 GROUP        │ segments (u8) │ flags (u8) │ where TCP or UDP begins (u8) │ a frame
//!
//!                ┌──────┬───────────────┬────────────┬──────────────────────────────┐
//! 6 SEGMENT      │ kind │ segments (u8) │ flags (u8) │ where TCP or UDP begins (u8) │ a frame, to the end
//!                └──────┴───────────────┴────────────┴──────────────────────────────┘
//! flags          0x01 UDP, not TCP │ 0x02 ECN │ 0x04 continues the datagram before │ 0x08 goes on in the next
//! ```
//!
//! Numbers are big-endian. The length has 24 bits so that a FLOOD of the largest frame is still
//! one record. SEGMENT has none: it is the last record of its datagram, and as small as a FRAME,
//! so that a segment that goes whole as one goes whole as the other. A kind that is not known is skipped and counted (sleeve S8–S14).

use crate::id::{Incarnation, PEER_ID_LEN, PeerId};

/// Bytes before the body of any record.
pub const RECORD_HEADER: usize = 4;
/// Bytes of a FLOOD record before its frame.
pub const FLOOD_HEADER: usize = RECORD_HEADER + PEER_ID_LEN + 8 + 8 + 1;
/// Bytes of a FRAGMENT record before its piece.
pub const FRAGMENT_HEADER: usize = RECORD_HEADER + 10;
/// Bytes of a PROBE without padding, and of an ECHO.
pub const PROBE_LEN: usize = RECORD_HEADER + 6;
/// Largest Ethernet frame.
pub const FRAME_MAX: usize = 65_535;
/// Largest record, and so the largest that fragments may make.
pub const RECORD_MAX: usize = FLOOD_HEADER + FRAME_MAX;

/// Numbers of the kinds.
pub mod kind {
    /// One Ethernet frame for the receiver.
    pub const FRAME: u8 = 1;
    /// One Ethernet frame for everybody.
    pub const FLOOD: u8 = 2;
    /// A question that asks for an ECHO.
    pub const PROBE: u8 = 3;
    /// The answer.
    pub const ECHO: u8 = 4;
    /// A piece of a record that does not fit the path.
    pub const FRAGMENT: u8 = 5;
    /// A part of a super-frame, to the end of the datagram.
    pub const SEGMENT: u8 = 6;
    /// A small super-frame, or a frame with an open checksum.
    pub const GROUP: u8 = 7;
}

const UDP: u8 = 0x01;
const ECN: u8 = 0x02;
const CONTINUES: u8 = 0x04;
const MORE: u8 = 0x08;

/// Bytes of a SEGMENT record before its frame.
pub const SEGMENT_HEADER: usize = RECORD_HEADER;
/// Bytes of a GROUP record before its frame.
pub const GROUP_HEADER: usize = RECORD_HEADER + 3;

/// TCP or UDP segments behind one copy of their headers. All have the same length; the checksum
/// is open: it holds the sum of the pseudo header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments<'a> {
    /// How many.
    pub count: u8,
    /// UDP, not TCP.
    pub udp: bool,
    /// The first segment alone announces a reduced congestion window.
    pub ecn: bool,
    /// They follow the last ones of the datagram with the number before.
    pub continues: bool,
    /// Those in the datagram with the next number follow them.
    pub more: bool,
    /// Where the TCP or UDP header begins.
    pub l4: u8,
    /// Headers and payloads.
    pub frame: &'a [u8],
}

impl Segments<'_> {
    /// What goes before the frame to make it the last record of its datagram.
    #[must_use]
    pub fn segment_header(&self) -> [u8; SEGMENT_HEADER] {
        [kind::SEGMENT, self.count, self.flags(), self.l4]
    }

    /// What goes before a frame of `length` bytes to make it a record as any other.
    #[must_use]
    pub fn group_header(&self, length: usize) -> [u8; GROUP_HEADER] {
        let [k, a, b, c] = header(kind::GROUP, GROUP_HEADER - RECORD_HEADER + length);
        [k, a, b, c, self.count, self.flags(), self.l4]
    }

    fn flags(&self) -> u8 {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        flag(self.udp, UDP) | flag(self.ecn, ECN) | flag(self.continues, CONTINUES) | flag(self.more, MORE)
    }
}

/// A frame for everybody, on its way along the tree of its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flood<'a> {
    /// Where it entered the mesh.
    pub origin: PeerId,
    /// The origin's incarnation then.
    pub incarnation: Incarnation,
    /// Its number among the floods of that incarnation.
    pub sequence: u64,
    /// How many more peers may pass it on.
    pub hops: u8,
    /// The frame.
    pub frame: &'a [u8],
}

/// Identity of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// The sender's number for it.
    pub id: u32,
    /// Bytes of UDP payload that it travels in.
    pub size: u16,
}

/// A piece of a larger record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// The sender's number for the whole.
    pub id: u32,
    /// Bytes of the whole.
    pub total: usize,
    /// Where the piece belongs.
    pub offset: usize,
    /// The piece.
    pub piece: &'a [u8],
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// An Ethernet frame for the receiver.
    Frame(&'a [u8]),
    /// An Ethernet frame for everybody.
    Flood(Flood<'a>),
    /// Answer this.
    Probe(Probe),
    /// The answer.
    Echo(Probe),
    /// A piece.
    Fragment(Fragment<'a>),
    /// A part of a super-frame.
    Segments(Segments<'a>),
    /// Of a later version: to be skipped.
    Unknown(u8),
}

/// Why bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end before the record does.
    #[error("record ends outside its datagram")]
    Short,
    /// The body is shorter than its kind needs, or its numbers contradict each other.
    #[error("record of kind {0} has a body that is not one")]
    Body(u8),
}

/// The records of an opened datagram, in order. Ends after the first error: what follows has no
/// known start.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Reads `bytes` from their start.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes that were not read yet: the last record ends where they begin.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn take(&mut self) -> Result<Record<'a>, RecordError> {
        let (head, rest) = self.rest.split_first_chunk::<RECORD_HEADER>().ok_or(RecordError::Short)?;
        if let [kind::SEGMENT, about @ ..] = *head {
            self.rest = &[];
            return parse_segments(about, rest).ok_or(RecordError::Body(kind::SEGMENT));
        }
        let length = u24(&head[1..]);
        let (body, rest) = rest.split_at_checked(length).ok_or(RecordError::Short)?;
        self.rest = rest;
        parse_body(head[0], body).ok_or(RecordError::Body(head[0]))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.take();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

fn parse_body(kind: u8, body: &[u8]) -> Option<Record<'_>> {
    Some(match kind {
        kind::FRAME => Record::Frame(frame(body)?),
        kind::FLOOD => Record::Flood(parse_flood(body)?),
        kind::PROBE => Record::Probe(parse_probe(body)?),
        kind::ECHO => Record::Echo(parse_probe(body)?),
        kind::FRAGMENT => Record::Fragment(parse_fragment(body)?),
        kind::GROUP => {
            let (about, frame) = body.split_first_chunk::<3>()?;
            parse_segments(*about, frame)?
        }
        other => Record::Unknown(other),
    })
}

fn frame(bytes: &[u8]) -> Option<&[u8]> {
    (14..=FRAME_MAX).contains(&bytes.len()).then_some(bytes)
}

fn parse_flood(body: &[u8]) -> Option<Flood<'_>> {
    let (origin, body) = body.split_first_chunk::<PEER_ID_LEN>()?;
    let (incarnation, body) = body.split_first_chunk::<8>()?;
    let (sequence, body) = body.split_first_chunk::<8>()?;
    let (&hops, body) = body.split_first()?;
    Some(Flood {
        origin: PeerId(*origin),
        incarnation: Incarnation(u64::from_be_bytes(*incarnation)),
        sequence: u64::from_be_bytes(*sequence),
        hops,
        frame: frame(body)?,
    })
}

fn parse_probe(body: &[u8]) -> Option<Probe> {
    let (id, body) = body.split_first_chunk::<4>()?;
    let (size, _padding) = body.split_first_chunk::<2>()?;
    Some(Probe { id: u32::from_be_bytes(*id), size: u16::from_be_bytes(*size) })
}

fn parse_segments(about: [u8; 3], bytes: &[u8]) -> Option<Record<'_>> {
    let [count, flags, l4] = about;
    if count == 0 || flags & !(UDP | ECN | CONTINUES | MORE) != 0 {
        return None;
    }
    let is = |bit: u8| flags & bit != 0;
    let (udp, ecn, continues, more) = (is(UDP), is(ECN), is(CONTINUES), is(MORE));
    Some(Record::Segments(Segments { count, udp, ecn, continues, more, l4, frame: frame(bytes)? }))
}

fn parse_fragment(body: &[u8]) -> Option<Fragment<'_>> {
    let (id, body) = body.split_first_chunk::<4>()?;
    let (numbers, piece) = body.split_first_chunk::<6>()?;
    let (total, offset) = (u24(&numbers[..3]), u24(&numbers[3..]));
    let fits = !piece.is_empty() && total <= RECORD_MAX && offset + piece.len() <= total;
    fits.then_some(Fragment { id: u32::from_be_bytes(*id), total, offset, piece })
}

fn u24(bytes: &[u8]) -> usize {
    bytes.iter().take(3).fold(0, |n, &byte| n << 8 | usize::from(byte))
}

/// Writes the low 24 bits. Every length here is at most [`RECORD_MAX`], which has 17.
fn put_u24(to: &mut [u8], n: usize) {
    to[0] = (n >> 16) as u8;
    to[1] = (n >> 8) as u8;
    to[2] = n as u8;
}

fn header(kind: u8, body: usize) -> [u8; RECORD_HEADER] {
    let mut bytes = [kind, 0, 0, 0];
    put_u24(&mut bytes[1..], body);
    bytes
}

/// What goes before a frame to make it a FRAME record.
#[must_use]
pub fn frame_header(frame: usize) -> [u8; RECORD_HEADER] {
    header(kind::FRAME, frame)
}

impl Flood<'_> {
    /// What goes before the frame to make it a FLOOD record.
    #[must_use]
    pub fn header(&self) -> [u8; FLOOD_HEADER] {
        let mut bytes = [0; FLOOD_HEADER];
        let body = FLOOD_HEADER - RECORD_HEADER + self.frame.len();
        bytes[..4].copy_from_slice(&header(kind::FLOOD, body));
        bytes[4..20].copy_from_slice(&self.origin.0);
        bytes[20..28].copy_from_slice(&self.incarnation.0.to_be_bytes());
        bytes[28..36].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[36] = self.hops;
        bytes
    }
}

impl Fragment<'_> {
    /// What goes before the piece to make it a FRAGMENT record.
    #[must_use]
    pub fn header(&self) -> [u8; FRAGMENT_HEADER] {
        Self::header_of(self.id, self.total, self.offset, self.piece.len())
    }

    /// The same for a piece of that length which is not in one place.
    #[must_use]
    pub fn header_of(id: u32, total: usize, offset: usize, piece: usize) -> [u8; FRAGMENT_HEADER] {
        let mut bytes = [0; FRAGMENT_HEADER];
        let body = FRAGMENT_HEADER - RECORD_HEADER + piece;
        bytes[..4].copy_from_slice(&header(kind::FRAGMENT, body));
        bytes[4..8].copy_from_slice(&id.to_be_bytes());
        put_u24(&mut bytes[8..11], total);
        put_u24(&mut bytes[11..14], offset);
        bytes
    }
}

impl Probe {
    /// The start of a PROBE record that ends with `padding` bytes.
    #[must_use]
    pub fn probe(&self, padding: usize) -> [u8; PROBE_LEN] {
        self.write(kind::PROBE, padding)
    }

    /// An ECHO record.
    #[must_use]
    pub fn echo(&self) -> [u8; PROBE_LEN] {
        self.write(kind::ECHO, 0)
    }

    fn write(&self, kind: u8, padding: usize) -> [u8; PROBE_LEN] {
        let mut bytes = [0; PROBE_LEN];
        bytes[..4].copy_from_slice(&header(kind, PROBE_LEN - RECORD_HEADER + padding));
        bytes[4..8].copy_from_slice(&self.id.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.size.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn join(head: &[u8], body: &[u8]) -> Vec<u8> {
        [head, body].concat()
    }

    fn only(bytes: &[u8]) -> Record<'_> {
        let mut records = Records::new(bytes);
        let record = records.next().unwrap().unwrap();
        assert_eq!(records.next(), None);
        record
    }

    proptest! {
        #[test]
        fn a_frame_reads_back(frame in prop::collection::vec(any::<u8>(), 14..2000)) {
            let bytes = join(&frame_header(frame.len()), &frame);
            prop_assert_eq!(only(&bytes), Record::Frame(&frame));
        }

        #[test]
        fn a_flood_reads_back(origin: [u8; 16], life: u64, sequence: u64, hops: u8,
                              frame in prop::collection::vec(any::<u8>(), 14..2000)) {
            let flood = Flood { origin: PeerId(origin), incarnation: Incarnation(life), sequence, hops, frame: &frame };
            let bytes = join(&flood.header(), &frame);
            prop_assert_eq!(only(&bytes), Record::Flood(flood));
        }

        #[test]
        fn probe_and_echo_read_back(id: u32, size: u16, padding in 0usize..9000) {
            let probe = Probe { id, size };
            let bytes = join(&probe.probe(padding), &vec![0; padding]);
            prop_assert_eq!(only(&bytes), Record::Probe(probe));
            let echo = probe.echo();
            prop_assert_eq!(only(&echo), Record::Echo(probe));
        }

        #[test]
        fn a_fragment_reads_back(id: u32, offset in 0usize..60_000, after in 0usize..5000,
                                 piece in prop::collection::vec(any::<u8>(), 1..500)) {
            let fragment = Fragment { id, total: offset + piece.len() + after, offset, piece: &piece };
            let bytes = join(&fragment.header(), &piece);
            prop_assert_eq!(only(&bytes), Record::Fragment(fragment));
        }

        #[test]
        fn segments_read_back_in_both_forms(count in 1u8.., bits: [bool; 4], l4: u8,
                                            frame in prop::collection::vec(any::<u8>(), 14..2000)) {
            let [udp, ecn, continues, more] = bits;
            let segments = Segments { count, udp, ecn, continues, more, l4, frame: &frame };
            let bytes = join(&segments.segment_header(), &frame);
            prop_assert_eq!(only(&bytes), Record::Segments(segments));
            let mut bytes = join(&segments.group_header(frame.len()), &frame);
            prop_assert_eq!(only(&bytes), Record::Segments(segments));
            let probe = Probe { id: 1, size: 2 };
            bytes.extend(probe.echo());
            prop_assert_eq!(Records::new(&bytes).nth(1), Some(Ok(Record::Echo(probe))));
        }

        #[test]
        fn any_bytes_are_read_without_panic_and_to_an_end(bytes: Vec<u8>) {
            prop_assert!(Records::new(&bytes).count() <= bytes.len());
        }

        #[test]
        fn every_cut_record_is_an_error(frame in prop::collection::vec(any::<u8>(), 14..200), keep: prop::sample::Index) {
            let bytes = join(&frame_header(frame.len()), &frame);
            let keep = 1 + keep.index(bytes.len() - 1);
            prop_assert_eq!(Records::new(&bytes[..keep]).next(), Some(Err(RecordError::Short)));
        }
    }

    #[test]
    fn a_kind_of_a_later_version_is_skipped_and_the_next_record_read() {
        let mut bytes = header(99, 3).to_vec();
        bytes.extend([9; 3]);
        bytes.extend(Probe { id: 7, size: 8 }.echo());
        let records: Vec<_> = Records::new(&bytes).map(Result::unwrap).collect();
        let echo = Record::Echo(Probe { id: 7, size: 8 });
        assert_eq!(records, [Record::Unknown(99), echo]);
    }

    #[test]
    fn fragments_that_contradict_themselves_are_refused() {
        let fragment = |total, offset, piece: &'static [u8]| Fragment { id: 1, total, offset, piece };
        for bad in [fragment(4, 1, b"four"), fragment(RECORD_MAX + 1, 0, b"x"), fragment(4, 0, b"")] {
            let bytes = join(&bad.header(), bad.piece);
            let error = RecordError::Body(kind::FRAGMENT);
            assert_eq!(Records::new(&bytes).next(), Some(Err(error)));
        }
    }

    #[test]
    fn a_frame_without_room_for_two_addresses_and_a_type_is_refused() {
        let bytes = join(&frame_header(13), &[0; 13]);
        let error = RecordError::Body(kind::FRAME);
        assert_eq!(Records::new(&bytes).next(), Some(Err(error)));
    }
}
