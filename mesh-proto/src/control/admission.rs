//! Who is a member: the graph of admissions, seen from this peer.
//!
//! ```text
//!   me ──(SPAKE2)── sponsor ──── admitted ──── …      edge = admission in the record of the admitted
//!    └─────────────── hang together with me: members ─┘
//! ```
//!
//! Each peer is its own root (control C27). An edge is taken only where it hangs on what is trusted
//! already, so nobody outside can fill this. Wall-clock time decides which edges are valid (control
//! C29); whether keys were revoked does not depend on it (control C30).

use core::ops::Range;
use std::collections::{BTreeMap, BTreeSet};

use super::limits::{ADMISSION_LIFE, ADMISSION_SKEW, EDGES_MAX};
use super::record::SignedRecord;
use super::revocation::Revoked;
use super::{Identity, crypto};
use crate::id::PeerId;
use crate::wire::trust::{ADMISSIONS_MAX, Admission, Edge, Revocation};

/// First byte of the key of an edge in the data directory.
const KEY_EDGE: u8 = b'a';
/// First byte of the key of a revocation.
const KEY_REVOKED: u8 = b'r';

/// An entry for the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Option<Vec<u8>>,
}

/// What this peer knows of who is a member.
#[derive(Debug)]
pub(crate) struct Trust {
    me: PeerId,
    network: String,
    /// By the admitted peer and its sponsor.
    edges: BTreeMap<(PeerId, PeerId), Edge>,
    revoked: Revoked,
    /// Admissions were passed over that hang on nothing known so far.
    loose: bool,
    view: View,
    kept: Vec<Kept>,
}

/// What follows from the edges at some time.
#[derive(Debug, Default)]
struct View {
    /// Whose keys are trusted.
    members: BTreeSet<PeerId>,
    /// Their sign keys.
    keys: BTreeSet<[u8; 32]>,
    /// Who ever was a member, whatever became of it.
    ever: BTreeSet<PeerId>,
    /// The times for which this holds; empty if it must be made anew.
    holds: Range<u64>,
}

/// What a sponsor signs (control C26).
pub(crate) fn admission_text(
    network: &str,
    admitted: &PeerId,
    instance: u64,
    sponsor: &PeerId,
    not_after: u64,
) -> [u8; 32] {
    let numbers = (instance.to_be_bytes(), not_after.to_be_bytes());
    crypto::hash(&[b"weft admission 1", network.as_bytes(), &admitted.0, &numbers.0, &sponsor.0, &numbers.1])
}

/// Times from which on and until which an admission is valid (control C29).
fn validity(not_after: u64) -> Range<u64> {
    not_after.saturating_sub((ADMISSION_LIFE + ADMISSION_SKEW).as_secs())..not_after
}

impl Trust {
    /// Knows what the data directory kept. Entries of another network, and those that cannot be
    /// read, are dropped from it.
    pub(crate) fn new(me: PeerId, network: &str, kept: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        let mut trust = Self {
            me,
            network: network.to_owned(),
            edges: BTreeMap::new(),
            revoked: Revoked::default(),
            loose: false,
            view: View::default(),
            kept: Vec::new(),
        };
        for (key, value) in kept {
            if !trust.recall(&key, &value) {
                trust.kept.push(Kept { key, value: None });
            }
        }
        trust
    }

    fn recall(&mut self, key: &[u8], value: &[u8]) -> bool {
        match key.first() {
            Some(&KEY_EDGE) => {
                let Ok(edge) = Edge::decode(value) else { return false };
                let fits = edge.network == self.network && self.edges.len() < EDGES_MAX;
                if fits {
                    self.edges.insert((edge.admitted(), edge.admission.sponsor()), edge);
                }
                fits
            }
            Some(&KEY_REVOKED) => match Revocation::decode(value) {
                Ok(revocation) => revocation.network == self.network && self.revoked.insert(revocation),
                Err(_) => false,
            },
            _ => false,
        }
    }

