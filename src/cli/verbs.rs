//! The sub-commands: what the program does instead of running, when its first word says so.
//!
//! Everything else is the command line of the program that we replace, which passes over words
//! that mean nothing to it; so only the very first word is looked at. That one has to be known: who
//! mistypes "status" wants no program to start. An answer goes to standard output and help too,
//! with status 0, as with other tools of today.

use std::ffi::OsStr;
use std::ffi::OsString;

use clap::CommandFactory;
use clap::Parser;
use clap::Subcommand;
use clap::error::ErrorKind;

use super::Args;
use super::Refusal;
use super::one_line;
use super::parse;
use crate::types::request::About;
use crate::types::request::Request;
use crate::types::request::Topic;

/// Exit status for a sub-command that cannot be understood (`EX_USAGE`, sysexits.h): the small
/// numbers have a meaning of their own.
pub const EXIT_USAGE: u8 = 64;

/// Exit status where the answer could not be written (`EX_IOERR`).
pub const EXIT_OUTPUT: u8 = 74;

/// What to do.
#[derive(Clone, Debug)]
pub enum Verb {
    /// Ask the running program.
    Ask(Request),
    /// Look at the host, on which the program would run with these flags.
    Doctor(Box<Args>),
}

/// Why there is nothing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The help was asked for, or the version.
    Help(String),
    /// It cannot be understood; one line.
    Usage(String),
}

