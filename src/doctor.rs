//! `gwlbtun doctor`: a look at the host with the eyes of the program, before it runs or beside it.
//!
//! | file | looks at |
//! |---|---|
//! | `trials` | what the start tries: kernel, io_uring, interfaces, limits, hooks |
//! | `rights` | capabilities, and what they allow |
//! | `ports` | who has the ports that are needed |
//! | `network` | the interface to the load balancer, and what Linux does with packets of `gwi` |
//! | `cores` | queues, interrupts, RPS and XPS against the set of workers |
//! | `host` | how all that is read |
//!
//! It changes nothing. What the start tries is tried in the same way, so for a moment there is an
//! interface `gwlbtun0`, down and without address, as at each start. `tuning/tune.sh check` looks
//! at some of the same things with other eyes: what would make a good host a better one.

mod cores;
mod host;
mod network;
mod ports;
mod rights;
mod trials;

use std::fmt;

use crate::settings::Settings;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// As it should be, or not to be known here.
    Ok,
    /// It works, and slower than it could, or not with every hook.
    Warn,
    /// The program does not start, or loses packets.
    Fail,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it ended.
    pub grade: Grade,
    /// What was looked at: lower case with dashes.
    pub check: &'static str,
    /// What was found.
    pub text: String,
    /// What to do about it, if anything.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self { grade: Grade::Ok, check, text: text.into(), fix: None }
    }

    fn bad(
        grade: Grade,
        check: &'static str,
        text: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { grade, check, text: text.into(), fix: Some(fix.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Ok => "OK  ",
            Grade::Warn => "WARN",
            Grade::Fail => "FAIL",
        };
        write!(f, "{grade} {}: {}", self.check, self.text)?;
        match &self.fix {
            Some(fix) => write!(f, "; fix: {fix}"),
            None => Ok(()),
        }
    }
}

/// Looks at everything that a program with these settings needs, in the order in which it matters.
/// `ram_bytes` is the size of the memory.
pub fn examine(settings: &Settings, ram_bytes: u64) -> Vec<Finding> {
    let mut findings = vec![flags(settings)];
    findings.extend(rights::examine(settings));
    findings.extend(trials::examine(settings, ram_bytes));
    findings.extend(ports::examine(settings));
    let devices = host::devices();
    findings.extend(network::examine(&devices));
    findings.extend(cores::examine(settings, &devices));
    findings
}

/// What the start would say about the flags.
fn flags(settings: &Settings) -> Finding {
    if settings.warnings.is_empty() {
        let workers = settings.workers.len();
        return Finding::ok("flags", format!("they make sense here; workers: {workers}"));
    }
    let text = settings.warnings.join("; ");
    Finding::bad(Grade::Warn, "flags", text, "correct them, see gwlbtun --help")
}

/// The exit status: 1 if a check failed, else 0.
pub fn exit_status(findings: &[Finding]) -> u8 {
    u8::from(findings.iter().any(|finding| finding.grade == Grade::Fail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_and_failures_alone_count() {
        let ok = Finding::ok("mtu", "eth0 has 9001");
        let warn = Finding::bad(Grade::Warn, "xps", "eth0 has none", "tune.sh apply");
        let fail =
            Finding::bad(Grade::Fail, "mtu", "eth0 has 1500", "ip link set dev eth0 mtu 9001");
        assert_eq!(ok.to_string(), "OK   mtu: eth0 has 9001");
        assert_eq!(fail.to_string(), "FAIL mtu: eth0 has 1500; fix: ip link set dev eth0 mtu 9001");
        assert_eq!(exit_status(&[ok.clone(), warn.clone()]), 0);
        assert_eq!(exit_status(&[ok, fail, warn]), 1);
    }
}