    /// Takes what is to be written to the data directory, in this order.
    pub(crate) fn take_kept(&mut self) -> Vec<Kept> {
        core::mem::take(&mut self.kept)
    }

    fn keep(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.kept.push(Kept { key, value });
        self.view.holds = 0..0;
    }

    /// Whether that TLS key is a member's.
    pub(crate) fn knows(&mut self, sign_key: &[u8; 32], wall: u64) -> bool {
        self.look(wall).keys.contains(sign_key)
    }

    /// Whether that peer is a member.
    pub(crate) fn is_member(&mut self, peer: &PeerId, wall: u64) -> bool {
        self.look(wall).members.contains(peer)
    }

    /// Takes the admissions in a record whose signature was checked, as far as they hang on what is
    /// known; true if there were any that were news.
    pub(crate) fn learn(&mut self, record: &SignedRecord, identity: &impl Identity, wall: u64) -> bool {
        let body = &record.body;
        let mut news = false;
        for admission in &body.admissions {
            let sponsor = admission.sponsor();
            let (me, ever) = (self.me, &self.look(wall).ever);
            let hangs = [record.id, sponsor].iter().any(|end| *end == me || ever.contains(end));
            let edge = || Edge {
                network: self.network.clone(),
                sign_key: body.sign_key,
                box_key: body.box_key,
                instance: body.instance,
                admission: admission.clone(),
            };
            if admission.not_after <= wall {
                continue;
            }
            self.loose |= !hangs;
            if hangs && self.is_better(&record.id, admission, wall) {
                news |= self.take(edge(), identity, wall);
            }
        }
        news
    }

    /// Whether something was passed over since this was asked last, so that it is worth while to
    /// look at all records again after news.
    pub(crate) fn take_loose(&mut self) -> bool {
        core::mem::take(&mut self.loose)
    }

    /// Whether an admission is worth more than the one that is held between the same two.
    fn is_better(&self, admitted: &PeerId, admission: &Admission, wall: u64) -> bool {
        let worth = |not_after| (validity(not_after).contains(&wall), not_after);
        let held = self.edges.get(&(*admitted, admission.sponsor()));
        held.is_none_or(|held| worth(held.admission.not_after) < worth(admission.not_after))
    }

    /// Takes an edge if its sponsor has signed it and there is room.
    fn take(&mut self, edge: Edge, identity: &impl Identity, wall: u64) -> bool {
        let (admitted, sponsor) = (edge.admitted(), edge.admission.sponsor());
        let Admission { sign_key, not_after, signature, .. } = &edge.admission;
        let text = admission_text(&self.network, &admitted, edge.instance, &sponsor, *not_after);
        let fine = admitted != sponsor
            && identity.verify(sign_key, &text, signature)
            && (self.edges.contains_key(&(admitted, sponsor)) || self.has_room(wall));
        if fine {
            let value = edge.encode();
            self.edges.insert((admitted, sponsor), edge);
            self.keep(edge_key(&admitted, &sponsor), Some(value));
        }
        fine
    }

    /// Whether there is room for one more edge; what has ended makes some.
    fn has_room(&mut self, wall: u64) -> bool {
        if self.edges.len() >= EDGES_MAX {
            let over = self.edges.iter().filter(|(_, edge)| edge.admission.not_after <= wall);
            for (admitted, sponsor) in over.map(|(ends, _)| *ends).collect::<Vec<_>>() {
                self.edges.remove(&(admitted, sponsor));
                self.keep(edge_key(&admitted, &sponsor), None);
            }
        }
        self.edges.len() < EDGES_MAX
    }

    /// A sponsor has admitted us; the caller has checked that it may. True if that is news.
    pub(crate) fn admitted(&mut self, edge: Edge, identity: &impl Identity, wall: u64) -> bool {
        edge.admitted() == self.me && self.is_better(&self.me, &edge.admission, wall) && self.take(edge, identity, wall)
    }

