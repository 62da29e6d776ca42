//! What peers tell each other about names.
//!
//! ```text
//!  message      type 1 byte │ CBOR map of numbered fields            at most 4 KiB
//!  Entries 1  { 0 version, 1 floor, 2 sum, 3 more, 4 [entry …] }     of the sender's own names
//!  Want    2  { 0 incarnation, 1 version }                           "what is yours beyond that?"
//!  Digest  3  { 0 root }                                             of all that the sender knows
//!  Table   4  { 0 answer, 1 n × (id 16, incarnation 8, version 8, sum 8) }
//!  entry      [ name, version, [address …], services ]               no address: the name is gone
//! ```
//!
//! Services are in `services.rs`. Without any, the field is absent: so it was before there were any.
//!
//! Messages ride on the control protocol's applications, channel 3 (names N3).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder, Write};
use minicbor::{Decode, Encode};

use super::cbor::{WireError, bounded, put, whole};
use super::rows::{ROW_LEN, pack, unpack, whole_rows};
use super::services::{NameRecords, Services};
use crate::id::PeerId;

/// Longest message: a change of names must not hold up what else is on the connection.
pub const MESSAGE_MAX: usize = 4096;

/// Longest name, in bytes: with the mesh's domain it still is one of DNS, which has at most 253.
pub const NAME_MAX: usize = 180;

/// Longest label of a name, in bytes (RFC 1035).
pub const LABEL_MAX: usize = 63;

/// Most addresses that one peer has for one name.
pub const ADDRESSES_MAX: usize = 128;

/// Length of a hash, in bytes.
pub const HASH_LEN: usize = 16;

/// A name below the mesh's domain: one label or several, in small letters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

/// Why a text is no [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` cannot be a name: {why}")]
pub struct InvalidName {
    text: String,
    why: &'static str,
}

impl Name {
    /// The name, without the domain.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The labels the other way round, so that in their order a name comes right before those
    /// below it.
    #[must_use]
    pub fn reversed(&self) -> String {
        let labels: Vec<&str> = self.0.rsplit('.').collect();
        labels.join(".")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    /// Reads a name; capital letters become small ones, for DNS does not tell them apart.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = |why| {
            let text = text.chars().filter(|c| !c.is_control()).take(80).collect();
            Err(InvalidName { text, why })
        };
        if text.is_empty() || text.len() > NAME_MAX {
            return invalid("a name has 1 to 180 characters");
        }
        if text.split('.').any(|label| label.is_empty() || label.len() > LABEL_MAX) {
            return invalid("between its dots a name has 1 to 63 characters");
        }
        if text.split('.').any(|label| label.starts_with('-')) {
            return invalid("a name has no `-` at its beginning or after a dot");
        }
        if !text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return invalid("a name has letters, digits, `-`, `_` and dots");
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl<C> Encode<C> for Name {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Name {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let text = d.str()?;
        let name: Self = text.parse().map_err(|_| decode::Error::message("not a name"))?;
        if *name.0 != *text {
            // One name has one form, or peers would not agree what they hold.
            return Err(decode::Error::message("a name with capital letters"));
        }
        Ok(name)
    }
}

/// Addresses of a name: each once, in order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Addresses(Vec<IpAddr>);

impl Addresses {
    /// The addresses, each once; those beyond [`ADDRESSES_MAX`] are left out.
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut list: Vec<IpAddr> = addresses.into_iter().collect();
        list.sort_unstable();
        list.dedup();
        list.truncate(ADDRESSES_MAX);
        Self(list)
    }

    /// The list.
    #[must_use]
    pub fn list(&self) -> &[IpAddr] {
        &self.0
    }

