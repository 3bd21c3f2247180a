//! What was typed: the command line, flag for flag that of the program we replace.
//!
//! Nothing here looks at the machine; `settings` decides what the words mean on this host.
//! Unit files in the field are the contract: short bundles (`-js`), glued values (`-p8080`),
//! unambiguous long prefixes (`--udpt=4`), a flag given twice (the later one counts) and stray
//! words (ignored) all work as they do with getopt. Where the reference program guesses at a
//! malformed number, this one says in one line what is wrong.
//!
//! This module prints nothing and ends nothing: [`parse`] returns the text for stderr.

use std::ffi::OsString;

use clap::ArgAction;
use clap::Parser;
use clap::error::ContextKind;
use clap::error::ContextValue;
use clap::error::ErrorKind;
use clap::value_parser;

/// Text behind the list of options: what a hook is called with.
const HOOK_HELP: &str = "\
Hooks are run through /bin/sh with four arguments:
  1  CREATE or DESTROY
  2  the interface on which packets from the load balancer appear, gwi-<X>
  3  the interface that takes packets back to it, gwo-<X>
  4  the endpoint id, 17 hexadecimal digits: what follows vpce- in the console
<X> is the endpoint id in base 60. A hook should at least switch rp_filter off on gwi-<X>.

LIST is a comma separated list of cores or ranges of cores: 1-2,4,7-8.";

/// The flags, as typed.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gwlbtun",
    version,
    about = "AWS Gateway Load Balancer Tunnel Handler",
    after_help = HOOK_HELP,
    disable_help_flag = true,
    disable_version_flag = true,
    infer_long_args = true,
    args_override_self = true
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct Args {
    /// Command to run when an endpoint's interfaces have been created.
    #[arg(short = 'c', long, value_name = "CMD", allow_hyphen_values = true)]
    pub cmdnew: Option<OsString>,

    /// Command to run before an endpoint's interfaces are removed.
    #[arg(short = 'r', long, value_name = "CMD", allow_hyphen_values = true)]
    pub cmddel: Option<OsString>,

    /// Seconds without a packet either way after which an endpoint is removed; 0 means never.
    #[arg(short = 't', long, value_name = "SECS", default_value_t = 0, allow_hyphen_values = true)]
    pub timeout: u32,

    /// Seconds after which an idle TCP flow is forgotten; match the load balancer's setting.
    #[arg(
        short = 'i',
        long,
        value_name = "SECS",
        default_value_t = 350,
        value_parser = value_parser!(u32).range(1..),
        allow_hyphen_values = true
    )]
    pub idle: u32,

    /// TCP port that answers health checks; 0 means none.
    #[arg(short = 'p', long, value_name = "PORT", default_value_t = 0, allow_hyphen_values = true)]
    pub port: u16,

    /// Health page as JSON instead of text.
    #[arg(short = 'j', long)]
    pub json: bool,

    /// Health answer of a status code only, with an empty body.
    #[arg(short = 's')]
    pub status_only: bool,

    /// Log debugging details.
    #[arg(short = 'd', long)]
    pub debug: bool,

    /// Print this help.
    #[arg(short = 'h', short_alias = '?', long, action = ArgAction::Help)]
    help: Option<bool>,

    /// Number of UDP threads; see --workers.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub udpthreads: Option<u32>,

    /// Number of tunnel threads; see --workers.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub tunthreads: Option<u32>,

    /// Cores of the UDP threads; see --cores.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub udpaffinity: Option<String>,

    /// Cores of the tunnel threads; see --cores.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub tunaffinity: Option<String>,

    /// Number of workers; each does what a UDP thread and a tunnel thread did. One worker set
    /// serves all four thread options: the largest count wins. Default: one per core.
    #[arg(
        long,
        value_name = "N",
        value_parser = value_parser!(u32).range(1..),
        allow_hyphen_values = true
    )]
    pub workers: Option<u32>,

    /// Cores to run one worker on each; wins over counts. Several lists are joined.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    pub cores: Option<String>,

    /// Flows to remember at most, 1 to 100,000,000. Default: from the size of the memory.
    #[arg(
        long,
        value_name = "N",
        value_parser = value_parser!(u32).range(1..=100_000_000),
        allow_hyphen_values = true
    )]
    pub max_flows: Option<u32>,

    /// Endpoints to serve at most, 1 to 4096.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1024,
        value_parser = value_parser!(u16).range(1..=4096),
        allow_hyphen_values = true
    )]
    pub max_endpoints: u16,

    /// Use only what Linux 6.1 offers, even where the kernel has more: to look for the cause of a
    /// fault, and for tests.
    #[arg(long)]
    pub kernel_floor: bool,

    /// Words without a meaning. The reference program passes over them in silence.
    #[arg(hide = true)]
    stray: Vec<OsString>,
}

