//! The program of a TUN link: to which queue, and so to which worker, a packet goes.
//!
//! A packet that a worker wrote to queue `i` of `gwi` carries `i + 1` with it, through redirects,
//! forwarding and connection tracking. The program gives it to queue `i` of the link by which it
//! leaves, so that one worker does both halves of its way. What comes from elsewhere (this host
//! itself, another link) has no worker yet: the [hash](super) chooses one, the same for both
//! directions.
//!
//! What changes the mark on the way, as a second network namespace does, costs speed only: the
//! flow table is shared.

use std::os::fd::OwnedFd;

use super::M1;
use super::M2;
use super::PORTS_BYTES;
use super::TCP;
use super::UDP;
use super::V4_ADDRESSES;
use super::V4_BYTES;
use super::V4_FRAGMENT;
use super::V4_IS_FRAGMENT;
use super::V4_PROTOCOL;
use super::V6_ADDRESSES;
use super::V6_BYTES;
use super::V6_NEXT_HEADER;
use super::modulus;
use crate::sys;
use crate::sys::bpf;
use crate::sys::bpf::Alu;
use crate::sys::bpf::Label;
use crate::sys::bpf::Width;
use crate::sys::bpf::extended::Field;
use crate::sys::bpf::extended::Instruction;
use crate::sys::bpf::extended::Program;
use crate::sys::bpf::extended::Register;
use crate::sys::link::LinkIndex;
use crate::sys::tun;

/// The context, and what packet loads expect it in.
const CONTEXT: Register = Register::R6;
/// Sum of the words of both addresses.
const ADDRESSES: Register = Register::R7;
/// Protocol and ports.
const REST: Register = Register::R8;
/// Where the ports are.
const PORTS_AT: Register = Register::R9;
/// What loads leave, and what the program returns.
const RESULT: Register = Register::R0;
/// Free between two loads from the packet.
const LEN: Register = Register::R1;

/// Loads the program for both links of an endpoint whose `gwi` is `gwi`. Nothing is ever written
/// to `gwo`, so both look for packets of `gwi`.
///
/// # Errors
/// See [`bpf::load`].
pub fn load(gwi: LinkIndex, queues: usize) -> Result<OwnedFd, sys::Error> {
    bpf::load("gwlbtun_queue", &program(gwi, queues))
}

/// Loads such a program and gives it to a link that is gone again a moment later: the proof that
/// permission and kernel feature are there.
///
/// That packets keep their queue cannot be tried here without a route or a filter of somebody
/// else's in this network namespace; the workers' counters show it in the traffic itself.
///
/// # Errors
/// What the kernel refused.
pub fn probe() -> Result<(), sys::Error> {
    tun::probe_steering(&load(LinkIndex(1), 2)?)
}

fn program(gwi: LinkIndex, queues: usize) -> Vec<Instruction> {
    let mut p = Program::new();
    let hash = p.new_label();
    p.copy(CONTEXT, Register::R1);
    // Written to gwi by a worker: back to the same one.
    p.load_field(RESULT, CONTEXT, Field::IngressIfindex);
    p.jump_unless_equal(RESULT, gwi.0, hash);
    p.load_field(RESULT, CONTEXT, Field::QueueMapping);
    p.jump_if_equal(RESULT, 0, hash);
    p.alu(Alu::Sub, RESULT, 1);
    p.exit();

    p.place(hash);
    let [v4, v6, ports, mix, other] = [(); 5].map(|()| p.new_label());
    p.load_field(LEN, CONTEXT, Field::Len);
    p.jump_if_less(LEN, V4_BYTES, other);
    p.load(Width::Byte, 0);
    p.alu(Alu::ShiftRight, RESULT, 4);
    p.jump_if_equal(RESULT, 4, v4);
    p.jump_if_equal(RESULT, 6, v6);
    p.jump(other);

    p.place(v4);
    read_v4(&mut p, ports, mix);
    p.place(v6);
    p.load_field(LEN, CONTEXT, Field::Len);
    p.jump_if_less(LEN, V6_BYTES, other);
    read_v6(&mut p, ports, mix);
    p.place(ports);
    add_ports(&mut p, mix);
    p.place(mix);
    p.alu(Alu::Mul, REST, M1);
    p.alu_register(Alu::Xor, REST, ADDRESSES);
    p.alu(Alu::Mul, REST, M2);
    p.alu(Alu::ShiftRight, REST, 16);
    p.alu(Alu::Mod, REST, modulus(queues));
    p.copy(RESULT, REST);
    p.exit();

    // No IP packet: queue 0.
    p.place(other);
    p.set(RESULT, 0);
    p.exit();
    p.finish()
}

/// Reads an IPv4 header, and goes to `ports` where there are any, else to `mix`.
fn read_v4(p: &mut Program, ports: Label, mix: Label) {
    sum_addresses(p, &V4_ADDRESSES);
    p.load(Width::Byte, V4_PROTOCOL);
    p.copy(REST, RESULT);
    p.alu(Alu::ShiftLeft, REST, 16);
    // The header's length: the low half of its first byte, in words.
    p.load(Width::Byte, 0);
    p.alu(Alu::And, RESULT, 0x0f);
    p.alu(Alu::ShiftLeft, RESULT, 2);
    p.copy(PORTS_AT, RESULT);
    p.load(Width::Half, V4_FRAGMENT);
    p.jump_if_any_bit(RESULT, V4_IS_FRAGMENT, mix);
    jump_if_it_has_ports(p, ports);
    p.jump(mix);
}

/// The same for IPv6.
fn read_v6(p: &mut Program, ports: Label, mix: Label) {
    sum_addresses(p, &V6_ADDRESSES);
    p.load(Width::Byte, V6_NEXT_HEADER);
    p.copy(REST, RESULT);
    p.alu(Alu::ShiftLeft, REST, 16);
    p.set(PORTS_AT, V6_BYTES);
    jump_if_it_has_ports(p, ports);
    p.jump(mix);
}

fn sum_addresses(p: &mut Program, offsets: &[u32]) {
    p.set(ADDRESSES, 0);
    for &offset in offsets {
        p.load(Width::Word, offset);
        p.alu_register(Alu::Add, ADDRESSES, RESULT);
    }
}

fn jump_if_it_has_ports(p: &mut Program, ports: Label) {
    for protocol in [TCP, UDP] {
        p.jump_if_equal(REST, protocol << 16, ports);
    }
}

/// Adds both ports, unless the packet ends before them.
fn add_ports(p: &mut Program, mix: Label) {
    p.load_field(LEN, CONTEXT, Field::Len);
    p.copy(RESULT, PORTS_AT);
    p.alu(Alu::Add, RESULT, PORTS_BYTES);
    p.jump_if_less_than(LEN, RESULT, mix);
    for offset in [0, 2] {
        p.load_at(Width::Half, PORTS_AT, offset);
        p.alu_register(Alu::Add, REST, RESULT);
    }
}
