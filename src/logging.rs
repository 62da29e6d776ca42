//! Logs, on standard error.
//!
//! | level | meaning |
//! |-------|---------|
//! | error | the operator must act |
//! | warn  | something is degraded, or was refused |
//! | info  | the mesh, or what is attached to it, changed |
//! | debug | why |
//! | trace | every step |

use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogLevel};

/// Changes what is logged by the subscriber that [`start`] made.
type SetFilter = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Begins to log. The second call in a process changes nothing.
pub fn start(level: LogLevel, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(level))
        .with_writer(std::io::stderr)
        .with_target(level >= LogLevel::Debug);
    let (started, set_filter): (_, SetFilter) = match format {
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.try_init(), Box::new(move |filter| handle.reload(filter).is_ok()))
        }
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let builder = builder.with_ansi(terminal).with_filter_reloading();
            let handle = builder.reload_handle();
            (builder.try_init(), Box::new(move |filter| handle.reload(filter).is_ok()))
        }
    };
    // Fails only if there is a subscriber already, which is then the one to use.
    if started.is_ok() {
        let _ = SET_FILTER.set(set_filter);
    }
}

/// Logs more or less from now on; false if the log was begun by somebody else.
pub fn set_level(level: LogLevel) -> bool {
    SET_FILTER.get().is_some_and(|set| set(filter(level)))
}

/// Libraries speak at the same level from trace on only: below, what matters of theirs is in our
/// own lines.
fn filter(level: LogLevel) -> EnvFilter {
    let name = level.name();
    EnvFilter::new(match level {
        LogLevel::Error => "error".to_owned(),
        LogLevel::Trace => name.to_owned(),
        _ => format!("error,weft={name},mesh_proto={name},ipam={name}"),
    })
}

/// Seconds since the Unix epoch as RFC 3339 in UTC.
#[must_use]
pub fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date of a day number, after the usual shift to years that begin in March, so that the
    // leap day is the last of its year: eras of 400 years have 146,097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn libraries_are_quiet_below_trace() {
        assert!(filter(LogLevel::Debug).to_string().contains("weft=debug"));
        assert!(!filter(LogLevel::Debug).to_string().contains("quinn"));
        assert_eq!(filter(LogLevel::Trace).to_string(), "trace");
    }
}
