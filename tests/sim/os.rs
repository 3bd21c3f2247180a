//! The system calls of the simulator that need `unsafe`: TUN devices, a packet socket, filters.
//! And the clock, which needs none.

#![expect(unsafe_code, reason = "ioctl, setsockopt and sockaddr_ll have no safe wrapper in nix")]

use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::AddressFamily;
use nix::sys::socket::LinkAddr;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockProtocol;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrLike;
use nix::sys::socket::bind;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;
use nix::time::ClockId;

use super::layout::GENEVE_PORT;

/// Receive and send buffers of the packet socket in bytes: room for some 10,000 small datagrams
/// while a test sends a burst and reads nothing.
const SOCKET_BUFFER_BYTES: usize = 64 << 20;

nix::ioctl_write_ptr_bad!(
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);

/// Makes a TUN device without extra headers in the calling thread's network namespace. It lives
/// as long as the descriptor, which does not block.
pub(crate) fn tun(name: &str) -> io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    assert!(name.len() < libc::IFNAMSIZ, "{name} is too long for a link");
    // SAFETY: all-zero bytes are a valid ifreq, a C structure of integers and arrays.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI).expect("small flags");
    // SAFETY: TUNSETIFF reads one ifreq, and `request` is one that outlives the call.
    unsafe { tun_set_iff(device.as_raw_fd(), &raw const request) }?;
    Ok(device.into())
}

/// A packet socket that receives every IPv4 packet arriving on `link` of the calling thread's
/// namespace, from its IPv4 header on, and tells whether checksums were filled in.
pub(crate) fn packet_socket(link: &str) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthIp,
    )?;
    setsockopt(&fd, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES)?;
    setsockopt(&fd, sockopt::SndBufForce, &SOCKET_BUFFER_BYTES)?;
    set_int_option(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    bind(fd.as_raw_fd(), &link_addr(link, [0; 6])?)?;
    Ok(fd)
}

/// A packet socket that receives whatever passes `link` of the calling thread's namespace.
#[cfg(test)]
pub(crate) fn sniffer(link: &str) -> io::Result<OwnedFd> {
    // Without a protocol it receives nothing until it is bound.
    let fd = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES)?;
    bind(fd.as_raw_fd(), &link_addr_for(link, [0; 6], libc::ETH_P_ALL)?)?;
    Ok(fd)
}

/// The packet-socket address of a neighbour on `link`.
pub(crate) fn link_addr(link: &str, mac: [u8; 6]) -> io::Result<LinkAddr> {
    link_addr_for(link, mac, libc::ETH_P_IP)
}

fn link_addr_for(link: &str, mac: [u8; 6], protocol: libc::c_int) -> io::Result<LinkAddr> {
    let index = if_nametoindex(link)?;
    let mut address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).expect("small"),
        sll_protocol: u16::try_from(protocol).expect("16 bits").to_be(),
        sll_ifindex: i32::try_from(index).expect("the kernel's indices are positive ints"),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    address.sll_addr[..6].copy_from_slice(&mac);
    let bytes = libc::socklen_t::try_from(size_of_val(&address)).expect("small");
    // SAFETY: the pointer is to a complete sockaddr_ll of that many bytes, which is copied.
    unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(bytes)) }
        .ok_or_else(|| io::Error::other("nix refuses a sockaddr_ll"))
}

/// Takes UDP port 6081 of the calling thread's namespace and drops what arrives, so that the
/// kernel does not answer "port unreachable" to the target.
pub(crate) fn silent_geneve_socket() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, GENEVE_PORT))?;
    let mut drop_all = libc::sock_filter {
        code: 0x06, // BPF_RET | BPF_K: accept k bytes, and k is zero.
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog { len: 1, filter: &raw mut drop_all };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    Ok(socket)
}

/// The time of the monotonic clock.
pub(crate) fn monotonic() -> Duration {
    ClockId::CLOCK_MONOTONIC.now().expect("Linux has this clock").into()
}

/// How long a point of the monotonic clock is past.
pub(crate) fn since(start: Duration) -> Duration {
    monotonic().saturating_sub(start)
}

fn set_int_option(fd: &impl AsFd, level: i32, name: i32, value: libc::c_int) -> io::Result<()> {
    set_option(fd, level, name, &value)
}

fn set_option<T>(fd: &impl AsFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let bytes = libc::socklen_t::try_from(size_of::<T>()).expect("small");
    // SAFETY: the kernel reads `bytes` bytes from a value of exactly that size.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            bytes,
        )
    };
    nix::errno::Errno::result(result)?;
    Ok(())
}
