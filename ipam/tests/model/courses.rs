//! Whole courses of the protocol: what is under way arrives in the order in which it was sent, clocks go on when all
//! is quiet, but for so many deviations, each at every place. Thus grants, restarts and settlements come to their end,
//! which no search of every order of few steps reaches.

use std::collections::VecDeque;
use std::time::Duration;

use crate::state::{Letter, Model, PEERS, State, Step, With, violation};

/// How long a course goes on, by the peers' clocks.
const LASTS: Duration = Duration::from_secs(15);

/// More than any course takes.
const STEPS_MAX: usize = 5_000;

/// One thing that does not go as usual.
#[derive(Debug, Clone)]
enum Deviation {
    /// The oldest message is lost.
    Lose,
    /// It comes after all others.
    Delay,
    /// Something happens before it comes.
    Step(Step),
}

#[derive(Clone)]
struct Course {
    state: State,
    /// What is under way, the oldest first.
    queue: VecDeque<Letter>,
    ends: Duration,
    /// A peer's state was lost: more than one the protocol does not bear.
    lossy: bool,
    /// Addresses that each peer was asked for, and has or still is to give.
    asked: [usize; PEERS],
    steps: usize,
    /// Each with the number of steps before it.
    deviations: Vec<(usize, Deviation)>,
}

/// What was looked at.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    pub(crate) courses: usize,
    pub(crate) steps: usize,
    /// Courses at whose end everybody who asked has an address, and all vote.
    pub(crate) complete: usize,
}

/// Goes through all courses that begin with these steps and have at most so many deviations.
pub(crate) fn explore(model: &Model, first: &[Step], most: usize, looked: &mut Looked) -> Result<(), String> {
    let state = model.begin();
    let ends = state.nodes.iter().map(|node| node.now).max().unwrap_or_default() + LASTS;
    let (queue, deviations) = (VecDeque::new(), Vec::new());
    let mut course = Course { state, queue, ends, lossy: false, asked: [0; PEERS], steps: 0, deviations };
    for step in first {
        course.take(model, step.clone());
    }
    course.go_on(model, most, looked)
}

impl Course {
    fn go_on(mut self, model: &Model, left: usize, looked: &mut Looked) -> Result<(), String> {
        loop {
            if left > 0 {
                for deviation in self.possible(model) {
                    let mut other = self.clone();
                    other.deviate(model, deviation);
                    other.check()?;
                    looked.steps += 1;
                    other.go_on(model, left - 1, looked)?;
                }
            }
            let Some(step) = self.usual() else { break };
            self.take(model, step);
            looked.steps += 1;
            self.check()?;
        }
        looked.courses += 1;
        looked.complete += usize::from(self.is_complete());
        Ok(())
    }

    /// What comes next if all goes as usual.
    fn usual(&self) -> Option<Step> {
        if let Some(letter) = self.queue.front() {
            return Some(Step::Deliver(letter.clone()));
        }
        let due = |at: usize| self.state.nodes[at].allocator.poll_timeout().map(|(due, _)| (due, at));
        let (due, at) = (0..PEERS).filter_map(due).min()?;
        (due < self.ends).then_some(Step::Tick(at))
    }

    fn possible(&self, model: &Model) -> Vec<Deviation> {
        let mut possible = Vec::new();
        if let Some(head) = self.queue.front() {
            possible.push(Deviation::Lose);
            if self.queue.len() > 1 {
                possible.push(Deviation::Delay);
            }
            if self.state.left.copies > 0 {
                possible.push(Deviation::Step(Step::DeliverCopy(head.clone())));
            }
            let early = (0..PEERS).filter(|&at| self.state.nodes[at].allocator.poll_timeout().is_some());
            possible.extend(early.map(|at| Deviation::Step(Step::Tick(at))));
        }
        let others = model.steps(&self.state).into_iter().filter(|step| match step {
            Step::Ask(_) => true,
            Step::Start(_, with) => *with == With::Disk || !self.lossy,
            _ => false,
        });
        possible.extend(others.map(Deviation::Step));
        possible
    }

    fn deviate(&mut self, model: &Model, deviation: Deviation) {
        self.deviations.push((self.steps, deviation.clone()));
        match deviation {
            Deviation::Lose => {
                if let Some(head) = self.queue.pop_front() {
                    self.state.wire.remove(&head);
                }
            }
            Deviation::Delay => self.queue.rotate_left(1),
            Deviation::Step(step) => self.take(model, step),
        }
    }

    fn take(&mut self, model: &Model, step: Step) {
        self.lossy |= matches!(step, Step::Start(_, With::OldDisk | With::NoDisk));
        match step {
            Step::Ask(at) => self.asked[at] += 1,
            // A request that was under way is gone.
            Step::Start(at, _) => self.asked[at] = self.state.nodes[at].has.len(),
            _ => {}
        }
        self.steps += 1;
        self.state = model.next(&self.state, &step);
        let wire = &self.state.wire;
        self.queue.retain(|letter| wire.contains(letter));
        let new: Vec<Letter> = wire.iter().filter(|letter| !self.queue.contains(letter)).cloned().collect();
        self.queue.extend(new);
    }

    fn check(&self) -> Result<(), String> {
        let endless = (self.steps > STEPS_MAX).then(|| "it comes to no rest".to_owned());
        let wrong = violation(&self.state).or(endless);
        wrong.map_or(Ok(()), |text| Err(format!("{text}: step {} after {:#?}", self.steps, self.deviations)))
    }

    fn is_complete(&self) -> bool {
        let answered = self.state.nodes.iter().zip(self.asked).all(|(node, asked)| node.has.len() >= asked);
        let votes = self.state.nodes.iter().all(|node| !node.allocator.is_learning_to_vote());
        votes && answered
    }
}