#[derive(Debug, Parser)]
#[command(name = "gwlbtun", version, term_width = 79, disable_help_subcommand = true)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell whether the gwlbtun that runs in this network namespace is well.
    ///
    /// The first word is OK, DEGRADED (it serves, and something should be looked at) or FAILED (the
    /// load balancer is told to send flows elsewhere), with exit status 0, 1 and 2. Status 3: none
    /// runs here; 4: it does not answer, or not to this user; 64: wrong usage; 74: the answer could
    /// not be written.
    Status {
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Show endpoints, workers, drops, hooks, features or config of the running gwlbtun.
    ///
    /// Exit status 0, or 3, 4, 64 and 74 as with status.
    Show {
        /// What to show: endpoints, workers, drops, hooks, features or config.
        #[arg(value_parser = str::parse::<Topic>)]
        topic: Topic,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Look at this host with the eyes of gwlbtun, which need not run; change nothing.
    ///
    /// One line for each check, which begins with OK, WARN or FAIL and ends with what to do. Exit
    /// status 0 if none failed, else 1; 64: wrong usage; 74: they could not be written.
    #[command(disable_help_flag = true)]
    Doctor {
        /// The flags that gwlbtun is, or will be, started with.
        #[arg(value_name = "FLAGS", trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<OsString>,
    },
}

/// The sub-commands as clap sees them.
pub(super) fn definitions() -> Vec<clap::Command> {
    Line::command().get_subcommands().cloned().collect()
}

/// Names of the sub-commands.
const NAMES: [&str; 3] = ["status", "show", "doctor"];

/// What the words of a command line, the program's name first, ask for: nothing where they do not
/// begin with the name of a sub-command.
///
/// # Errors
/// See [`Refused`].
pub fn parse_verb(words: &[OsString]) -> Result<Option<Verb>, Refused> {
    let Some(first) = words.get(1) else { return Ok(None) };
    if first == "--version" {
        return Err(Refused::Help(concat!("gwlbtun ", env!("CARGO_PKG_VERSION"), "\n").to_owned()));
    }
    let Some(name) = NAMES.into_iter().find(|name| first == name) else {
        let is_option = first.as_encoded_bytes().first().is_none_or(|byte| *byte == b'-');
        return if is_option { Ok(None) } else { Err(unknown(first)) };
    };
    let line = Line::try_parse_from(words).map_err(|error| refused(name, &error))?;
    let about = match line.command {
        Command::Status { json } => Request { about: About::Status, json },
        Command::Show { topic, json } => Request { about: About::Topic(topic), json },
        Command::Doctor { flags } => return doctor(flags).map(Some),
    };
    Ok(Some(Verb::Ask(about)))
}

/// The flags are judged as those of the program itself.
fn doctor(flags: Vec<OsString>) -> Result<Verb, Refused> {
    if flags.iter().any(|flag| ["-h", "-?", "--help"].iter().any(|help| flag == help)) {
        return Err(Refused::Help(help_of("doctor")));
    }
    let words = std::iter::once("gwlbtun".into()).chain(flags);
    let args = parse(words).map_err(|Refusal(text)| Refused::Usage(text))?;
    Ok(Verb::Doctor(Box::new(args)))
}

fn help_of(name: &str) -> String {
    let mut line = Line::command();
    line.build();
    let command = line.find_subcommand_mut(name);
    command.map_or_else(String::new, |command| command.render_long_help().to_string())
}

fn unknown(first: &OsStr) -> Refused {
    let first = first.to_string_lossy();
    Refused::Usage(format!(
        "gwlbtun: {first:?} is no command: write status, show or doctor; gwlbtun --help lists the \
         options of the program itself\n"
    ))
}

fn refused(name: &str, error: &clap::Error) -> Refused {
    if error.kind() == ErrorKind::DisplayHelp {
        return Refused::Help(error.to_string());
    }
    if error.kind() == ErrorKind::MissingRequiredArgument {
        return Refused::Usage(format!(
            "gwlbtun {name}: what? write endpoints, workers, drops, hooks, features or config\n"
        ));
    }
    let line = one_line(error).replacen("gwlbtun: ", &format!("gwlbtun {name}: "), 1);
    let help = format!("gwlbtun {name} --help lists");
    Refused::Usage(line.replacen("gwlbtun --help lists", &help, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Option<Verb>, Refused> {
        let words: Vec<_> = std::iter::once("gwlbtun").chain(line.split_whitespace()).collect();
        parse_verb(&words.into_iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_definition_is_consistent() {
        Line::command().debug_assert();
        let line = Line::command();
        let names: Vec<_> = line.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(names, NAMES);
    }

    /// The program that we replace passes over stray words, and so does this one.
    #[test]
    fn only_the_first_word_makes_a_sub_command() {
        for line in ["", "-p 80 status", "--json show", "-", "-- status", "-p8080 stray"] {
            assert!(matches!(parse_line(line), Ok(None)), "{line}");
        }
    }

    #[test]
    fn a_mistyped_command_starts_nothing() {
        for line in ["statu", "stat --json", "help", "statuses", "8080"] {
            let parsed = parse_line(line);
            let is_refused =
                matches!(&parsed, Err(Refused::Usage(text)) if text.lines().count() == 1);
            assert!(is_refused, "{line}: {parsed:?}");
        }
    }

    #[test]
    fn the_version_is_told() {
        let told = parse_line("--version").unwrap_err();
        assert_eq!(told, Refused::Help(format!("gwlbtun {}\n", env!("CARGO_PKG_VERSION"))));
    }

    #[test]
    fn requests_are_as_they_are_sent() {
        for line in ["status", "status --json", "show config", "show hooks --json"] {
            let Ok(Some(Verb::Ask(request))) = parse_line(line) else { panic!("{line}") };
            assert_eq!(request.to_string(), line);
        }
    }

    #[test]
    fn the_doctor_takes_every_flag_of_the_program() {
        let Ok(Some(Verb::Doctor(args))) = parse_line("doctor -jp8080 --cores 0-1 -c sh") else {
            panic!("flags of the program")
        };
        assert_eq!((args.port.or(0), args.cores.as_deref()), (8080, Some("0-1")));
        for flag in ["cmdnew", "port", "json", "cores"] {
            assert!(args.given.iter().any(|given| given == flag), "{flag} of {:?}", args.given);
        }
        assert!(!args.given.iter().any(|given| given == "idle"), "{:?}", args.given);
        assert!(matches!(parse_line("doctor"), Ok(Some(Verb::Doctor(_)))));
        for line in ["doctor -h", "doctor -p 80 --help", "status -h", "show --help"] {
            assert!(matches!(parse_line(line), Err(Refused::Help(_))), "{line}");
        }
    }

    #[test]
    fn a_wrong_word_is_told_in_one_line() {
        for (line, said) in [
            ("status x", "gwlbtun status: unexpected argument 'x' found; gwlbtun status --help"),
            ("show", "gwlbtun show: what? write endpoints, "),
            ("show x", "gwlbtun show: <TOPIC>: \"x\": write endpoints, "),
            ("doctor --x", "gwlbtun: unexpected argument '--x' found; gwlbtun --help lists"),
        ] {
            let Err(Refused::Usage(text)) = parse_line(line) else { panic!("{line}") };
            assert!(text.starts_with(said) && text.matches('\n').count() == 1, "{line}: {text}");
        }
    }
}
