//! A TUN link's queues: `/dev/net/tun` and its ioctls (`include/uapi/linux/if_tun.h`).
//!
//! Every ioctl here takes the kernel's rtnl lock, which other programs may hold for seconds, and
//! so does the close of a queue: only the netdev thread calls this module.
//!
//! A queue is one descriptor. Frames on it start with a 10-byte virtio header, which says whether
//! one is a super-packet and whether its checksum is still open. The kernel hands over such frames
//! only as far as [`Offload`] allows, and takes them always.

#![expect(unsafe_code, reason = "TUN links are made by ioctl")]

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use super::Errno;
use super::Error;
use super::limits;
use crate::types::LinkName;
use crate::types::Offload;

/// The device that makes TUN links.
const DEVICE: &str = "/dev/net/tun";

/// Bytes of `struct virtio_net_hdr` before each packet (`include/uapi/linux/virtio_net.h`).
const VNET_HEADER_BYTES: libc::c_int = 10;

/// What a queue's reader can handle.
const TUN_F_CSUM: libc::c_int = 0x01;
const TUN_F_TSO4: libc::c_int = 0x02;
const TUN_F_TSO6: libc::c_int = 0x04;
const TUN_F_USO4: libc::c_int = 0x20;
const TUN_F_USO6: libc::c_int = 0x40;

nix::ioctl_write_ptr_bad!(
    /// `TUNSETIFF`; its number says `int`, its argument is an `ifreq`.
    tun_set_iff,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);
nix::ioctl_read_bad!(
    /// `TUNGETIFF`; its number says `unsigned int`, its argument is an `ifreq`.
    tun_get_iff,
    nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()),
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
nix::ioctl_write_ptr_bad!(
    /// `TUNSETSTEERINGEBPF`; its number says that it reads, but the kernel takes the `int`.
    tun_set_steering_ebpf,
    nix::request_code_read!(b'T', 224, size_of::<libc::c_int>()),
    libc::c_int
);

/// The last descriptor numbers below the limit on open files, which no queue gets: what takes one
/// only for a moment needs some to go on with when endpoints have taken all others.
const KEPT_NUMBERS: u64 = 16;

/// Creates the link `name` with `count` queues, down and without address. The link lives as long
/// as one of its queues is open.
///
/// # Errors
/// `open` when there is no TUN device or no permission for it; `TUNSETIFF` with `EPERM` without
/// `CAP_NET_ADMIN`, with `EBUSY` if a link of that name exists, with `E2BIG` above 256 queues;
/// `open` with `EMFILE` if there are no more than a few descriptors left.
pub fn create(name: LinkName, count: usize, offload: Offload) -> Result<Vec<OwnedFd>, Error> {
    let mut queues = Vec::with_capacity(count);
    let end = limits::open_files()?.saturating_sub(KEPT_NUMBERS);
    for number in 0..count {
        // The first queue makes the link; it must not join one that somebody else made.
        let exclusive = if number == 0 { libc::IFF_TUN_EXCL } else { 0 };
        let queue = open_device()?;
        // A new descriptor has the lowest number that is free.
        if u64::from(queue.as_raw_fd().cast_unsigned()) >= end {
            return Err(Error::new("open", DEVICE, Errno::EMFILE));
        }
        attach(&queue, name.as_str(), exclusive)?;
        set_offload(&queue, offload, name.as_str())?;
        queues.push(queue);
    }
    Ok(queues)
}

/// Creates a link, sets it up as the others, and lets it go again: the proof that the device, the
/// permission and the kernel's features are there.
///
/// # Errors
/// As [`create`].
pub fn probe() -> Result<(), Error> {
    probe_queue().map(drop)
}

/// Tries on such a link which of the offloads the kernel's TUN can. The super-packets, one of TCP
/// and one of UDP, each behind its virtio header, are written for the trial and go nowhere.
///
/// # Errors
/// As [`create`].
pub fn probe_offload(tcp: &[u8], udp: &[u8]) -> Result<Offload, Error> {
    let queue = probe_queue()?;
    let allows = |offload| set_offload(&queue, offload, "probe").is_ok();
    let tun_tso = allows(Offload { tun_tso: true, ..Offload::NONE });
    let tun_uso = allows(Offload { tun_uso: true, ..Offload::NONE });
    Ok(Offload {
        tun_tso,
        tun_uso,
        tcp_coalescing: takes_super_packet(&queue, tcp),
        // Before 6.2 the link would take them for something else.
        udp_coalescing: tun_uso && takes_super_packet(&queue, udp),
        ..Offload::ALL
    })
}

fn probe_queue() -> Result<OwnedFd, Error> {
    open_queue("gwlbtun%d", libc::IFF_TUN_EXCL)
}

