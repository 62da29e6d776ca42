//! Whole peers in virtual time: see the simulator's part of `docs/testing.md`.

use std::io::{self, Write as _};
use std::ops::Range;
use std::thread;

use integration::sim::{Ablation, Detail, Options, Summary, Underlay, run, run_caught, sweep};

/// Runs seeds; fails with the command that repeats the first failure.
fn pass(options: &Options, seeds: Range<u64>) -> Summary {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut failed = Vec::new();
    let summary = sweep(options, seeds, threads, |outcome| {
        if let Some(why) = &outcome.failure {
            failed.push(format!("{why}\n  replay: {}", outcome.options.replay()));
        }
        failed.is_empty()
    });
    // Shown with --nocapture.
    let _ = writeln!(io::stdout(), "{summary}");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    summary
}

#[test]
fn hundred_peers_agree_again_after_every_fault_and_no_frame_comes_twice() {
    pass(&Options::default(), 0..16);
}

#[test]
fn a_dozen_peers_do_so_in_a_partial_underlay() {
    pass(&Options { peers: 12, ..Options::default() }, 0..300);
}

#[test]
fn a_dozen_peers_do_so_in_a_full_underlay() {
    pass(&Options { peers: 12, underlay: Underlay::Full, ..Options::default() }, 0..100);
}

#[test]
fn two_and_three_peers_do_so() {
    for peers in [2, 3, 5] {
        pass(&Options { peers, ..Options::default() }, 0..200);
    }
}

/// Seeds that failed once, each with what it was that they showed.
#[test]
fn what_was_wrong_once_is_right() {
    // Two handshakes at once, direct and relayed, left the two ends on different keys.
    pass(&Options { peers: 3, ..Options::default() }, 163..164);
    // The way had nine hops, and a relayed datagram might take eight.
    pass(&Options::default(), 17..18);
    // Datagrams went back and forth between two peers, one of them known by an old name as well.
    pass(&Options { peers: 12, ..Options::default() }, 270..271);
    // A named peer that relays reached was not dialled again for a long time.
    pass(&Options { peers: 5, ..Options::default() }, 1938..1939);
}

#[test]
fn sealed_meshes_do_so() {
    pass(&Options { peers: 8, sealed: true, ..Options::default() }, 0..30);
}

#[test]
fn no_address_is_given_twice_and_none_is_forgotten() {
    let summary = pass(&Options { peers: 8, addresses: true, ..Options::default() }, 0..100);
    assert!(summary.measured.addresses > 1000, "{}", summary.measured.addresses);
}

#[test]
fn an_idle_mesh_is_nearly_silent() {
    for (peers, sealed, seeds) in [(2, true, 6), (12, false, 6), (30, false, 6), (100, false, 1)] {
        pass(&Options { peers, sealed, idle: true, ..Options::default() }, 0..seeds);
    }
}

#[test]
fn a_seed_makes_the_same_trace_every_time() {
    for (peers, detail) in [(7, Detail::Datagrams), (30, Detail::Events)] {
        for (sealed, addresses) in [(false, true), (true, false)] {
            let options = Options { seed: 4, peers, sealed, addresses, detail, ..Options::default() };
            let (one, two) = (run(&options), run(&options));
            assert!(one.trace.len() > 10_000, "{} bytes", one.trace.len());
            let differs = one.trace.lines().zip(two.trace.lines()).find(|(one, two)| one != two);
            assert_eq!(differs, None);
            assert_eq!(one, two);
            let other = run(&Options { seed: 5, ..options });
            assert_ne!(one.hash, other.hash);
        }
    }
}

#[test]
fn what_is_kept_of_the_trace_changes_nothing() {
    let outcome = |detail| run(&Options { seed: 9, peers: 10, detail, ..Options::default() });
    let hash = outcome(Detail::Hash);
    assert_eq!(hash.trace, "");
    assert_eq!(hash.hash, outcome(Detail::Events).hash);
    assert_eq!(hash.hash, outcome(Detail::Datagrams).hash);
}

/// Each rule that is broken on purpose must be noticed within a few seeds; so the checks can fail.
#[test]
fn a_broken_rule_is_noticed() {
    let expected = [
        (Ablation::DoubleDelivery, "delivered twice"),
        (Ablation::Flood, "crossed"),
        (Ablation::StaleTables, "no agreement"),
        (Ablation::DoubleAddress, "was given to"),
        (Ablation::Restless, "an idle peer sends"),
    ];
    for (ablation, text) in expected {
        let addresses = ablation == Ablation::DoubleAddress;
        let idle = ablation == Ablation::Restless;
        let options = Options { peers: 10, addresses, idle, ablation: Some(ablation), ..Options::default() };
        let failures: Vec<String> =
            (0..8).filter_map(|seed| run_caught(&Options { seed, ..options.clone() }).failure).collect();
        let noticed = failures.iter().filter(|why| why.contains(text)).count();
        assert!(noticed > 0, "{}: {failures:?}", ablation.name());
    }
}

#[test]
fn a_run_that_depends_on_more_than_its_seed_is_noticed() {
    let options = Options { seed: 1, peers: 6, ablation: Some(Ablation::Chaos), ..Options::default() };
    assert_ne!(run(&options).hash, run(&options).hash);
}
