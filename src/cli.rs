//! What was typed: the command line, flag for flag that of the program we replace.
//!
//! Nothing here looks at the machine; `settings` decides what the words mean on this host.
//! Unit files in the field are the contract: short bundles (`-js`), glued values (`-p8080`),
//! unambiguous long prefixes (`--udpt=4`), a flag given twice (the later one counts) and stray
//! words (ignored) all work as they do with getopt. A number may have something behind it (`5s`),
//! be empty (a variable that is not set) or be none (`off`): the reference program takes the
//! digits, or zero, and so does this one, with a warning. What it cannot serve, it says in one
//! line.
//!
//! This module prints nothing and ends nothing: [`parse`] returns the text for stderr.

mod values;
pub mod verbs;

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::ArgAction;
use clap::ArgMatches;
use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Parser;
use clap::error::ContextKind;
use clap::error::ContextValue;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::value_parser;

use crate::types::TcpSegmentMax;
pub use values::Compat;
pub use values::LogFormat;
pub use values::MaxFrame;
pub use values::Number;
pub use values::Profile;
pub use values::Steer;
use values::listen_address;
use values::number;
use values::number_or_none;
use values::seconds_or_default;
use values::seconds_or_never;

/// Text behind the list of options: what a hook is called with.
const HOOK_HELP: &str = "\
Hooks are run through /bin/sh with four arguments:
  1  CREATE or DESTROY
  2  the interface on which packets from the load balancer appear, gwi-<X>
  3  the interface that takes packets back to it, gwo-<X>; or none
  4  the endpoint id, 17 hexadecimal digits: what follows vpce- in the console
<X> is the endpoint id in base 60. A hook should switch rp_filter off on
gwi-<X>.

gwlbtun status says whether the gwlbtun that runs is well, gwlbtun show lists
what it does, gwlbtun doctor looks at the host before; --help behind each.
gwlbtun --version tells its version.";

