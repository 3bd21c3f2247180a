//! Added latency: the time between a datagram's way out through vA and its packet's way back in.
//!
//! Both times are the kernel's, taken where packet sockets look, so neither the generator's turn
//! nor this reader's counts. Each packet of the load is unlike all others for seconds
//! ([`packet::identity`]), so what comes back is told from what was sent before. What lies between
//! is the target, twice the veth, and the CPU that both need; it is the same for every target.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::ControlMessageOwned;
use nix::sys::socket::MsgFlags;
use nix::sys::socket::recvmsg;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt;
use nix::sys::time::TimeSpec;
use serde_json::json;

use crate::lab::Failure;
use crate::lab::Host;
use crate::lab::Lab;
use crate::measure::now;
use crate::packet;
use crate::sight;
use crate::sight::Seen;

/// How long a packet may be under way. What comes back later counts as lost.
const LIMIT: Duration = Duration::from_millis(500);

/// Fewest packets that make a figure: with fewer the last percentile is one packet.
const PACKETS_MIN: usize = 1000;

/// The latencies of one run.
#[derive(Clone, Debug)]
pub(crate) struct Latency {
    /// Packets that came back.
    pub(crate) packets: usize,
    /// Packets that did not, or that the packet socket missed.
    pub(crate) lost: usize,
    /// In microseconds: of half of the packets, of 99 and of 99.9 percent at most so much.
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
}

impl Latency {
    /// The same for machines.
    pub(crate) fn json(&self) -> serde_json::Value {
        json!({
            "packets": self.packets,
            "lost": self.lost,
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "p999_us": self.p999_us,
        })
    }
}

/// Looks at all packets of the running load for `span`.
pub(crate) fn measure(lab: &Arc<Lab>, span: Duration) -> Result<Latency, Failure> {
    let lab = Arc::clone(lab);
    thread::spawn(move || {
        lab.enter(Host::Sender)?;
        let (latencies, lost) = watch(span)?;
        evaluate(latencies, lost)
    })
    .join()
    .map_err(|_| "the thread that measures latency panicked")?
}

/// The latencies of the packets that were sent within `span`, and how many have none.
fn watch(span: Duration) -> Result<(Vec<Duration>, usize), Failure> {
    let tap = sight::tap()?;
    setsockopt(&tap, sockopt::ReceiveTimestampns, &true)?;
    let mut buffer = vec![0; sight::BUFFER_BYTES];
    let mut control = cmsg_space!(TimeSpec);
    let mut under_way: HashMap<(u16, u64), Duration> = HashMap::new();
    let mut latencies = Vec::new();
    let start = now();
    loop {
        let age = start.elapsed();
        if age > span + LIMIT || age > span && under_way.is_empty() {
            return Ok((latencies, under_way.len()));
        }
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let received =
            recvmsg::<()>(tap.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
        let (bytes, at) = match received {
            Ok(message) => (message.bytes, stamp(message.cmsgs()?).ok_or("no time stamp")?),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(format!("recvmsg of a packet socket: {error}").into()),
        };
        match sight::inner_packet(&buffer[..bytes]) {
            Some((Seen::Sent, inner)) if age < span => {
                under_way.insert(packet::identity(inner), at);
            }
            Some((Seen::Returned, inner)) => {
                let sent = under_way.remove(&packet::identity(inner));
                latencies.extend(sent.map(|sent| at.saturating_sub(sent)));
            }
            Some((Seen::Sent, _)) | None => {}
        }
    }
}

/// The kernel's time of a packet.
fn stamp(messages: impl IntoIterator<Item = ControlMessageOwned>) -> Option<Duration> {
    messages.into_iter().find_map(|message| {
        let ControlMessageOwned::ScmTimestampns(time) = message else { return None };
        Some(Duration::from(time))
    })
}

fn evaluate(mut latencies: Vec<Duration>, lost: usize) -> Result<Latency, Failure> {
    let packets = latencies.len();
    if packets < PACKETS_MIN {
        return Err(format!("only {packets} packets came back, {lost} did not").into());
    }
    latencies.sort_unstable();
    let per_mille = |share: usize| latencies[(packets - 1) * share / 1000].as_secs_f64() * 1e6;
    Ok(Latency {
        packets,
        lost,
        p50_us: per_mille(500),
        p99_us: per_mille(990),
        p999_us: per_mille(999),
    })
}
