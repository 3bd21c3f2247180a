//! Extended BPF, as far as a program for packets needs it (`Documentation/bpf/standardization/
//! instruction-set.rst`): registers, 32-bit arithmetic, loads from packet and context, counters.
//!
//! The program begins with its context in [`Register::R1`] and ends with its result in
//! [`Register::R0`]. A load from the packet wants the context in R6, puts the value into R0, and
//! destroys R1 to R5; beyond the end of the packet it ends the program with the result 0.

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;

use super::Alu;
use super::Counters;
use super::Label;
use super::Width;
use super::labels::Labels;

/// One instruction: `struct bpf_insn` of a little-endian machine.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    value: i32,
}

/// The registers that programs here use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they have numbers and no meaning")]
pub enum Register {
    R0 = 0,
    R1 = 1,
    R6 = 6,
    R7 = 7,
    R8 = 8,
    R9 = 9,
}

/// A field of the context, `struct __sk_buff` (`include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Bytes of the packet.
    Len = 0,
    /// The queue that it came from, plus one; 0 if none is known.
    QueueMapping = 12,
    /// Index of the link that it came from; 0 if this host made it.
    IngressIfindex = 36,
    /// Packets that the kernel has merged into it; 0 or 1 if it is one.
    GsoSegs = 164,
}

/// Where a packet's IP header begins, for loads, wherever the packet itself does (`SKF_NET_OFF`,
/// `include/uapi/linux/filter.h`).
pub const NETWORK_HEADER: u32 = 0xfff0_0000;

/// Classes, sources, widths and modes of instructions.
const LD: u16 = 0x00;
const LDX: u16 = 0x01;
const STX: u16 = 0x03;
const ALU32: u16 = 0x04;
const JMP: u16 = 0x05;
const JMP32: u16 = 0x06;
const ALU64: u16 = 0x07;
const BY_REGISTER: u16 = 0x08;
const ABS: u16 = 0x20;
const IND: u16 = 0x40;
const MEM: u16 = 0x60;
const ATOMIC: u16 = 0xc0;
const DOUBLE: u16 = 0x18;

/// Jumps and moves.
const JA: u16 = 0x00;
const JEQ: u16 = 0x10;
const JSET: u16 = 0x40;
const JNE: u16 = 0x50;
const JLT: u16 = 0xa0;
const JLE: u16 = 0xb0;
const MOV: u16 = 0xb0;
const EXIT: u16 = 0x90;

/// A program in the making. What each call adds is executed in the order of the calls.
#[derive(Debug, Default)]
pub struct Program {
    code: Vec<Instruction>,
    labels: Labels,
    /// Jumps whose way is not known yet.
    jumps: Vec<(usize, Label)>,
}

