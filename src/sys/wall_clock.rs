//! Civil time, for people who read the log, and for metrics that are points in it. Nothing else in
//! the program may look at it: it steps.

#![expect(unsafe_code, reason = "only the C library knows the host's time zone: localtime_r")]

use std::fmt;
use std::time::Duration;

use nix::libc;
use nix::time::ClockId;
use nix::time::clock_gettime;

/// A point in civil time: milliseconds since 1970 in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallTime {
    secs: i64,
    millis: u16,
}

/// The civil time now.
///
/// # Panics
/// Never on Linux: the clock exists and its fraction is below a second.
pub fn now() -> WallTime {
    let time = clock_gettime(ClockId::CLOCK_REALTIME).expect("the clock exists");
    WallTime {
        secs: time.tv_sec(),
        millis: u16::try_from(time.tv_nsec() / 1_000_000).expect("below a second"),
    }
}

impl WallTime {
    /// Time since 1970 in UTC; nothing before that.
    pub fn since_epoch(self) -> Duration {
        let secs = u64::try_from(self.secs).unwrap_or(0);
        Duration::from_secs(secs) + Duration::from_millis(self.millis.into())
    }

    /// The same, to be written in UTC.
    pub const fn utc(self) -> Utc {
        Utc(self)
    }

    fn write(self, f: &mut fmt::Formatter<'_>, calendar: &libc::tm, between: char) -> fmt::Result {
        write!(
            f,
            "{:04}-{:02}-{:02}{between}{:02}:{:02}:{:02}.{:03}",
            i64::from(calendar.tm_year) + 1900,
            calendar.tm_mon + 1,
            calendar.tm_mday,
            calendar.tm_hour,
            calendar.tm_min,
            calendar.tm_sec,
            self.millis
        )
    }
}

impl fmt::Display for WallTime {
    /// Local time as `2026-11-21 19:54:17.303`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, &local(self.secs), ' ')
    }
}

/// A point in civil time, for programs.
#[derive(Clone, Copy, Debug)]
pub struct Utc(WallTime);

impl fmt::Display for Utc {
    /// As RFC 3339 has it: `2026-11-21T18:54:17.303Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f, &universal(self.0.secs), 'T')?;
        f.write_str("Z")
    }
}

/// The host's calendar at `secs` seconds since 1970; all zero if the year has no number in C.
fn local(secs: libc::time_t) -> libc::tm {
    // SAFETY: `tm` is plain integers and a pointer that may be null, so all zero is valid.
    let mut calendar: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers come from references that outlive the call; the function keeps none
    // of them. It may read TZ, which no code of this program changes.
    unsafe { libc::localtime_r(&raw const secs, &raw mut calendar) };
    calendar
}

/// The calendar in UTC; all zero if the year has no number in C.
fn universal(secs: libc::time_t) -> libc::tm {
    // SAFETY: as in `local`.
    let mut calendar: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers come from references that outlive the call; the function keeps none
    // of them.
    unsafe { libc::gmtime_r(&raw const secs, &raw mut calendar) };
    calendar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_agrees_with_date() {
        for (secs, millis) in [(0, 7), (1_700_000_000, 0), (4_102_444_799, 999)] {
            let date = std::process::Command::new("date")
                .args(["-d", &format!("@{secs}"), "+%Y-%m-%d %H:%M:%S"])
                .output()
                .unwrap();
            let expected = String::from_utf8(date.stdout).unwrap();
            let text = WallTime { secs, millis }.to_string();
            assert_eq!(text, format!("{}.{millis:03}", expected.trim_end()));
        }
    }

    #[test]
    fn utc_is_that_of_rfc_3339() {
        for (secs, millis, text) in [
            (0, 7, "1970-01-01T00:00:00.007Z"),
            (1_709_210_096, 0, "2024-02-29T12:34:56.000Z"),
            (4_102_444_799, 999, "2099-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(WallTime { secs, millis }.utc().to_string(), text);
        }
    }
}
