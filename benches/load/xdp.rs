//! Clears the outer UDP checksum of what arrives at the target, before GRO looks at it: so a
//! generator that has the kernel cut its sends, which needs checksums, stands for a load balancer
//! that sends none.
//!
//! An XDP program of a few instructions on the target's veth; a tc or nft rule would come after
//! GRO. It is written down as `bpf_insn` (include/uapi/linux/bpf.h), so nothing has to be compiled.
#![expect(unsafe_code, reason = "bpf(2) has no wrapper in nix")]

use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;

use crate::lab::Failure;

/// Commands and constants of bpf(2), include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// The program can work on packets in several pieces: without it the MTU must be below a page.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// In the driver, which is before GRO; the generic mode is after it.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const XDP_PASS: i32 = 2;

/// Where a frame has its Ethernet type, and behind an IPv4 header without options its protocol,
/// UDP destination port and UDP checksum; and how long it is up to there.
const TYPE_AT: i16 = 12;
const PROTOCOL_AT: i16 = 23;
const PORT_AT: i16 = 36;
const CHECKSUM_AT: i16 = 40;
const HEADERS_BYTES: i32 = 42;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the lower half, source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The parts of `union bpf_attr` that loading uses.
#[repr(C)]
struct LoadArguments {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_bytes: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The parts of `union bpf_attr` that attaching uses.
#[repr(C)]
struct LinkArguments {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches the program to `link` of the current namespace, for as long as the result lives.
pub(crate) fn clear_checksums(link: &str) -> Result<OwnedFd, Failure> {
    let instructions = program();
    let load = LoadArguments {
        program_type: BPF_PROG_TYPE_XDP,
        instruction_count: u32::try_from(instructions.len())?,
        instructions: u64::try_from(instructions.as_ptr().addr())?,
        license: u64::try_from(c"GPL".as_ptr().addr())?,
        log_level: 0,
        log_bytes: 0,
        log: 0,
        kernel_version: 0,
        flags: BPF_F_XDP_HAS_FRAGS,
    };
    let program = bpf(BPF_PROG_LOAD, &load)
        .map_err(|error| format!("loading the program that clears checksums: {error}"))?;
    let attach = LinkArguments {
        program: u32::try_from(program.as_raw_fd())?,
        interface: if_nametoindex(link)?,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    bpf(BPF_LINK_CREATE, &attach)
        .map_err(|error| format!("attaching an XDP program to {link}: {error}").into())
}

/// For an IPv4 UDP packet to port 6081: its UDP checksum becomes 0. Every packet passes.
fn program() -> [Instruction; 14] {
    const LOAD_BYTE: u8 = 0x71;
    const LOAD_HALF: u8 = 0x69;
    const LOAD_WORD: u8 = 0x61;
    const STORE_HALF: u8 = 0x6a;
    const MOVE: u8 = 0xbf;
    const MOVE_IMMEDIATE: u8 = 0xb7;
    const ADD_IMMEDIATE: u8 = 0x07;
    const JUMP_IF_GREATER: u8 = 0x2d;
    const JUMP_IF_NOT_IMMEDIATE: u8 = 0x55;
    const EXIT: u8 = 0x95;
    let instruction = |code, to: u8, from: u8, offset, immediate| Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    };
    let network = |value: u16| i32::from(value.to_be());
    [
        // r2 is the packet's start and r3 its end, from the first two words of struct xdp_md.
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(LOAD_WORD, 3, 1, 4, 0),
        instruction(MOVE, 4, 2, 0, 0),
        instruction(ADD_IMMEDIATE, 4, 0, 0, HEADERS_BYTES),
        instruction(JUMP_IF_GREATER, 4, 3, 7, 0),
        instruction(LOAD_HALF, 5, 2, TYPE_AT, 0),
        instruction(JUMP_IF_NOT_IMMEDIATE, 5, 0, 5, network(0x0800)),
        instruction(LOAD_BYTE, 5, 2, PROTOCOL_AT, 0),
        instruction(JUMP_IF_NOT_IMMEDIATE, 5, 0, 3, 17),
        instruction(LOAD_HALF, 5, 2, PORT_AT, 0),
        instruction(JUMP_IF_NOT_IMMEDIATE, 5, 0, 1, network(6081)),
        instruction(STORE_HALF, 2, 0, CHECKSUM_AT, 0),
        // Here all jumps lead.
        instruction(MOVE_IMMEDIATE, 0, 0, 0, XDP_PASS),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// bpf(2), for commands that give a descriptor.
fn bpf<T>(command: libc::c_long, arguments: &T) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads the arguments, whose size is given, and what they point to, which
    // lives through the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(arguments), size_of::<T>())
    };
    let descriptor = i32::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the descriptor is new, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
