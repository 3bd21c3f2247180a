//! The man page and the completions know every flag.

use std::fs;
use std::process::Command;

use clap_complete::Shell;

use crate::docs;
use crate::support::process::finish;
use crate::support::scratch::Scratch;
use crate::support::scratch::unique_name;

/// The long names of all flags that the help shows.
fn flags() -> Vec<String> {
    let definition = gwlbtun::cli::definition();
    let shown = definition.get_arguments().filter(|flag| !flag.is_hide_set());
    let flags: Vec<_> = shown.filter_map(|flag| Some(flag.get_long()?.to_owned())).collect();
    assert!(flags.len() > 30, "{flags:?}");
    flags
}

#[test]
fn the_man_page_has_every_flag_and_what_the_help_does_not_say() {
    let page = docs::man_page(&gwlbtun::cli::definition()).expect("a page");
    let page = String::from_utf8(page).expect("UTF-8");
    for flag in flags() {
        let flag = format!("\\-\\-{}", flag.replace('-', "\\-"));
        assert!(page.contains(&flag), "{flag} in {page}");
    }
    for line in [".TH gwlbtun 8", ".SH HOOKS", ".SH \"EXIT STATUS\"", ".SH ENVIRONMENT"] {
        assert!(page.lines().any(|found| found.starts_with(line)), "{line} in {page}");
    }
    assert_eq!(page.matches("CREATE or DESTROY").count(), 1, "hooks have a section of their own");
}

#[test]
fn completions_know_every_flag() {
    let scratch = Scratch::new(&unique_name());
    docs::write(&gwlbtun::cli::definition(), &scratch.file("")).expect("files");
    assert!(scratch.file(docs::MAN_PAGE).is_file());
    for (shell, path) in docs::COMPLETIONS {
        let script = scratch.file(path);
        let text = fs::read_to_string(&script).expect("a script");
        for flag in flags() {
            let is_fish = shell == Shell::Fish;
            let spelled = if is_fish { format!("-l {flag}") } else { format!("--{flag}") };
            assert!(text.contains(&spelled), "{spelled} in {}", script.display());
        }
    }
    // What bash makes of it, as at the key: the word that is being typed is the second.
    let complete = "source \"$1\"; COMP_WORDS=(gwlbtun $2) COMP_CWORD=1; \
                    _gwlbtun gwlbtun $2 gwlbtun; echo \"${COMPREPLY[@]}\"";
    let script = scratch.file(docs::COMPLETIONS[0].1);
    for (typed, meant) in [("--max-e", "--max-endpoints\n"), ("stat", "status\n")] {
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", complete, "bash"]).arg(&script).arg(typed);
        assert_eq!(finish(&mut bash), meant);
    }
}

#[test]
fn each_sub_command_has_a_page() {
    let scratch = Scratch::new(&unique_name());
    docs::write(&gwlbtun::cli::definition(), &scratch.file("")).expect("files");
    for verb in ["status", "show", "doctor"] {
        let page = docs::MAN_PAGE.replace("gwlbtun", &format!("gwlbtun-{verb}"));
        let page = fs::read_to_string(scratch.file(&page)).expect("a page");
        assert!(page.contains(&format!(".TH gwlbtun-{verb} 8")), "{page}");
        assert!(page.contains("status 0"), "the exit status: {page}");
    }
}
