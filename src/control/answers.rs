//! From which addresses and ports no answer can leave, and whether any answer leaves at all.
//!
//! Workers tell which *source* they could not get: another program has the load balancer's source
//! port, and there is no `CAP_NET_RAW`. A source is believed to be refused until control can bind
//! it itself, because a load balancer may send nothing to a target that is not healthy, and then no
//! worker tries.
//!
//! One refused source beside others that work is a warning. *Nothing* can be answered when refusals
//! go on for [`PERSISTENT`] after the last packet that left, and that stays so until one leaves or
//! every source is free: an endpoint that is merely idle must not turn the page back and forth.
//! Ports below 1024 never count for that. AWS uses none, and whoever sends us such datagrams must
//! not be able to take an idle target out of service.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddrV4;
use std::time::Duration;

use crate::sys::Errno;
use crate::types::Moment;
use crate::types::SEND_PORT_MIN;
use crate::worker::mailbox::Refusal;

/// Refused sources that are remembered.
const SOURCES_MAX: usize = 16;

/// How long refusals go on without a packet sent before nothing can be answered.
const PERSISTENT: Duration = Duration::from_secs(2);

/// How often a refused source is told again.
const TOLD_AGAIN: Duration = Duration::from_mins(1);

/// How long a source is remembered that no packet wanted any more.
const REMEMBERED: Duration = Duration::from_mins(10);

#[derive(Debug)]
struct Source {
    last: Refusal,
    told: Moment,
}

/// What is known about refused sources.
#[derive(Debug, Default)]
pub(super) struct Answers {
    sources: BTreeMap<SocketAddrV4, Source>,
    /// Packets sent by everybody, as last seen.
    sent: u64,
    /// When that last grew, or the first refusal that counts after a time without any.
    answered: Moment,
    /// The last refusal that counts.
    refused: Moment,
}

impl Answers {
    /// A worker was refused. Returns whether the log shall say so.
    pub(super) fn refused(&mut self, refusal: Refusal) -> bool {
        let Refusal { from, at, .. } = refusal;
        if is_plausible(from) {
            if !self.is_plausible_refused() {
                self.answered = at;
            }
            self.refused = self.refused.max(at);
        }
        if let Some(source) = self.sources.get_mut(&from) {
            source.last = refusal;
            let is_due = at.since(source.told) >= TOLD_AGAIN;
            if is_due {
                source.told = at;
            }
            return is_due;
        }
        let has_room = self.sources.len() < SOURCES_MAX;
        if has_room {
            self.sources.insert(from, Source { last: refusal, told: at });
        }
        has_room
    }

    /// Whether there is anything to look after.
    pub(super) fn is_any_refused(&self) -> bool {
        !self.sources.is_empty()
    }

    /// The sources that may be free by now.
    pub(super) fn to_try(&self) -> Vec<SocketAddrV4> {
        self.sources.keys().copied().filter(|&source| is_plausible(source)).collect()
    }

    /// A source can be had again.
    pub(super) fn is_free(&mut self, source: SocketAddrV4) {
        self.sources.remove(&source);
    }

    /// Takes notice of how many packets were sent to the load balancer so far.
    pub(super) fn sent(&mut self, sent: u64, now: Moment) {
        if sent > self.sent {
            self.answered = now;
        }
        // It shrinks when an endpoint goes.
        self.sent = sent;
        self.sources.retain(|_, source| now.since(source.last.at) < REMEMBERED);
    }

    /// Whether nothing can be answered.
    fn is_mute(&self) -> bool {
        self.is_plausible_refused() && self.refused.since(self.answered) >= PERSISTENT
    }

    fn is_plausible_refused(&self) -> bool {
        self.sources.keys().any(|&source| is_plausible(source))
    }

    /// Why nothing can be answered, while that is so.
    pub(super) fn reason(&self) -> Option<String> {
        let mut plausible = self.sources.values().filter(|source| is_plausible(source.last.from));
        let first = self.is_mute().then(|| plausible.next())??;
        let first = format!("cannot {}", Remedy(first.last));
        Some(format!("no packet goes back: {first}"))
    }

    /// What cannot be answered.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        self.sources.values().map(|source| format!("cannot {}", Remedy(source.last)))
    }
}

/// Whether a load balancer may send from this port.
const fn is_plausible(source: SocketAddrV4) -> bool {
    source.port() >= SEND_PORT_MIN
}

/// What cannot be done, why, and what to do: the end of a sentence that begins with "Cannot".
pub(super) struct Remedy(pub(super) Refusal);

