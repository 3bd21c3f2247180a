//! UDP sockets: one that receives GENEVE per worker, many that only send.
//!
//! The receive sockets of all workers share port 6081 with `SO_REUSEPORT`; the kernel gives every
//! datagram of one outer 4-tuple to the same socket. Answers must leave from the source port that
//! the load balancer used, so each such port needs a socket bound to it: a *send socket*. It
//! stays unconnected (a connected socket loses a super-packet after an ICMP unreachable), drops
//! everything that arrives on it, and needs no capability.
//!
//! Where a port cannot be had, a *raw sender* sends from any port, with a UDP header that is ours
//! to write. It needs `CAP_NET_RAW`.

#![expect(unsafe_code, reason = "some socket options have no safe wrapper")]

use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;

use nix::libc;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::bind;
use nix::sys::socket::getsockopt;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;

use super::Errno;
use super::Error;
use crate::types::GENEVE_PORT;
use crate::types::Offload;

/// Time to live of the datagrams that we send. A load balancer node is one hop away.
const TTL: i32 = 64;

/// `IP_PMTUDISC_INTERFACE` (include/uapi/linux/in.h): DF stays 0, the path MTU cache is ignored,
/// and a datagram above the link's MTU is `EMSGSIZE`, never fragments.
const PMTUDISC_INTERFACE: libc::c_int = 4;

/// `SO_MEMINFO` (include/uapi/asm-generic/socket.h), and how many numbers it gives, of which the
/// last is that of drops (`SK_MEMINFO_DROPS`).
const SO_MEMINFO: libc::c_int = 55;
const SK_MEMINFO_VARS: usize = 9;

/// Smallest receive queue worth having, bytes: the kernel's own default.
const RECEIVE_BYTES_MIN: usize = 212_992;

/// Opens a socket that receives GENEVE on every local address, beside the other workers' sockets.
///
/// The receive queue is made `queue_bytes` long: beyond `net.core.rmem_max` where the process has
/// `CAP_NET_ADMIN`, up to it otherwise. 0 leaves it at the kernel's default. With `gro` the kernel
/// may merge datagrams of one outer path, and says of what length they are (`UDP_GRO`).
///
/// # Errors
/// `EADDRINUSE` when another user, or a program without `SO_REUSEPORT`, has the port.
pub fn open_receiver(queue_bytes: usize, gro: bool) -> Result<OwnedFd, Error> {
    let subject = || format!("UDP port {GENEVE_PORT}");
    let fail = |call| move |errno| Error::new(call, subject(), errno);
    let fd = open(subject)?;
    setsockopt(&fd, sockopt::ReusePort, &true).map_err(fail("setsockopt SO_REUSEPORT"))?;
    setsockopt(&fd, sockopt::Ipv4PacketInfo, &true).map_err(fail("setsockopt IP_PKTINFO"))?;
    if queue_bytes > 0 {
        let queue_bytes = queue_bytes.max(RECEIVE_BYTES_MIN);
        if setsockopt(&fd, sockopt::RcvBufForce, &queue_bytes).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &queue_bytes).map_err(fail("setsockopt SO_RCVBUF"))?;
        }
    }
    if gro {
        setsockopt(&fd, sockopt::UdpGroSegment, &true).map_err(fail("setsockopt UDP_GRO"))?;
    }
    set_send_options(&fd, subject)?;
    let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, GENEVE_PORT));
    bind(fd.as_raw_fd(), &any).map_err(fail("bind"))?;
    Ok(fd)
}

/// Tries which of the offloads a UDP socket can.
pub fn probe_offload() -> Offload {
    let Ok(fd) = open(|| "UDP probe".to_owned()) else {
        return Offload { udp_gro: false, udp_gso: false, ..Offload::ALL };
    };
    Offload {
        udp_gro: setsockopt(&fd, sockopt::UdpGroSegment, &true).is_ok(),
        udp_gso: setsockopt(&fd, sockopt::UdpGsoSegment, &1400).is_ok(),
        ..Offload::ALL
    }
}

