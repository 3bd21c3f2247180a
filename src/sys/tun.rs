//! A TUN link's queues: `/dev/net/tun` and its ioctls (`include/uapi/linux/if_tun.h`).
//!
//! Every ioctl here takes the kernel's rtnl lock, which other programs may hold for seconds, and
//! so does the close of a queue: only the netdev thread calls this module.
//!
//! A queue is one descriptor. Frames on it start with a 10-byte virtio header; the link has no
//! offloads until somebody asks for them.

#![expect(unsafe_code, reason = "TUN links are made by ioctl")]

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use super::Error;
use crate::types::LinkName;

/// The device that makes TUN links.
const DEVICE: &str = "/dev/net/tun";

/// Bytes of `struct virtio_net_hdr` before each packet (`include/uapi/linux/virtio_net.h`).
const VNET_HEADER_BYTES: libc::c_int = 10;

nix::ioctl_write_ptr_bad!(
    /// `TUNSETIFF`; its number says `int`, its argument is an `ifreq`.
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);
nix::ioctl_write_int_bad!(
    /// `TUNSETOFFLOAD`; the argument is the flags themselves.
    tun_set_offload,
    nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
);
nix::ioctl_write_ptr!(
    /// `TUNSETVNETHDRSZ`.
    tun_set_vnet_hdr_sz,
    b'T',
    216,
    libc::c_int
);

/// Creates the link `name` with `count` queues, down and without address. The link lives as long
/// as one of its queues is open.
///
/// # Errors
/// `open` when there is no TUN device or no permission for it; `TUNSETIFF` with `EPERM` without
/// `CAP_NET_ADMIN`, with `EBUSY` if a link of that name exists, with `E2BIG` above 256 queues.
pub fn create(name: LinkName, count: usize) -> Result<Vec<OwnedFd>, Error> {
    let mut queues = Vec::with_capacity(count);
    for number in 0..count {
        // The first queue makes the link; it must not join one that somebody else made.
        let exclusive = if number == 0 { libc::IFF_TUN_EXCL } else { 0 };
        queues.push(open_queue(name.as_str(), exclusive)?);
    }
    Ok(queues)
}

/// Creates a link, sets it up as the others, and lets it go again: the proof that the device, the
/// permission and the kernel's features are there.
///
/// # Errors
/// As [`create`].
pub fn probe() -> Result<(), Error> {
    open_queue("gwlbtun%d", libc::IFF_TUN_EXCL).map(drop)
}

/// Opens one more queue of the link `name`, or the first one.
fn open_queue(name: &str, more_flags: libc::c_int) -> Result<OwnedFd, Error> {
    let queue: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE)
        .map_err(|error| Error::from_io("open", DEVICE, &error))?
        .into();
    let fail = |call| move |errno| Error::new(call, name.to_string(), errno);
    let fd = queue.as_raw_fd();

    let request = interface_request(name, more_flags);
    // SAFETY: `request` is a whole `ifreq`, as TUNSETIFF demands, and outlives the call.
    unsafe { tun_set_iff(fd, &raw const request) }.map_err(fail("ioctl TUNSETIFF"))?;
    // SAFETY: the argument is an `int` that outlives the call, as TUNSETVNETHDRSZ demands.
    unsafe { tun_set_vnet_hdr_sz(fd, &VNET_HEADER_BYTES) }
        .map_err(fail("ioctl TUNSETVNETHDRSZ"))?;
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    unsafe { tun_set_offload(fd, 0) }.map_err(fail("ioctl TUNSETOFFLOAD"))?;
    Ok(queue)
}

/// The argument of TUNSETIFF: name and kind of the link.
fn interface_request(name: &str, more_flags: libc::c_int) -> libc::ifreq {
    const KIND: libc::c_int =
        libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    // SAFETY: an `ifreq` is integers, arrays of them and unions of those: all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).expect("names are ASCII");
    }
    // The kernel reads the 16 bits as unsigned; IFF_TUN_EXCL is the sign bit of C's `short`.
    let flags = u16::try_from(KIND | more_flags).expect("flags of TUNSETIFF have 16 bits");
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    request
}
