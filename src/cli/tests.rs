//! What is typed, and what is understood.

use super::*;

fn parse_line(line: &str) -> Result<Args, String> {
    let words = std::iter::once("gwlbtun").chain(line.split_whitespace());
    parse(words.map(OsString::from)).map_err(|refusal| refusal.to_string())
}

#[test]
fn the_definition_is_consistent() {
    Args::command().debug_assert();
}

#[test]
fn nothing_typed_gives_the_defaults() {
    let args = parse_line("").unwrap();
    let numbers = [&args.timeout, &args.idle, &args.port];
    assert_eq!(
        numbers.map(|number| (number.or(9), number.odd.is_some())),
        [(0, false), (350, false), (0, false)]
    );
    assert_eq!((args.cmdnew, args.cmddel), (None, None));
    assert!(!args.json && !args.status_only && !args.debug);
    assert_eq!((args.max_flows, args.max_endpoints), (None, 1024));
    assert_eq!((args.hook_jobs, args.allow_insecure_hooks), (1, false));
    assert_eq!((args.compat, args.logging), (Compat::V3_0, None));
    assert_eq!((args.rcvbuf, args.busypoll), (None, 0));
    assert!(!args.hex_dump && args.reserve.is_empty());
    assert_eq!((args.steer, args.no_tun_steering), (Steer::Auto, false));
    assert_eq!((args.profile, args.no_return, args.pin_source), (Profile::Aws, false, false));
}

#[test]
fn flags_of_later_versions_are_understood() {
    let line = "--rcvbuf 64 --busypoll=50 --reserve 1,2,3,4,5,6 --reserve vpce-0ab:6,5,4,3,2,1 \
                -e prog.o --ebpf-interface eth0 --compat 3.2 -x";
    let args = parse_line(line).unwrap();
    assert_eq!((args.rcvbuf, args.busypoll), (Some(64), 50));
    assert_eq!(args.reserve, ["1,2,3,4,5,6", "vpce-0ab:6,5,4,3,2,1"]);
    assert_eq!(args.ebpf.unwrap(), "prog.o");
    assert_eq!(args.ebpf_interface.unwrap(), "eth0");
    assert_eq!(args.compat, Compat::V3_2);
    assert!(args.hex_dump);
    assert_eq!(parse_line("-I eth1").unwrap().ebpf_interface.unwrap(), "eth1");
    assert_eq!(parse_line("--ebpf x --rcvbuf 1 --rcvbuf 0").unwrap().rcvbuf, Some(0));
}

#[test]
fn debug_and_logging_are_one_setting_and_the_later_one_counts() {
    for (line, debug, logging) in [
        ("-d", true, None),
        ("--logging udp=debug", false, Some("udp=debug")),
        ("-d --logging udp=debug", false, Some("udp=debug")),
        ("--logging udp=debug -d", true, None),
        ("--logging udp=debug -d --logging core=debug", false, Some("core=debug")),
        ("-d --logging=a -sd", true, None),
    ] {
        let args = parse_line(line).unwrap();
        assert_eq!((args.debug, args.logging.as_deref()), (debug, logging), "{line}");
    }
}

#[test]
fn numbers_are_read_as_the_reference_reads_them() {
    let read = |text: &str| number(text, 0..=100);
    for (text, value, is_odd) in [
        ("7", Some(7), false),
        ("007", Some(7), false),
        ("+7", Some(7), true),
        (" 7", Some(7), true),
        ("5s", Some(5), true),
        ("5.5", Some(5), true),
        ("0x1f", Some(0), true),
        ("", None, true),
        ("none", None, true),
        ("-", None, true),
    ] {
        let odd = is_odd.then(|| text.to_owned());
        // A plus sign is odd enough to be told, and harmless.
        assert_eq!(read(text), Ok(Number { value, odd }), "{text:?}");
    }
    for text in ["-1", "101", "99999999999"] {
        assert!(read(text).is_err(), "{text:?}");
    }
    assert_eq!(seconds_or_never("-5").unwrap().value, Some(0));
    assert_eq!(seconds_or_never("-x").unwrap().value, None);
    for text in ["0", "-1", "0s", ""] {
        let odd = Some(text.to_owned());
        assert_eq!(seconds_or_default(text), Ok(Number { value: None, odd }), "{text:?}");
    }
    assert_eq!(seconds_or_default("5").unwrap().value, Some(5));
    let empty = parse(["gwlbtun", "-p", "", "-t", "", "--udpthreads="].map(OsString::from));
    let empty = empty.unwrap();
    assert_eq!((empty.port.or(7), empty.timeout.or(8)), (7, 8));
    assert_eq!(empty.udpthreads.unwrap().value, None);
}

