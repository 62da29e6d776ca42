//! The fuzz targets on a stable compiler: the kept corpus and well-formed inputs, what is one step
//! away from them, and bytes without any sense. `cargo fuzz` (see docs/testing.md) looks for more.

use std::fs;
use std::path::Path;

use integration::fuzz::{WAYS_IN, made};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// Changed copies of each kept or made input.
const MUTANTS: usize = 300;
/// Inputs of random bytes for each way in.
const RANDOM: usize = 2000;

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| fs::read(entry.path()).expect("a readable corpus file")).collect()
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
