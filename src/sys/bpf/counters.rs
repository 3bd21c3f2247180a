//! Numbers that programs add to and this process reads: a BPF map of one element.
//!
//! A program gets the element's address in an instruction ([`Program::load_address`]), so that
//! counting needs no look-up and no helper.
//!
//! [`Program::load_address`]: super::extended::Program::load_address

#![expect(unsafe_code, reason = "the bpf call takes the addresses of key and value")]

use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;

use nix::libc;

use super::Error;
use super::address_of;
use super::call;
use super::owned;

/// `BPF_MAP_CREATE`, `BPF_MAP_LOOKUP_ELEM` and `BPF_MAP_TYPE_ARRAY` (`include/uapi/linux/bpf.h`).
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const ARRAY: u32 = 2;

/// The part of `union bpf_attr` that `BPF_MAP_CREATE` reads.
#[repr(C)]
#[derive(Debug, Default)]
struct MapCreate {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    max_entries: u32,
}

/// The part that `BPF_MAP_LOOKUP_ELEM` reads.
#[repr(C)]
#[derive(Debug, Default)]
struct MapLookup {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A row of 64-bit numbers, zero at first. It lives as long as this or a program that uses it.
#[derive(Debug)]
pub struct Counters {
    fd: OwnedFd,
    count: usize,
}

impl Counters {
    /// A row of `count` numbers.
    ///
    /// # Errors
    /// `EPERM` without the permission, `ENOMEM`.
    pub fn new(count: usize) -> Result<Self, Error> {
        let value_bytes = u32::try_from(count * size_of::<u64>()).expect("there are few");
        let attributes = MapCreate { map_type: ARRAY, key_bytes: 4, value_bytes, max_entries: 1 };
        // SAFETY: the command only reads the numbers in `attributes`.
        let result = unsafe { call(MAP_CREATE, &attributes) };
        let fd = result.map_err(|errno| Error::new("bpf BPF_MAP_CREATE", "counters", errno))?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(Self { fd: unsafe { owned(fd) }, count })
    }

    /// What the numbers are now.
    ///
    /// # Errors
    /// None that an open descriptor gives.
    pub fn read(&self) -> Result<Vec<u64>, Error> {
        let key = 0_u32;
        let mut values = vec![0_u64; self.count];
        let attributes = MapLookup {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            key: address_of(&raw const key),
            value: address_of(values.as_mut_ptr()),
            ..MapLookup::default()
        };
        // SAFETY: the kernel reads 4 bytes at `key` and writes one value of the map, which is as
        // long as `values`; both outlive the call.
        let result = unsafe { call(MAP_LOOKUP, &attributes) };
        result.map_err(|errno| Error::new("bpf BPF_MAP_LOOKUP_ELEM", "counters", errno))?;
        Ok(values)
    }
}

impl AsFd for Counters {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
