//! The generations of keys that are shared with one peer.
//!
//! ```text
//!   initiator:   new keys ─► current ─► kept          current seals and opens,
//!   other end:   new keys ─► kept ─(first datagram opened)─► current ─► kept      kept opens
//! ```
//!
//! Neither end sends under a key before the other can open it, and each still opens what was
//! sent under the keys before: a change of keys loses no frame, also if two changes cross
//! (sleeve S7).

use core::time::Duration;

use super::cipher::{Keys, Policy, tag_len};
use super::limits::{
    ASK_AGAIN, CONFIRM_EVERY, CONFIRM_TRIES, GENERATIONS_KEPT, KEPT_FOR, REKEY_AFTER, REKEY_DATAGRAMS, REKEY_GRACE,
};
use super::window::{ReplayWindow, Seen};
use crate::handover::{SessionKeys, Suite};
use crate::id::Incarnation;
use crate::wire::datagram::SleeveHeader;

/// One generation.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) keys: Keys,
    pub(crate) suite: Suite,
    pub(crate) incarnation: Incarnation,
    pub(crate) installed: Duration,
    pub(crate) received: u64,
    local_index: u32,
    window: ReplayWindow,
    rekey_at: Duration,
    asked_at: Option<Duration>,
    /// When something was first opened under it: the other end has it and uses it.
    confirmed: Option<Duration>,
    /// The other end proposed it and has not been heard under it: the first datagram makes it
    /// current.
    waiting: bool,
    /// When it was installed, left, or something was last opened under it.
    touched: Duration,
}

impl Session {
    /// Bytes that its seal adds.
    pub(crate) const fn tag_len(&self) -> usize {
        tag_len(self.suite)
    }

    /// When it ends, if the other end has used the one that replaced it since `confirmed`. One
    /// that the other end has not been heard under waits for as long as there is room.
    fn ends(&self, confirmed: Duration) -> Option<Duration> {
        (!self.waiting).then(|| self.touched.max(confirmed) + KEPT_FOR)
    }

    /// Whether to ask for new keys now: by age or use, and not again at once (sleeve S7).
    pub(crate) fn ask_rekey(&mut self, now: Duration) -> bool {
        let due = now >= self.rekey_at || self.keys.seal.used() >= REKEY_DATAGRAMS;
        if !due || self.asked_at.is_some_and(|at| now < at + ASK_AGAIN) {
            return false;
        }
        self.asked_at = Some(now);
        true
    }
}

/// Why a datagram is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// No generation has that index.
    Unknown,
    /// The seal is not that of the key.
    Seal,
    /// It was here before.
    Replayed,
}

/// What opening a datagram told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened {
    /// No later one of the same key came before it.
    pub(crate) newest: bool,
    /// The key was waiting for this: we may send under it now.
    pub(crate) may_send: bool,
    /// Incarnation that the other end has under this key.
    pub(crate) incarnation: Incarnation,
    /// The index of a generation that ended.
    pub(crate) ended: Option<u32>,
}

/// Why keys were not installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// They belong to an earlier life of the peer, or are there already. A key that would be
    /// installed twice would count from zero twice.
    Stale,
    /// No protection, in a network with a secret.
    Unsealed,
}

/// All generations with one peer.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    current: Option<Box<Session>>,
    /// Only for receiving: those that were in use before, and those of which the other end has
    /// not been heard yet.
    kept: [Option<Box<Session>>; GENERATIONS_KEPT],
    confirm_at: Option<Duration>,
    confirm_tries: u32,
}

/// Indices of generations that ended: all of them at the most.
pub(crate) type Ended = [Option<u32>; GENERATIONS_KEPT + 1];

impl Sessions {
    /// Takes new keys. Gives the indices of generations that ended.
    pub(crate) fn install(
        &mut self,
        keys: &SessionKeys,
        policy: Policy,
        jitter: Duration,
        now: Duration,
    ) -> Result<Ended, Refused> {
        let known = self.all().map(|s| s.incarnation).max();
        let same = |s: &Session| s.local_index == keys.local_index;
        if known.is_some_and(|known| keys.incarnation < known) || self.all().any(same) {
            return Err(Refused::Stale);
        }
        let session = Session {
            keys: Keys::new(keys, policy).ok_or(Refused::Unsealed)?,
            suite: keys.suite,
            incarnation: keys.incarnation,
            installed: now,
            received: 0,
            local_index: keys.local_index,
            window: ReplayWindow::default(),
            rekey_at: now + REKEY_AFTER + jitter + if keys.initiator { Duration::ZERO } else { REKEY_GRACE },
            asked_at: None,
            confirmed: None,
            waiting: !keys.initiator,
            touched: now,
        };
        let mut ended = Ended::default();
        if known.is_some_and(|known| keys.incarnation > known) {
            ended = self.end();
        }
        let mut keep = Some(Box::new(session));
        if keys.initiator {
            keep = core::mem::replace(&mut self.current, keep);
            self.confirm_at = Some(now);
            self.confirm_tries = 0;
        }
        if let Some(session) = keep
            && let Some(pushed_out) = self.keep(session, now)
        {
            ended[0] = Some(pushed_out);
        }
        Ok(ended)
    }

