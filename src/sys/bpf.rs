//! BPF: programs for the kernel, written here instruction by instruction, and the calls that hand
//! them over.
//!
//! There are two dialects. [`classic`] programs go to the kernel with the socket option that uses
//! them, need no permission, and live in what they are attached to. [`extended`] programs are
//! loaded on their own ([`load`]) and may count in memory that we read ([`Counters`]), which needs
//! `CAP_BPF` (`CAP_SYS_ADMIN` before Linux 5.8) where `kernel.unprivileged_bpf_disabled` is not 0,
//! as it is not on most hosts.
//!
//! A program that is attached stays when its descriptor is closed.

#![expect(unsafe_code, reason = "the bpf call and a socket option take addresses of programs")]

pub mod classic;
mod counters;
pub mod extended;
mod labels;

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;

use nix::libc;

use super::Errno;
use super::Error;

pub use counters::Counters;
pub use labels::Label;

/// Width of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One byte.
    Byte,
    /// Two bytes, in network byte order where they come from a packet.
    Half,
    /// Four bytes, likewise.
    Word,
}

/// What can be done to a 32-bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    /// Addition, modulo 2³².
    Add,
    /// Subtraction, modulo 2³².
    Sub,
    /// Multiplication, modulo 2³².
    Mul,
    /// Bitwise and.
    And,
    /// Bitwise exclusive or.
    Xor,
    /// Shift towards the high bits.
    ShiftLeft,
    /// Shift towards the low bits; zeros come in.
    ShiftRight,
    /// Remainder.
    Mod,
}

impl Width {
    /// Both dialects' code.
    const fn code(self) -> u16 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
        }
    }
}

impl Alu {
    /// Both dialects' code (`include/uapi/linux/bpf_common.h`).
    const fn code(self) -> u16 {
        match self {
            Self::Add => 0x00,
            Self::Sub => 0x10,
            Self::Mul => 0x20,
            Self::And => 0x50,
            Self::ShiftLeft => 0x60,
            Self::ShiftRight => 0x70,
            Self::Mod => 0x90,
            Self::Xor => 0xa0,
        }
    }
}

/// `BPF_PROG_LOAD` and `BPF_PROG_TYPE_SOCKET_FILTER` (`include/uapi/linux/bpf.h`).
const PROG_LOAD: libc::c_long = 5;
const SOCKET_FILTER: u32 = 1;

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads. A kernel that knows a longer one takes
/// the rest for zeros.
#[repr(C)]
#[derive(Debug, Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// Loads a program that looks at packets and returns a number. `name` is what `bpftool prog` calls
/// it, of which the kernel keeps 15 letters.
///
/// # Errors
/// `EPERM` without the permission, `EACCES` or `EINVAL` if the verifier refuses the program, and
/// `ENOSYS` from a kernel without BPF.
pub fn load(name: &'static str, code: &[extended::Instruction]) -> Result<OwnedFd, Error> {
    // It calls no function of the kernel, so any licence would do.
    const LICENSE: &CStr = c"MIT";
    let mut attributes = ProgLoad {
        prog_type: SOCKET_FILTER,
        insn_cnt: u32::try_from(code.len()).expect("programs are short"),
        insns: address_of(code.as_ptr()),
        license: address_of(LICENSE.as_ptr()),
        ..ProgLoad::default()
    };
    // The last byte stays zero.
    for (to, from) in attributes.prog_name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: code and license, to which `attributes` points, are readable and outlive the call.
    // The kernel copies all of them.
    let result = unsafe { call(PROG_LOAD, &attributes) };
    let fd = result.map_err(|errno| Error::new("bpf BPF_PROG_LOAD", name, errno))?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { owned(fd) })
}

/// Makes the call with a part of a `bpf_attr`.
///
/// # Safety
/// `T` is what the command reads of a `bpf_attr`, and what its addresses point to is as long as the
/// command wants and outlives the call.
unsafe fn call<T>(command: libc::c_long, attributes: &T) -> Result<libc::c_long, Errno> {
    // SAFETY: `attributes` has the size that is given; for the rest the caller vouches.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    Errno::result(result)
}

