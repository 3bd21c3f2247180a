//! The example hooks with the programs that they are for, as Debian has them: Suricata inline,
//! which blocks one request and passes all else, and a proxy, `HAProxy`, between clients and
//! servers that do not notice it.
//!
//! Ignored but for `.ci/run full`, which installs the programs.

use std::process::Command;

use super::hosts::ping;
use super::hosts::random_file;
use super::hosts::resolve;
use super::scripts::Scene;
use crate::sim::netns::CLIENT_V4;
use crate::sim::netns::CLIENT_V6;
use crate::sim::netns::Namespace;
use crate::sim::netns::SERVER_V4;
use crate::sim::netns::SERVER_V6;
use crate::support::clock::wait_until;
use crate::support::inspectors::Haproxy;
use crate::support::inspectors::Suricata;
use crate::support::inspectors::Web;
use crate::support::inspectors::fetch;
use crate::support::inspectors::start_logged;
use crate::support::lab::Lab;
use crate::support::process::finish;
use crate::support::process::run;

/// Addresses of a server in a URL, and of the client that asks there.
const FAMILIES: [(&str, &str); 2] = [(SERVER_V4, CLIENT_V4), ("[fd00:1::2]", CLIENT_V6)];

/// Long enough for anything on a busy machine.
const PATIENCE_SECS: u32 = 60;
/// After how long what is blocked counts as such. A packet that passes after all is seen at the
/// server.
const GIVE_UP_SECS: u32 = 3;

const LARGE_BYTES: u64 = 20_000_000;

/// Which of Suricata's rules of example-scripts/README.md is which.
const DROPPED: &str = "/tools/setup.exe";
const REJECTED: &str = "Host: denied.example";

/// The rules that example-scripts/README.md has its reader type.
fn example_rules() -> String {
    let text = include_str!("../../example-scripts/README.md");
    let is_rule = |line: &&str| line.starts_with("drop ") || line.starts_with("reject ");
    let rules: Vec<_> = text.lines().filter(is_rule).collect();
    assert_eq!(rules.len(), 2, "{rules:?}");
    rules.join("\n") + "\n"
}

/// A web server behind endpoint number 0 with a large file and a small one in it.
fn serve(lab: &Lab) -> (Web, Vec<u8>) {
    let large = random_file(lab, "www/large", LARGE_BYTES);
    std::fs::create_dir(lab.scratch.file("www/tools")).unwrap();
    for name in ["www/page", "www/denied", "www/tools/setup.exe"] {
        std::fs::write(lab.scratch.file(name), name).unwrap();
    }
    (Web::start(lab, 0, "www"), std::fs::read(large).unwrap())
}

/// A page of the first endpoint's server arrives.
fn assert_passes(client: &Namespace, host: &str, path: &str, content: &[u8]) {
    let fetched = fetch(client, &format!("http://{host}{path}"), PATIENCE_SECS, &[]);
    assert_eq!((fetched.exit, fetched.status), (0, 200), "{host}{path}");
    assert!(fetched.body == content, "{host}{path}: other bytes than the server's");
}

/// One ping without an answer.
fn assert_silent(client: &Namespace, address: &str) {
    let wait = GIVE_UP_SECS.to_string();
    let output = client.command("ping").args(["-c", "1", "-W", &wait, address]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains(" 0 received"), "{printed}");
}

/// The endpoint's links are there, and Suricata's rules with them.
fn introduce(lab: &Lab) {
    for endpoint in 0..2 {
        run(&lab.client(endpoint), "ping", &["-c", "1", "-W", "10", SERVER_V4]);
    }
}

#[test]
#[ignore = "needs suricata: .ci/run full"]
fn suricata_blocks_one_request_and_passes_the_rest() {
    let scene = Scene::begin("suricata", &[]);
    let (web, large) = serve(&scene.lab);
    introduce(&scene.lab);
    let suricata = Suricata::start(&scene.lab, "suricata", &example_rules(), &["-q", "0"]);
    // Suricata's own packets, those of "reject", take the host's routes.
    let gwo = scene.link_of(0).replace("gwi-", "gwo-");
    let routes = ["10.1.0.0/24", "fd00:1::/64"].map(|net| format!("route add {net} dev {gwo}"));
    scene.target().ip(&routes).unwrap();
    let client = scene.lab.client(0);
    for (host, _) in FAMILIES {
        assert_passes(&client, host, "/page", b"www/page");
        assert_passes(&client, host, "/large", &large);
        let url = format!("http://{host}{DROPPED}");
        let dropped = fetch(&client, &url, GIVE_UP_SECS, &[]);
        assert_eq!((dropped.exit, dropped.status), (28, 0), "{host}");
        let url = format!("http://{host}/page");
        let rejected = fetch(&client, &url, PATIENCE_SECS, &["-H", REJECTED]);
        assert_eq!((rejected.exit, rejected.status), (56, 0), "{host}");
    }
    scene.target().ip(&routes.map(|route| route.replace("add", "del"))).unwrap();
    assert!(web.has_logged(&["GET /page"]) && !web.has_logged(&["setup.exe"]));
    scene.pass();
    resolve(&scene.lab);
    let alerts = || suricata.events("alert");
    wait_until("suricata has told of all four", || alerts().len() == 4);
    for alert in alerts() {
        assert_eq!(alert["alert"]["action"], "blocked", "{alert}");
    }
    let stats = suricata.finish();
    let count = |path: &str| stats.pointer(path).and_then(serde_json::Value::as_u64);
    assert!(count("/ips/blocked") >= Some(4), "{}", stats["ips"]);
    assert_eq!(count("/ips/rejected"), Some(2), "{}", stats["ips"]);
    // Super-packets arrive as packets, with checksums that are right.
    assert_eq!(count("/decoder/invalid"), Some(0), "{}", stats["decoder"]);
    assert!(count("/decoder/max_pkt_size") <= Some(8500), "{}", stats["decoder"]);
    assert_eq!(count("/tcp/invalid_checksum").unwrap_or_default(), 0, "{}", stats["tcp"]);
    scene.end();
}