/// The flags, as typed.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "gwlbtun",
    version,
    about = "AWS Gateway Load Balancer Tunnel Handler",
    after_help = HOOK_HELP,
    term_width = 79,
    disable_help_flag = true,
    disable_version_flag = true,
    infer_long_args = true,
    args_override_self = true
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct Args {
    /// Run CMD when an endpoint's interfaces have been created.
    #[arg(short = 'c', long, value_name = "CMD", allow_hyphen_values = true)]
    pub cmdnew: Option<OsString>,

    /// Run CMD before an endpoint's interfaces are removed.
    #[arg(short = 'r', long, value_name = "CMD", allow_hyphen_values = true)]
    pub cmddel: Option<OsString>,

    /// Remove an endpoint after so many seconds without a packet either way; 0 is never.
    #[arg(
        short = 't',
        long,
        value_name = "SECS",
        default_value = "0",
        value_parser = seconds_or_never,
        allow_hyphen_values = true
    )]
    pub timeout: Number,

    /// Forget a TCP flow after so many idle seconds; match the load balancer.
    #[arg(
        short = 'i',
        long,
        value_name = "SECS",
        default_value = "350",
        value_parser = seconds_or_default,
        allow_hyphen_values = true
    )]
    pub idle: Number,

    /// Answer health checks on this TCP port; 0 is none.
    #[arg(
        short = 'p',
        long,
        aliases = ["p"],
        value_name = "PORT",
        default_value = "0",
        value_parser = |text: &str| number_or_none(text, 0..=u32::from(u16::MAX)),
        allow_hyphen_values = true
    )]
    pub port: Number,

    /// Show the health page as JSON.
    #[arg(short = 'j', long)]
    pub json: bool,

    /// Answer health checks with the status only, without a page.
    #[arg(short = 's')]
    pub status_only: bool,

    /// Log debugging details: --logging all=debug.
    #[arg(short = 'd', long)]
    pub debug: bool,

    /// Levels to log, as section=level,...: sections core, udp, geneve, tunnel, healthcheck, all;
    /// levels critical, important, info, debug, debugdetail [default: all=info].
    // The prefixes that are the reference's, although --log-format has them too.
    #[arg(long, aliases = ["l", "lo", "log"], value_name = "LIST", allow_hyphen_values = true)]
    pub logging: Option<String>,

    /// Form of the log: text is that of AWS's program; json and logfmt have an event with its id a
    /// line; journald sends such events to systemd-journald.
    #[arg(long, value_enum, default_value_t, value_name = "FORM", hide_possible_values = true)]
    pub log_format: LogFormat,

    /// Log packets as hex dumps, ten of a kind in a second.
    #[arg(short = 'x')]
    pub hex_dump: bool,

    /// Print this help.
    #[arg(short = 'h', short_alias = '?', long, action = ArgAction::HelpShort)]
    help: Option<bool>,

    /// Number of UDP threads; see --workers.
    #[arg(
        help_heading = "Threads",
        long,
        aliases = ["u", "ud", "udp"],
        value_name = "N",
        value_parser = |text: &str| number(text, 0..=u32::MAX),
        allow_hyphen_values = true
    )]
    pub udpthreads: Option<Number>,

    /// Number of tunnel threads; see --workers.
    #[arg(
        help_heading = "Threads",
        long,
        aliases = ["tu", "tun"],
        value_name = "N",
        value_parser = |text: &str| number(text, 0..=u32::MAX),
        allow_hyphen_values = true
    )]
    pub tunthreads: Option<Number>,

    /// Cores of the UDP threads; see --cores.
    #[arg(help_heading = "Threads", long, value_name = "LIST", allow_hyphen_values = true)]
    pub udpaffinity: Option<String>,

    /// Cores of the tunnel threads; see --cores.
    #[arg(help_heading = "Threads", long, value_name = "LIST", allow_hyphen_values = true)]
    pub tunaffinity: Option<String>,

    /// Number of workers, up to 256; each does what a UDP and a tunnel thread did [default: the
    /// larger of both sets of threads, which are one per core where not given].
    #[arg(
        help_heading = "Threads",
        long,
        value_name = "N",
        value_parser = value_parser!(u32).range(1..),
        allow_hyphen_values = true
    )]
    pub workers: Option<u32>,

    /// Run one worker on each of these cores: 1-2,4,7-8. Several lists are joined; a list wins
    /// over counts.
    #[arg(help_heading = "Threads", long, value_name = "LIST", allow_hyphen_values = true)]
    pub cores: Option<String>,

    /// Which worker gets a datagram: outer is by the load balancer's addresses and ports, inner by
    /// those of the packet inside, auto begins with outer and changes to inner if workers get
    /// nothing to do.
    #[arg(
        help_heading = "Threads",
        long,
        value_enum,
        value_name = "HOW",
        default_value_t = Steer::Auto,
        hide_possible_values = true
    )]
    pub steer: Steer,

    /// Let the kernel choose to which worker a packet of the host goes.
    #[arg(help_heading = "Threads", long)]
    pub no_tun_steering: bool,

    /// Poll the network interface for so many microseconds before sleeping.
    #[arg(
        help_heading = "Threads",
        long,
        value_name = "USEC",
        default_value_t = 0,
        value_parser = value_parser!(u32).range(..=1_000_000),
        allow_hyphen_values = true
    )]
    pub busypoll: u32,

    /// Serve so many endpoints at most, 1 to 4096.
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "N",
        default_value_t = 1024,
        value_parser = value_parser!(u16).range(1..=4096),
        allow_hyphen_values = true
    )]
    pub max_endpoints: u16,

    /// Let so many new endpoints come at once, 1 to 4096; then --endpoint-rate counts [default: as
    /// --max-endpoints].
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "N",
        value_parser = value_parser!(u16).range(1..=4096),
        allow_hyphen_values = true
    )]
    pub endpoint_burst: Option<u16>,

    /// Let so many new endpoints come in a second, 1 to 1000.
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "N",
        default_value_t = 10,
        value_parser = value_parser!(u16).range(1..=1000),
        allow_hyphen_values = true
    )]
    pub endpoint_rate: u16,

    /// Serve these endpoints and no others: vpce-ID,...
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "LIST",
        action = ArgAction::Append,
        allow_hyphen_values = true
    )]
    pub allow_endpoint: Vec<String>,

    /// Take datagrams from these networks and no others, those of the load balancer's subnets:
    /// 10.0.1.0/24,...
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "LIST",
        action = ArgAction::Append,
        allow_hyphen_values = true
    )]
    pub allow_source: Vec<String>,

    /// Remember so many flows at most, 1 to 100,000,000 [default: from the memory's size].
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "N",
        value_parser = value_parser!(u32).range(1..=100_000_000),
        allow_hyphen_values = true
    )]
    pub max_flows: Option<u32>,

    /// Take the headers of a known flow only from the outer source address that it came from first,
    /// until it has been idle for 120 seconds.
    #[arg(help_heading = "Limits", long)]
    pub pin_source: bool,

    /// Have room for so many flows, in six numbers: IPv4 TCP, UDP, other, then IPv6; once more with
    /// vpce-ID: before it for an endpoint. Flows share one table here, so the sum counts.
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "LIST",
        action = ArgAction::Append,
        allow_hyphen_values = true
    )]
    pub reserve: Vec<String>,

    /// Let TCP connections agree on segments of BYTES at most, 536 to 8460, and 20 less in IPv6:
    /// for hosts whose links take more than the load balancer, and which do not listen to ICMP
    /// [without BYTES: 8460].
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "BYTES",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "8460",
        value_parser = value_parser!(u16).range(TcpSegmentMax::RANGE),
        allow_hyphen_values = true
    )]
    pub clamp_mss: Option<u16>,

    /// Receive queue of each worker's UDP socket in megabytes; 0 is the kernel's default
    /// [default: 128, less where memory is small].
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "MB",
        value_parser = value_parser!(u16).range(..=1023),
        allow_hyphen_values = true
    )]
    pub rcvbuf: Option<u16>,

    /// Let so many hooks run at a time, 1 to 64: where they do not edit the same files.
    #[arg(
        help_heading = "Limits",
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = value_parser!(u16).range(1..=64),
        allow_hyphen_values = true
    )]
    pub hook_jobs: u16,

    /// Run hooks that any user of this host may change.
    #[arg(help_heading = "Limits", long)]
    pub allow_insecure_hooks: bool,

    /// Write super-packets of up to 64 KiB to gwi, or none: mtu, for tools that dislike packets
    /// above the MTU.
    #[arg(
        help_heading = "Offloads",
        long,
        value_enum,
        value_name = "64k|mtu",
        default_value_t = MaxFrame::Largest,
        hide_possible_values = true
    )]
    pub gwi_max_frame: MaxFrame,

    /// Handle every packet by itself: all switches below at once.
    #[arg(help_heading = "Offloads", long)]
    pub no_offload: bool,

    /// Do not let the kernel merge datagrams that arrive.
    #[arg(help_heading = "Offloads", long)]
    pub no_udp_gro: bool,

    /// Do not send several datagrams with one call.
    #[arg(help_heading = "Offloads", long)]
    pub no_udp_gso: bool,

    /// Read no TCP super-packets from the TUNs: the kernel cuts them.
    #[arg(help_heading = "Offloads", long)]
    pub no_tun_tso: bool,

    /// Read no UDP super-packets from the TUNs.
    #[arg(help_heading = "Offloads", long)]
    pub no_tun_uso: bool,

    /// Do not merge TCP segments for gwi.
    #[arg(help_heading = "Offloads", long)]
    pub no_tcp_coalescing: bool,

    /// Do not merge UDP datagrams for gwi.
    #[arg(help_heading = "Offloads", long)]
    pub no_udp_coalescing: bool,

    /// Add checksums up without vector instructions.
    #[arg(help_heading = "Offloads", long)]
    pub no_vector_checksum: bool,

    /// Serve /metrics for Prometheus and the live page /ui here, with /livez and /readyz; a PORT
    /// alone is on 127.0.0.1. Without this nothing listens.
    #[arg(
        help_heading = "Metrics",
        long,
        value_name = "[ADDR:]PORT",
        value_parser = listen_address,
        allow_hyphen_values = true
    )]
    pub metrics_listen: Option<SocketAddr>,

    /// Whose load balancer this is, by the options that it puts into GENEVE: aws, or tencent with
    /// option class 0x0167.
    #[arg(
        help_heading = "Compatibility",
        long,
        value_enum,
        value_name = "CLOUD",
        default_value_t = Profile::Aws,
        hide_possible_values = true
    )]
    pub profile: Profile,

    /// Return nothing to the load balancer: no gwo-<X>, no flows; a hook's third argument is none.
    #[arg(help_heading = "Compatibility", long)]
    pub no_return: bool,

    /// Speak as this version of AWS's program does, on the health page and in the log: 3.0 or 3.2.
    #[arg(
        help_heading = "Compatibility",
        long,
        value_enum,
        value_name = "VERSION",
        default_value_t = Compat::V3_0,
        hide_possible_values = true
    )]
    pub compat: Compat,

    /// Taken from version 4.0, without effect.
    #[arg(
        help_heading = "Compatibility",
        short = 'e',
        long,
        value_name = "OBJFILE",
        allow_hyphen_values = true
    )]
    pub ebpf: Option<OsString>,

    /// Taken from version 4.0, without effect.
    #[arg(
        help_heading = "Compatibility",
        short = 'I',
        long,
        value_name = "IFNAME",
        allow_hyphen_values = true
    )]
    pub ebpf_interface: Option<OsString>,

    /// Use only what Linux 6.1 offers: to look for the cause of a fault.
    #[arg(help_heading = "Compatibility", long)]
    pub kernel_floor: bool,

    /// Words without a meaning. The reference program passes over them in silence.
    #[arg(hide = true)]
    stray: Vec<OsString>,

    /// Which flags were typed, by their long names.
    #[arg(skip)]
    pub given: Vec<String>,
}

