//! The man page and the shells' completions, made from the definition of the command line, so
//! that they cannot say anything else. Packages ship them; nothing of this is in the program.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write as _;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::Roff;
use clap_mangen::roff::roman;

/// Where each shell looks, below `/usr/share`, as the packages have it.
pub(crate) const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/gwlbtun"),
    (Shell::Zsh, "zsh/vendor-completions/_gwlbtun"),
    (Shell::Fish, "fish/vendor_completions.d/gwlbtun.fish"),
];

/// Where the man page is, below the same. A sub-command has one of its own beside it.
pub(crate) const MAN_PAGE: &str = "man/man8/gwlbtun.8";

/// What the command line's definition does not say: headings, and items of a term and its text.
const SECTIONS: &[(&str, &[(&str, &str)])] = &[
    (
        "EXIT STATUS",
        &[
            ("0", "Ended by SIGTERM or SIGINT, after the DESTROY hooks."),
            ("1", "Wrong command line, a hook that cannot run, or the health port is taken."),
            ("2", "A capability or a permission is missing."),
            ("3", "A device, a kernel feature or a limit is missing."),
            ("4", "UDP port 6081 is taken."),
            ("5", "io_uring is forbidden, or a worker failed later."),
        ],
    ),
    (
        "SIGNALS",
        &[(
            "SIGTERM, SIGINT",
            "Run the DESTROY hooks, remove the links, end. A second one cuts the hooks short.",
        )],
    ),
    (
        "ENVIRONMENT",
        &[
            (
                "NOTIFY_SOCKET, WATCHDOG_USEC",
                "The service manager's, see sd_notify(3): told are READY=1 once ports are bound \
                 and every worker turns, STATUS= every 10 seconds, WATCHDOG=1 while every worker \
                 turns, STOPPING=1, and ERRNO= when it cannot start. Hooks do not get them.",
            ),
            (
                "GWLBTUN_ACTION, GWLBTUN_GWI, GWLBTUN_GWO, GWLBTUN_ENDPOINT",
                "Set for hooks: the first three of their arguments, and the endpoint's id as \
                 vpce-ID.",
            ),
        ],
    ),
    (
        "FILES",
        &[
            ("/dev/net/tun", "Makes the links."),
            ("/etc/default/gwlbtun", "GWLBTUN_OPTIONS=, the arguments of gwlbtun.service."),
            ("/usr/lib/gwlbtun", "Example hooks to copy, and tune.sh. Only in packages."),
        ],
    ),
    ("SEE ALSO", &[("", "ip-link(8), tc(8), nft(8), systemd.service(5), io_uring(7)")]),
];

/// The man page.
pub(crate) fn man_page(definition: &Command) -> io::Result<Vec<u8>> {
    let hooks = definition.get_after_help().map(ToString::to_string).unwrap_or_default();
    let man = Man::new(definition.clone().after_help("")).section("8").manual("gwlbtun");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if definition.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    rest.control("SH", ["HOOKS"]);
    // Its columns are laid out already.
    rest.control("nf", []);
    for line in hooks.lines() {
        rest.text([roman(line)]);
    }
    rest.control("fi", []);
    for (heading, items) in SECTIONS {
        rest.control("SH", [*heading]);
        for (term, text) in *items {
            if !term.is_empty() {
                rest.control("TP", []);
                rest.text([roman(*term)]);
            }
            rest.text([roman(*text)]);
        }
    }
    rest.to_writer(&mut page)?;
    Ok(page)
}

/// Writes all of them below a directory that stands for `/usr/share`.
pub(crate) fn write(definition: &Command, share: &Path) -> io::Result<()> {
    let create = |path: &str| {
        let path = share.join(path);
        fs::create_dir_all(path.parent().expect("a file has a folder"))?;
        File::create(path)
    };
    create(MAN_PAGE)?.write_all(&man_page(definition)?)?;
    for verb in definition.get_subcommands() {
        let name = format!("gwlbtun-{}", verb.get_name());
        let page = create(&MAN_PAGE.replace("gwlbtun", &name))?;
        let verb = verb.clone().bin_name(name.replace('-', " ")).display_name(name);
        Man::new(verb).section("8").manual("gwlbtun").render(&mut { page })?;
    }
    for (shell, path) in COMPLETIONS {
        clap_complete::generate(shell, &mut definition.clone(), "gwlbtun", &mut create(path)?);
    }
    Ok(())
}
