//! The fuzz targets on a stable compiler: the kept corpus, what is one step away from it, and bytes
//! without any sense. `cargo fuzz` (see docs/testing.md) looks for more.

use std::fs;
use std::path::Path;

use integration::fuzz::{WAYS_IN, plain_datagram, revocation};
use mesh_proto::id::PeerId;
use mesh_proto::wire::control::Message;
use mesh_proto::wire::trust::{Admit, Pake, Revocations, Revoked};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Changed copies of each kept input.
const MUTANTS: usize = 300;
/// Inputs of random bytes for each way in.
const RANDOM: usize = 2000;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| fs::read(entry.path()).expect("a readable corpus file")).collect()
}

/// Inputs that are well formed, made here so that a change of the format changes them too.
fn made(target: &str) -> Vec<Vec<u8>> {
    let record = |kind: u8, body: &[u8]| [&[kind, 0, 0, body.len() as u8][..], body].concat();
    let frame = record(1, &[[0xff; 6], [2; 6], [0x08; 6]].concat());
    let probe = record(3, &[0, 0, 0, 1, 0x04, 0xb0, 0, 0]);
    let fragment = record(5, &[0, 0, 0, 1, 0, 0, 22, 0, 0, 0, 1, 0, 0, 18, 0xff, 0xff]);
    let flood = record(2, &[[2u8; 16].as_slice(), &[0; 16], &[3], &[0xff; 14]].concat());
    match target {
        "fast_path" => {
            use mesh_proto::id::PeerId;
            use mesh_proto::wire::fastpath::{Message, Ping, ProbeFrame, ProbeKind, Table};
            let table = Table { port: 6784, willing: true, number: 1, macs: vec![2; 12] };
            let (from, to) = (PeerId([2; 16]), PeerId([1; 16]));
            let probe = ProbeFrame { kind: ProbeKind::Probe, from, to, nonce: 1 }.encode(0);
            let input = |kind: u8, bytes: Vec<u8>| [&[kind | bytes.len() as u8][..], &bytes].concat();
            let table = input(0, Message::Table(table).encode());
            let ping = input(0, Message::Ping(Ping { nonce: 1 }).encode());
            vec![[table.clone(), ping].concat(), [table, input(0x80, probe)].concat()]
        }
        "records" => vec![frame, probe, fragment, flood],
        "plain_datagrams" | "sealed_datagrams" => [frame, probe, fragment, flood]
            .iter()
            .enumerate()
            .map(|(counter, record)| {
                let datagram = plain_datagram(counter as u64, record);
                [&[datagram.len() as u8][..], &datagram].concat()
            })
            .collect(),
        "trust_messages" => {
            let peer = |n| PeerId([n; 16]);
            let messages = [
                Message::Revocations(Revocations { list: vec![revocation(peer(9))], ask: true }),
                Message::Revocations(Revocations {
                    list: vec![revocation(PeerId::of_keys(&[1; 32], &[1; 32]))],
                    ask: false,
                }),
                Message::Revocations(Revocations {
                    list: vec![revocation(PeerId::of_keys(&[2; 32], &[2; 32]))],
                    ask: true,
                }),
                Message::Revoked(Revoked { hash: [3; 16] }),
                Message::Admit(Admit { not_after: 86_401, signature: [2; 64] }),
                Message::Pake(Pake { message: vec![0x42; 33] }),
            ];
            let bytes = messages.iter().map(Message::encode).map(|bytes| [&[bytes.len() as u8][..], &bytes].concat());
            vec![bytes.collect::<Vec<_>>().concat(), revocation(peer(7)).encode()]
        }
        _ => Vec::new(),
    }
}

fn mutated(input: &[u8], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..=random.next_u32() % 4 {
        let at = random.next_u32() as usize % (input.len() + 1);
        match random.next_u32() % 4 {
            0 if at < input.len() => input[at] ^= 1 << (random.next_u32() % 8),
            1 if at < input.len() => input[at] = random.next_u32() as u8,
            2 => input.truncate(at),
            _ => input.insert(at, random.next_u32() as u8),
        }
    }
    input
}

#[test]
fn no_bytes_from_outside_make_a_machine_panic_or_deliver_what_nobody_sealed() {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for (target, run) in WAYS_IN {
        let kept: Vec<Vec<u8>> = corpus(target).into_iter().chain(made(target)).collect();
        for input in &kept {
            run(input);
            (0..MUTANTS).for_each(|_| run(&mutated(input, &mut random)));
        }
        for _ in 0..RANDOM {
            let mut input = vec![0; random.next_u32() as usize % 512];
            random.fill_bytes(&mut input);
            run(&input);
        }
    }
}

#[test]
fn each_fuzz_target_is_one_of_the_ways_in() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut targets: Vec<String> = fs::read_dir(folder)
        .expect("the targets")
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    let mut ways: Vec<&str> = WAYS_IN.iter().map(|(name, _)| *name).collect();
    ways.sort_unstable();
    assert_eq!(targets, ways);
}
