//! What is said, and that it fits, whatever there is to say.

use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::stats::EndpointSnapshot;
use crate::stats::WorkerRow;
use crate::stats::page::tests::sample;
use crate::types::DropReason;
use crate::types::request::Topic;

/// A feature that is off.
fn missing(name: &'static str, why: &str) -> FeatureRow {
    FeatureRow { name, missing: Some(why.to_owned()) }
}

/// Runs of every kind, the latest first.
fn hooks() -> Vec<HookRow> {
    let states = [
        HookState::Failed("was ended by signal 9".to_owned()),
        HookState::Running,
        HookState::Succeeded,
        HookState::Skipped,
    ];
    let row = |state| HookRow {
        action: "DESTROY".to_owned(),
        endpoint: EndpointId(0x0123_4567_89ab_cdef),
        begun: Duration::from_secs(71),
        took: Duration::from_millis(250),
        state,
    };
    states.map(row).into()
}

fn facts() -> Facts {
    Facts {
        endpoints_max: 1024,
        flows_max: 65_536,
        offload_asked: Offload { udp_coalescing: false, ..Offload::ALL },
        offload_found: Offload { tun_uso: false, udp_coalescing: false, ..Offload::ALL },
        steering_asked: true,
        vectors_asked: true,
        features: vec![FeatureRow { name: "source-filter", missing: None }],
        config: vec![
            ConfigRow { flag: "idle", value: "350 s".to_owned(), given: false },
            ConfigRow { flag: "no-return", value: "on".to_owned(), given: true },
        ],
        notes: vec!["something about the start".to_owned()],
    }
}

fn report<'a>(page: &'a Page, facts: &'a Facts, hooks: &'a [HookRow]) -> Report<'a> {
    Report {
        page,
        facts,
        hooks,
        hook_runs: 12,
        uptime: Duration::from_secs(93_784),
        process_id: 4711,
        open_files: 38,
        open_files_max: 1024,
    }
}

fn ask(report: &Report<'_>, request: &str) -> Answer {
    report.answer(request.parse().unwrap())
}

#[test]
fn the_status_word_for_word() {
    let (mut page, facts, hooks) = (sample(), facts(), hooks());
    let failed = "the DESTROY hook for vpce-00123456789abcdef was ended by signal 9";
    page.endpoints[0].failed_hook = Some(failed.to_owned());
    let answer = ask(&report(&page, &facts, &hooks), "status");
    let expected = "\
FAILED gwlbtun 9.8.7, up 1 d 2 h, process 4711
problem    worker 0 made no turn for 2.5 s
problem    an endpoint was refused
problem    the DESTROY hook for vpce-00123456789abcdef was ended by signal 9;
           the log has its output
serves     1 of 1024 endpoints with 0 of 1 workers
uses       34 of 65536 flows, 38 of 1024 files
in use     source-filter udp-gro udp-gso tun-tso tcp-coalescing vector-checksum
           tun-steering
not        tun-uso: this kernel lacks it
not        udp-coalescing: switched off, or of no use with another switch that …
not        inner-steering: outer paths decide, see --steer
drops      36 packets since the start; all of them: gwlbtun show drops
  19 at the queues of gwi and gwo
    workers read too late: give them cores of their own with --cores
  8 at the receive sockets
    more traffic than the workers carry: more cores, or a larger --rcvbuf
  4 flow_unknown
    set -i to the balancer's TCP idle time; or this host sends by itself
hooks      12 run, 6 failed, 1 running, the last failed 1 min 11 s ago
";
    assert_eq!((answer.text.as_str(), answer.exit_status), (expected, 2));
}

