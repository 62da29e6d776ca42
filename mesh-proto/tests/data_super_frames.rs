//! Super-frames all the way: cut at one host, joined at another, the segments that come out must
//! be those that the kernel's own segmentation would make, byte for byte.

mod data_net;

use std::net::SocketAddr;

use data_net::*;
use mesh_proto::data::parts::Parts;
use mesh_proto::data::virtio::{Gso, VirtioHeader};
use mesh_proto::data::{Hop, Sink};
use mesh_proto::wire::datagram::SLEEVE_HEADER;
use proptest::prelude::*;

/// What a flow sends: enough to write any of its packets from nothing.
#[derive(Debug, Clone)]
struct Flow {
    tags: usize,
    v6: bool,
    udp: bool,
    /// Bytes of options or extension headers, multiples of 4 and 8.
    ip_options: usize,
    tcp_options: usize,
    id: u16,
    sequence: u32,
    /// FIN, PSH, ACK, CWR and others as they come.
    flags: u8,
}

impl Flow {
    fn l4(&self) -> usize {
        14 + 4 * self.tags + if self.v6 { 40 + self.ip_options / 8 * 8 } else { 20 + self.ip_options }
    }

    fn headers(&self) -> usize {
        self.l4() + if self.udp { 8 } else { 20 + self.tcp_options }
    }