/// Makes the kernel merge datagrams, or hand over every datagram as it came, from now on. Merged
/// ones that wait in the socket's queue stay merged, and come without the message that says so if
/// merging is off by then.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.0, which merges nothing.
pub fn set_merging(receiver: &impl AsFd, is_on: bool) -> Result<(), Error> {
    setsockopt(receiver, sockopt::UdpGroSegment, &is_on)
        .map_err(|errno| Error::new("setsockopt UDP_GRO", format!("UDP port {GENEVE_PORT}"), errno))
}

/// How much may wait in a receive socket's queue, in bytes, the kernel's own among them.
///
/// # Errors
/// When the file is no socket.
pub fn receive_queue_bytes(receiver: &impl AsFd) -> Result<usize, Error> {
    getsockopt(receiver, sockopt::RcvBuf).map_err(|errno| {
        Error::new("getsockopt SO_RCVBUF", format!("UDP port {GENEVE_PORT}"), errno)
    })
}

/// How many datagrams the kernel has dropped at a receive socket, modulo 2^32: its queue was full,
/// or a checksum was wrong. Those that are merged count once (`SK_MEMINFO_DROPS`).
///
/// # Errors
/// When the file is no socket.
pub fn dropped(receiver: &impl AsFd) -> Result<u32, Error> {
    let mut info = [0_u32; SK_MEMINFO_VARS];
    let mut bytes = libc::socklen_t::try_from(size_of_val(&info)).expect("small");
    let fd = receiver.as_fd().as_raw_fd();
    // SAFETY: `info` has `bytes` writable bytes, and both outlive the call.
    let result = unsafe {
        let info = info.as_mut_ptr().cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, SO_MEMINFO, info, &raw mut bytes)
    };
    Errno::result(result).map_err(|errno| {
        Error::new("getsockopt SO_MEMINFO", format!("UDP port {GENEVE_PORT}"), errno)
    })?;
    Ok(info[SK_MEMINFO_VARS - 1])
}

/// Counts the sockets on the receive port, in this network namespace, that are not among `own`.
///
/// They take their share of the datagrams. Those of a process that was killed are there until the
/// kernel has taken its rings apart.
///
/// # Errors
/// When `/proc/thread-self/net/udp` cannot be read.
pub fn count_foreign_receivers(own: &[OwnedFd]) -> Result<usize, Error> {
    let table = "/proc/thread-self/net/udp";
    let text = std::fs::read_to_string(table)
        .map_err(|error| Error::from_io("read", table.to_owned(), &error))?;
    let mut inodes = Vec::with_capacity(own.len());
    for fd in own {
        let status =
            nix::sys::stat::fstat(fd).map_err(|errno| Error::new("fstat", "UDP socket", errno))?;
        inodes.push(status.st_ino.to_string());
    }
    let port = format!(":{GENEVE_PORT:04X}");
    // The columns of net/ipv4/udp.c, `udp4_format_sock`: the second is the local address, the tenth
    // the inode.
    let foreign = |line: &&str| {
        let mut columns = line.split_ascii_whitespace();
        let is_ours = |inode: &str| inodes.iter().any(|own| own == inode);
        columns.nth(1).is_some_and(|local| local.ends_with(&port))
            && !columns.nth(7).is_some_and(is_ours)
    };
    Ok(text.lines().filter(foreign).count())
}

/// Opens a socket that sends from `local` port `port`, and receives nothing.
///
/// # Errors
/// `EADDRINUSE` when a program without `SO_REUSEPORT` has the port, `EADDRNOTAVAIL` when the
/// address is no longer ours, `EACCES` for a port below 1024 without the capability.
pub fn open_sender(local: Ipv4Addr, port: u16, queue_bytes: usize) -> Result<OwnedFd, Error> {
    let fd = open(|| format!("UDP {}", SocketAddrV4::new(local, port)))?;
    make_sender(fd, local, port, queue_bytes)
}

/// Opens a socket that is nothing yet, for [`make_sender`].
///
/// # Errors
/// When the process or the host is out of descriptors or of memory.
pub fn open_unbound() -> Result<OwnedFd, Error> {
    open(|| "UDP".to_owned())
}