impl Program {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, code: u16, to: Register, from: Register, offset: i16, value: u32) {
        self.code.push(Instruction {
            code: u8::try_from(code).expect("codes have 8 bits"),
            registers: to as u8 | (from as u8) << 4,
            offset,
            value: value.cast_signed(),
        });
    }

    /// `to` = `from`, all 64 bits.
    pub fn copy(&mut self, to: Register, from: Register) {
        self.push(ALU64 | MOV | BY_REGISTER, to, from, 0, 0);
    }

    /// `to` = `value`.
    pub fn set(&mut self, to: Register, value: u32) {
        self.push(ALU32 | MOV, to, Register::R0, 0, value);
    }

    /// `to` = a field of the context, to which `context` points.
    pub fn load_field(&mut self, to: Register, context: Register, field: Field) {
        self.push(LDX | Width::Word.code() | MEM, to, context, field as i16, 0);
    }

    /// R0 = what is at `offset` of the packet.
    pub fn load(&mut self, width: Width, offset: u32) {
        self.push(LD | width.code() | ABS, Register::R0, Register::R0, 0, offset);
    }

    /// R0 = what is at `base` + `offset` of the packet.
    pub fn load_at(&mut self, width: Width, base: Register, offset: u32) {
        self.push(LD | width.code() | IND, Register::R0, base, 0, offset);
    }

    /// `to` = address of a counter.
    pub fn load_address(&mut self, to: Register, counters: &Counters, counter: usize) {
        // The descriptor stands in the source's place for what is to be taken from it: the
        // element's address (`BPF_PSEUDO_MAP_VALUE`). The instruction is two long.
        const ELEMENT: u8 = 2 << 4;
        let fd = counters.as_fd().as_raw_fd().cast_unsigned();
        let offset = u32::try_from(counter * size_of::<u64>()).expect("there are few");
        self.push(LD | DOUBLE, to, Register::R0, 0, fd);
        if let Some(first) = self.code.last_mut() {
            first.registers |= ELEMENT;
        }
        self.push(0, Register::R0, Register::R0, 0, offset);
    }

    /// Adds `from`, all 64 bits, to the counter `number` places behind the one at `address`.
    pub fn add_to_counter(&mut self, address: Register, number: i16, from: Register) {
        // What to do stands in the value: `BPF_ADD`, 0.
        self.push(STX | DOUBLE | ATOMIC, address, from, 8 * number, 0);
    }

    /// Sets that counter to `from`, all 64 bits.
    pub fn set_counter(&mut self, address: Register, number: i16, from: Register) {
        self.push(STX | DOUBLE | MEM, address, from, 8 * number, 0);
    }

    /// `to` = `to` `alu` `value`, in 32 bits.
    pub fn alu(&mut self, alu: Alu, to: Register, value: u32) {
        self.push(ALU32 | alu.code(), to, Register::R0, 0, value);
    }

    /// `to` = `to` `alu` `from`, in 32 bits.
    pub fn alu_register(&mut self, alu: Alu, to: Register, from: Register) {
        self.push(ALU32 | alu.code() | BY_REGISTER, to, from, 0, 0);
    }

    /// Ends with R0.
    pub fn exit(&mut self) {
        self.push(JMP | EXIT, Register::R0, Register::R0, 0, 0);
    }

    /// A name for a place that is still to come.
    pub fn new_label(&mut self) -> Label {
        self.labels.new_label()
    }

    /// What comes next is what `label` names.
    pub fn place(&mut self, label: Label) {
        self.labels.place(label, self.code.len());
    }

    /// Goes to `label`.
    pub fn jump(&mut self, label: Label) {
        self.jump_on(JA, Register::R0, 0, label);
    }

    /// Goes to `label` if the register is `value`.
    pub fn jump_if_equal(&mut self, register: Register, value: u32, label: Label) {
        self.jump_on(JEQ, register, value, label);
    }

    /// Goes to `label` if the register is not `value`.
    pub fn jump_unless_equal(&mut self, register: Register, value: u32, label: Label) {
        self.jump_on(JNE, register, value, label);
    }

    /// Goes to `label` if the register and `mask` have a bit in common.
    pub fn jump_if_any_bit(&mut self, register: Register, mask: u32, label: Label) {
        self.jump_on(JSET, register, mask, label);
    }

    /// Goes to `label` if the register is less than `value`.
    pub fn jump_if_less(&mut self, register: Register, value: u32, label: Label) {
        self.jump_on(JLT, register, value, label);
    }

    /// Goes to `label` if the register is less than another one.
    pub fn jump_if_less_than(&mut self, register: Register, other: Register, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(JMP | JLT | BY_REGISTER, register, other, 0, 0);
    }

    /// Goes to `label` if the register's low half is less than `value`, which may be any number.
    pub fn jump_if_low_less(&mut self, register: Register, value: u32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(JMP32 | JLT, register, Register::R0, 0, value);
    }

    /// The same if it is `value` or less.
    pub fn jump_if_low_at_most(&mut self, register: Register, value: u32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(JMP32 | JLE, register, Register::R0, 0, value);
    }

    fn jump_on(&mut self, condition: u16, register: Register, value: u32, label: Label) {
        debug_assert!(value <= i32::MAX.cast_unsigned(), "compared with its sign extended");
        self.jumps.push((self.code.len(), label));
        self.push(JMP | condition, register, Register::R0, 0, value);
    }

    /// The whole program.
    ///
    /// # Panics
    /// If a label was never placed: a mistake in the program, which every run shows.
    pub fn finish(mut self) -> Vec<Instruction> {
        for (from, label) in self.jumps {
            let skipped = self.labels.skipped(label, from);
            self.code[from].offset = i16::try_from(skipped).expect("programs are short");
        }
        self.code
    }
}

const _: () = assert!(cfg!(target_endian = "little"), "registers stand the other way round");