/// Queues, one of which has nobody left, and a download during which that happens.
#[test]
#[ignore = "needs suricata: .ci/run full"]
fn packets_pass_where_suricata_has_died() {
    let scene = Scene::begin("suricata", &[("SURICATA_QUEUES", "0-1")]);
    let (web, large) = serve(&scene.lab);
    introduce(&scene.lab);
    let queues = ["-q", "0", "-q", "1"];
    let suricata = Suricata::start(&scene.lab, "first", &example_rules(), &queues);
    let client = scene.lab.client(0);
    let blocked = |host: &str| {
        let url = format!("http://{host}{DROPPED}");
        assert_eq!(fetch(&client, &url, GIVE_UP_SECS, &[]).exit, 28, "{host}");
    };
    for (host, _) in FAMILIES {
        blocked(host);
    }
    let url = format!("http://{SERVER_V4}/large");
    std::thread::scope(|scope| {
        // Four seconds, were nothing to happen.
        let download = || fetch(&client, &url, PATIENCE_SECS, &["--limit-rate", "5M"]);
        let download = scope.spawn(download);
        wait_until("the download begins", || web.has_logged(&["GET /large"]));
        drop(suricata);
        let got = download.join().unwrap();
        assert!(got.exit == 0 && got.body == large, "exit status {}", got.exit);
    });
    for (host, _) in FAMILIES {
        assert_passes(&client, host, DROPPED, b"www/tools/setup.exe");
    }
    let _suricata = Suricata::start(&scene.lab, "second", &example_rules(), &queues);
    for (host, _) in FAMILIES {
        blocked(host);
    }
    scene.end();
}

#[test]
#[ignore = "needs suricata: .ci/run full"]
fn nothing_passes_without_suricata_if_asked_for() {
    let scene = Scene::begin("suricata", &[("SURICATA_DOWN", "drop")]);
    let client = scene.lab.client(0);
    for address in [SERVER_V4, SERVER_V6] {
        assert_silent(&client, address);
    }
    let suricata = Suricata::start(&scene.lab, "suricata", &example_rules(), &["-q", "0"]);
    ping(&scene.lab, 0);
    drop(suricata);
    for address in [SERVER_V4, SERVER_V6] {
        assert_silent(&client, address);
    }
    scene.end();
}

/// Endpoints with the same addresses: a queue and a Suricata each.
#[test]
#[ignore = "needs suricata: .ci/run full"]
fn endpoints_may_have_a_suricata_each() {
    let scene = Scene::begin("suricata", &[]);
    introduce(&scene.lab);
    scene.create("suricata", 1, &[("SURICATA_QUEUES", "1")]);
    let (_web, _) = serve(&scene.lab);
    let _other = Web::start(&scene.lab, 1, "www");
    let none = Suricata::start(&scene.lab, "none", "", &["-q", "0"]);
    let strict = Suricata::start(&scene.lab, "strict", &example_rules(), &["-q", "1"]);
    for ((host, _), port) in FAMILIES.into_iter().zip(["40404", "40406"]) {
        let url = format!("http://{host}{DROPPED}");
        let options = ["--local-port", port];
        let passed = fetch(&scene.lab.client(0), &url, PATIENCE_SECS, &options);
        assert_eq!((passed.exit, passed.status), (0, 200));
        assert_eq!(fetch(&scene.lab.client(1), &url, GIVE_UP_SECS, &options).exit, 28);
    }
    wait_until("both are told of", || strict.events("alert").len() == 2);
    assert!(none.events("alert").is_empty());
    scene.end();
}

