//! The systemd units that the project ships, as far as a test can do what systemd would.

use std::fs;

use nix::sys::resource::Resource;
use nix::sys::resource::getrlimit;

/// A unit, or a drop-in, of `tuning/`.
#[derive(Debug)]
pub(crate) struct Unit(String);

impl Unit {
    pub(crate) fn read(name: &str) -> Self {
        let path = format!("{}/tuning/{name}", env!("CARGO_MANIFEST_DIR"));
        Self(fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
    }

    /// The value of a setting that stands there once.
    pub(crate) fn value(&self, key: &str) -> &str {
        let values: Vec<_> = self.0.lines().filter_map(|line| line.split_once('=')).collect();
        let mut values = values.iter().filter(|(name, _)| *name == key);
        let value = values.next().unwrap_or_else(|| panic!("no {key} in {}", self.0)).1;
        assert!(values.next().is_none(), "more than one {key}");
        value
    }

    /// The words before a command that set its limits: the unit's, where the tests' own limits,
    /// which a container may not raise, leave room for them.
    pub(crate) fn limits(&self) -> Vec<String> {
        let locked = self.value("LimitMEMLOCK").strip_suffix('M').expect("in MiB");
        let locked: u64 = locked.parse().expect("a number");
        let files: u64 = self.value("LimitNOFILE").parse().expect("a number");
        let here = |resource| getrlimit(resource).expect("a limit").1;
        let files = files.min(here(Resource::RLIMIT_NOFILE));
        let locked = (locked << 20).min(here(Resource::RLIMIT_MEMLOCK));
        vec!["prlimit".to_owned(), format!("--nofile={files}"), format!("--memlock={locked}")]
    }

    /// The words before a command that take its capabilities and privileges.
    pub(crate) fn privileges(&self) -> Vec<String> {
        assert_eq!(self.value("NoNewPrivileges"), "yes");
        let kept: Vec<_> = self
            .value("CapabilityBoundingSet")
            .split(' ')
            .map(|name| name.strip_prefix("CAP_").expect("a capability").to_lowercase())
            .collect();
        let set = format!("--bounding-set=-all,+{}", kept.join(",+"));
        vec!["setpriv".to_owned(), "--no-new-privs".to_owned(), set]
    }

    /// The words before a command that make it another user's, with the capabilities and the
    /// directory below /run that the unit lists. The TUN device is everybody's, as udev makes it.
    pub(crate) fn user(&self, uid: u32) -> Vec<String> {
        assert_eq!(self.value("User"), "gwlbtun");
        let capabilities = self.value("AmbientCapabilities").to_lowercase().replace("cap_", "+");
        let capabilities = format!("-all,{}", capabilities.replace(' ', ","));
        let directory = self.value("RuntimeDirectory");
        let variable = self.value("Environment");
        let script = format!(
            "mkdir /run/{directory} && chown {uid} /run/{directory} &&
             mount -t tmpfs none /dev/net && mknod /dev/net/tun c 10 200 &&
             chmod 666 /dev/net/tun && export {variable} && exec \"$@\""
        );
        let rights = [
            "--no-new-privs".to_owned(),
            format!("--reuid={uid}"),
            "--regid=65534".to_owned(),
            "--clear-groups".to_owned(),
            format!("--inh-caps={capabilities}"),
            format!("--ambient-caps={capabilities}"),
            format!("--bounding-set={capabilities}"),
        ];
        let words = ["sh", "-c", &script, "sh", "setpriv"].map(str::to_owned);
        words.into_iter().chain(rights).collect()
    }

    /// The words before a command that make the tree read-only, as `ProtectSystem=strict` does,
    /// except for what the unit lists.
    pub(crate) fn tree(&self) -> Vec<String> {
        assert_eq!(self.value("ProtectSystem"), "strict");
        let writable = self.value("ReadWritePaths");
        let script = format!(
            "for path in / $(cut -d ' ' -f 5 /proc/self/mountinfo); do
                case $path in /dev*|/proc*|/sys*) ;; *) mount -o remount,bind,ro $path ;; esac
             done 2>/dev/null
             for path in {writable}; do mount -t tmpfs none $path; done
             exec \"$@\""
        );
        ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned).to_vec()
    }
}
