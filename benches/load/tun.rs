//! The relays' pair of TUN links, set up as the engine sets up its own: virtio header, multi-queue,
//! offloads as the relay wants them, MTU 8500, a queue of 4,096 packets, joined by `redirect.sh`.
#![expect(unsafe_code, reason = "TUNSETIFF and TUNSETOFFLOAD have no safe wrapper in nix")]

use std::fs::File;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use nix::libc;

use crate::lab::Failure;

nix::ioctl_write_ptr_bad!(
    tun_set_interface,
    nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()),
    libc::ifreq
);
nix::ioctl_write_int_bad!(
    tun_set_offload,
    nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>())
);

/// The virtio header in front of every packet, the 10-byte form (TUNSETVNETHDRSZ's default).
pub(crate) const VNET_BYTES: usize = 10;

/// The hook that joins gwi to gwo.
pub(crate) const REDIRECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/load/redirect.sh");

/// TUNSETOFFLOAD: each frame is one packet, its checksum filled.
pub(crate) const NO_OFFLOADS: libc::c_uint = 0;

/// TUNSETOFFLOAD: a frame may be a super-packet of TCP (`TUN_F_CSUM`, `TSO4`, `TSO6`) or of UDP
/// (`USO4`, `USO6`; Linux 6.2).
pub(crate) const ALL_OFFLOADS: libc::c_uint = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;

/// Makes gwi and gwo in the current namespace, up and joined.
pub(crate) fn pair(offloads: libc::c_uint) -> Result<(File, File), Failure> {
    let (gwi, gwo) = ("gwi-relay", "gwo-relay");
    let files = (open(gwi, offloads)?, open(gwo, offloads)?);
    for link in [gwi, gwo] {
        run("ip", &["link", "set", link, "mtu", "8500", "txqueuelen", "4096", "up"])?;
    }
    run(REDIRECT, &["CREATE", gwi, gwo, "0"])?;
    Ok(files)
}

fn open(name: &str, offloads: libc::c_uint) -> Result<File, Failure> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    // SAFETY: ifreq is plain integers and arrays; all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::try_from(byte)?;
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags)?;
    // SAFETY: the request is a whole ifreq, its name shorter than the array and so terminated.
    unsafe { tun_set_interface(file.as_raw_fd(), &raw const request) }?;
    // SAFETY: the argument is a set of flags by value.
    unsafe { tun_set_offload(file.as_raw_fd(), offloads.try_into()?) }?;
    Ok(file)
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    match Command::new(program).args(arguments).status()? {
        status if status.success() => Ok(()),
        status => Err(format!("{program} {arguments:?} ended with {status}").into()),
    }
}
