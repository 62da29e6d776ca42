//! What the harnesses of our own share: trials that end, and routers that do not outlive them.

use std::{
    fmt::Display,
    panic::{self, AssertUnwindSafe},
    sync::mpsc,
    thread,
    time::Duration,
};

use libtest_mimic::Failed;

/// A router must not outlive a harness that was killed. Who is not root here is about to enter a user
/// namespace, and must be alone in its process until then.
pub(crate) fn end_with_the_parent() {
    if !weft::lab::is_root() {
        return;
    }
    let parent = rustix::process::getppid();
    thread::spawn(move || {
        while rustix::process::getppid() == parent {
            thread::sleep(Duration::from_millis(200));
        }
        std::process::exit(1);
    });
}

/// Runs a test on a thread of its own for at most its time.
pub(crate) fn bounded(limit: Duration, body: fn()) -> Result<(), Failed> {
    let (done, result) = mpsc::channel();
    thread::Builder::new().name("trial".into()).spawn(move || {
        let outcome = panic::catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
            panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "panicked".to_owned())
        });
        // The harness may have given up on this test.
        let _ = done.send(outcome);
    })?;
    match result.recv_timeout(limit) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(message)) => Err(message.into()),
        Err(_) => Err(format!("not finished after {limit:?}").into()),
    }
}

/// `expect` for tests, with the error in the text.
pub(crate) trait Must<T> {
    fn must(self, what: &str) -> T;
}

impl<T, E: Display> Must<T> for Result<T, E> {
    #[track_caller]
    fn must(self, what: &str) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

impl<T> Must<T> for Option<T> {
    #[track_caller]
    fn must(self, what: &str) -> T {
        match self {
            Some(value) => value,
            None => panic!("missing: {what}"),
        }
    }
}
