//! Files of every kind, and commands that name them in every way.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;

use super::*;

/// A directory with programs, removed on drop.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        let template = std::env::temp_dir().join("gwlbtun-check-XXXXXX");
        let place = Self(nix::unistd::mkdtemp(&template).unwrap());
        place.chmod("", 0o755);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A directory.
    fn directory(&self, name: &str, mode: u32) {
        fs::create_dir(self.path(name)).unwrap();
        self.chmod(name, mode);
    }

    /// A file.
    fn file(&self, name: &str, text: &str, mode: u32) {
        fs::write(self.path(name), text).unwrap();
        self.chmod(name, mode);
    }

    fn chmod(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn link(&self, name: &str, target: &str) {
        symlink(target, self.path(name)).unwrap();
    }

    /// What becomes of a command, where `@` is this place.
    fn judge(&self, command: &str, insecure_allowed: bool) -> Result<HookCommand, String> {
        let command = OsString::from(command.replace('@', self.0.to_str().unwrap()));
        let hooks = Hooks { create: None, destroy: Some(command), jobs: 1, insecure_allowed };
        let commands = check(&hooks).map_err(|error| {
            let text = error.to_string();
            assert!(text.starts_with("hook -r \""), "{text}");
            assert!(!text.contains('\n'), "one line, not {text:?}");
            text
        })?;
        assert_eq!(commands.create, None);
        Ok(commands.destroy.unwrap())
    }

    fn expect_refusal(&self, command: &str, what: &str) {
        let text = self.judge(command, false).unwrap_err();
        let what = what.replace('@', self.0.to_str().unwrap());
        assert!(text.contains(&what), "{command}: {what:?} is missing in {text:?}");
    }

    fn expect_shell(&self, command: &str) {
        let judged = self.judge(command, false);
        assert!(matches!(judged, Ok(HookCommand::Shell(_))), "{command}: {judged:?}");
    }

    fn expect_file(&self, command: &str) {
        let judged = self.judge(command, false);
        assert!(matches!(judged, Ok(HookCommand::File(_))), "{command}: {judged:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

const SCRIPT: &str = "#!/bin/sh -e\n";

#[test]
fn what_is_known_to_run() {
    let place = Place::new();
    place.file("hook", SCRIPT, 0o755);
    place.file("my hook & yours", SCRIPT, 0o755);
    place.file("no #! line", "exit 0\n", 0o755);
    place.link("latest", "hook");
    for command in ["@/hook", "@/my hook & yours", "@/no #! line", "@/latest", "@/./hook"] {
        place.expect_file(command);
    }
    for command in ["@/hook --fast $HOME", "  \t@/hook x", "@/latest && true"] {
        place.expect_shell(command);
    }
}

#[test]
fn what_cannot_run_is_refused() {
    let place = Place::new();
    place.file("plain", SCRIPT, 0o644);
    place.file("dos", "#!/bin/sh\r\necho\r\n", 0o755);
    place.file("python", "#! /no/python3 -I\n", 0o755);
    place.directory("dir", 0o755);
    place.link("dangling", "nowhere");
    place.link("loop", "loop");
    for (command, what) in [
        ("@/missing", "\"@/missing\": cannot be found: No such file"),
        ("@/my hook", "\"@/my\": cannot be found: No such file"),
        ("@/my hook", "put quotes around it"),
        ("@/plain/x", "Not a directory"),
        ("@/dangling", "No such file"),
        ("@/loop", "cannot be found"),
        ("@/dir", "\"@/dir\": is no file"),
        ("@/plain", "cannot be executed: Permission denied; chmod +x"),
        ("@/plain --with words", "\"@/plain\": cannot be executed"),
        ("@/dos", "\"/bin/sh\\r\""),
        ("@/python", "\"/no/python3\""),
        ("no/such/file", "\"no/such/file\""),
    ] {
        place.expect_refusal(command, what);
        assert!(place.judge(command, true).is_err(), "{command}: allowed for another reason only");
    }
}

#[test]
fn what_any_user_can_change_is_refused() {
    let place = Place::new();
    place.file("open", SCRIPT, 0o757);
    place.directory("shared", 0o777);
    place.file("shared/hook", SCRIPT, 0o755);
    place.directory("sticky", 0o1777);
    place.file("sticky/hook", SCRIPT, 0o755);
    place.link("through", "shared/hook");
    place.directory("bin", 0o755);
    place.file("bin/hook", SCRIPT, 0o755);
    // The directory of a link counts as much as that of its target.
    place.link("shared/link", "../bin/hook");
    place.link("short", "shared");
    for (command, culprit) in [
        ("@/open", "any user of this host can change \"@/open\""),
        ("@/open --now", "can change \"@/open\""),
        ("@/shared/hook", "can change \"@/shared\""),
        ("@/through", "can change \"@/shared\""),
        ("@/shared/link", "can change \"@/shared\""),
        ("@/short/link", "can change \"@/shared\""),
        ("@/bin/../shared/../bin/hook", "can change \"@/shared\""),
    ] {
        place.expect_refusal(command, culprit);
        place.expect_refusal(command, "--allow-insecure-hooks");
        assert!(place.judge(command, true).is_ok(), "{command}");
    }
    place.expect_file("@/sticky/hook");
    place.chmod("open", 0o775);
    place.expect_file("@/open");
    place.chmod("sticky/hook", 0o777);
    place.expect_refusal("@/sticky/hook", "can change \"@/sticky/hook\"");
}

#[test]
fn what_others_cannot_reach_they_cannot_change() {
    let place = Place::new();
    place.directory("home", 0o755);
    place.directory("home/open", 0o777);
    place.file("home/open/hook", SCRIPT, 0o777);
    place.link("latest", "home/open/hook");
    for command in ["@/home/open/hook", "@/latest"] {
        place.expect_refusal(command, "can change \"@/home/open\"");
        place.chmod("home", 0o750);
        place.expect_file(command);
        place.chmod("home", 0o755);
    }
    // What a link leads out of protects nothing.
    place.directory("home/private", 0o700);
    place.link("home/private/hook", "../open/hook");
    place.expect_refusal("@/home/private/hook", "can change \"@/home/open\"");
}

#[test]
fn a_working_directory_that_is_gone_is_no_obstacle() {
    let place = Place::new();
    place.file("hook", SCRIPT, 0o755);
    place.directory("gone", 0o755);
    let gone = place.path("gone");
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            // From here on this thread has a working directory of its own.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
            nix::unistd::chdir(&gone).unwrap();
            fs::remove_dir(&gone).unwrap();
            place.expect_file("@/hook");
            place.expect_shell("@/hook --now");
            place.expect_refusal("./hook", "cannot be found");
        });
        test.join().unwrap();
    });
}

#[test]
fn what_only_a_shell_understands_is_not_judged() {
    let place = Place::new();
    for command in [
        "sh @/missing",
        "true",
        "exec @/missing",
        "A=1 @/missing",
        "A=/x @/missing",
        "'@/missing'",
        "\"@/missing\" x",
        "$HOME/missing",
        "~/missing",
        "@/missing;",
        "(@/missing)",
        "@/missin?",
        "@/miss[i]ng",
        "@/missing\n@/other",
        "@/missing\\ too",
        "! @/missing",
        "/bin/{missing}",
        ">@/missing",
    ] {
        place.expect_shell(command);
    }
}