    /// Whether there is none: the name is gone.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<C> Encode<C> for Addresses {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(self.0.len() as u64)?;
        for address in &self.0 {
            match address {
                IpAddr::V4(v4) => e.bytes(&v4.octets())?,
                IpAddr::V6(v6) => e.bytes(&v6.octets())?,
            };
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for Addresses {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let count = d.array()?.ok_or_else(|| decode::Error::message("a list without its length"))?;
        if count > ADDRESSES_MAX as u64 {
            return Err(decode::Error::message("too many addresses"));
        }
        let mut list: Vec<IpAddr> = Vec::new();
        for _ in 0..count {
            let bytes = d.bytes()?;
            let address = match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
                (Ok(v4), _) => IpAddr::from(Ipv4Addr::from(v4)),
                (_, Ok(v6)) => IpAddr::from(Ipv6Addr::from(v6)),
                _ => return Err(decode::Error::message("an address has 4 or 16 bytes")),
            };
            if list.last().is_some_and(|last| *last >= address) {
                return Err(decode::Error::message("addresses are not in order"));
            }
            list.push(address);
        }
        Ok(Self(list))
    }
}

/// What became of one name.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Entry {
    /// The name.
    #[n(0)]
    pub name: Name,
    /// Version of its origin's names in which it became so.
    #[n(1)]
    pub version: u64,
    /// Its addresses; none if it is gone.
    #[n(2)]
    pub addresses: Addresses,
    /// What these serve.
    #[n(3)]
    pub services: Services,
}

impl Entry {
    /// What a peer says of a name from a version on.
    #[must_use]
    pub fn new(name: Name, version: u64, NameRecords { addresses, services }: NameRecords) -> Self {
        Self { name, version, addresses, services }
    }
}

/// Part of the sender's own names, or all of them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Entries {
    /// Version of all its names.
    #[n(0)]
    pub version: u64,
    /// What was not told anew since that version is gone; 0 unless the message is the last of its
    /// row, for what replaces it comes before.
    #[n(1)]
    pub floor: u64,
    /// Hash of all of them.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub sum: [u8; HASH_LEN],
    /// Another message of the same row follows.
    #[n(3)]
    pub more: bool,
    /// The part.
    #[n(4)]
    pub entries: Vec<Entry>,
}

/// Asks for the names of the receiver that are beyond a version.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Want {
    /// The life of the receiver in which that was its version.
    #[n(0)]
    pub incarnation: u64,
    /// The version; 0 for all.
    #[n(1)]
    pub version: u64,
}

/// All that the sender knows, in one hash. The answer, if the receiver knows otherwise, is its
/// [`Table`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Digest {
    /// The hash.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub root: [u8; HASH_LEN],
}

/// Which versions of whose names the sender knows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Table {
    /// The receiver shall answer with what it knows better.
    #[n(0)]
    pub answer: bool,
    /// The rows, one after the other.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub rows: Vec<u8>,
}

/// One row of a [`Table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Whose names.
    pub peer: PeerId,
    /// In which of its lives.
    pub incarnation: u64,
    /// Their version.
    pub version: u64,
    /// The first eight bytes of their hash.
    pub sum: u64,
}

/// Most rows of a table.
pub const ROWS_MAX: usize = (MESSAGE_MAX - 16) / ROW_LEN;

impl Table {
    /// The table with these rows, at most [`ROWS_MAX`].
    #[must_use]
    pub fn of(answer: bool, list: &[Row]) -> Self {
        let rows = pack(list.iter().map(|row| (row.peer, [row.incarnation, row.version, row.sum])));
        Self { answer, rows }
    }

    /// The rows.
    pub fn list(&self) -> impl Iterator<Item = Row> + '_ {
        unpack(&self.rows).map(|(peer, [incarnation, version, sum])| Row { peer, incarnation, version, sum })
    }
}

/// A message about names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Names of the sender.
    Entries(Entries),
    /// Asks for names of the receiver.
    Want(Want),
    /// Begins a comparison.
    Digest(Digest),
    /// Goes on with it.
    Table(Table),
}

