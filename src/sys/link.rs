//! Network links by netlink: bring up, delete one, delete a group (rtnetlink(7)).
//!
//! Each call is one request and the kernel's answer to it, and takes the rtnl lock: only the
//! netdev thread calls this module.

use std::collections::HashMap;

use netlink_packet_core::NLM_F_ACK;
use netlink_packet_core::NLM_F_REQUEST;
use netlink_packet_core::NetlinkHeader;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::link::LinkFlags;
use netlink_packet_route::link::LinkMessage;
use netlink_sys::Socket;
use netlink_sys::SocketAddr;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::Errno;
use super::Error;
use crate::types::LinkName;

/// Index of a link in its network namespace; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkIndex(pub u32);

/// Number that links share so that one request deletes them all (`IFLA_GROUP`). Group 0 is where
/// every link starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkGroup(pub u32);

/// How a link is to be when it comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSetup {
    /// Largest packet in bytes.
    pub mtu_bytes: u32,
    /// Packets that wait in each queue before the kernel drops.
    pub queue_packets: u32,
    /// The group to join.
    pub group: LinkGroup,
}

/// The index of the link `name` in the calling thread's network namespace.
///
/// # Errors
/// `ENODEV` if there is no such link.
pub fn index_of(name: LinkName) -> Result<LinkIndex, Error> {
    nix::net::if_::if_nametoindex(name.as_str())
        .map(LinkIndex)
        .map_err(|errno| Error::new("if_nametoindex", name.as_str(), errno))
}

/// How many packets of the host the kernel has dropped at each link of the calling thread's network
/// namespace: a TUN's queue was full, because nobody read it in time. A super-packet counts once.
///
/// # Errors
/// When `/proc/thread-self/net/dev` cannot be read.
pub fn dropped() -> Result<HashMap<String, u64>, Error> {
    let table = "/proc/thread-self/net/dev";
    let text = std::fs::read_to_string(table)
        .map_err(|error| Error::from_io("read", table.to_owned(), &error))?;
    Ok(text.lines().filter_map(dropped_in).collect())
}

/// Name and drops in a line as `dev_seq_printf_stats` writes it (`net/core/net-procfs.c`): the
/// fourth number of what is sent, which stands behind eight about what is received.
fn dropped_in(line: &str) -> Option<(String, u64)> {
    let (name, numbers) = line.split_once(':')?;
    let dropped = numbers.split_ascii_whitespace().nth(8 + 3)?.parse().ok()?;
    Some((name.trim_start().to_owned(), dropped))
}

/// A socket to the kernel's routing subsystem, in the network namespace of the thread that
/// opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens the socket.
    ///
    /// # Errors
    /// When the process is out of descriptors or may not use netlink.
    pub fn open() -> Result<Self, Error> {
        let fail = |call| move |error| Error::from_io(call, "NETLINK_ROUTE", &error);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(fail("socket"))?;
        socket.bind_auto().map_err(fail("bind"))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(fail("connect"))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Gives a TUN link its MTU, queue length and group, and brings it up, without a queueing
    /// discipline.
    ///
    /// A TUN has room for 256 queues, however many are in use. The kernel would give each of them a
    /// `pfifo_fast` of three times the queue length, 25 MiB for 4,096 packets, in which no packet
    /// ever waits: the driver takes what comes, or drops it. It cannot when that length is 0, and
    /// falls back to `noqueue` (`attach_default_qdiscs`, `net/sched/sch_generic.c`), which the
    /// kernel log mentions. As that is a default one too, `tc qdisc add ... root` works as ever.
    ///
    /// The length follows in the request that brings the link up, behind which the kernel sets it
    /// (`do_setlink`, `net/core/rtnetlink.c`). By a request of its own it may come when the kernel
    /// has announced itself on the link already, which would be a packet lost at a full queue.
    ///
    /// # Errors
    /// The kernel's answer: `ENODEV`, `EPERM`, `EINVAL` for an MTU out of range.
    pub fn bring_up(&mut self, link: LinkIndex, setup: LinkSetup) -> Result<(), Error> {
        let up = LinkFlags::Up;
        self.set(link, LinkFlags::empty(), vec![LinkAttribute::TxQueueLen(0)])?;
        let attributes = vec![
            LinkAttribute::Mtu(setup.mtu_bytes),
            LinkAttribute::Group(setup.group.0),
            LinkAttribute::TxQueueLen(setup.queue_packets),
        ];
        self.set(link, up, attributes)
    }

    /// Sets flags and attributes of a link.
    fn set(
        &mut self,
        link: LinkIndex,
        flags: LinkFlags,
        attributes: Vec<LinkAttribute>,
    ) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = link.0;
        message.header.flags = flags;
        message.header.change_mask = flags;
        message.attributes = attributes;
        let request = RouteNetlinkMessage::SetLink(message);
        self.ask("RTM_SETLINK", format!("link {}", link.0), request)
    }

    /// Deletes one link.
    ///
    /// # Errors
    /// The kernel's answer: `ENODEV` if it is gone already, `EPERM`.
    pub fn delete(&mut self, link: LinkIndex) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = link.0;
        let request = RouteNetlinkMessage::DelLink(message);
        self.ask("RTM_DELLINK", format!("link {}", link.0), request)
    }

    /// Deletes every link of a group at once, which costs little more than deleting one.
    ///
    /// # Errors
    /// The kernel's answer: `ENODEV` if the group is empty, `EPERM`.
    pub fn delete_group(&mut self, group: LinkGroup) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::Group(group.0)];
        let request = RouteNetlinkMessage::DelLink(message);
        self.ask("RTM_DELLINK", format!("group {}", group.0), request)
    }

    /// Sends one request and waits for its answer.
    fn ask(
        &mut self,
        call: &'static str,
        subject: String,
        request: RouteNetlinkMessage,
    ) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let outcome = match self.socket.send(&bytes, 0) {
            Ok(_) => self.answer(),
            Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
        };
        outcome.map_err(|errno| Error::new(call, subject, errno))
    }

    /// Receives until the answer to the last request is there. Answers to earlier ones cannot
    /// precede it unless a receive failed, so the loop ends after a few turns.
    fn answer(&self) -> Result<(), Errno> {
        loop {
            let (bytes, _) = self
                .socket
                .recv_from_full()
                .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
                .map_err(|_| Errno::EBADMSG)?;
            if message.header.sequence_number != self.sequence {
                continue;
            }
            let NetlinkPayload::Error(answer) = message.payload else {
                return Err(Errno::EBADMSG);
            };
            return match answer.code {
                None => Ok(()),
                Some(code) => Err(Errno::from_raw(-code.get())),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_a_link_as_the_kernel_writes_them() {
        let text = "Inter-|   Receive          |  Transmit\n \
             face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs\n\
               lo:     1     2    3    4    5     6          7         8    9    10   11  12 13\n\
            gwo-5bqWvzLwwkk:1 2 3 4 5 6 7 8 9 10 11 18446744073709551615 13 14 15 16\n";
        let found: Vec<_> = text.lines().filter_map(dropped_in).collect();
        assert_eq!(found, [("lo".to_owned(), 12), ("gwo-5bqWvzLwwkk".to_owned(), u64::MAX)]);
    }

    #[test]
    fn this_host_s_links_are_read() {
        assert!(dropped().unwrap().contains_key("lo"));
    }
}