/// Suricata's other way to stand inline: why the example is not that.
#[test]
#[ignore = "needs suricata: .ci/run full"]
fn suricata_does_not_copy_between_links_without_ethernet() {
    let scene = Scene::begin("route", &[]);
    introduce(&scene.lab);
    scene.destroy("route", 0);
    let gwi = scene.link_of(0);
    let gwo = gwi.replace("gwi-", "gwo-");
    let pair = |number: u32, from: &str, to: &str| {
        format!(
            "  - {{interface: {from}, cluster-id: {number}, cluster-type: cluster_flow, \
             use-mmap: yes, tpacket-v3: no, copy-mode: ips, copy-iface: {to}}}\n"
        )
    };
    let pairs = pair(98, &gwi, &gwo) + &pair(97, &gwo, &gwi);
    let yaml = scene.lab.scratch.file("inline.yaml");
    std::fs::write(&yaml, format!("%YAML 1.1\n---\naf-packet:\n{pairs}")).unwrap();
    let suricata = Suricata::start_as(&scene.lab, &yaml, "inline", "", &["--af-packet"]);
    assert_silent(&scene.lab.client(0), SERVER_V4);
    wait_until("suricata says why", || suricata.output().contains("an ethernet header"));
    scene.end();
}

#[test]
#[ignore = "needs haproxy: .ci/run full"]
fn haproxy_denies_some_requests_and_nobody_notices_it() {
    let scene = Scene::begin("proxy", &[]);
    let (web, large) = serve(&scene.lab);
    std::fs::create_dir(scene.lab.scratch.file("other")).unwrap();
    std::fs::write(scene.lab.scratch.file("other/page"), "other").unwrap();
    let _other = Web::start(&scene.lab, 1, "other");
    let haproxy = Haproxy::start(&scene.lab);
    let client = scene.lab.client(0);
    for (host, address) in FAMILIES {
        assert_passes(&client, host, "/page", b"www/page");
        assert_passes(&client, host, "/large", &large);
        assert_passes(&scene.lab.client(1), host, "/page", b"other");
        let url = |path: &str| format!("http://{host}{path}");
        for (url, options) in [(url("/denied"), &[][..]), (url("/page"), &["-H", REJECTED])] {
            let denied = fetch(&client, &url, PATIENCE_SECS, options);
            assert_eq!((denied.exit, denied.status), (0, 403), "{url} {options:?}");
        }
        // Not the target's address, and not the port alone.
        assert!(web.has_logged(&[&format!("{address} - - "), "GET /page"]));
        wait_until("haproxy has told of both", || {
            let from = format!("{address}:");
            haproxy.has_logged(&[&from, "/asked ", " 200 ", "GET /page"])
                && haproxy.has_logged(&[&from, " 403 ", "GET /denied"])
        });
    }
    assert!(!web.has_logged(&["GET /denied"]));
    scene.pass();
    resolve(&scene.lab);
    scene.end();
}

/// The name in the TLS hello decides; nothing is decrypted.
#[test]
#[ignore = "needs haproxy and openssl: .ci/run full"]
fn haproxy_denies_a_name_in_tls() {
    let scene = Scene::begin("proxy", &[]);
    let scratch = |name: &str| scene.lab.scratch.file(name).to_str().unwrap().to_owned();
    let (key, cert) = (scratch("key"), scratch("cert"));
    let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=passed.example"];
    finish(Command::new("openssl").args(request).args(["-keyout", &key, "-out", &cert]));
    let _servers = FAMILIES.map(|(host, _)| {
        let (log, at) = (scene.lab.scratch.file("tls.log"), format!("{host}:443"));
        let args = ["openssl", "s_server", "-accept", &at, "-www", "-key", &key, "-cert", &cert];
        start_logged(&scene.lab.server(0), &log, &args)
    });
    let _haproxy = Haproxy::start(&scene.lab);
    let client = scene.lab.client(0);
    let ask = |name: &str, host: &str| {
        let to = format!("{name}:443:{host}:443");
        let options = ["-k", "--connect-to", &to];
        fetch(&client, &format!("https://{name}/"), PATIENCE_SECS, &options)
    };
    for (host, _) in FAMILIES {
        wait_until("the server answers", || ask("passed.example", host).status == 200);
        let denied = ask("denied.example", host);
        assert!(denied.exit != 0 && denied.status == 0, "{denied:?}");
    }
    scene.end();
}

#[test]
#[ignore = "needs haproxy: .ci/run full"]
fn requests_pass_or_are_refused_without_a_proxy() {
    for (down, is_refused) in [("pass", false), ("refuse", true)] {
        let scene = Scene::begin("proxy", &[("PROXY_DOWN", down)]);
        let (_web, _) = serve(&scene.lab);
        let client = scene.lab.client(0);
        introduce(&scene.lab);
        for (host, _) in FAMILIES {
            if is_refused {
                let refused = fetch(&client, &format!("http://{host}/page"), PATIENCE_SECS, &[]);
                assert_eq!(refused.exit, 7, "{host}");
            } else {
                assert_passes(&client, host, "/denied", b"www/denied");
            }
        }
        let _haproxy = Haproxy::start(&scene.lab);
        for (host, _) in FAMILIES {
            assert_passes(&client, host, "/page", b"www/page");
        }
        scene.end();
    }
}