/// What is unambiguous there must not become ambiguous by a flag of ours.
#[test]
fn every_prefix_that_the_reference_knows_still_works() {
    // Of flags of one kind getopt takes the first.
    for (line, threads) in [("--u 2", (2, 0)), ("--udp=3", (3, 0)), ("--tu 4 --ud 5", (5, 4))] {
        let args = parse_line(line).unwrap();
        let count = |number: Option<Number>| number.map_or(0, |number| number.or(0));
        assert_eq!((count(args.udpthreads), count(args.tunthreads)), threads, "{line}");
    }
    let theirs = [
        "cmdnew",
        "cmddel",
        "timeout",
        "idle",
        "port",
        "json",
        "debug",
        "logging",
        "udpthreads",
        "tunthreads",
        "udpaffinity",
        "tunaffinity",
        "rcvbuf",
        "busypoll",
        "reserve",
        "ebpf",
        "ebpf-interface",
    ];
    for name in theirs {
        for end in 1..=name.len() {
            let prefix = &name[..end];
            let fits = theirs.iter().filter(|other| other.starts_with(prefix)).count();
            if fits > 1 && prefix != name {
                continue;
            }
            let value = match name {
                "json" | "debug" => "",
                _ => "=1",
            };
            let parsed = parse_line(&format!("--{prefix}{value}"));
            assert!(parsed.is_ok(), "--{prefix} for --{name}: {parsed:?}");
        }
    }
}

#[test]
fn words_are_taken_as_getopt_takes_them() {
    let args = parse_line("-js -p8080 -t 60 stray --udpt=4 --tunaff 0,2-3 more -d").unwrap();
    assert!(args.json && args.status_only && args.debug);
    assert_eq!((args.port.or(0), args.timeout.or(0)), (8080, 60));
    assert_eq!(args.udpthreads.unwrap().or(0), 4);
    assert_eq!(args.tunaffinity.as_deref(), Some("0,2-3"));

    let args = parse_line("-p 80 --port 81 --timeo=1 -- -p 82").unwrap();
    assert_eq!(
        (args.port.or(0), args.timeout.or(0)),
        (81, 1),
        "the later one counts, -- ends options"
    );

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
            "-x",
            "-e",
            "-I",
            "--logging",
            "--compat",
            "--rcvbuf",
            "--busypoll",
            "--reserve",
            "--hook-jobs",
            "--allow-insecure-hooks",
            "--udpthreads",
            "--tunthreads",
            "--udpaffinity",
            "--tunaffinity",
            "--workers",
            "--cores",
            "--steer",
            "--no-tun-steering",
            "--max-flows",
            "--max-endpoints",
            "--pin-source",
            "--profile",
            "--no-return",
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
        ("--tunthreads -1", ["--tunthreads", "\"-1\": below 0"]),
        ("-p 99999", ["--port", "65535"]),
        ("-t 4294967296", ["--timeout", "too large"]),
        ("--workers 0", ["--workers", "\"0\""]),
        ("--max-endpoints 5000", ["--max-endpoints", "4096"]),
        ("-c", ["--cmdnew", "value"]),
        ("-z", ["-z", "--help"]),
        ("--compat 3.1", ["--compat", "\"3.1\": write 3.0 or 3.2;"]),
        ("--profile gcp", ["--profile", "\"gcp\": write aws or tencent;"]),
        ("--steer both", ["--steer", "\"both\": write outer or inner or auto;"]),
        ("--rcvbuf 1024", ["--rcvbuf", "1023"]),
        ("--hook-jobs 0", ["--hook-jobs", "\"0\""]),
        ("--nonsense", ["--nonsense", "--help"]),
        ("--t 1", ["--t", "--help"]),
    ] {
        let text = parse_line(line).unwrap_err();
        assert_eq!(text.matches('\n').count(), 1, "{line}: {text}");
        for needle in needles {
            assert!(text.contains(needle), "{line}: {text}");
        }
    }
}
