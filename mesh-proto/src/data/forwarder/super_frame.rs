//! Super-frames: cut at their segments into datagrams, and joined out of them again.
//!
//! ```text
//!  to a peer    segments fit its datagrams ─► SEGMENT records, a datagram each
//!               all fit one               ─► GROUP record, among others
//!  otherwise    (flood, no session yet, a path too small)  ─► frames, each for itself
//! ```

use core::time::Duration;

use super::Forwarder;
use super::switch::Fate;
use crate::data::Sink;
use crate::data::counters::DropReason;
use crate::data::joiner::Piece;
use crate::data::macs::Owner;
use crate::data::offload::{Layout, complete};
use crate::data::stage::{Group, segments};
use crate::data::virtio::{Gso, VirtioHeader};
use crate::id::Incarnation;
use crate::wire::record::{FRAME_MAX, GROUP_HEADER, SEGMENT_HEADER};

impl Forwarder {
    /// A frame or super-frame of this host (sleeve S31).
    pub(super) fn switch_super_frame(
        &mut self,
        header: &VirtioHeader,
        frame: &mut [u8],
        now: Duration,
        sink: &mut impl Sink,
    ) {
        let Some(layout) = Layout::of(header, frame).filter(|layout| layout.headers + layout.gso <= FRAME_MAX) else {
            let (start, offset) = (usize::from(header.csum_start), usize::from(header.csum_offset));
            if header.gso != Gso::None || (header.open_checksum && !complete(frame, start, offset)) {
                return self.counters.drop(DropReason::BadOffload);
            }
            return self.switch_local(frame, now, sink);
        };
        if frame.len() > self.segment.len() {
            return self.counters.drop(DropReason::Giant);
        }
        self.counters.frames_in += layout.segments as u64;
        self.counters.bytes_in += frame.len() as u64;
        let fate = self.fate(frame, now);
        match fate {
            Fate::Unicast(slot) if self.send_segments(slot, &layout, frame, now, sink) => {}
            Fate::Drop(reason) => self.counters.drop_many(reason, layout.segments as u64),
            Fate::Unicast(_) | Fate::Flood => {
                let mut buffer = core::mem::take(&mut self.segment);
                for n in 0..layout.segments {
                    let length = layout.segment(frame, n, &mut buffer);
                    match fate {
                        Fate::Unicast(slot) => self.unicast(slot, &buffer[..length], now, sink),
                        _ => self.flood(&buffer[..length], now, sink),
                    }
                }
                self.segment = buffer;
            }
        }
    }

    /// Sends a super-frame to a peer as it is. False if its segments do not fit the way, or if
    /// there is none yet.
    fn send_segments(&mut self, slot: u32, layout: &Layout, frame: &[u8], now: Duration, sink: &mut impl Sink) -> bool {
        if !self.peers[slot as usize].can_send() {
            return false;
        }
        let Some(route) = self.route(slot, None) else {
            return false;
        };
        let room = self.room(slot, route, now);
        if SEGMENT_HEADER + layout.piece_len(frame, 0, 1) > room {
            return false;
        }
        let at = self.stage_of(slot, route, room, now, sink);
        let even = layout.segments == 1 || (frame.len() - layout.headers).is_multiple_of(layout.gso);
        if GROUP_HEADER + frame.len() <= room && even && layout.segments <= u8::MAX.into() {
            self.stage_group(at, layout, frame, now, sink);
        } else {
            self.send_pieces(at, layout, frame, now, sink);
        }
        true
    }

    /// Puts a small super-frame, or a frame with an open checksum, among the other records.
    fn stage_group(&mut self, at: usize, layout: &Layout, frame: &[u8], now: Duration, sink: &mut impl Sink) {
        let stage = &self.stages.all[at];
        let room = stage.room;
        if self.stages.all[at].grow(layout, frame, room) {
            return;
        }
        if self.stages.all[at].len + GROUP_HEADER + frame.len() > room {
            self.close(at, now, sink);
        }
        let stage = &mut self.stages.all[at];
        let begin = stage.len;
        let header = segments(layout, false, false).group_header(frame.len());
        stage.push([&header, frame, &[]]);
        if layout.udp && layout.gso > 0 {
            stage.group = Some(Group { at: begin, layout: *layout });
        }
    }

    /// Sends a super-frame in datagrams of its own, each with as many whole segments as fit.
    fn send_pieces(&mut self, at: usize, layout: &Layout, frame: &[u8], now: Duration, sink: &mut impl Sink) {
        self.close(at, now, sink);
        let room = self.stages.all[at].room - SEGMENT_HEADER - layout.headers;
        let most = (room / layout.gso.max(1)).clamp(1, u8::MAX.into());
        // A shorter last segment travels by itself, so that all of a piece are equal.
        let full = (frame.len() - layout.headers).checked_div(layout.gso).unwrap_or(0).max(1);
        let mut first = 0;
        let datagrams = core::iter::from_fn(|| {
            let count = if first < full { most.min(full - first) } else { layout.segments - first };
            let begin = first;
            first += count;
            let (continues, more) = (begin > 0, first < layout.segments);
            (count > 0).then_some(move |records: &mut [u8]| {
                let about = segments(&Layout { segments: count, ..*layout }, continues, more);
                records[..SEGMENT_HEADER].copy_from_slice(&about.segment_header());
                SEGMENT_HEADER + layout.piece(frame, begin, count, &mut records[SEGMENT_HEADER..])
            })
        });
        self.seal_datagrams(at, datagrams, now, sink);
        self.counters.super_frames_out += u64::from(layout.segments > 1);
    }

    /// A piece of a super-frame that a peer sent to us alone (sleeve S32).
    pub(super) fn take_segments(
        &mut self,
        life: Incarnation,
        piece: Option<Piece<'_>>,
        arena: &[u8],
        now: Duration,
        sink: &mut impl Sink,
    ) {
        let Some(piece) = piece else {
            return self.counters.drop(DropReason::BadRecord);
        };
        if self.joiner.join(&piece) {
            self.counters.joined += 1;
        } else if self.welcome(piece.frame, Owner::Peer(piece.peer), life, now) {
            self.joiner.begin(&piece, arena, sink);
        } else {
            return;
        }
        self.counters.frames_out += piece.layout.segments as u64;
        self.counters.bytes_out += piece.frame.len() as u64;
    }
}