    /// A packet of the flow: `sum` makes of the sum of pseudo header and packet what is written.
    fn packet(&self, n: usize, offset: usize, flags: u8, payload: &[u8], complete: bool) -> Vec<u8> {
        let protocol = if self.udp { 17 } else { 6 };
        let mut l4 = vec![0x12, 0x34, 0x56, 0x78];
        if self.udp {
            l4.extend(((8 + payload.len()) as u16).to_be_bytes());
            l4.extend([0, 0]);
        } else {
            l4.extend(self.sequence.wrapping_add(offset as u32).to_be_bytes());
            l4.extend([9, 9, 9, 9, ((20 + self.tcp_options) * 4) as u8, flags, 0x10, 0x20, 0, 0, 0, 7]);
            l4.extend((0..self.tcp_options).map(|n| n as u8));
        }
        let check = if self.udp { 6 } else { 16 };
        l4.extend(payload);
        let addresses: Vec<u8> = if self.v6 { (1..33).collect() } else { vec![10, 1, 2, 3, 10, 4, 5, 6] };
        let pseudo = [&addresses[..], &(l4.len() as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat();
        let value = if complete { !words(&[&pseudo, &l4]) } else { words(&[&pseudo]) };
        let value = if complete && self.udp && value == 0 { 0xffff } else { value };
        l4[check..check + 2].copy_from_slice(&value.to_be_bytes());
        let mut frame = [&mac(1, 1)[..], &mac(0, 1)].concat();
        (0..self.tags).for_each(|n| frame.extend([0x81, 0, 0, n as u8]));
        if self.v6 {
            let extension = self.ip_options / 8 * 8;
            frame.extend([0x86, 0xdd, 0x60, 1, 2, 3]);
            frame.extend(((extension + l4.len()) as u16).to_be_bytes());
            frame.extend([if extension > 0 { 60 } else { protocol }, 64]);
            frame.extend(&addresses);
            if extension > 0 {
                frame.extend([protocol, (extension / 8 - 1) as u8]);
                frame.extend(vec![0; extension - 2]);
            }
        } else {
            let mut ip = vec![0x40 | ((20 + self.ip_options) / 4) as u8, 0];
            ip.extend(((20 + self.ip_options + l4.len()) as u16).to_be_bytes());
            ip.extend(self.id.wrapping_add(n as u16).to_be_bytes());
            ip.extend([0x40, 0, 64, protocol, 0, 0]);
            ip.extend(&addresses);
            ip.extend(vec![1; self.ip_options]);
            let sum = !words(&[&ip]);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(ip);
        }
        frame.extend(l4);
        frame
    }

    fn super_frame(&self, payload: &[u8], gso: usize) -> (VirtioHeader, Vec<u8>) {
        let kind = match (self.udp, self.v6) {
            (true, _) => Gso::Udp,
            (false, true) => Gso::Tcp6,
            (false, false) => Gso::Tcp4,
        };
        let header = VirtioHeader {
            open_checksum: true,
            gso: if gso == 0 { Gso::None } else { kind },
            ecn: false,
            headers: self.headers() as u16,
            gso_size: gso as u16,
            csum_start: self.l4() as u16,
            csum_offset: if self.udp { 6 } else { 16 },
        };
        (header, self.packet(0, 0, self.flags, payload, false))
    }

    /// What the kernel would put on a cable.
    fn segments(&self, payload: &[u8], gso: usize) -> Vec<Vec<u8>> {
        let size = if gso == 0 { payload.len().max(1) } else { gso };
        let count = payload.len().div_ceil(size).max(1);
        let segment = |n: usize| {
            let part = &payload[n * size..((n + 1) * size).min(payload.len())];
            // FIN and PSH are the last one's, CWR the first one's.
            let mut flags = self.flags;
            flags &= if n + 1 < count { !0x09 } else { !0 };
            flags &= if n > 0 { !0x80 } else { !0 };
            self.packet(n, n * size, flags, part, true)
        };
        (0..count).map(segment).collect()
    }
}

fn words(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// Takes what a host makes, and how often it was called.
#[derive(Default)]
struct Calls {
    out: Out,
    trains: usize,
    writes: Vec<(VirtioHeader, usize)>,
}

impl Sink for Calls {
    fn datagram(&mut self, to: SocketAddr, bytes: &[u8]) {
        self.out.datagram(to, bytes);
    }
    fn datagrams(&mut self, to: SocketAddr, bytes: Parts<'_>, size: usize) {
        self.trains += 1;
        self.out.datagrams(to, bytes, size);
    }
    fn frame(&mut self, bytes: &[u8]) {
        self.out.frame(bytes);
    }
    fn super_frame(&mut self, header: &VirtioHeader, bytes: Parts<'_>) {
        self.writes.push((*header, bytes.len()));
        self.out.super_frame(header, bytes);
    }
    fn quic(&mut self, from: Hop, bytes: &[u8]) {
        self.out.quic(from, bytes);
    }
}

fn pair(sealed: bool, payload_max: u16) -> Net {
    let mut net = Net::with(2, sealed, payload_max);
    net.ready(&[(0, 1)]);
    // Each knows where the other's address is, and flows keep the path MTU as it was found.
    net.send(1, &frame(EVERYBODY, mac(1, 1), 60, 0));
    net.run(ms(1000));
    net.frames.iter_mut().for_each(Vec::clear);
    net
}

fn emit(net: &mut Net, inputs: &[(VirtioHeader, Vec<u8>)]) -> Calls {
    let mut calls = Calls::default();
    for (header, frame) in inputs {
        net.nodes[0].handle_super_frame(header, &mut frame.clone(), net.now, &mut calls);
    }
    net.nodes[0].flush(net.now, &mut calls);
    calls
}

/// Receives datagrams as one batch.
fn receive<'a>(net: &mut Net, datagrams: impl IntoIterator<Item = &'a Vec<u8>>) -> Calls {
    let datagrams: Vec<&Vec<u8>> = datagrams.into_iter().collect();
    let mut arena: Vec<u8> = datagrams.iter().flat_map(|d| d.iter().copied()).collect();
    let (mut calls, mut at) = (Calls::default(), 0);
    for datagram in datagrams {
        let place = at..at + datagram.len();
        at = place.end;
        net.nodes[1].handle_received(addr(0), &mut arena, place, net.now, &mut calls);
    }
    net.nodes[1].settle(&arena, &mut calls);
    calls
}

fn bytes(len: usize, mark: u8) -> Vec<u8> {
    (0..len).map(|n| (n as u8).wrapping_mul(31) ^ mark ^ (n >> 8) as u8).collect()
}

fn flows() -> impl Strategy<Value = Flow> {
    let bits = (0usize..3, any::<bool>(), any::<bool>(), 0usize..=10, 0usize..=10);
    (bits, any::<u16>(), any::<u32>(), any::<u8>()).prop_map(|((tags, v6, udp, ip, tcp), id, sequence, flags)| {
        let (ip_options, tcp_options) = (ip * 4, tcp * 4);
        Flow { tags, v6, udp, ip_options, tcp_options, id, sequence, flags }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_comes_out_is_what_the_kernel_would_have_made(
        flow in flows(), size in 1usize..64_000, gso in 1usize..1500, payload_max in prop::sample::select(vec![1472_u16, 8972]),
    ) {
        let payload = bytes(size.min(gso * 300), 7);
        let mut net = pair(true, payload_max);
        let sent = emit(&mut net, &[flow.super_frame(&payload, gso)]);
        let datagrams: Vec<_> = sent.out.datagrams.iter().map(|d| d.1.clone()).collect();
        let got = receive(&mut net, &datagrams);
        prop_assert_eq!(got.out.frames, flow.segments(&payload, gso));
    }

    #[test]
    fn a_lost_datagram_costs_its_own_segments_and_order_is_kept(
        flow in flows(), gso in 100usize..1300, count in 2usize..40, seed: u64, loss in 0u64..4, swaps in 0usize..6, copies in 0usize..4,
    ) {
        let payload = bytes(gso * count - gso / 3, seed as u8);
        let mut net = pair(false, 1472);
        let sent = emit(&mut net, &[flow.super_frame(&payload, gso)]);
        let mut segments = flow.segments(&payload, gso).into_iter();
        // Which segments travel in which datagram.
        let mut datagrams: Vec<(Vec<u8>, Vec<Vec<u8>>)> = Vec::new();
        for (_, bytes) in sent.out.datagrams {
            let several = matches!(bytes[SLEEVE_HEADER], 6 | 7);
            let at = if bytes[SLEEVE_HEADER] == 6 { 1 } else { 4 };
            let carried = if several { usize::from(bytes[SLEEVE_HEADER + at]) } else { 1 };
            let carried = segments.by_ref().take(carried).collect();
            datagrams.push((bytes, carried));
        }
        prop_assert_eq!(segments.next(), None);
        let mut random = seed | 1;
        let mut draw = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below.max(1)
        };
        datagrams.retain(|_| draw(10) >= loss as usize);
        for _ in 0..swaps {
            if datagrams.len() > 1 {
                let at = draw(datagrams.len() - 1);
                datagrams.swap(at, at + 1);
            }
        }
        let expected: Vec<_> = datagrams.iter().flat_map(|d| d.1.clone()).collect();
        for _ in 0..copies {
            if !datagrams.is_empty() {
                let (from, extra) = (draw(datagrams.len()), draw(3));
                let copy = (datagrams[from].0.clone(), Vec::new());
                datagrams.insert((from + 1 + extra).min(datagrams.len()), copy);
            }
        }
        let got = receive(&mut net, datagrams.iter().map(|d| &d.0));
        prop_assert_eq!(got.out.frames, expected);
    }

    #[test]
    fn any_header_and_any_frame_are_borne(header: [u8; 10], mut frame in prop::collection::vec(any::<u8>(), 0..3000), flow in flows(), cut in 0usize..200) {
        let mut net = pair(true, 1472);
        if let Some(header) = VirtioHeader::parse(&header) {
            let mut calls = Calls::default();
            net.nodes[0].handle_super_frame(&header, &mut frame, net.now, &mut calls);
            // A frame that is nearly right goes further.
            let (_, mut near) = flow.super_frame(&bytes(2000, 1), 100);
            near.truncate(near.len() - cut);
            let at = cut * 7 % near.len();
            near[at] ^= 0x41;
            let open = VirtioHeader { open_checksum: true, csum_start: flow.l4() as u16, ..header };
            for csum_offset in [6, 16, header.csum_offset] {
                let header = VirtioHeader { csum_offset, ..open };
                net.nodes[0].handle_super_frame(&header, &mut near.clone(), net.now, &mut calls);
            }
            net.nodes[0].flush(net.now, &mut calls);
            for (_, bytes) in calls.out.datagrams.clone() {
                receive(&mut net, &[bytes]);
            }
        }
    }

    #[test]
    fn any_segments_of_a_mad_peer_are_borne(records in prop::collection::vec((6u8..8, any::<[u8; 3]>(), flows(), 0usize..300, 0usize..100), 1..8)) {
        let mut net = pair(false, 1472);
        let sent = emit(&mut net, &[flow().super_frame(&bytes(5000, 0), 1000)]);
        let datagrams: Vec<_> = records.into_iter().zip(sent.out.datagrams).map(|((kind, about, flow, size, cut), (_, real))| {
            let (_, mut frame) = flow.super_frame(&bytes(size, 3), 1);
            let at = cut * 13 % frame.len();
            frame[at] ^= about[0];
            let length = (frame.len() as u32 + 3).to_be_bytes();
            let l4 = flow.l4() as u8;
            let head: Vec<u8> = if kind == 6 { vec![6, about[1] % 5, about[2] & 15, l4] } else { vec![7, length[1], length[2], length[3], about[1] % 5, about[2] & 15, l4] };
            [&real[..SLEEVE_HEADER], &head, &frame].concat()
        }).collect();
        receive(&mut net, &datagrams);
    }
}

fn flow() -> Flow {
    Flow {
        tags: 0,
        v6: false,
        udp: false,
        ip_options: 0,
        tcp_options: 12,
        id: 0xfffe,
        sequence: u32::MAX - 9,
        flags: 0x18,
    }
}

#[test]
fn the_largest_super_frame_costs_two_sends_and_one_write() {
    let mut net = pair(true, 1472);
    let flow = flow();
    let payload = bytes(65_535 - 52, 1);
    let sent = emit(&mut net, &[flow.super_frame(&payload, 1370)]);
    assert_eq!((sent.out.datagrams.len(), sent.trains), (48, 2));
    let datagrams: Vec<_> = sent.out.datagrams.iter().map(|d| d.1.clone()).collect();
    let got = receive(&mut net, &datagrams);
    assert_eq!(got.writes.len(), 1);
    let (header, length) = got.writes[0];
    assert_eq!((header, length), (flow.super_frame(&payload, 1370).0, 65_535 + 14));
    assert_eq!(got.out.frames, flow.segments(&payload, 1370));
}

#[test]
fn a_segment_that_goes_whole_as_a_frame_goes_whole_in_a_piece() {
    let mut net = pair(true, 1472);
    let flow = flow();
    // 1422 bytes of IP: what `overhead` promises on a link of 1500.
    let payload = bytes(3 * (1422 - 52), 1);
    let sent = emit(&mut net, &[flow.super_frame(&payload, 1422 - 52)]);
    let sizes: Vec<_> = sent.out.datagrams.iter().map(|d| d.1.len()).collect();
    assert_eq!(sizes, [1472; 3]);
}

#[test]
fn small_datagrams_of_one_flow_travel_and_arrive_together() {
    let mut net = pair(true, 1472);
    let inputs: Vec<_> = (0..40_u16)
        .map(|n| {
            let flow = Flow { udp: true, id: 100 + n, ..flow() };
            flow.super_frame(&bytes(64, n as u8), 0)
        })
        .collect();
    let sent = emit(&mut net, &inputs);
    assert_eq!(sent.out.datagrams.len(), 2);
    let datagrams: Vec<_> = sent.out.datagrams.iter().map(|d| d.1.clone()).collect();
    let got = receive(&mut net, &datagrams);
    assert_eq!(got.writes.len(), 2);
    let expected = (0..40_u16).flat_map(|n| Flow { udp: true, id: 100 + n, ..flow() }.segments(&bytes(64, n as u8), 0));
    assert_eq!(got.out.frames, expected.collect::<Vec<_>>());
}

#[test]
fn datagrams_that_grow_one_after_the_other_leave_in_time() {
    let mut net = pair(true, 1472);
    let mut calls = Calls::default();
    for n in 0..700 {
        net.nodes[0].handle_frame(&frame(mac(1, 1), mac(0, 1), 720 + n, 0), net.now, &mut calls);
    }
    net.nodes[0].flush(net.now, &mut calls);
    let datagrams: Vec<_> = calls.out.datagrams.iter().map(|d| d.1.clone()).collect();
    let got = receive(&mut net, &datagrams);
    assert_eq!(got.out.frames.len(), 700);
    assert!(got.out.frames.is_sorted_by_key(Vec::len));
}

#[test]
fn datagrams_of_other_flows_or_sizes_keep_their_own_headers() {
    let mut net = pair(true, 1472);
    let udp = Flow { udp: true, ..flow() };
    let other = Flow { tags: 1, ..udp.clone() };
    let kinds = [(&udp, 64), (&udp, 65), (&udp, 64), (&other, 64), (&udp, 0), (&udp, 0)];
    let inputs: Vec<_> = kinds.iter().map(|(flow, size)| flow.super_frame(&bytes(*size, 5), 0)).collect();
    let sent = emit(&mut net, &inputs);
    assert_eq!(sent.out.datagrams.len(), 1);
    let got = receive(&mut net, [&sent.out.datagrams[0].1]);
    let expected: Vec<_> = kinds.iter().flat_map(|(flow, size)| flow.segments(&bytes(*size, 5), 0)).collect();
    assert_eq!(got.out.frames, expected);
}

#[test]
fn a_super_frame_without_a_session_or_for_everybody_goes_in_frames() {
    let mut net = pair(true, 1472);
    let flow = flow();
    let payload = bytes(4000, 1);
    let (header, mut frame) = flow.super_frame(&payload, 1000);
    frame[..6].copy_from_slice(&mac(1, 99));
    let expected = flow.segments(&payload, 1000).into_iter().map(|mut segment| {
        segment[..6].copy_from_slice(&mac(1, 99));
        segment
    });
    let sent = emit(&mut net, &[(header, frame)]);
    let datagrams: Vec<_> = sent.out.datagrams.iter().map(|d| d.1.clone()).collect();
    let got = receive(&mut net, &datagrams);
    assert_eq!(got.out.frames, expected.collect::<Vec<_>>());
    assert!(got.writes.is_empty());
}

#[test]
fn segments_larger_than_the_path_go_in_fragments() {
    let mut net = pair(true, 1472);
    let flow = Flow { udp: true, ..flow() };
    let payload = bytes(9000, 1);
    let sent = emit(&mut net, &[flow.super_frame(&payload, 3000)]);
    let datagrams: Vec<_> = sent.out.datagrams.iter().map(|d| d.1.clone()).collect();
    let got = receive(&mut net, &datagrams);
    assert_eq!(got.out.frames, flow.segments(&payload, 3000));
    assert!(net.nodes[0].counters().fragments_out > 0);
}

#[test]
fn relayed_super_frames_pass_a_relay_in_one_send_each_way() {
    let mut net = Net::new(3);
    net.ready(&[(0, 1), (1, 2)]);
    net.send(2, &frame(EVERYBODY, mac(1, 1), 60, 0));
    net.run(ms(500));
    // A relayed way is searched when it is first used.
    net.send(0, &frame(mac(1, 1), mac(0, 1), 60, 0));
    net.run(ms(1000));
    let flow = flow();
    let payload = bytes(40_000, 1);
    let sent = emit(&mut net, &[flow.super_frame(&payload, 1300)]);
    let datagrams: Vec<_> = sent.out.datagrams.iter().map(|d| d.1.clone()).collect();
    assert_eq!(datagrams.len(), 31);
    let passed = receive(&mut net, &datagrams);
    assert_eq!((passed.trains, passed.out.datagrams.len(), passed.out.frames.len()), (1, 31, 0));
    let mut arena: Vec<u8> = passed.out.datagrams.iter().flat_map(|d| d.1.clone()).collect();
    let (mut got, mut at) = (Calls::default(), 0);
    for (to, bytes) in &passed.out.datagrams {
        assert_eq!(*to, addr(2));
        net.nodes[2].handle_received(addr(1), &mut arena, at..at + bytes.len(), net.now, &mut got);
        at += bytes.len();
    }
    net.nodes[2].settle(&arena, &mut got);
    assert_eq!(got.writes.len(), 1);
    assert_eq!(got.out.frames, flow.segments(&payload, 1300));
}