/// The command line asks for the help, or cannot be understood. The text is for stderr, and the
/// exit status is 1 either way, as the reference program has it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(String);

/// The command line as clap sees it: what the man page and completions are made from.
pub fn definition() -> clap::Command {
    Args::command().subcommands(verbs::definitions()).disable_help_subcommand(true)
}

/// Parses the words of a command line, the program's name first.
///
/// # Errors
/// [`Refusal`] holds the help text, or one line that names the flag, its value and the remedy.
pub fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Args, Refusal> {
    let matches = Args::command().try_get_matches_from(words);
    let args = matches.and_then(|matches| {
        let mut args = Args::from_arg_matches(&matches)?;
        args.given = given(&matches);
        // Two spellings of one setting: the later one counts.
        if args.debug && args.logging.is_some() {
            if last_place(&matches, "debug") > last_place(&matches, "logging") {
                args.logging = None;
            } else {
                args.debug = false;
            }
        }
        Ok(args)
    });
    args.map_err(|error| {
        if error.kind() == ErrorKind::DisplayHelp {
            Refusal(error.to_string())
        } else {
            Refusal(one_line(&error))
        }
    })
}

/// The flags that were typed.
fn given(matches: &ArgMatches) -> Vec<String> {
    let is_typed = |id: &&str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let ids = matches.ids().map(clap::Id::as_str).filter(is_typed);
    ids.map(|id| id.replace('_', "-")).collect()
}

/// Where among the words an option stands for the last time.
fn last_place(matches: &ArgMatches, option: &str) -> Option<usize> {
    matches.indices_of(option).and_then(Iterator::max)
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
                .map_or_else(|| valid_values(error), ToString::to_string);
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

/// What could have been written instead.
fn valid_values(error: &clap::Error) -> String {
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => format!("write {}", values.join(" or ")),
        _ => "not a valid value".to_owned(),
    }
}

#[cfg(test)]
mod tests;
