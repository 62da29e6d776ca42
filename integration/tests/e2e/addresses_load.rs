//! Many requests at once to routers that are cut off from each other again and again.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use serde_json::json;
use tokio::{runtime::Handle, task::JoinSet};
use weft::lab::{router::Router, wait_until};

use crate::{
    Case,
    fastpath::Ends,
    ledger::{Ledger, Pod, RANGE, Refusal, USABLE, agrees, for_each, post},
    mesh::{Mesh, MeshConfig, Must as _, PATIENCE, new_lab},
};

pub(crate) const CASES: &[Case] =
    &[("after_eleven_thousand_requests_and_a_cut_every_five_seconds_each_address_of_a_22_can_be_given", 300, requests)];

const HOSTS: usize = 5;
/// Each host's client has so many containers, and so many requests under way at once.
const PODS: usize = 40;
const OPERATIONS: usize = 11_000;
const CUT_EVERY: Duration = Duration::from_secs(5);
/// Requests under way at once at each host when the rest is given out.
const AT_ONCE: usize = 8;
/// Until the last address that was freed may be given by chance again (30 s), and some.
const THE_REST: Duration = Duration::from_secs(60);

/// What became of the requests.
#[derive(Debug, Default)]
struct Tally {
    allocated: usize,
    /// Asked for by a container that has some already.
    again: usize,
    claimed: usize,
    freed: usize,
    /// By reason.
    refused: BTreeMap<&'static str, usize>,
    slowest: Duration,
}

impl Tally {
    fn refused(&mut self, refusal: &Refusal) {
        let reasons = ["in use by", "partly in use", "no free address", "cannot be reached", "gave up after"];
        let reason = reasons.into_iter().find(|reason| refusal.error.contains(reason));
        // Nothing else is a reason here: not the kernel, not the disk, not a router that is too busy.
        let reason = reason.must(&format!("a reason to refuse: {refusal}"));
        assert!(matches!(refusal.status, 409 | 503), "{refusal}");
        *self.refused.entry(reason).or_default() += 1;
    }

    fn add(&mut self, other: Self) {
        self.allocated += other.allocated;
        self.again += other.again;
        self.claimed += other.claimed;
        self.freed += other.freed;
        self.slowest = self.slowest.max(other.slowest);
        for (reason, count) in other.refused {
            *self.refused.entry(reason).or_default() += count;
        }
    }
}

fn requests() {
    let args = ["--range", RANGE].map(Into::into).into();
    let config = MeshConfig { args, ..MeshConfig::star(HOSTS) };
    let mesh = Mesh::start_routers(new_lab(&config), &config);
    mesh.wait_established(PATIENCE);
    let ledger = Arc::new(Ledger::default());
    let pods = Pod::make(&mesh, &ledger, &std::array::from_fn::<_, HOSTS, _>(|host| (host, PODS)));
    let runtime = tokio::runtime::Runtime::new().must("a runtime");
    let start = Instant::now();
    let (over, cuts, mut checked) = (AtomicBool::new(false), AtomicUsize::new(0), 0);
    let (mut pods, tally) = thread::scope(|scope| {
        let _ends = Ends(&over);
        scope.spawn(|| cut_again_and_again(&mesh, &over, &cuts));
        let (over, handle) = (&over, runtime.handle());
        let check = move |router: &Router| nothing_lost_at_any_time(&router.socket(), over, handle);
        let checks: Vec<_> = mesh.routers.iter().map(|router| scope.spawn(move || check(router))).collect();
        let operated = runtime.block_on(operate(pods));
        over.store(true, Ordering::Release);
        checked = checks.into_iter().map(|check| check.join().expect("no panic")).sum();
        operated
    });
    let (took, cuts) = (start.elapsed(), cuts.load(Ordering::Acquire));
    eprintln!(
        "{OPERATIONS} requests in {took:?} with {cuts} cuts and {checked} checks: {tally:?}; {} addresses are held",
        ledger.count()
    );
    assert!(cuts as u64 >= took.as_secs() / CUT_EVERY.as_secs(), "{cuts} cuts in {took:?}");
    mesh.lab.wire().heal_all();
    mesh.wait_established(Duration::from_secs(40));
    // The rest is given out, to as many more containers, until there is nothing left.
    let left = USABLE - ledger.count();
    let share = |host: usize| (host, left / HOSTS + usize::from(host < left % HOSTS));
    let more = Pod::make(&mesh, &ledger, &std::array::from_fn::<_, HOSTS, _>(share));
    let start = Instant::now();
    pods.extend(runtime.block_on(give_the_rest(more)));
    eprintln!("the other {left} addresses were given out in {:?}", start.elapsed());
    assert_eq!(ledger.count(), USABLE);
    let one_more = std::array::from_fn::<_, HOSTS, _>(|host| (host, 1));
    for mut pod in Pod::make(&mesh, &ledger, &one_more) {
        let refusal = runtime.block_on(pod.allocate()).expect_err("there is none left");
        assert!(refusal.status == 409 && refusal.error.contains("no free address"), "{refusal}");
    }
    for (host, router) in mesh.routers.iter().enumerate() {
        runtime.block_on(agrees(&router.socket(), host, &ledger)).must("an agreement");
    }
}

