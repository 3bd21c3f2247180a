//! Takes one system call away from a program that is about to start, as a container runtime does.

#![expect(unsafe_code, reason = "prctl and the hook between fork and exec are unsafe")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;

/// Makes `call` fail with EPERM in the program that `command` starts, and in what it starts.
pub(crate) fn forbid(command: &mut Command, call: libc::c_long) {
    let number = u32::try_from(call).expect("call numbers are small");
    let statement = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // linux/bpf_common.h, linux/seccomp.h: load the number; is it ours? refuse : allow.
    let filter = [
        statement(0x20, 0, 0, 0),
        statement(0x15, 0, 1, number),
        statement(0x06, 0, 0, libc::SECCOMP_RET_ERRNO | 1),
        statement(0x06, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let install = move || -> io::Result<()> {
        let mut filter = filter;
        let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
        // SAFETY: prctl reads the program and its four statements, both alive during the call.
        // Root needs no PR_SET_NO_NEW_PRIVS first.
        let result = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        nix::errno::Errno::result(result)?;
        Ok(())
    };
    // SAFETY: the closure makes one system call on data it owns: no allocation, no lock.
    unsafe { command.pre_exec(install) };
}
