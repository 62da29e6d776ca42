//! Every order of events within small bounds, and every whole course with few deviations, with the real machine: no
//! block and no address ever has two owners.
//!
//! ```text
//!  three peers, one network, three voters, 10.0.0.0/30 (four blocks, of which two addresses are given)
//!  steps: deliver any message under way (never: it is lost; late: it is delayed; twice: a copy)
//!         a request at any peer; a peer's clock reaches its next time
//!         a peer starts again with its disk, with an old copy of it, or with none
//! ```
//!
//! A step's writes are durable with it: a crash between a change and its write is a crash before
//! the step, because nothing leaves before the write (ipam I8). What the bounds leave out: more
//! steps than are searched, other ranges, partitions that the mesh tells of, removal.

#[path = "model/courses.rs"]
mod courses;
mod sim;
#[path = "model/state.rs"]
mod state;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hasher as _};

use courses::{Looked, explore};
use ipam::allocator::Ablation;
use state::{Budget, Model, PEERS, State, Step, With, violation};

/// Hashes what is written to it.
struct Print(DefaultHasher);

impl std::fmt::Write for Print {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

#[derive(Debug)]
struct Found {
    states: usize,
    depth: usize,
    violation: Option<(String, Vec<Step>)>,
}

/// Looks at every state that can be reached within the bounds, nearest first.
fn search(model: &Model, depth: usize) -> Found {
    let begin = model.begin();
    let mut seen = BTreeMap::from([(print(&begin), None)]);
    let mut front = vec![(print(&begin), begin)];
    for at in 0..depth {
        let mut next_front = Vec::new();
        for (parent, state) in &front {
            for step in model.steps(state) {
                let next = model.next(state, &step);
                let print = print(&next);
                if seen.contains_key(&print) {
                    continue;
                }
                let violation = violation(&next);
                seen.insert(print, Some((*parent, step)));
                if violation.is_some() {
                    let violation = violation.map(|text| (text, path(&seen, print)));
                    return Found { states: seen.len(), depth: at + 1, violation };
                }
                next_front.push((print, next));
            }
        }
        front = next_front;
    }
    Found { states: seen.len(), depth, violation: None }
}

fn print(state: &State) -> u64 {
    let mut print = Print(DefaultHasher::new());
    for node in &state.nodes {
        write!(print, "{:?} {:?} {:?}", node.allocator, node.now, node.has).expect("a hasher takes all");
        for bytes in node.disk.iter().flat_map(|(key, value)| [key, value]) {
            print.0.write(bytes);
        }
    }
    write!(print, "{:?}", state.left).expect("a hasher takes all");
    for letter in &state.wire {
        write!(print, "{letter:?}").expect("a hasher takes all");
        print.0.write(&letter.bytes);
    }
    print.0.finish()
}

fn path(seen: &BTreeMap<u64, Option<(u64, Step)>>, mut at: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    while let Some((parent, step)) = &seen[&at] {
        steps.push(step.clone());
        at = *parent;
    }
    steps.reverse();
    steps
}

const ALL: &[With] = &[With::Disk, With::OldDisk, With::NoDisk];

/// How far to look: `WEFT_IPAM_DEPTH`, or what takes some seconds.
fn depth(usual: usize) -> usize {
    std::env::var("WEFT_IPAM_DEPTH").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn no_order_of_few_events_gives_a_block_two_owners() {
    let budget = Budget { requests: 2, starts: 1, copies: 1, ticks: 1 };
    let found = search(&Model { ablation: Ablation::default(), with: ALL, budget }, depth(4));
    println!("all events: {} states up to {} steps", found.states, found.depth);
    assert!(found.violation.is_none(), "{:#?}", found.violation);
    assert!(found.states > 10_000, "{found:?}");
}

#[test]
fn an_old_disk_gives_no_block_two_owners_but_does_without_a_new_term() {
    let budget = Budget { requests: 2, starts: 1, copies: 0, ticks: 0 };
    let search = |ablation, depth| search(&Model { ablation, with: &[With::OldDisk], budget }, depth);
    let broken = search(Ablation { no_restart_term: true, ..Ablation::default() }, 8);
    println!("without a new term: {} states, harm after {} steps", broken.states, broken.depth);
    assert!(broken.violation.is_some(), "{} states", broken.states);
    let found = search(Ablation::default(), depth(broken.depth));
    println!("old disks: {} states up to {} steps", found.states, found.depth);
    assert!(found.violation.is_none(), "{:#?}", found.violation);
}

/// How many deviations a course may have: `WEFT_IPAM_DEVIATIONS`, or what takes some seconds.
fn deviations(usual: usize) -> usize {
    std::env::var("WEFT_IPAM_DEVIATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Beginnings of courses: a request, two at once, and a restart of each kind with a request elsewhere.
fn beginnings() -> impl Iterator<Item = Vec<Step>> {
    let asked = |at: usize, with| vec![Step::Ask((at + 1) % PEERS), Step::Start(at, with)];
    let starts = (0..PEERS).flat_map(move |at| ALL.iter().map(move |&with| asked(at, with)));
    [vec![Step::Ask(1)], vec![Step::Ask(0), Step::Ask(2)]].into_iter().chain(starts)
}

const WHOLE: Budget = Budget { requests: 3, starts: 2, copies: 1, ticks: u16::MAX };

#[test]
fn no_deviation_at_any_place_of_a_whole_course_gives_a_block_two_owners() {
    let model = Model { ablation: Ablation::default(), with: ALL, budget: WHOLE };
    let (mut courses, mut steps) = (0, 0);
    for first in beginnings() {
        let mut usual = Looked::default();
        explore(&model, &first, 0, &mut usual).expect("all goes as usual");
        assert_eq!(usual.complete, 1, "{first:?}: it has not come to its end");
        let mut looked = Looked::default();
        if let Err(violation) = explore(&model, &first, deviations(1), &mut looked) {
            panic!("{first:?}: {violation}");
        }
        println!("{first:?}: {} steps as usual; {looked:?}", usual.steps);
        (courses, steps) = (courses + looked.courses, steps + looked.steps);
    }
    println!("whole courses: {courses}, {steps} steps");
    assert!(courses > 1_000, "{courses}");
}

#[test]
fn without_witnesses_or_a_new_term_some_deviation_gives_a_block_two_owners() {
    for ablation in [
        Ablation { no_witness: true, ..Ablation::default() },
        Ablation { no_restart_term: true, ..Ablation::default() },
    ] {
        let model = Model { ablation, with: ALL, budget: WHOLE };
        let violation = beginnings().find_map(|first| explore(&model, &first, 1, &mut Looked::default()).err());
        assert!(violation.is_some_and(|text| text.contains("held at") || text.contains("given at")), "{ablation:?}");
    }
}