    /// What our own record carries.
    pub(crate) fn own(&self, wall: u64) -> Vec<Admission> {
        let ours = self.edges.range((self.me, PeerId([0; 16]))..=(self.me, PeerId([0xff; 16])));
        let counts = ours.filter(|(ends, edge)| self.counts(ends, edge, wall));
        counts.map(|(_, edge)| edge.admission.clone()).take(ADMISSIONS_MAX).collect()
    }

    /// Whether that sponsor has admitted us before.
    pub(crate) fn is_sponsor(&self, sponsor: &PeerId) -> bool {
        self.edges.contains_key(&(self.me, *sponsor))
    }

    /// Whether we have admitted that peer, and it is time to do so again.
    pub(crate) fn renewal_due(&self, admitted: &PeerId, wall: u64) -> bool {
        self.edges.get(&(*admitted, self.me)).is_some_and(|edge| {
            let not_after = edge.admission.not_after;
            let young = wall.saturating_add(ADMISSION_LIFE.as_secs() / 2) < not_after;
            !young || !validity(not_after).contains(&wall)
        })
    }

    // ---- revocation ---------------------------------------------------------------------------

    /// Who is revoked.
    pub(crate) const fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// Takes a revocation whose signer is known; true if it is news.
    pub(crate) fn revoke(&mut self, revocation: Revocation, identity: &impl Identity, wall: u64) -> bool {
        let (peer, signer) = (revocation.peer, revocation.signer());
        let known = signer == self.me || self.look(wall).ever.contains(&signer);
        let news =
            known && revocation.network == self.network && !self.revoked.has(&peer) && revocation.is_signed(identity);
        if !news {
            return false;
        }
        let value = revocation.encode();
        if !self.revoked.insert(revocation) {
            return false;
        }
        self.keep([&[KEY_REVOKED], &peer.0[..]].concat(), Some(value));
        true
    }

    // ---- view ---------------------------------------------------------------------------------

    fn look(&mut self, wall: u64) -> &View {
        if !self.view.holds.contains(&wall) {
            self.view = self.compute(wall);
        }
        &self.view
    }

    fn compute(&self, wall: u64) -> View {
        let mut holds = 0..u64::MAX;
        for edge in self.edges.values() {
            let valid = validity(edge.admission.not_after);
            for turn in [valid.start, valid.end] {
                if turn <= wall {
                    holds.start = holds.start.max(turn);
                } else {
                    holds.end = holds.end.min(turn);
                }
            }
        }
        let (members, keys) = self.hang_together(|ends, edge| self.counts(ends, edge, wall));
        let (ever, _) = self.hang_together(|_, _| true);
        View { members, keys, ever, holds }
    }

    fn counts(&self, (admitted, sponsor): &(PeerId, PeerId), edge: &Edge, wall: u64) -> bool {
        validity(edge.admission.not_after).contains(&wall) && !self.revoked.has(admitted) && !self.revoked.has(sponsor)
    }

    /// Everybody who hangs together with us by edges that count, and their sign keys.
    fn hang_together(
        &self,
        counts: impl Fn(&(PeerId, PeerId), &Edge) -> bool,
    ) -> (BTreeSet<PeerId>, BTreeSet<[u8; 32]>) {
        let mut next: BTreeMap<PeerId, Vec<(PeerId, [u8; 32])>> = BTreeMap::new();
        for (ends, edge) in self.edges.iter().filter(|(ends, edge)| counts(ends, edge)) {
            let (admitted, sponsor) = *ends;
            next.entry(admitted).or_default().push((sponsor, edge.admission.sign_key));
            next.entry(sponsor).or_default().push((admitted, edge.sign_key));
        }
        let (mut found, mut keys) = (BTreeSet::new(), BTreeSet::new());
        let mut todo = vec![self.me];
        while let Some(at) = todo.pop() {
            for (peer, key) in next.remove(&at).unwrap_or_default() {
                if peer != self.me && found.insert(peer) {
                    keys.insert(key);
                    todo.push(peer);
                }
            }
        }
        (found, keys)
    }
}

