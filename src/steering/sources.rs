//! The program that keeps strangers out: which senders' datagrams get into a receive socket.
//!
//! What it refuses takes no room in the socket's queue and no worker's time. It counts that, in
//! datagrams: where the kernel has merged some, which it does for one sender only, the merged
//! packet says how many they are. One that came merged from a virtual machine's host may not say
//! so, and counts as one.
//!
//! The workers look at the sender too: without the permission for such a program there is none, and
//! a datagram may come before it is attached.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;

use crate::sys;
use crate::sys::bpf;
use crate::sys::bpf::Alu;
use crate::sys::bpf::Counters;
use crate::sys::bpf::Label;
use crate::sys::bpf::Width;
use crate::sys::bpf::extended::Field;
use crate::sys::bpf::extended::Instruction;
use crate::sys::bpf::extended::NETWORK_HEADER;
use crate::sys::bpf::extended::Program;
use crate::sys::bpf::extended::Register;
use crate::types::SourceList;

/// Counters of one socket, a cache line: those below, and what keeps the next socket's apart.
const COUNTERS: usize = 8;
const DATAGRAMS: i16 = 0;
const BYTES: i16 = 1;
const LAST_SOURCE: i16 = 2;
const SOCKET_DROPS: i16 = 3;

/// Offset of the source in an IPv4 header (RFC 791 §3.1).
const V4_SOURCE: u32 = 12;

const UDP_HEADER_BYTES: u32 = 8;

/// Keeps all of a packet.
const ALL: u32 = u32::MAX;

/// The context, and what packet loads expect it in.
const CONTEXT: Register = Register::R6;
/// The sender, and what the program returns.
const SOURCE: Register = Register::R0;
/// What is counted.
const COUNT: Register = Register::R7;
const LEN: Register = Register::R8;
/// Where.
const AT: Register = Register::R1;

/// What a socket was spared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Datagrams.
    pub datagrams: u64,
    /// Their bytes behind the UDP header.
    pub bytes: u64,
    /// What of these the socket's own counter of drops has ([`udp::dropped`]), in which merged
    /// datagrams are one.
    ///
    /// [`udp::dropped`]: crate::sys::udp::dropped
    pub socket_drops: u64,
    /// Who sent the last one; none if there was none.
    pub last_source: Option<Ipv4Addr>,
}

/// The programs of all receive sockets, which stay as long as those, and their counters.
#[derive(Debug)]
pub struct SourceFilter(Counters);

impl SourceFilter {
    /// Lets only datagrams of `sources`, at least one, into the sockets from now on; what waits in
    /// them stays.
    ///
    /// # Errors
    /// See [`bpf::load`].
    pub fn attach(receivers: &[impl AsFd], sources: &SourceList) -> Result<Self, sys::Error> {
        let counters = Counters::new(receivers.len() * COUNTERS)?;
        let mut programs = Vec::with_capacity(receivers.len());
        for socket in 0..receivers.len() {
            let code = program(sources, &counters, socket * COUNTERS);
            programs.push(bpf::load("gwlbtun_source", &code)?);
        }
        for (receiver, program) in receivers.iter().zip(&programs) {
            bpf::attach_filter(receiver, program)?;
        }
        Ok(Self(counters))
    }

    /// What each socket was spared until now, in their order.
    pub fn refused(&self) -> Vec<Refused> {
        let counters = self.0.read().expect("the map is open");
        let sockets = counters.chunks(COUNTERS);
        sockets
            .map(|counters| {
                let [datagrams, bytes, last, socket_drops] =
                    [DATAGRAMS, BYTES, LAST_SOURCE, SOCKET_DROPS]
                        .map(|place| counters[usize::from(place.cast_unsigned())]);
                let last = u32::try_from(last).ok().filter(|_| datagrams > 0);
                let last_source = last.map(Ipv4Addr::from_bits);
                Refused { datagrams, bytes, socket_drops, last_source }
            })
            .collect()
    }
}

fn program(sources: &SourceList, counters: &Counters, first: usize) -> Vec<Instruction> {
    let mut p = Program::new();
    let [allowed, refused, counted] = [(); 3].map(|()| p.new_label());
    p.copy(CONTEXT, Register::R1);
    p.load(Width::Word, NETWORK_HEADER + V4_SOURCE);
    let ranges: Vec<_> = sources.ranges().collect();
    search(&mut p, &ranges, allowed, refused);

    p.place(refused);
    p.load_field(COUNT, CONTEXT, Field::GsoSegs);
    p.jump_unless_equal(COUNT, 0, counted);
    p.set(COUNT, 1);
    p.place(counted);
    p.load_field(LEN, CONTEXT, Field::Len);
    p.alu(Alu::Sub, LEN, UDP_HEADER_BYTES);
    p.load_address(AT, counters, first);
    p.add_to_counter(AT, DATAGRAMS, COUNT);
    p.add_to_counter(AT, BYTES, LEN);
    p.set_counter(AT, LAST_SOURCE, SOURCE);
    p.set(COUNT, 1);
    p.add_to_counter(AT, SOCKET_DROPS, COUNT);
    p.set(Register::R0, 0);
    p.exit();

    p.place(allowed);
    p.set(Register::R0, ALL);
    p.exit();
    p.finish()
}