/// Asks for super-packets and open checksums, for the whole link.
fn set_offload(queue: &OwnedFd, offload: Offload, name: &str) -> Result<(), Error> {
    let mut flags = 0;
    if offload.tun_tso {
        flags |= TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    }
    if offload.tun_uso {
        flags |= TUN_F_CSUM | TUN_F_USO4 | TUN_F_USO6;
    }
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    unsafe { tun_set_offload(queue.as_raw_fd(), flags) }
        .map_err(|errno| Error::new("ioctl TUNSETOFFLOAD", name.to_string(), errno))?;
    Ok(())
}

/// Whether the kernel takes a super-packet. On a link that is down it looks at the virtio header,
/// which some kernels refuse without a reason (Linux e269d79c7d35: `EINVAL`), and then says `EIO`:
/// nothing goes anywhere (`tun_get_user`, drivers/net/tun.c).
fn takes_super_packet(queue: &OwnedFd, frame: &[u8]) -> bool {
    nix::unistd::write(queue, frame) == Err(Errno::EIO)
}

/// Lets a program choose the queue of every packet that leaves by the link of `queue`: what it
/// returns, modulo the number of queues. The program may be closed afterwards.
///
/// # Errors
/// `EINVAL` before Linux 4.16, and for a program of another type.
pub fn set_steering(queue: &impl AsFd, program: &impl AsFd) -> Result<(), Error> {
    let queue = queue.as_fd().as_raw_fd();
    let program: libc::c_int = program.as_fd().as_raw_fd();
    // SAFETY: the argument is an `int` that outlives the call, as TUNSETSTEERINGEBPF demands.
    unsafe { tun_set_steering_ebpf(queue, &raw const program) }
        .map(drop)
        .map_err(|errno| Error::new("ioctl TUNSETSTEERINGEBPF", "a TUN", errno))
}

/// Gives a program to a link that is gone again a moment later.
///
/// # Errors
/// As [`create`] and [`set_steering`].
pub fn probe_steering(program: &impl AsFd) -> Result<(), Error> {
    set_steering(&open_queue("gwlbtun%d", libc::IFF_TUN_EXCL)?, program)
}

/// The number of a queue's link in the calling thread's network namespace: nothing if the link was
/// deleted, or is in another namespace. Names may have changed since it was made, and a number that
/// is free again may be a stranger's.
pub fn index_of(queue: &impl AsFd) -> Option<u32> {
    // SAFETY: an `ifreq` is integers, arrays of them and unions of those: all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: `request` is a whole `ifreq`, as TUNGETIFF demands, and outlives the call.
    unsafe { tun_get_iff(queue.as_fd().as_raw_fd(), &raw mut request) }.ok()?;
    // C's `char` is signed on x86_64, unsigned on aarch64.
    let name = request.ifr_name.map(|character| character.to_ne_bytes()[0]);
    let name = std::ffi::CStr::from_bytes_until_nul(&name).ok()?;
    nix::net::if_::if_nametoindex(name).ok()
}

/// Opens one more queue of the link `name`, or the first one.
fn open_queue(name: &str, more_flags: libc::c_int) -> Result<OwnedFd, Error> {
    let queue = open_device()?;
    attach(&queue, name, more_flags)?;
    Ok(queue)
}

fn open_device() -> Result<OwnedFd, Error> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(DEVICE);
    opened.map(OwnedFd::from).map_err(|error| Error::from_io("open", DEVICE, &error))
}

/// Makes an opened device a queue of the link `name`.
fn attach(queue: &OwnedFd, name: &str, more_flags: libc::c_int) -> Result<(), Error> {
    let fail = |call| move |errno| Error::new(call, name.to_string(), errno);
    let fd = queue.as_raw_fd();

    let request = interface_request(name, more_flags);
    // SAFETY: `request` is a whole `ifreq`, as TUNSETIFF demands, and outlives the call.
    unsafe { tun_set_iff(fd, &raw const request) }.map_err(fail("ioctl TUNSETIFF"))?;
    // SAFETY: the argument is an `int` that outlives the call, as TUNSETVNETHDRSZ demands.
    unsafe { tun_set_vnet_hdr_sz(fd, &VNET_HEADER_BYTES) }
        .map_err(fail("ioctl TUNSETVNETHDRSZ"))?;
    Ok(())
}

/// The argument of TUNSETIFF: name and kind of the link.
fn interface_request(name: &str, more_flags: libc::c_int) -> libc::ifreq {
    const KIND: libc::c_int =
        libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    // SAFETY: an `ifreq` is integers, arrays of them and unions of those: all zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // The kernel reads the 16 bits as unsigned; IFF_TUN_EXCL is the sign bit of C's `short`.
    let flags = u16::try_from(KIND | more_flags).expect("flags of TUNSETIFF have 16 bits");
    request.ifr_ifru.ifru_flags = flags.cast_signed();
    request
}
