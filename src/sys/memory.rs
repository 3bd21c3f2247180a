//! Anonymous page-aligned memory that the kernel may write into.

#![expect(unsafe_code, reason = "mmap and its memory have no safe wrapper without a file")]

use std::ptr::NonNull;

use nix::libc;

use super::Errno;
use super::Error;

/// A private anonymous mapping, zeroed, unmapped when dropped.
///
/// Pages become resident when they are first touched, so an unused part costs address space only.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: a mapping is plain memory that belongs to its owner, on whichever thread that is.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `bytes` bytes, at least one.
    ///
    /// # Errors
    /// `ENOMEM` when there is no address space or the limit on it is reached.
    pub fn new(bytes: usize) -> Result<Self, Error> {
        assert!(bytes > 0, "an empty mapping is a mistake");
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory
        // that anybody uses.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Error::new("mmap", format!("{bytes} bytes"), Errno::last()));
        }
        let base = NonNull::new(base.cast()).expect("mmap never maps the null page here");
        Ok(Self { base, bytes })
    }

    /// Address of the first byte: aligned to the page size, fixed for the mapping's life.
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Always false: a mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `new`, and nothing borrows
        // from a value that is being dropped.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "munmap of our own mapping");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zeroed_aligned_and_ours() {
        let mapping = Mapping::new(10_000).unwrap();
        assert_eq!(mapping.base().as_ptr().addr() % 4096, 0);
        assert_eq!(mapping.len(), 10_000);
        // SAFETY: offset 9,999 lies inside the mapping of 10,000 bytes.
        let last = unsafe { mapping.base().add(9_999) };
        // SAFETY: the byte is mapped readable and writable, and nobody else has its address.
        unsafe { last.write(7) };
        // SAFETY: as above.
        assert_eq!(unsafe { last.read() }, 7);
    }

    #[test]
    fn too_much_is_an_error() {
        assert_eq!(Mapping::new(usize::MAX / 2).unwrap_err().errno, Errno::ENOMEM);
    }
}