/// The command line asks for the help, or cannot be understood. The text is for stderr, and the
/// exit status is 1 either way, as the reference program has it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// Parses the words of a command line, the program's name first.
///
/// # Errors
/// [`Refusal`] holds the help text, or one line that names the flag, its value and the remedy.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, Refusal> {
    Args::try_parse_from(words).map_err(|error| {
        if error.kind() == ErrorKind::DisplayHelp {
            Refusal(error.to_string())
        } else {
            Refusal(one_line(&error))
        }
    })
}

/// What clap found, without the paragraphs around it.
fn one_line(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let problem = match (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue)) {
        (Some(flag), Some("")) => format!("{flag} needs a value"),
        (Some(flag), Some(value)) => {
            let reason = std::error::Error::source(error)
                .map_or_else(|| "not a valid value".to_owned(), ToString::to_string);
            format!("{flag}: \"{value}\": {reason}")
        }
        _ => {
            let rendered = error.to_string();
            let first = rendered.lines().next().unwrap_or("bad command line");
            first.trim_start_matches("error: ").to_owned()
        }
    };
    format!("gwlbtun: {problem}; gwlbtun --help lists the options\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<Args, String> {
        let words = std::iter::once("gwlbtun").chain(line.split_whitespace());
        parse(words.map(OsString::from)).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn nothing_typed_gives_the_defaults() {
        let args = parse_line("").unwrap();
        assert_eq!((args.timeout, args.idle, args.port), (0, 350, 0));
        assert_eq!((args.cmdnew, args.cmddel), (None, None));
        assert!(!args.json && !args.status_only && !args.debug);
        assert_eq!((args.max_flows, args.max_endpoints), (None, 1024));
    }

    #[test]
    fn words_are_taken_as_getopt_takes_them() {
        let args = parse_line("-js -p8080 -t 60 stray --udpt=4 --tunaff 0,2-3 more -d").unwrap();
        assert!(args.json && args.status_only && args.debug);
        assert_eq!((args.port, args.timeout), (8080, 60));
        assert_eq!(args.udpthreads, Some(4));
        assert_eq!(args.tunaffinity.as_deref(), Some("0,2-3"));

        let args = parse_line("-p 80 --port 81 --timeo=1 -- -p 82").unwrap();
        assert_eq!((args.port, args.timeout), (81, 1), "the later one counts, -- ends options");

        let vyos = "-c /config/a.sh -r /config/b.sh -p 8080 --tunthreads 2 --tunaffinity 0-1 \
                    --udpthreads 2 --udpaffinity 0-1";
        let args = parse_line(vyos).unwrap();
        assert_eq!(args.cmdnew.unwrap(), "/config/a.sh");
        assert_eq!(args.cmddel.unwrap(), "/config/b.sh");
    }

    #[test]
    fn help_is_complete_in_every_spelling() {
        for spelling in ["-h", "-?", "--help", "-jh"] {
            let help = parse_line(spelling).unwrap_err();
            for word in [
                "-c",
                "-r",
                "-t",
                "-i",
                "-p",
                "-j",
                "-s",
                "-d",
                "-h",
                "--udpthreads",
                "--tunthreads",
                "--udpaffinity",
                "--tunaffinity",
                "--workers",
                "--cores",
                "--max-flows",
                "--max-endpoints",
                "CREATE or DESTROY",
            ] {
                assert!(help.contains(word), "{word} in the answer to {spelling}:\n{help}");
            }
            assert!(!help.contains("STRAY"), "{help}");
        }
    }

    #[test]
    fn a_bad_value_is_told_in_one_line() {
        for (line, needles) in [
            ("-p abc", ["--port", "\"abc\""]),
            ("-p 99999", ["--port", "65535"]),
            ("-t -5", ["--timeout", "\"-5\""]),
            ("-i 0", ["--idle", "\"0\""]),
            ("--udpthreads x", ["--udpthreads", "\"x\""]),
            ("--workers 0", ["--workers", "\"0\""]),
            ("--max-endpoints 5000", ["--max-endpoints", "4096"]),
            ("-c", ["--cmdnew", "value"]),
            ("-x", ["-x", "--help"]),
            ("--nonsense", ["--nonsense", "--help"]),
            ("--tun 1", ["--tun", "--help"]),
        ] {
            let text = parse_line(line).unwrap_err();
            assert_eq!(text.matches('\n').count(), 1, "{line}: {text}");
            for needle in needles {
                assert!(text.contains(needle), "{line}: {text}");
            }
        }
    }
}
