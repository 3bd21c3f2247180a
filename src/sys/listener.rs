//! TCP sockets that listen: the health port and the metrics port.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use nix::sys::socket::AddressFamily;
use nix::sys::socket::Backlog;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrStorage;
use nix::sys::socket::bind;
use nix::sys::socket::listen;
use nix::sys::socket::setsockopt;
use nix::sys::socket::socket;
use nix::sys::socket::sockopt;

use super::Errno;
use super::Error;

/// Connections that wait to be accepted, or as many as the host allows (net.core.somaxconn). Beyond
/// them the kernel drops what arrives, and a probe comes again after a whole second only.
const BACKLOG: i32 = 4096;

/// Listens on `port` of every address, IPv6 and IPv4, without ever blocking; IPv4 alone where
/// the kernel has no IPv6. Clients in `TIME_WAIT` do not keep a successor from the port.
///
/// # Errors
/// `EADDRINUSE` when another program listens there, `EACCES` for a port that needs
/// `CAP_NET_BIND_SERVICE`.
pub fn listen_everywhere(port: u16) -> Result<TcpListener, Error> {
    match listen_at((Ipv6Addr::UNSPECIFIED, port).into()) {
        Err(error) if matches!(error.errno, Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL) => {
            listen_at((Ipv4Addr::UNSPECIFIED, port).into())
        }
        outcome => outcome,
    }
}

/// Listens on one address, without ever blocking; on the unspecified one of IPv6, for IPv4 too.
///
/// # Errors
/// As [`listen_everywhere`], and `EADDRNOTAVAIL` for an address that is not this host's.
pub fn listen_at(address: SocketAddr) -> Result<TcpListener, Error> {
    let fail = |call| move |errno| Error::new(call, format!("TCP {address}"), errno);
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(family, SockType::Stream, flags, None).map_err(fail("socket"))?;
    setsockopt(&listener, sockopt::ReuseAddr, &true).map_err(fail("setsockopt SO_REUSEADDR"))?;
    if address.is_ipv6() {
        // The host's default may be 1, as it is on RHEL 10.
        setsockopt(&listener, sockopt::Ipv6V6Only, &false)
            .map_err(fail("setsockopt IPV6_V6ONLY"))?;
    }
    bind(listener.as_raw_fd(), &SockaddrStorage::from(address)).map_err(fail("bind"))?;
    let backlog = Backlog::new(BACKLOG).map_err(fail("listen"))?;
    listen(&listener, backlog).map_err(fail("listen"))?;
    Ok(listener.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn both_families_connect_and_the_port_is_taken() {
        let listener = listen_everywhere(0).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
        let error = listen_everywhere(port).unwrap_err();
        assert_eq!((error.call, error.errno), ("bind", Errno::EADDRINUSE));
        assert!(error.to_string().contains(&port.to_string()), "{error}");
    }
}