/// Two sides that do not hear each other, others each time; for some seconds of each five.
fn cut_again_and_again(mesh: &Mesh, over: &AtomicBool, cuts: &AtomicUsize) {
    let mut random = ChaCha8Rng::seed_from_u64(5);
    while !over.load(Ordering::Acquire) {
        let begin = Instant::now();
        // From one alone to all but one on the other side.
        let side = 1 + random.next_u64() % ((1 << HOSTS) - 2);
        for a in 0..HOSTS {
            for b in a + 1..HOSTS {
                if (side >> a ^ side >> b) & 1 == 1 {
                    mesh.lab.wire().cut(a, b);
                }
            }
        }
        cuts.fetch_add(1, Ordering::AcqRel);
        let lasts = Duration::from_millis(2000 + random.next_u64() % 2500);
        wait_until(lasts, || over.load(Ordering::Acquire));
        mesh.lab.wire().heal_all();
        wait_until(CUT_EVERY.saturating_sub(begin.elapsed()), || over.load(Ordering::Acquire));
    }
}

/// What a router has given and what runs on its host are one, in the middle of requests too; how often that was
/// looked at.
fn nothing_lost_at_any_time(socket: &Path, over: &AtomicBool, runtime: &Handle) -> usize {
    let mut checks = 0;
    while !over.load(Ordering::Acquire) {
        let check = runtime.block_on(post(socket, "/v1/ipam/check", &json!({}))).must("a check");
        let well = |kind: &str| check[kind].as_array().is_some_and(Vec::is_empty);
        assert!(well("leaked") && well("missing"), "{check}");
        checks += 1;
    }
    checks
}

/// Every container asks, claims and gives back, one request after the other, all of them at once.
async fn operate(pods: Vec<Pod>) -> (Vec<Pod>, Tally) {
    let begun = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for (seed, mut pod) in (0..).zip(pods) {
        let begun = Arc::clone(&begun);
        tasks.spawn(async move {
            let (mut random, mut tally) = (ChaCha8Rng::seed_from_u64(seed), Tally::default());
            while begun.fetch_add(1, Ordering::AcqRel) < OPERATIONS {
                let start = Instant::now();
                one_operation(&mut pod, &mut random, &mut tally).await;
                tally.slowest = tally.slowest.max(start.elapsed());
            }
            (pod, tally)
        });
    }
    let (mut pods, mut total) = (Vec::new(), Tally::default());
    while let Some(ended) = tasks.join_next().await {
        let (pod, tally) = ended.must("a task that does not panic");
        pods.push(pod);
        total.add(tally);
    }
    (pods, total)
}

async fn one_operation(pod: &mut Pod, random: &mut ChaCha8Rng, tally: &mut Tally) {
    let draw = random.next_u64() % 100;
    let result = match (pod.addresses.len(), draw) {
        (0, 0..50) => pod.allocate().await.map(|()| tally.allocated += 1),
        (0, _) | (_, 0..35) => {
            let address = wanted(pod, random);
            pod.claim(address).await.map(|()| tally.claimed += 1)
        }
        (_, 35..65) => pod.allocate().await.map(|()| tally.again += 1),
        (_, 65..92) => {
            let at = random.next_u64() as usize % pod.addresses.len();
            pod.free(at).await.must("give an address back");
            tally.freed += 1;
            Ok(())
        }
        _ => {
            pod.free_all().await.must("give all back");
            tally.freed += 1;
            Ok(())
        }
    };
    if let Err(refusal) = result {
        tally.refused(&refusal);
    }
}

/// The address that a container claims: mostly one that it had before, which is not kept from it though it was given
/// back a moment ago; else any.
fn wanted(pod: &Pod, random: &mut ChaCha8Rng) -> IpAddr {
    let number = u32::try_from(1 + random.next_u64() % USABLE as u64).must("a small number");
    let any = Ipv4Addr::from_bits(Ipv4Addr::new(10, 60, 0, 0).to_bits() + number).into();
    let before = random.next_u64() as usize % (1 + pod.before.len());
    pod.before.get(before).copied().filter(|_| !random.next_u64().is_multiple_of(4)).unwrap_or(any)
}

/// One address for each of these; what was freed lately is waited for.
async fn give_the_rest(pods: Vec<Pod>) -> Vec<Pod> {
    let end = Instant::now() + THE_REST;
    let give = |mut pod: Pod| async move {
        while let Err(refusal) = pod.allocate().await {
            assert!(Instant::now() < end, "{} gets no address: {refusal}", pod.name);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        pod
    };
    for_each(pods, AT_ONCE, give).await
}