impl fmt::Display for Remedy {
    #[expect(clippy::wildcard_enum_match_arm, reason = "errno is an open set")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { from, errno, .. } = self.0;
        let port = from.port();
        write!(f, "answer from UDP {from}: {}: ", errno.desc())?;
        match errno {
            _ if port < SEND_PORT_MIN => {
                f.write_str("a port below 1024 needs a raw socket: give the unit CAP_NET_RAW")
            }
            Errno::EADDRINUSE => write!(
                f,
                "another program on this host has the load balancer's source port (ss -aunp sport \
                 = {port}); reserve it with sysctl net.ipv4.ip_local_reserved_ports={port}, or \
                 give the unit CAP_NET_RAW"
            ),
            Errno::EADDRNOTAVAIL => f.write_str(
                "packets came to an address that this host does not have: look at ip addr and at \
                 nftables rules that change destinations",
            ),
            Errno::EMFILE | Errno::ENFILE => {
                f.write_str("raise LimitNOFILE of the unit, or sysctl fs.file-max")
            }
            _ => f.write_str("give the unit CAP_NET_RAW"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn refusal(port: u16, secs: u64) -> Refusal {
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), port);
        Refusal { from, errno: Errno::EADDRINUSE, at: at(secs) }
    }

    fn at(secs: u64) -> Moment {
        Moment::from_secs(100 + secs)
    }

    #[test]
    fn says_what_where_and_what_to_do() {
        let texts = [
            (
                refusal(60_000, 0),
                "answer from UDP 10.0.0.9:60000: Address already in use: another program on this \
                 host has the load balancer's source port (ss -aunp sport = 60000); reserve it \
                 with sysctl net.ipv4.ip_local_reserved_ports=60000, or give the unit CAP_NET_RAW",
            ),
            (
                Refusal { errno: Errno::EACCES, ..refusal(80, 0) },
                "answer from UDP 10.0.0.9:80: Permission denied: a port below 1024 needs a raw \
                 socket: give the unit CAP_NET_RAW",
            ),
        ];
        for (refusal, text) in texts {
            assert_eq!(Remedy(refusal).to_string(), text);
        }
    }

    #[test]
    fn a_source_is_told_once_a_minute_and_their_number_is_bounded() {
        let mut answers = Answers::default();
        assert!(answers.refused(refusal(60_000, 0)));
        assert!(!answers.refused(refusal(60_000, 59)));
        assert!(answers.refused(refusal(60_000, 60)));
        let told = (2000..3000).filter(|&port| answers.refused(refusal(port, 60))).count();
        assert_eq!((told, answers.warnings().count()), (SOURCES_MAX - 1, SOURCES_MAX));
    }

    #[test]
    fn mute_when_refusals_go_on_and_nothing_leaves() {
        let mut answers = Answers::default();
        answers.sent(7, at(0));
        assert_eq!(answers.reason(), None);
        answers.refused(refusal(60_000, 10));
        answers.sent(7, at(60));
        assert_eq!(answers.reason(), None, "one packet says little");
        answers.refused(refusal(60_000, 70));
        assert!(answers.reason().unwrap().contains("10.0.0.9:60000"));
        // A load balancer that believes us sends nothing more.
        answers.sent(7, at(600));
        assert!(answers.reason().is_some());
        answers.is_free(refusal(60_000, 0).from);
        assert_eq!((answers.reason(), answers.warnings().count()), (None, 0));
    }

    #[test]
    fn a_source_beside_one_that_works_is_a_warning() {
        let mut answers = Answers::default();
        for second in 0..30 {
            answers.refused(refusal(60_000, second));
            answers.sent(second, at(second));
            assert_eq!(answers.reason(), None);
        }
        assert_eq!(answers.warnings().count(), 1);
        answers.sent(29, at(400));
        assert_eq!(answers.reason(), None, "idle since then");
        // An endpoint has gone, and what it had sent with it.
        answers.sent(3, at(401));
        answers.refused(refusal(60_000, 402));
        assert!(answers.reason().is_some());
        answers.sent(4, at(403));
        assert_eq!(answers.reason(), None);
    }

    #[test]
    fn low_ports_are_a_warning_and_never_a_reason() {
        let mut answers = Answers::default();
        for second in 0..30 {
            answers.refused(refusal(80, second));
            answers.sent(0, at(second));
        }
        assert_eq!((answers.reason(), answers.warnings().count()), (None, 1));
        answers.refused(refusal(60_000, 30));
        assert_eq!(answers.reason(), None, "one packet says little");
        answers.refused(refusal(60_000, 32));
        assert!(answers.reason().unwrap().contains(":60000: "));
    }

    #[test]
    fn what_nobody_wants_any_more_is_forgotten() {
        let mut answers = Answers::default();
        answers.refused(refusal(80, 0));
        answers.refused(refusal(60_000, 0));
        assert_eq!(answers.to_try(), [refusal(60_000, 0).from], "a low port is never tried");
        answers.sent(0, at(599));
        assert!(answers.is_any_refused());
        answers.sent(0, at(600));
        assert!(!answers.is_any_refused());
    }
}
