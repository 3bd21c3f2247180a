//! The seccomp profile of `tuning/container/` says what it is meant to say. That it works is shown
//! by `.ci/run container`; the manifest beside it is `lint-daemonset.py`'s business.

use serde_json::Value;

fn profile() -> Value {
    let text = include_str!("../tuning/container/seccomp.json");
    serde_json::from_str(text).expect("JSON")
}

/// The calls of the rules with this action, with and without conditions.
fn calls(action: &str) -> Vec<String> {
    let profile = profile();
    let rules = profile["syscalls"].as_array().expect("rules");
    let rules = rules.iter().filter(|rule| rule["action"] == action);
    let names = rules.flat_map(|rule| rule["names"].as_array().expect("names"));
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

#[test]
fn the_seccomp_profile_allows_io_uring_and_nothing_that_leaves_the_container() {
    assert_eq!(profile()["defaultAction"], "SCMP_ACT_ERRNO");
    let allowed = calls("SCMP_ACT_ALLOW");
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register", "bpf", "execve", "ioctl"]
    {
        assert!(allowed.iter().any(|name| name == call), "{call}");
    }
    let refused = calls("SCMP_ACT_ERRNO");
    for call in [
        "mount",
        "umount2",
        "setns",
        "unshare",
        "init_module",
        "kexec_load",
        "ptrace",
        "keyctl",
        "process_vm_writev",
        "open_by_handle_at",
        "perf_event_open",
        "reboot",
        "settimeofday",
        "userfaultfd",
        "pivot_root",
    ] {
        assert!(refused.iter().any(|name| name == call), "{call}");
    }
    let mut all = [allowed, refused].concat();
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count, "a call stands there twice");
}

/// New namespaces are flags of clone(2), `CLONE_NEWNS` to `CLONE_NEWNET` (linux/sched.h).
/// clone3(2) hides them from a filter: C libraries use clone(2) where it is `ENOSYS`.
#[test]
fn the_seccomp_profile_lets_threads_and_children_be_made_but_no_namespaces() {
    let profile = profile();
    let rules = profile["syscalls"].as_array().expect("rules");
    let clone = rules.iter().find(|rule| rule["names"][0] == "clone").expect("a rule");
    let namespaces = nix::sched::CloneFlags::from_bits_truncate(0x7e02_0000);
    assert_eq!(namespaces.bits(), 0x7e02_0000, "all of them are flags");
    assert_eq!(clone["args"][0]["value"], namespaces.bits());
    assert_eq!(clone["args"][0]["op"], "SCMP_CMP_MASKED_EQ");
    assert_eq!(profile["defaultErrnoRet"], nix::libc::ENOSYS);
    let named = |call: &str| calls("SCMP_ACT_ALLOW").iter().any(|name| name == call);
    assert!(!named("clone3") && !calls("SCMP_ACT_ERRNO").iter().any(|name| name == "clone3"));
}