impl Message {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Entries(entries) => {
                out.push(1);
                put(&mut out, entries);
            }
            Self::Want(want) => {
                out.push(2);
                put(&mut out, want);
            }
            Self::Digest(digest) => {
                out.push(3);
                put(&mut out, digest);
            }
            Self::Table(table) => {
                out.push(4);
                put(&mut out, table);
            }
        }
        out
    }

    /// The message that `bytes` are; none if it is of a type that this version does not know.
    ///
    /// # Errors
    /// If they are malformed or out of bounds.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        bounded("a message about names", bytes.len(), MESSAGE_MAX)?;
        let (&kind, body) = bytes.split_first().ok_or(WireError::Empty)?;
        Ok(Some(match kind {
            1 => Self::Entries(whole("Entries", body)?),
            2 => Self::Want(whole("Want", body)?),
            3 => Self::Digest(whole("Digest", body)?),
            4 => {
                let table: Table = whole("Table", body)?;
                whole_rows("Table", &table.rows)?;
                Self::Table(table)
            }
            _ => return Ok(None),
        }))
    }
}

/// The messages that tell these entries, each within its bound. There is at least one.
#[must_use]
pub fn row_of(version: u64, floor: u64, sum: [u8; HASH_LEN], entries: Vec<Entry>) -> Vec<Message> {
    /// Room for the other fields.
    const ENVELOPE: usize = 64;
    let mut parts: Vec<Vec<Entry>> = vec![Vec::new()];
    let (mut length, mut bytes) = (0, Vec::new());
    for entry in entries {
        bytes.clear();
        put(&mut bytes, &entry);
        if length + bytes.len() > MESSAGE_MAX - ENVELOPE {
            parts.push(Vec::new());
            length = 0;
        }
        length += bytes.len();
        if let Some(part) = parts.last_mut() {
            part.push(entry);
        }
    }
    let last = parts.len() - 1;
    let message = |(at, entries)| {
        let more = at < last;
        Message::Entries(Entries { version, floor: if more { 0 } else { floor }, sum, more, entries })
    };
    parts.into_iter().enumerate().map(message).collect()
}

#[cfg(test)]
mod tests {
    use super::super::services::SERVICES_MAX;
    use super::super::services::tests::service;
    use super::*;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = Entry> {
        let address = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
        let served = proptest::collection::vec((service(), 0..6_usize), 0..4);
        let records = (proptest::collection::vec(address, 0..6), served).prop_map(|(addresses, served)| {
            let at = |(service, at)| Some((service, *addresses.get(at)?));
            let served: Vec<_> = served.into_iter().filter_map(at).collect();
            NameRecords::new(addresses.clone(), served)
        });
        ("[a-z0-9_][a-z0-9_-]{0,19}(\\.[a-z0-9]{1,9}){0,3}", any::<u64>(), records)
            .prop_map(|(name, version, records)| Entry::new(name.parse().unwrap(), version, records))
    }