fn edge_key(admitted: &PeerId, sponsor: &PeerId) -> Vec<u8> {
    [&[KEY_EDGE], &admitted.0[..], &sponsor.0].concat()
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{Cheap, id};
    use super::*;
    use crate::wire::gossip::RecordBody;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;
    const LIFE: u64 = ADMISSION_LIFE.as_secs();

    fn admission(admitted: u8, sponsor: u8, not_after: u64) -> Admission {
        let text = admission_text("net", &id(admitted), 1, &id(sponsor), not_after);
        let signature = Cheap(sponsor).sign(&text);
        Admission { sign_key: [sponsor; 32], box_key: [sponsor; 32], not_after, signature }
    }

    /// The record of a peer that carries these admissions.
    fn record(origin: u8, admissions: Vec<Admission>) -> SignedRecord {
        let body = RecordBody {
            sign_key: [origin; 32],
            box_key: [origin; 32],
            instance: 1,
            incarnation: 1,
            seq: 1,
            name: String::new(),
            endpoints: vec![],
            links: vec![],
            run: [1; 16],
            admissions,
        };
        SignedRecord::sign(body, &Cheap(origin))
    }

    fn by(admitted: u8, sponsor: u8) -> SignedRecord {
        record(admitted, vec![admission(admitted, sponsor, NOW + LIFE)])
    }

    fn trust(me: u8) -> Trust {
        Trust::new(id(me), "net", Vec::new())
    }

    /// Learns until nothing is news, as the node does.
    fn learn(trust: &mut Trust, records: &[SignedRecord]) {
        while records.iter().fold(false, |news, record| trust.learn(record, &Cheap(0), NOW) | news) {}
    }

    fn members(trust: &mut Trust, wall: u64) -> Vec<u8> {
        (0..20).filter(|n| trust.is_member(&id(*n), wall)).collect()
    }

    fn revoke(trust: &mut Trust, peer: u8, signer: u8) -> bool {
        trust.revoke(Revocation::sign("net", id(peer), "", NOW, &Cheap(signer)), &Cheap(0), NOW)
    }

    #[test]
    fn an_edge_is_trusted_from_both_ends_and_through_others() {
        // 2 was admitted by 1, 3 by 2, and 3 has admitted 4.
        let records = [by(4, 3), by(3, 2), by(2, 1)];
        for me in 1..=4 {
            let mut trust = trust(me);
            learn(&mut trust, &records);
            let others: Vec<u8> = (1..=4).filter(|n| *n != me).collect();
            assert_eq!(members(&mut trust, NOW), others, "as {me} sees it");
            assert!(others.iter().all(|n| trust.knows(&[*n; 32], NOW)) && !trust.knows(&[me; 32], NOW));
        }
        let mut stranger = trust(9);
        learn(&mut stranger, &records);
        assert_eq!(members(&mut stranger, NOW), [0; 0]);
        assert!(stranger.take_kept().is_empty(), "what hangs on nothing is not kept");
    }

    #[test]
    fn a_wrong_signature_another_network_and_another_instance_make_no_edge() {
        let mut forged = admission(2, 1, NOW + LIFE);
        forged.not_after += 1;
        let mut elsewhere = admission(2, 1, NOW + LIFE);
        elsewhere.signature = Cheap(1).sign(&admission_text("other", &id(2), 1, &id(1), NOW + LIFE));
        let mut instance = admission(2, 1, NOW + LIFE);
        instance.signature = Cheap(1).sign(&admission_text("net", &id(2), 9, &id(1), NOW + LIFE));
        let not_mine = admission(3, 1, NOW + LIFE);
        for wrong in [forged, elsewhere, instance, not_mine] {
            let mut trust = trust(1);
            learn(&mut trust, &[record(2, vec![wrong])]);
            assert_eq!(members(&mut trust, NOW), [0; 0]);
        }
    }

    #[test]
    fn an_admission_ends_and_a_wrong_clock_makes_it_end_sooner() {
        let mut trust = trust(1);
        learn(&mut trust, &[by(2, 1)]);
        for (wall, valid) in [
            (NOW, true),
            (NOW + LIFE - 1, true),
            (NOW + LIFE, false),
            (u64::MAX, false),
            (NOW - ADMISSION_SKEW.as_secs(), true),
            (NOW - ADMISSION_SKEW.as_secs() - 1, false),
            (0, false),
            (NOW, true),
        ] {
            assert_eq!(trust.is_member(&id(2), wall), valid, "{wall}");
        }
    }

    #[test]
    fn a_sponsor_signs_anew_in_the_second_half_and_the_newer_one_holds() {
        let mut trust = trust(1);
        learn(&mut trust, &[by(2, 1)]);
        for (wall, due) in [(NOW, false), (NOW + LIFE / 2, true), (NOW + 2 * LIFE, true), (0, true)] {
            assert_eq!(trust.renewal_due(&id(2), wall), due, "{wall}");
        }
        assert!(!trust.renewal_due(&id(3), NOW));
        let later = NOW + LIFE / 2;
        let renewed = record(2, vec![admission(2, 1, later + LIFE)]);
        assert!(trust.learn(&renewed, &Cheap(0), later));
        assert!(!trust.learn(&by(2, 1), &Cheap(0), later), "the older one is no news");
        assert!(trust.is_member(&id(2), NOW + LIFE + 1));
        // What a sponsor signed while its clock was far ahead does not stand in the way for ever.
        let absurd = record(2, vec![admission(2, 1, u64::MAX)]);
        assert!(!trust.learn(&absurd, &Cheap(0), later));
    }

    #[test]
    fn who_is_revoked_is_out_with_all_that_hung_on_it() {
        let mut trust = trust(1);
        // 3 hangs on 2 alone, 4 on 1 too.
        let four = record(4, vec![admission(4, 2, NOW + LIFE), admission(4, 1, NOW + LIFE)]);
        learn(&mut trust, &[by(2, 1), by(3, 2), four]);
        assert_eq!(members(&mut trust, NOW), [2, 3, 4]);
        assert!(revoke(&mut trust, 2, 3));
        assert_eq!(members(&mut trust, NOW), [4]);
        assert!(!revoke(&mut trust, 2, 1), "once is enough");
        assert!(!trust.knows(&[2; 32], NOW) && trust.revoked().has(&id(2)));
        // Who was a member when it was revoked may still have revoked others: both hold.
        assert!(revoke(&mut trust, 3, 2));
        assert!(!revoke(&mut trust, 4, 9), "a stranger revokes nobody");
        assert_eq!(members(&mut trust, NOW), [4]);
        // A clock that jumps brings nobody back.
        for wall in [0, NOW + LIFE / 2, u64::MAX, NOW] {
            assert!(!trust.is_member(&id(2), wall) && !trust.is_member(&id(3), wall));
        }
    }

    #[test]
    fn what_was_kept_is_known_again_in_the_same_network_only() {
        let mut before = trust(1);
        learn(&mut before, &[by(2, 1), by(3, 2)]);
        assert!(revoke(&mut before, 3, 2));
        let kept: Vec<_> = before.take_kept().into_iter().map(|kept| (kept.key, kept.value.unwrap())).collect();
        let mut after = Trust::new(id(1), "net", kept.clone());
        assert_eq!(members(&mut after, NOW), [2]);
        assert!(after.revoked().has(&id(3)) && after.take_kept().is_empty());
        let garbage = [(vec![], vec![1]), (b"a".to_vec(), vec![0xff; 9]), (b"r".to_vec(), vec![])];
        let mut other = Trust::new(id(1), "other", kept.into_iter().chain(garbage).collect());
        assert_eq!(members(&mut other, NOW), [0; 0]);
        assert!(!other.revoked().has(&id(3)));
        assert_eq!(other.take_kept().len(), 6, "what is of no use is deleted");
    }

    #[test]
    fn our_own_record_carries_what_sponsors_signed_for_us() {
        let mut trust = trust(1);
        for sponsor in 2..=14 {
            let edge = Edge {
                network: "net".into(),
                sign_key: [1; 32],
                box_key: [1; 32],
                instance: 1,
                admission: admission(1, sponsor, NOW + LIFE),
            };
            assert!(trust.admitted(edge.clone(), &Cheap(0), NOW));
            assert!(!trust.admitted(edge, &Cheap(0), NOW), "once is enough");
        }
        let own = trust.own(NOW);
        assert_eq!(own.len(), ADMISSIONS_MAX);
        assert!(trust.is_sponsor(&own[0].sponsor()));
        let gone = own[0].sponsor();
        let revocation = Revocation::sign("net", gone, "", NOW, &Cheap(1));
        assert!(trust.revoke(revocation, &Cheap(0), NOW));
        assert!(!trust.own(NOW).iter().any(|admission| admission.sponsor() == gone));
        assert!(trust.own(NOW + LIFE).is_empty());
    }

    proptest! {
        /// However the records and revocations come, all come to the same members: those that hang
        /// together with us when the revoked are taken away.
        #[test]
        fn the_order_of_news_does_not_matter(
            pairs in proptest::collection::vec((1..10u8, 1..10u8), 0..16),
            revoked in proptest::collection::btree_set(2..10u8, 0..3), turn in any::<usize>(),
        ) {
            let mut records: Vec<_> = pairs.iter().filter(|(a, b)| a != b).map(|(a, b)| by(*a, *b)).collect();
            let mut first = trust(1);
            learn(&mut first, &records);
            revoked.iter().for_each(|peer| assert!(revoke(&mut first, *peer, 1)));
            let turn = turn % records.len().max(1);
            records.rotate_left(turn);
            let mut second = trust(1);
            revoked.iter().rev().for_each(|peer| assert!(revoke(&mut second, *peer, 1)));
            learn(&mut second, &records);
            let seen = members(&mut first, NOW);
            prop_assert_eq!(&members(&mut second, NOW), &seen);
            prop_assert_eq!(first.revoked().hash(), second.revoked().hash());
            // The reference: grow the set by one pair after the other.
            let mut reach = BTreeSet::from([1]);
            for _ in 0..pairs.len() {
                for (a, b) in pairs.iter().filter(|(a, b)| !revoked.contains(a) && !revoked.contains(b)) {
                    if reach.contains(a) || reach.contains(b) {
                        reach.extend([*a, *b]);
                    }
                }
            }
            reach.remove(&1);
            prop_assert_eq!(seen, reach.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn no_clock_brings_anybody_in_who_is_revoked_or_was_never_admitted(
            walls in proptest::collection::vec(any::<u64>(), 1..8),
        ) {
            let mut trust = trust(1);
            learn(&mut trust, &[by(2, 1), by(3, 1), by(5, 4)]);
            assert!(revoke(&mut trust, 3, 1));
            for wall in walls {
                let seen = members(&mut trust, wall);
                prop_assert!(seen.is_empty() || seen == [2], "{seen:?} at {wall}");
                trust.learn(&by(5, 4), &Cheap(0), wall);
                _ = (trust.own(wall), trust.renewal_due(&id(2), wall));
            }
        }

        #[test]
        fn arbitrary_entries_of_the_data_directory_never_panic(
            kept in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..40),
                proptest::collection::vec(any::<u8>(), 0..300)), 0..4),
        ) {
            let mut trust = Trust::new(id(1), "net", kept);
            prop_assert!(members(&mut trust, NOW).is_empty());
        }
    }
}