/// Goes to `allowed` if the sender is in one of `ranges`, which ascend, else to `refused`: looks at
/// the middle one, then at those on one side of it.
fn search(p: &mut Program, ranges: &[RangeInclusive<u32>], allowed: Label, refused: Label) {
    let Some(middle) = ranges.get(ranges.len() / 2) else {
        p.jump(refused);
        return;
    };
    let (below, above) = (&ranges[..ranges.len() / 2], &ranges[ranges.len() / 2 + 1..]);
    let is_below = p.new_label();
    p.jump_if_low_less(SOURCE, *middle.start(), is_below);
    p.jump_if_low_at_most(SOURCE, *middle.end(), allowed);
    search(p, above, allowed, refused);
    p.place(is_below);
    search(p, below, allowed, refused);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddrV4;
    use std::net::UdpSocket;

    use crate::sys::udp;
    use crate::types::GENEVE_PORT;
    use crate::types::Network;

    const TARGET: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, GENEVE_PORT);

    fn list(networks: &[&str]) -> SourceList {
        networks.iter().map(|network| network.parse::<Network>().unwrap()).collect()
    }

    fn in_private_namespace() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
    }

    #[test]
    fn strangers_are_counted_and_do_not_get_in() {
        in_private_namespace();
        let receivers = [udp::open_receiver(0, false).unwrap()];
        // Seven ranges: a search of three steps, with neighbours on both sides.
        let networks = ["127.0.0.2", "127.0.0.4", "127.0.0.6/31", "127.0.0.9", "127.0.1.0/24"];
        let filter = SourceFilter::attach(
            &receivers,
            &list(&[&networks[..], &["10.0.0.0/8", "200.0.0.0/8"]].concat()),
        )
        .unwrap();
        assert_eq!(filter.refused(), [Refused::default()]);
        let [receiver] = receivers.map(UdpSocket::from);
        let socket_drops = || udp::dropped(&receiver).unwrap();
        let mut expected = Refused::default();
        for last in 1..=12 {
            let source = Ipv4Addr::new(127, 0, 0, last);
            let sender = UdpSocket::bind((source, 0)).unwrap();
            sender.send_to(&[last; 30], TARGET).unwrap();
            let got = receiver.recv_from(&mut [0; 64]).map(|(bytes, from)| (bytes, from.ip()));
            if [2, 4, 6, 7, 9].contains(&last) {
                assert_eq!(got.unwrap(), (30, source.into()));
            } else {
                assert!(got.is_err(), "{source}");
                expected.datagrams += 1;
                expected.bytes += 30;
                expected.socket_drops += 1;
                expected.last_source = Some(source);
            }
            assert_eq!(u64::from(socket_drops()), expected.socket_drops);
        }
        assert_eq!(filter.refused(), [expected]);
    }

    #[test]
    fn merged_datagrams_count_each() {
        in_private_namespace();
        let receivers =
            [udp::open_receiver(0, true).unwrap(), udp::open_receiver(0, true).unwrap()];
        let filter = SourceFilter::attach(&receivers, &list(&["127.0.0.2"])).unwrap();
        let sender = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        // The loopback link hands over what was to be cut as it is.
        nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::UdpGsoSegment, &100)
            .unwrap();
        sender.send_to(&[1; 950], TARGET).unwrap();
        let refused = filter.refused();
        let sum = |of: fn(&Refused) -> u64| refused.iter().map(of).sum::<u64>();
        assert_eq!((sum(|one| one.datagrams), sum(|one| one.bytes)), (10, 950), "{refused:?}");
        let dropped: u32 = receivers.iter().map(|it| udp::dropped(it).unwrap()).sum();
        assert_eq!(sum(|one| one.socket_drops), u64::from(dropped));
        for receiver in receivers.map(UdpSocket::from) {
            assert!(receiver.recv_from(&mut [0; 64]).is_err());
        }
    }

    #[test]
    fn as_many_networks_as_can_be_asked_for() {
        in_private_namespace();
        let receivers = [udp::open_receiver(0, false).unwrap()];
        let many: SourceList = (0..256)
            .map(|number| format!("10.{number}.0.0/17").parse::<Network>().unwrap())
            .collect();
        assert_eq!(many.ranges().len(), 256);
        SourceFilter::attach(&receivers, &many).unwrap();
        SourceFilter::attach(&receivers, &list(&["0.0.0.0/0"])).unwrap();
    }
}