/// The longest values of everything at once.
#[test]
fn the_fullest_status_fits_the_smallest_terminal() {
    let mut page = sample();
    let sentence = "a very long sentence about something that is wrong with this host ".repeat(9);
    page.reasons = vec![sentence.trim_end().to_owned(); 40];
    page.warnings = vec!["x".repeat(400); 40];
    page.version = "123.456.789-rc.12345678901234567890+build.metadata.of.the.longest.kind";
    page.socket_drops = u64::MAX / 4;
    page.gone = EndpointSnapshot::default();
    let mut worker = WorkerRow::default();
    for &reason in DropReason::ALL {
        worker.counters.add_dropped(reason, u64::MAX >> 8, 0);
    }
    page.workers = vec![worker; 3];
    let row = page.endpoints[0].clone();
    page.endpoints = vec![row; 4096];
    let mut facts = facts();
    facts.endpoints_max = u64::MAX;
    facts.flows_max = u64::MAX;
    let names = ["a-feature-with-a-long-name", "another-feature-of-the-kind"];
    facts.features = names.repeat(20).into_iter().map(|name| missing(name, &sentence)).collect();
    let in_use = names.repeat(20).into_iter().map(|name| FeatureRow { name, missing: None });
    facts.features.extend(in_use);
    let mut hooks = hooks();
    hooks[0].begun = Duration::from_secs(u64::MAX);
    let full = Report {
        hook_runs: u64::MAX,
        uptime: Duration::from_secs(u64::MAX),
        process_id: u32::MAX,
        open_files: u64::MAX,
        open_files_max: u64::MAX,
        ..report(&page, &facts, &hooks)
    };
    let text = ask(&full, "status").text;
    assert_eq!(text.lines().count(), status::LINES_MAX, "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    assert!(text.contains("more: gwlbtun status --json"), "{text}");
    assert!(text.contains("more: gwlbtun show features"), "{text}");
}

#[test]
fn the_condition_is_the_worst_there_is() {
    let (mut page, facts) = (sample(), facts());
    let condition = |page: &Page| {
        let answer = ask(&report(page, &facts, &[]), "status");
        let word = answer.text.split(' ').next().unwrap().to_owned();
        (answer.exit_status, word)
    };
    assert_eq!(condition(&page), (2, "FAILED".to_owned()));
    let reasons = std::mem::take(&mut page.reasons);
    assert_eq!(condition(&page), (2, "FAILED".to_owned()));
    assert!(problems(&page)[0].starts_with("something was wrong"), "a failure has a reason");
    (page.healthy, page.reasons) = (true, reasons);
    assert_eq!(condition(&page), (1, "DEGRADED".to_owned()));
    page.reasons.clear();
    assert_eq!(condition(&page), (1, "DEGRADED".to_owned()));
    page.warnings.clear();
    assert_eq!(condition(&page), (0, "OK".to_owned()));
    page.endpoints[0].failed_hook = Some("a hook failed".to_owned());
    assert_eq!(condition(&page), (1, "DEGRADED".to_owned()));
}

#[test]
fn hooks_that_failed_are_named_up_to_a_number() {
    let mut page = Page { healthy: true, ..sample() };
    (page.reasons, page.warnings) = Default::default();
    page.endpoints[0].failed_hook = Some("a hook failed".to_owned());
    page.endpoints = vec![page.endpoints[0].clone(); FAILED_HOOKS_NAMED + 5];
    let problems = problems(&page);
    assert_eq!(problems.len(), FAILED_HOOKS_NAMED + 1);
    assert_eq!(problems[0], "a hook failed; the log has its output");
    assert_eq!(problems[FAILED_HOOKS_NAMED], "hooks for 5 more endpoints failed; see the log");
}

#[test]
fn the_status_in_json_says_the_same() {
    let (page, facts, hooks) = (sample(), facts(), hooks());
    let answer = ask(&report(&page, &facts, &hooks), "status --json");
    let json: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!((answer.exit_status, &json["condition"]), (2, &"FAILED".into()));
    for (key, value) in [
        ("/schema_version", Value::from(1)),
        ("/uptime_seconds", 93_784.into()),
        ("/problems/1", "an endpoint was refused".into()),
        ("/notes/0", "something about the start".into()),
        ("/flows/count", 34.into()),
        ("/open_files/max", 1024.into()),
        ("/drops/0/reason", "short".into()),
        ("/drops/0/packets", 3.into()),
        ("/drops/0/remedy", remedies::remedy(DropReason::Short).into()),
        ("/socket_drops/packets", 8.into()),
        ("/queue_drops/packets", 19.into()),
        ("/log_lines_lost", 2.into()),
        ("/hooks/running", 1.into()),
        ("/hooks/last/how", "was ended by signal 9".into()),
        ("/hooks/last/seconds", 0.25.into()),
        ("/features/0/in_use", true.into()),
        ("/features/0/reason", Value::Null),
    ] {
        assert_eq!(json.pointer(key), Some(&value), "{key} in {json}");
    }
}

#[test]
fn what_is_not_in_use_says_why() {
    let (mut page, mut facts) = (sample(), facts());
    let reason = |page: &Page, facts: &Facts, name: &str| {
        let rows = report(page, facts, &[]).features();
        rows.into_iter().find(|row| row.name == name).unwrap().missing.unwrap_or_default()
    };
    assert_eq!(reason(&page, &facts, "udp-gro"), "");
    page.workers[0].counters.merging_paused = 1;
    assert_eq!(reason(&page, &facts, "udp-gro"), "paused, as it finds nothing to merge");
    page.offload = Offload::NONE;
    assert_eq!(reason(&page, &facts, "udp-gro"), "datagrams are spread by the flow inside");
    let refused = "the kernel refused it in traffic: see the warnings";
    assert_eq!(reason(&page, &facts, "udp-gso"), refused);
    page.checksum = "scalar".to_owned();
    assert!(reason(&page, &facts, "vector-checksum").starts_with("this processor"));
    facts.vectors_asked = false;
    assert_eq!(reason(&page, &facts, "vector-checksum"), "switched off");
    let steering = page.steering.as_mut().unwrap();
    (steering.receive, steering.queues) = ("inner", "kernel (bpf: no)".to_owned());
    assert_eq!(reason(&page, &facts, "inner-steering"), "");
    assert_eq!(reason(&page, &facts, "tun-steering"), "kernel (bpf: no); CAP_BPF may allow it");
    facts.steering_asked = false;
    assert_eq!(reason(&page, &facts, "tun-steering"), "switched off");
    page.steering = None;
    assert_eq!(reason(&page, &facts, "tun-steering"), "one worker has it all");
}

#[test]
fn tables_are_aligned_and_their_json_has_the_same_rows() {
    let (page, facts, hooks) = (sample(), facts(), hooks());
    let report = report(&page, &facts, &hooks);
    let expected = "\
HOOK     ENDPOINT                       AGO   TOOK  STATE
DESTROY  vpce-00123456789abcdef  1 min 11 s  0.2 s  was ended by signal 9
DESTROY  vpce-00123456789abcdef  1 min 11 s  0.2 s  running
DESTROY  vpce-00123456789abcdef  1 min 11 s  0.2 s  succeeded
DESTROY  vpce-00123456789abcdef  1 min 11 s  0.2 s  skipped
";
    assert_eq!(ask(&report, "show hooks").text, expected);
    let expected = "\
FLAG       VALUE  ORIGIN
idle       350 s  default
no-return  on     command line
";
    assert_eq!(ask(&report, "show config").text, expected);
    let expected = "\
ENDPOINT                GWI             WELL        AGE  IN  OUT  DROPS  QUEUE_DROPS  FLOWS
vpce-00123456789abcdef  gwi-887epl1uMf  no    1 min 0 s   0    0      5           19     34
";
    assert_eq!(ask(&report, "show endpoints").text, expected);
    for topic in Topic::ALL {
        let text = ask(&report, &format!("show {topic}")).text;
        let json = ask(&report, &format!("show {topic} --json"));
        let json: Value = serde_json::from_str(&json.text).unwrap();
        let rows = json[topic.name()].as_array().unwrap();
        assert_eq!(rows.len(), text.lines().count() - 1, "{topic}");
        let keys = text.lines().next().unwrap().split_whitespace().map(str::to_lowercase);
        let mut keys: Vec<_> = keys.collect();
        keys.sort();
        let row = rows[0].as_object().unwrap();
        assert_eq!(row.keys().cloned().collect::<Vec<_>>(), keys, "{topic}");
    }
    let none = Page::default();
    let empty = Report { page: &none, hooks: &[], ..report };
    assert_eq!(ask(&empty, "show drops").text, "nothing was dropped since the start\n");
    let json = ask(&empty, "show drops --json").text;
    assert_eq!(json, "{\"drops\":[],\"schema_version\":1}\n");
}

#[test]
fn times_have_two_units_at_most() {
    for (secs, text) in [
        (0, "0.0 s"),
        (59, "59 s"),
        (60, "1 min 0 s"),
        (3599, "59 min 59 s"),
        (86_399, "23 h 59 min"),
        (90_000, "1 d 1 h"),
    ] {
        assert_eq!(span(Duration::from_secs(secs)), text);
    }
}