    /// An entry as it was before there were services.
    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(array)]
    struct EarlierEntry {
        #[n(0)]
        name: Name,
        #[n(1)]
        version: u64,
        #[n(2)]
        addresses: Addresses,
    }

    fn message() -> impl Strategy<Value = Message> {
        let rows = proptest::collection::vec(any::<([u8; 16], u64, u64, u64)>(), 0..5);
        prop_oneof![
            (any::<(u64, u64, bool, [u8; 16])>(), proptest::collection::vec(entry(), 0..8)).prop_map(
                |((version, floor, more, sum), entries)| Message::Entries(Entries {
                    version,
                    floor,
                    sum,
                    more,
                    entries
                })
            ),
            any::<(u64, u64)>().prop_map(|(incarnation, version)| Message::Want(Want { incarnation, version })),
            any::<[u8; 16]>().prop_map(|root| Message::Digest(Digest { root })),
            (any::<bool>(), rows).prop_map(|(answer, rows)| {
                let row = |(peer, incarnation, version, sum)| Row { peer: PeerId(peer), incarnation, version, sum };
                Message::Table(Table::of(answer, &rows.into_iter().map(row).collect::<Vec<_>>()))
            }),
        ]
    }

    #[test]
    fn a_name_is_read_in_small_letters_and_what_is_none_is_refused() {
        let name: Name = "Web-1.Prod_x".parse().unwrap();
        assert_eq!((name.as_str(), name.reversed().as_str()), ("web-1.prod_x", "prod_x.web-1"));
        let long = "a".repeat(64);
        let longer = "a.".repeat(90) + "a";
        for text in ["", ".", "a.", ".a", "a..b", "a b", "ä", "a\nb", "*", "-a", "a.-b", &long, &longer] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_largest_table_and_the_largest_entry_are_within_the_bound() {
        let row = Row { peer: PeerId([255; 16]), incarnation: u64::MAX, version: u64::MAX, sum: u64::MAX };
        let table = Message::Table(Table::of(true, &[row; ROWS_MAX])).encode();
        assert!(Message::decode(&table).is_ok(), "{} bytes", table.len());
        let addresses = Addresses::new((0..ADDRESSES_MAX as u128 * 2).map(|n| IpAddr::from(Ipv6Addr::from(n << 64))));
        assert_eq!(addresses.list().len(), ADDRESSES_MAX);
        let name: Name = "a.".repeat(89).trim_end_matches('.').parse().unwrap();
        let of = |number: usize| format!("longest-name-{number:02}=65535").parse().unwrap();
        let all = addresses.list();
        let served = (0..SERVICES_MAX).flat_map(|number| all.iter().map(move |address| (of(number), *address)));
        let records = NameRecords::new(all.iter().copied(), served);
        assert_eq!(records.services().count(), SERVICES_MAX * ADDRESSES_MAX);
        let entries = vec![Entry::new(name, u64::MAX, records); 5];
        let row = row_of(u64::MAX, u64::MAX, [255; 16], entries);
        assert_eq!(row.len(), 5, "two do not fit into one");
        for message in row {
            assert_eq!(Message::decode(&message.encode()), Ok(Some(message)));
        }
    }

    #[test]
    fn an_unknown_type_is_ignored_and_what_is_out_of_bounds_is_refused() {
        assert_eq!(Message::decode(&[200, 1]), Ok(None));
        assert!(Message::decode(&[]).is_err());
        assert!(Message::decode(&[0; MESSAGE_MAX + 1]).is_err());
        let mut table = Message::Table(Table::of(false, &[])).encode();
        // A row that is cut off.
        *table.last_mut().unwrap() = 0x41;
        table.push(1);
        assert!(Message::decode(&table).is_err());
    }

    proptest! {
        #[test]
        fn who_knows_of_no_services_reads_the_rest_and_is_read(entry in entry()) {
            let Entry { name, version, addresses, .. } = entry.clone();
            let earlier = EarlierEntry { name, version, addresses };
            let bytes = minicbor::to_vec(&entry).unwrap();
            prop_assert_eq!(&minicbor::decode::<EarlierEntry>(&bytes).unwrap(), &earlier);
            let bytes = minicbor::to_vec(&earlier).unwrap();
            let plain = Entry { services: Services::default(), ..entry };
            prop_assert_eq!(&minicbor::to_vec(&plain).unwrap(), &bytes);
            prop_assert_eq!(minicbor::decode::<Entry>(&bytes).unwrap(), plain);
        }

        #[test]
        fn messages_read_back(message in message()) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(Some(message)));
        }

        #[test]
        fn arbitrary_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn a_message_with_one_wrong_byte_is_no_panic(message in message(), at in any::<usize>(), to in any::<u8>()) {
            let mut bytes = message.encode();
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn a_row_tells_everything_once_in_messages_within_the_bound(
            entries in proptest::collection::vec(entry(), 0..400),
        ) {
            let row = row_of(9, 3, [1; 16], entries.clone());
            let mut told = Vec::new();
            for (at, message) in row.iter().enumerate() {
                prop_assert!(message.encode().len() <= MESSAGE_MAX);
                let Message::Entries(part) = message else { panic!("entries") };
                let last = at + 1 == row.len();
                prop_assert_eq!((part.more, part.floor), (!last, if last { 3 } else { 0 }));
                told.extend(part.entries.iter().cloned());
            }
            prop_assert_eq!(told, entries);
        }
    }
}
