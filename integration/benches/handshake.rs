//! What a handshake costs both ends together in this crate, beside QUIC's: with the secret proven, and
//! by admission (control C28).
//!
//! `cargo bench -p integration --bench handshake`

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use mesh_proto::control::handshake::{Handshake, Offer, Role};
use mesh_proto::handover::{SessionKey, Suite};
use mesh_proto::id::Incarnation;
use mesh_proto::wire::control::Message;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;

/// Handshakes in one turn; the two kinds take turns, so that both see the same machine.
const TURN: u32 = 200;
const TURNS: u32 = 20;

fn main() -> io::Result<()> {
    let mut rng = ChaCha20Rng::from_seed([1; 32]);
    let mut spent = [Duration::ZERO; 2];
    for _ in 0..TURNS {
        for (admitted, spent) in [false, true].into_iter().zip(&mut spent) {
            let start = Instant::now();
            (0..TURN).for_each(|_| handshake(admitted, &mut rng));
            *spent += start.elapsed();
        }
    }
    let [secret, admission] = spent.map(|spent| spent / (TURN * TURNS));
    let ratio = admission.as_secs_f64() / secret.as_secs_f64();
    let mut out = io::stdout().lock();
    writeln!(out, "both ends, secret proven by SPAKE2: {secret:?}")?;
    writeln!(out, "both ends, by admission:            {admission:?} ({ratio:.2} of it)")
}

/// One handshake, to its end at both ends.
fn handshake(admitted: bool, rng: &mut ChaCha20Rng) {
    let secret = SessionKey([7; 32].into());
    let mut begin = |role, me: u8, them: u8| {
        let offer = Offer {
            role,
            network: "bench",
            secret: Some(&secret),
            suites: &[Suite::Aes256Gcm],
            sign_key: [me; 32],
            box_key: [me; 32],
            instance: 1,
            incarnation: Incarnation(1),
            name: "peer",
            run: [me; 16],
            their_sign_key: [them; 32],
            exporter: [9; 32],
            observed: None,
            admitted,
        };
        Some(Box::new(Handshake::new(&offer, rng)))
    };
    let mut ends = [begin(Role::Dialler, 1, 2), begin(Role::Acceptor, 2, 1)];
    let hello = |end: &Option<Box<Handshake>>| end.as_ref().map(|end| end.hello()).unwrap_or_default();
    let mut wire = vec![(1, hello(&ends[0])), (0, hello(&ends[1]))];
    let mut proven = 0;
    while let Some((to, bytes)) = wire.pop() {
        let message = Message::decode(&bytes).ok().flatten().expect("a message of the handshake");
        let replies = match message {
            Message::Hello(hello) => ends[to].as_mut().expect("not done").handle_hello(hello, &bytes),
            Message::Confirm(confirm) => {
                proven += 1;
                let end = ends[to].take().expect("one proof comes");
                end.handle_confirm(&confirm).map(|(reply, _)| reply.into_iter().collect())
            }
            other => panic!("not awaited here: {other:?}"),
        };
        let replies = replies.expect("the two fit");
        wire.splice(0..0, replies.into_iter().map(|reply| (1 - to, reply.encode())));
    }
    assert_eq!(proven, 2, "both ends are proven");
}