    /// Ends every generation; gives their indices.
    pub(crate) fn end(&mut self) -> Ended {
        let mut ended = Ended::default();
        for (to, session) in ended.iter_mut().zip(self.all()) {
            *to = Some(session.local_index);
        }
        *self = Self::default();
        ended
    }

    /// The generation to send under.
    pub(crate) fn sender(&mut self) -> Option<&mut Session> {
        self.current.as_deref_mut()
    }

    /// The generation to tell of: the one in use, else one that waits.
    pub(crate) fn shown(&self) -> Option<&Session> {
        self.all().next()
    }

    /// Datagrams sealed and opened under the generations that live.
    pub(crate) fn count(&self) -> (u64, u64) {
        self.all().fold((0, 0), |(tx, rx), s| (tx + s.keys.seal.used(), rx + s.received))
    }

    /// Opens a datagram in place: seal first, then replay window (sleeve S6).
    pub(crate) fn open<'a>(
        &mut self,
        header: &SleeveHeader,
        sealed: &'a mut [u8],
        now: Duration,
    ) -> Result<(&'a mut [u8], Opened), OpenError> {
        let of = |s: &&mut Box<Session>| s.local_index == header.receiver;
        let found = self.current.iter_mut().chain(self.kept.iter_mut().flatten()).find(of);
        let session = found.ok_or(OpenError::Unknown)?;
        let records = session.keys.open.open(header, sealed).ok_or(OpenError::Seal)?;
        let seen = session.window.see(header.counter);
        if !seen.fresh() {
            return Err(OpenError::Replayed);
        }
        session.received += 1;
        session.touched = now;
        let incarnation = session.incarnation;
        let (may_send, ended) = self.promote(header.receiver, now);
        let opened = Opened { newest: seen == Seen::Newest, may_send, incarnation, ended };
        Ok((records, opened))
    }

    /// The peer was out of reach: it may have forgotten us and our keys (sleeve S33).
    pub(crate) fn confirm_again(&mut self, now: Duration) {
        if self.current.is_some() {
            (self.confirm_at, self.confirm_tries) = (Some(now), 0);
        }
    }

    /// Whether to tell the other end now that we use these keys.
    pub(crate) fn confirm_due(&mut self, now: Duration) -> bool {
        if self.confirm_at.is_none_or(|at| now < at) {
            return false;
        }
        self.confirm_tries += 1;
        let wait = if self.confirm_tries < CONFIRM_TRIES { CONFIRM_EVERY } else { ASK_AGAIN };
        self.confirm_at = Some(now + wait);
        true
    }

    /// Ends one old generation whose time has come; gives its index.
    pub(crate) fn expire(&mut self, now: Duration) -> Option<u32> {
        let confirmed = self.current.as_ref()?.confirmed?;
        let over = |s: &Session| s.ends(confirmed).is_some_and(|at| now >= at);
        let ended = self.kept.iter_mut().find(|s| s.as_deref().is_some_and(over))?.take();
        ended.map(|s| s.local_index)
    }

    /// When something is to be done next, and what.
    pub(crate) fn due(&self) -> Option<(Duration, &'static str)> {
        let confirm = self.confirm_at.map(|at| (at, "session confirmation"));
        let confirmed = self.current.as_ref().and_then(|s| s.confirmed);
        let ends = confirmed.and_then(|at| self.kept.iter().flatten().filter_map(|s| s.ends(at)).min());
        let expire = ends.map(|at| (at, "end of old keys"));
        match (confirm, expire) {
            (Some(a), Some(b)) => Some(if a.0 <= b.0 { a } else { b }),
            (a, b) => a.or(b),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Session> {
        self.current.iter().chain(self.kept.iter().flatten()).map(|s| &**s)
    }

    /// After something was opened under that index: makes a generation that waited current.
    fn promote(&mut self, index: u32, now: Duration) -> (bool, Option<u32>) {
        let mut ended = None;
        let waits = |s: &Session| s.local_index == index && s.waiting;
        let waiting = self.kept.iter_mut().find(|s| s.as_deref().is_some_and(waits));
        let next = waiting.and_then(Option::take);
        let may_send = next.is_some();
        if may_send && let Some(old) = core::mem::replace(&mut self.current, next) {
            ended = self.keep(old, now);
        }
        if let Some(current) = self.current.as_mut().filter(|s| s.local_index == index) {
            if current.confirmed.is_none() {
                (current.confirmed, current.waiting) = (Some(now), false);
            }
            self.confirm_at = None;
        }
        (may_send, ended)
    }

    /// Keeps a generation for receiving. Gives the index of the one that gave way to it: the one
    /// that has not been heard of for the longest time.
    fn keep(&mut self, mut session: Box<Session>, now: Duration) -> Option<u32> {
        session.touched = now;
        let place = self.kept.iter_mut().min_by_key(|s| s.as_ref().map(|s| s.touched))?;
        place.replace(session).map(|s| s.local_index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::cipher::records_at;
    use crate::handover::SessionKey;
    use crate::id::PeerId;
    use crate::wire::datagram::{Datagram, SLEEVE_HEADER, TAG};
    use zeroize::Zeroizing;

    const NOW: Duration = Duration::from_secs(9);

    /// The two halves of generation `n`: the proposer's and the other's.
    fn pair(n: u8, life: u64) -> [SessionKeys; 2] {
        let key = |k: u8| SessionKey(Zeroizing::new([n.wrapping_mul(2).wrapping_add(k); 32]));
        [true, false].map(|initiator| SessionKeys {
            peer: PeerId([1; 16]),
            incarnation: Incarnation(life),
            suite: Suite::Aes256Gcm,
            local_index: u32::from(n) * 2 + u32::from(initiator),
            remote_index: u32::from(n) * 2 + u32::from(!initiator),
            send: key(initiator.into()),
            receive: key((!initiator).into()),
            initiator,
        })
    }

    fn install(sessions: &mut Sessions, keys: &SessionKeys) -> Result<Ended, Refused> {
        sessions.install(keys, Policy::Sealed, Duration::ZERO, NOW)
    }

    fn send(from: &mut Sessions) -> Option<Vec<u8>> {
        let mut buffer = vec![0; records_at(false) + 4 + TAG];
        let session = from.sender()?;
        session.keys.seal.seal(&mut buffer, 4, None)?;
        Some(buffer)
    }

    fn receive(to: &mut Sessions, datagram: &[u8]) -> Result<Opened, OpenError> {
        let Ok(Datagram::Sleeve(header)) = Datagram::parse(datagram) else {
            panic!("not sleeve");
        };
        let mut body = datagram[SLEEVE_HEADER..].to_vec();
        to.open(&header, &mut body, NOW).map(|(_, opened)| opened)
    }

    #[test]
    fn the_proposer_sends_first_and_the_other_after_it_heard() {
        let (mut a, mut b) = (Sessions::default(), Sessions::default());
        let [for_a, for_b] = pair(1, 1);
        install(&mut b, &for_b).unwrap();
        assert!(send(&mut b).is_none());
        install(&mut a, &for_a).unwrap();
        let first = send(&mut a).unwrap();
        assert!(receive(&mut b, &first).unwrap().may_send);
        assert_eq!(receive(&mut b, &first), Err(OpenError::Replayed));
        let second = send(&mut a).unwrap();
        assert!(!receive(&mut b, &second).unwrap().may_send);
        let answer = send(&mut b).unwrap();
        assert!(receive(&mut a, &answer).unwrap().newest);
    }

    #[test]
    fn a_change_of_keys_loses_nothing_that_is_under_way() {
        let (mut a, mut b) = (Sessions::default(), Sessions::default());
        for n in 1..20 {
            let under_way = (send(&mut a), send(&mut b));
            let [for_a, for_b] = pair(n, 1);
            // Proposals alternate.
            let (first, second) = if n % 2 == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
            install(second, &for_b).unwrap();
            install(first, &for_a).unwrap();
            let (from_a, from_b) = (send(&mut a), send(&mut b));
            for datagram in under_way.0.iter().chain(&from_a) {
                assert!(receive(&mut b, datagram).is_ok(), "generation {n}");
            }
            for datagram in under_way.1.iter().chain(&from_b) {
                assert!(receive(&mut a, datagram).is_ok(), "generation {n}");
            }
        }
    }

    #[test]
    fn the_order_in_which_two_changes_cross_does_not_matter() {
        let orders = [[1, 2], [2, 1]];
        for (order_a, order_b) in orders.into_iter().flat_map(|a| orders.map(|b| (a, b))) {
            let (mut a, mut b) = (Sessions::default(), Sessions::default());
            install(&mut b, &pair(9, 1)[1]).unwrap();
            install(&mut a, &pair(9, 1)[0]).unwrap();
            receive(&mut b, &send(&mut a).unwrap()).unwrap();
            // All proposals are the one end's; what it sends in between is under way.
            for n in order_b {
                install(&mut b, &pair(n, 1)[1]).unwrap();
            }
            let sent = order_a.map(|n| {
                install(&mut a, &pair(n, 1)[0]).unwrap();
                send(&mut a).unwrap()
            });
            for n in [0, 1, 1, 0] {
                let _ = receive(&mut b, &sent[n]);
                assert!(receive(&mut a, &send(&mut b).unwrap()).is_ok(), "{order_a:?} {order_b:?}");
                assert!(receive(&mut b, &send(&mut a).unwrap()).is_ok(), "{order_a:?} {order_b:?}");
            }
        }
    }

    #[test]
    fn keys_that_the_other_end_still_uses_do_not_end() {
        let (mut a, mut b) = (Sessions::default(), Sessions::default());
        for n in 1..3 {
            install(&mut b, &pair(n, 1)[1]).unwrap();
            install(&mut a, &pair(n, 1)[0]).unwrap();
        }
        let old = send(&mut b);
        assert!(old.is_none());
        receive(&mut b, &send(&mut a).unwrap()).unwrap();
        receive(&mut a, &send(&mut b).unwrap()).unwrap();
        // Proposed by the other end, and never heard of: it waits.
        install(&mut a, &pair(7, 1)[1]).unwrap();
        assert_eq!(a.expire(NOW + KEPT_FOR), Some(3));
        assert_eq!(a.expire(NOW + KEPT_FOR * 100), None);
    }

    #[test]
    fn the_same_keys_are_not_installed_twice() {
        let mut a = Sessions::default();
        let [keys, _] = pair(1, 1);
        install(&mut a, &keys).unwrap();
        assert_eq!(install(&mut a, &keys), Err(Refused::Stale));
    }

    #[test]
    fn a_later_life_ends_all_of_the_earlier_and_never_the_other_way_round() {
        let mut a = Sessions::default();
        install(&mut a, &pair(1, 1)[0]).unwrap();
        install(&mut a, &pair(2, 1)[0]).unwrap();
        install(&mut a, &pair(3, 1)[1]).unwrap();
        let ended = install(&mut a, &pair(4, 2)[0]).unwrap();
        assert_eq!(ended.iter().flatten().count(), 3);
        assert_eq!(install(&mut a, &pair(5, 1)[0]), Err(Refused::Stale));
    }

    #[test]
    fn old_keys_end_after_the_new_ones_were_confirmed_and_not_before() {
        let (mut a, mut b) = (Sessions::default(), Sessions::default());
        for n in 1..3 {
            let [for_a, for_b] = pair(n, 1);
            install(&mut b, &for_b).unwrap();
            install(&mut a, &for_a).unwrap();
            receive(&mut b, &send(&mut a).unwrap()).unwrap();
        }
        assert_eq!(a.expire(NOW * 100), None);
        receive(&mut a, &send(&mut b).unwrap()).unwrap();
        assert_eq!(a.expire(NOW + KEPT_FOR / 2), None);
        assert_eq!(a.expire(NOW + KEPT_FOR), Some(3));
    }

    #[test]
    fn new_keys_are_asked_for_by_age_and_again_but_not_at_once() {
        let mut a = Sessions::default();
        install(&mut a, &pair(1, 1)[0]).unwrap();
        let session = a.sender().unwrap();
        assert!(!session.ask_rekey(NOW + REKEY_AFTER / 2));
        assert!(session.ask_rekey(NOW + REKEY_AFTER));
        assert!(!session.ask_rekey(NOW + REKEY_AFTER + ASK_AGAIN / 2));
        assert!(session.ask_rekey(NOW + REKEY_AFTER + ASK_AGAIN));
    }

    #[test]
    fn the_other_side_asks_later() {
        let mut b = Sessions::default();
        install(&mut b, &pair(1, 1)[1]).unwrap();
        let session = b.kept[0].as_mut().unwrap();
        assert!(!session.ask_rekey(NOW + REKEY_AFTER));
        assert!(session.ask_rekey(NOW + REKEY_AFTER + REKEY_GRACE));
    }
}