/// Makes a send socket of one that is nothing yet.
///
/// # Errors
/// As [`open_sender`].
pub fn make_sender(
    fd: OwnedFd,
    local: Ipv4Addr,
    port: u16,
    queue_bytes: usize,
) -> Result<OwnedFd, Error> {
    let address = SocketAddrV4::new(local, port);
    let subject = || format!("UDP {address}");
    let fail = |call| move |errno| Error::new(call, subject(), errno);
    setsockopt(&fd, sockopt::ReusePort, &true).map_err(fail("setsockopt SO_REUSEPORT"))?;
    set_queue_bytes(&fd, queue_bytes, subject)?;
    set_send_options(&fd, subject)?;
    drop_everything(&fd).map_err(fail("setsockopt SO_ATTACH_FILTER"))?;
    bind(fd.as_raw_fd(), &SockaddrIn::from(address)).map_err(fail("bind"))?;
    Ok(fd)
}

/// Opens a raw socket that sends UDP from whatever port the header says that it is given, and
/// receives nothing. The kernel makes the IPv4 header, as for the other senders.
///
/// A full one says `ENOBUFS` where a UDP socket says `EAGAIN` (`__ip_append_data`,
/// `net/ipv4/ip_output.c`: without a transport header it does not wait for memory).
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`.
pub fn open_raw_sender(queue_bytes: usize) -> Result<OwnedFd, Error> {
    let subject = || "raw UDP".to_owned();
    let fail = |call| move |errno| Error::new(call, subject(), errno);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Udp)
        .map_err(fail("socket"))?;
    set_queue_bytes(&fd, queue_bytes, subject)?;
    set_send_options(&fd, subject)?;
    drop_everything(&fd).map_err(fail("setsockopt SO_ATTACH_FILTER"))?;
    // The kernel copies every UDP packet of the host for a raw socket before it asks the filter,
    // but not for one that is bound to another address. Sends say theirs themselves. Where the
    // loopback link is down the filter must do.
    let elsewhere = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
    let _ = bind(fd.as_raw_fd(), &elsewhere);
    Ok(fd)
}

fn open(subject: impl Fn() -> String) -> Result<OwnedFd, Error> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Inet, SockType::Datagram, flags, None)
        .map_err(|errno| Error::new("socket", subject(), errno))
}

/// Makes the send queue `queue_bytes` long, or as long as `net.core.wmem_max` allows.
fn set_queue_bytes(
    fd: &impl AsFd,
    queue_bytes: usize,
    subject: impl Fn() -> String,
) -> Result<(), Error> {
    if setsockopt(fd, sockopt::SndBufForce, &queue_bytes).is_ok() {
        return Ok(());
    }
    setsockopt(fd, sockopt::SndBuf, &queue_bytes)
        .map_err(|errno| Error::new("setsockopt SO_SNDBUF", subject(), errno))
}

fn set_send_options(fd: &impl AsFd, subject: impl Fn() -> String) -> Result<(), Error> {
    setsockopt(fd, sockopt::Ipv4Ttl, &TTL)
        .map_err(|errno| Error::new("setsockopt IP_TTL", subject(), errno))?;
    set_int(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, PMTUDISC_INTERFACE)
        .map_err(|errno| Error::new("setsockopt IP_MTU_DISCOVER", subject(), errno))
}

fn set_int(
    fd: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> Result<(), Errno> {
    set_raw(fd, level, name, &value)
}

/// Makes a socket send without checksums. Linux answers `EINVAL` to `UDP_SEGMENT` then.
///
/// # Errors
/// When the kernel refuses.
#[cfg(test)]
pub(crate) fn set_no_checksum(fd: &impl AsFd) -> Result<(), Errno> {
    set_int(fd, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)
}

/// Attaches a filter that accepts no byte of any datagram: `BPF_RET | BPF_K, 0`.
fn drop_everything(fd: &impl AsFd) -> Result<(), Errno> {
    let code = u16::try_from(libc::BPF_RET | libc::BPF_K).expect("both are small");
    let mut program = [libc::sock_filter { code, jt: 0, jf: 0, k: 0 }];
    let program = libc::sock_fprog { len: 1, filter: program.as_mut_ptr() };
    set_raw(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn set_raw<T>(
    fd: &impl AsFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> Result<(), Errno> {
    let bytes = libc::socklen_t::try_from(size_of::<T>()).expect("options are small");
    let value = std::ptr::from_ref(value).cast();
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: `value` points to `bytes` readable bytes that live through the call, and so does
    // what a `sock_fprog` points to: the caller's array. The kernel copies both.
    let result = unsafe { libc::setsockopt(fd, level, name, value, bytes) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// A loopback address of this test alone, so that nothing else has its ports.
    const LOCAL: Ipv4Addr = Ipv4Addr::new(127, 60, 81, 1);

    #[test]
    fn sockets_of_others_on_the_port_are_seen() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let [own, other] = [open_receiver(0, true).unwrap(), open_receiver(0, false).unwrap()];
        let own = [own];
        assert_eq!(count_foreign_receivers(&own), Ok(1));
        drop(other);
        assert_eq!(count_foreign_receivers(&own), Ok(0));
    }

    #[test]
    fn what_finds_no_room_in_the_queue_is_counted() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.unwrap().success());
        let receiver = open_receiver(1, false).unwrap();
        assert_eq!(dropped(&receiver), Ok(0));
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..5000 {
            sender.send_to(&[0; 1000], ("127.0.0.1", GENEVE_PORT)).unwrap();
        }
        let receiver = UdpSocket::from(receiver);
        receiver.set_nonblocking(true).unwrap();
        let mut received = 0;
        while receiver.recv_from(&mut [0; 1000]).is_ok() {
            received += 1;
        }
        assert!(received > 0);
        assert_eq!(dropped(&receiver), Ok(5000 - received));
    }

    #[test]
    fn a_sender_keeps_its_port_and_receives_nothing() {
        let peer = UdpSocket::bind((LOCAL, 0)).unwrap();
        let first = UdpSocket::from(open_sender(LOCAL, 60_001, 1 << 20).unwrap());
        let second = UdpSocket::from(open_sender(LOCAL, 60_001, 1 << 20).unwrap());
        for (socket, text) in [(&first, b"one"), (&second, b"two")] {
            socket.send_to(text, peer.local_addr().unwrap()).unwrap();
            let mut got = [0; 8];
            let (bytes, from) = peer.recv_from(&mut got).unwrap();
            assert_eq!(&got[..bytes], text);
            assert_eq!(from.port(), 60_001, "workers share a source port");
            peer.send_to(b"echo", from).unwrap();
        }
        for socket in [&first, &second] {
            let refused = socket.recv_from(&mut [0; 8]).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_raw_sender_sends_from_any_port_and_receives_nothing() {
        let peer = UdpSocket::bind((LOCAL, 0)).unwrap();
        let to = peer.local_addr().unwrap();
        let raw = UdpSocket::from(open_raw_sender(1 << 20).unwrap());
        for port in [1_u16, 80, 60_003] {
            let mut datagram = [port.to_be_bytes(), to.port().to_be_bytes()].concat();
            datagram.extend([0, 10, 0, 0, b'h', b'i']);
            raw.send_to(&datagram, (LOCAL, 0)).unwrap();
            let mut got = [0; 8];
            let (bytes, from) = peer.recv_from(&mut got).unwrap();
            assert_eq!((&got[..bytes], from.port()), (&b"hi"[..], port));
            peer.send_to(b"echo", from).unwrap();
        }
        let refused = raw.recv_from(&mut [0; 64]).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_taken_port_is_named() {
        let _taken = UdpSocket::bind((LOCAL, 60_002)).unwrap();
        let error = open_sender(LOCAL, 60_002, 1 << 20).unwrap_err();
        assert_eq!(error.errno, Errno::EADDRINUSE);
        assert_eq!(error.to_string(), "bind(UDP 127.60.81.1:60002): Address already in use");
    }
}
