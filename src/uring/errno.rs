//! What each errno of each operation means, decided here and nowhere else.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "errno is an open set; each arm says its default"
)]

use crate::sys::Errno;
use crate::types::DropReason;

use super::token::Operation;

/// What to do about a failed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The operation ended by itself or for want of buffers: start it again.
    Rearm,
    /// It was cancelled at our own request.
    Cancelled,
    /// The socket is full: send again when it has room.
    Wait,
    /// The packets of the operation are lost; count them.
    Drop(DropReason),
    /// The file behind the operation is gone; it will never work again.
    Lost,
}

/// The meaning of `errno` for `operation`.
pub fn verdict(operation: Operation, errno: Errno) -> Verdict {
    match operation {
        Operation::Receive => receive(errno),
        Operation::TunRead => tun_read(errno),
        Operation::TunWrite => Verdict::Drop(tun_write(errno)),
        Operation::Send => send(errno),
        Operation::SendReady | Operation::Wake | Operation::Cancel => match errno {
            Errno::ECANCELED => Verdict::Cancelled,
            _ => Verdict::Rearm,
        },
    }
}

/// A UDP socket reports what happened to earlier sends (ICMP errors) as errors of a receive:
/// those say nothing about the socket.
fn receive(errno: Errno) -> Verdict {
    match errno {
        Errno::ECANCELED => Verdict::Cancelled,
        Errno::EBADF | Errno::ENOTSOCK | Errno::EINVAL | Errno::EFAULT | Errno::EOPNOTSUPP => {
            Verdict::Lost
        }
        _ => Verdict::Rearm,
    }
}

/// Reading a TUN whose link was deleted gives `EFAULT` once (`RCV_SHUTDOWN` in
/// `tun_ring_recv`, drivers/net/tun.c) and `EBADFD` from then on.
fn tun_read(errno: Errno) -> Verdict {
    match errno {
        Errno::ECANCELED => Verdict::Cancelled,
        Errno::ENOBUFS | Errno::EAGAIN | Errno::EINTR | Errno::ENOMEM => Verdict::Rearm,
        _ => Verdict::Lost,
    }
}

/// `tun_get_user` gives `EIO` while the link is down and `EBADFD` when it is gone. A queue that may
/// hold no more is no failure: the write waits in the ring. Out of memory is one like others.
fn tun_write(errno: Errno) -> DropReason {
    match errno {
        Errno::EIO | Errno::EBADFD | Errno::EBADF | Errno::ENETDOWN | Errno::ENODEV => {
            DropReason::TunDown
        }
        Errno::ECANCELED => DropReason::Shutdown,
        _ => DropReason::TunError,
    }
}

/// A full raw socket says `ENOBUFS` where a UDP socket says `EAGAIN`. A UDP socket says `ENOBUFS`
/// when the kernel is out of memory, and to wait is right then too.
fn send(errno: Errno) -> Verdict {
    match errno {
        Errno::EAGAIN | Errno::ENOBUFS => Verdict::Wait,
        Errno::EMSGSIZE => Verdict::Drop(DropReason::Mtu),
        Errno::ECANCELED => Verdict::Drop(DropReason::Shutdown),
        _ => Verdict::Drop(DropReason::SendError),
    }
}

/// Whether a send of many datagrams, which the kernel shall cut, may succeed as a send of each.
///
/// `EIO`: the way out computes no checksums (until Linux 6.11). `EINVAL`: the socket computes none.
/// `EMSGSIZE`, and `EINVAL` until 6.14: a datagram is too long for the link (`udp_send_skb`,
/// net/ipv4/udp.c), but the last one may be short enough.
pub fn may_go_singly(errno: Errno) -> bool {
    matches!(errno, Errno::EIO | Errno::EINVAL | Errno::EMSGSIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starved_streams_start_again_and_dead_ones_do_not() {
        for operation in [Operation::Receive, Operation::TunRead] {
            assert_eq!(verdict(operation, Errno::ENOBUFS), Verdict::Rearm);
            assert_eq!(verdict(operation, Errno::ECANCELED), Verdict::Cancelled);
            assert_eq!(verdict(operation, Errno::EBADF), Verdict::Lost);
        }
        assert_eq!(verdict(Operation::Receive, Errno::ECONNREFUSED), Verdict::Rearm);
        assert_eq!(verdict(Operation::TunRead, Errno::EFAULT), Verdict::Lost);
        assert_eq!(verdict(Operation::TunRead, Errno::EBADFD), Verdict::Lost);
    }

    #[test]
    fn what_is_too_long_or_finds_no_room_is_not_tried_in_pieces() {
        for (errno, may) in [
            (Errno::EIO, true),
            (Errno::EINVAL, true),
            (Errno::EMSGSIZE, true),
            (Errno::EAGAIN, false),
            (Errno::ENETUNREACH, false),
        ] {
            assert_eq!(may_go_singly(errno), may, "{errno}");
        }
    }

    #[test]
    fn lost_packets_have_a_reason() {
        for (operation, errno, reason) in [
            (Operation::TunWrite, Errno::EIO, DropReason::TunDown),
            (Operation::TunWrite, Errno::ENOBUFS, DropReason::TunError),
            (Operation::TunWrite, Errno::EINVAL, DropReason::TunError),
            (Operation::Send, Errno::EMSGSIZE, DropReason::Mtu),
            (Operation::Send, Errno::ENETUNREACH, DropReason::SendError),
            (Operation::Send, Errno::EPERM, DropReason::SendError),
        ] {
            assert_eq!(verdict(operation, errno), Verdict::Drop(reason));
        }
        for full in [Errno::EAGAIN, Errno::ENOBUFS] {
            assert_eq!(verdict(Operation::Send, full), Verdict::Wait);
        }
    }
}