/// The descriptor that a call has returned.
///
/// # Safety
/// Nobody else owns it.
unsafe fn owned(fd: libc::c_long) -> OwnedFd {
    let fd = RawFd::try_from(fd).expect("descriptors are small");
    // SAFETY: the caller vouches for it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn address_of<T>(pointer: *const T) -> u64 {
    pointer.addr() as u64
}

/// Lets a program decide about every datagram that a socket is about to queue: what it returns is
/// how many bytes are kept, and at 0 the datagram is dropped, before it takes room in the queue.
/// The program sees it with its UDP header, and the IP header at [`extended::NETWORK_HEADER`]. The
/// kernel counts what is dropped among the socket's drops.
///
/// It replaces what was attached before. The program may be closed afterwards.
///
/// # Errors
/// `EINVAL` for a program of another type.
pub fn attach_filter(socket: &impl AsFd, program: &impl AsFd) -> Result<(), Error> {
    let program: libc::c_int = program.as_fd().as_raw_fd();
    let bytes = libc::socklen_t::try_from(size_of_val(&program)).expect("options are small");
    let (socket, value) = (socket.as_fd().as_raw_fd(), (&raw const program).cast());
    // SAFETY: the value is an `int` that outlives the call; the kernel only reads it.
    let result =
        unsafe { libc::setsockopt(socket, libc::SOL_SOCKET, libc::SO_ATTACH_BPF, value, bytes) };
    Errno::result(result)
        .map(drop)
        .map_err(|errno| Error::new("setsockopt SO_ATTACH_BPF", "the receive sockets", errno))
}

/// Lets a classic program choose among all UDP sockets that share the port of `fd`: what it
/// returns is the place of the socket in the order of their `bind`s, and where there is none, the
/// kernel's own hash chooses. The program sees a datagram without its UDP header.
///
/// It replaces what was attached before.
///
/// # Errors
/// `EINVAL` if the kernel refuses the program, or the socket shares no port.
pub fn attach_reuseport(fd: &impl AsFd, program: &[classic::Instruction]) -> Result<(), Error> {
    let mut code: Vec<libc::sock_filter> = program.iter().map(|one| one.0).collect();
    let filter = libc::sock_fprog {
        len: libc::c_ushort::try_from(code.len()).expect("programs are short"),
        filter: code.as_mut_ptr(),
    };
    let fd = fd.as_fd().as_raw_fd();
    let bytes = libc::socklen_t::try_from(size_of_val(&filter)).expect("options are small");
    let value = (&raw const filter).cast();
    let option = libc::SO_ATTACH_REUSEPORT_CBPF;
    // SAFETY: `value` points to a `sock_fprog` of `bytes` bytes, and that to as many instructions
    // as it says; both outlive the call. The kernel copies them.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, value, bytes) };
    Errno::result(result).map(drop).map_err(|errno| {
        Error::new("setsockopt SO_ATTACH_REUSEPORT_CBPF", "the receive sockets", errno)
    })
}

/// Takes away what [`attach_reuseport`] attached, in this process or in an earlier one whose
/// sockets were still there when these were bound. No program is no error.
///
/// # Errors
/// `ENOPROTOOPT` before Linux 5.3.
pub fn detach_reuseport(fd: &impl AsFd) -> Result<(), Error> {
    let fd = fd.as_fd().as_raw_fd();
    let value: libc::c_int = 0;
    let bytes = libc::socklen_t::try_from(size_of_val(&value)).expect("options are small");
    let option = libc::SO_DETACH_REUSEPORT_BPF;
    // SAFETY: the value is an `int` that outlives the call; the kernel only reads it.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, option, (&raw const value).cast(), bytes) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => {
            Err(Error::new("setsockopt SO_DETACH_REUSEPORT_BPF", "the receive sockets", errno))
        }
    }
}
