//! Programs that people put behind the example hooks, as their packages have them, and a web server
//! that notes who asks.

use std::fs::File;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Output;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use super::clock::wait_for;
use super::clock::wait_until;
use super::lab::Lab;
use super::lab::is_listening;
use super::process::Background;
use crate::sim::netns::Namespace;

/// Where the package keeps it.
const SURICATA_YAML: &str = "/etc/suricata/suricata.yaml";

/// A running Suricata in the target; killed on drop.
#[derive(Debug)]
pub(crate) struct Suricata {
    child: Child,
    folder: PathBuf,
}

impl Suricata {
    /// Starts it with the package's configuration, these rules alone, and more arguments, and waits
    /// until it takes packets. `name` is that of its folder.
    pub(crate) fn start(lab: &Lab, name: &str, rules: &str, args: &[&str]) -> Self {
        Self::start_as(lab, SURICATA_YAML.as_ref(), name, rules, args)
    }

    /// The same with a configuration of the test's own.
    pub(crate) fn start_as(lab: &Lab, yaml: &Path, name: &str, rules: &str, args: &[&str]) -> Self {
        let folder = lab.scratch.file(name);
        std::fs::create_dir(&folder).expect("a folder");
        let rules_file = folder.join("block.rules");
        std::fs::write(&rules_file, rules).expect("a file of rules");
        let output = File::create(folder.join("out")).expect("a file");
        let mut command = lab.topology.target().command("suricata");
        command.arg("-c").arg(yaml).arg("-S").arg(rules_file).arg("-l").arg(&folder);
        // Its socket has the same name for all tests.
        command.args(["--set", "unix-command.enabled=no"]).args(args);
        command.stderr(output.try_clone().expect("a handle")).stdout(output);
        let mut suricata = Self { child: command.spawn().expect("suricata"), folder };
        wait_until("suricata takes packets", || {
            let ended = suricata.child.try_wait().expect("wait");
            assert!(ended.is_none(), "{ended:?}: {}", suricata.output());
            suricata.output().contains("Engine started")
        });
        suricata
    }

    /// What it has printed.
    pub(crate) fn output(&self) -> String {
        std::fs::read_to_string(self.folder.join("out")).unwrap_or_default()
    }

    /// Its events of a kind so far, as in `eve.json`.
    pub(crate) fn events(&self, kind: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join("eve.json")).unwrap_or_default();
        // The last line may not be whole yet.
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["event_type"] == kind).collect()
    }

    /// Ends it as Ctrl-C does, and returns its counters.
    pub(crate) fn finish(mut self) -> Value {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, Signal::SIGINT).expect("kill");
        wait_for("suricata ends", || self.child.try_wait().expect("wait"));
        let last = self.events("stats").pop().expect("statistics at the end");
        last["stats"].clone()
    }
}

impl Drop for Suricata {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running `HAProxy` in the target; killed on drop.
#[derive(Debug)]
pub(crate) struct Haproxy {
    _process: Background,
    log: PathBuf,
}

impl Haproxy {
    /// Starts it with the example's configuration.
    pub(crate) fn start(lab: &Lab) -> Self {
        let log = lab.scratch.file("haproxy.log");
        let config = concat!(env!("CARGO_MANIFEST_DIR"), "/example-scripts/haproxy.cfg");
        let target = lab.topology.target();
        let process = start_logged(&target, &log, &["haproxy", "-f", config]);
        for port in [3129, 3130] {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            wait_until("haproxy listens", || is_listening(&target, address));
        }
        Self { _process: process, log }
    }

    /// Whether a line of its log has all of these words.
    pub(crate) fn has_logged(&self, words: &[&str]) -> bool {
        has_line(&self.log, words)
    }
}

/// A web server on port 80 of an endpoint's server, for IPv4 and IPv6.
#[derive(Debug)]
pub(crate) struct Web {
    _process: Background,
    log: PathBuf,
}

impl Web {
    /// Serves the files of the scratch directory `folder`.
    pub(crate) fn start(lab: &Lab, endpoint: usize, folder: &str) -> Self {
        let log = lab.scratch.file(&format!("{folder}.log"));
        let folder = lab.scratch.file(folder);
        let folder = folder.to_str().expect("UTF-8");
        let server = lab.server(endpoint);
        let args = ["python3", "-m", "http.server", "80", "--bind", "::", "--directory", folder];
        let process = start_logged(&server, &log, &args);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        wait_until("the web server listens", || is_listening(&server, address));
        Self { _process: process, log }
    }

    /// Whether a line of its log has all of these words.
    pub(crate) fn has_logged(&self, words: &[&str]) -> bool {
        has_line(&self.log, words)
    }
}

/// Starts a program with its output in a file.
pub(crate) fn start_logged(namespace: &Namespace, log: &Path, words: &[&str]) -> Background {
    let script = r#"log=$1; shift; exec "$@" >"$log" 2>&1"#;
    let log = log.to_str().expect("UTF-8");
    Background::start(namespace, "sh", &[&["-c", script, "sh", log], words].concat())
}

fn has_line(log: &Path, words: &[&str]) -> bool {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().any(|line| words.iter().all(|word| line.contains(word)))
}

/// How a request ended.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// curl's exit status: 7 = refused, 28 = no answer in time, 56 = reset.
    pub(crate) exit: i32,
    pub(crate) body: Vec<u8>,
    /// What the server or a proxy answered, 0 if nothing.
    pub(crate) status: u16,
}

/// Asks for a page, `seconds` long at most.
pub(crate) fn fetch(client: &Namespace, url: &str, seconds: u32, options: &[&str]) -> Fetched {
    let mut curl = client.command("curl");
    curl.args(["-sSg", "--max-time", &seconds.to_string(), "-w", "%{stderr}%{http_code}"]);
    let Output { status, stdout, stderr } = curl.args(options).arg(url).output().expect("curl");
    let told = String::from_utf8_lossy(&stderr);
    // An error's line comes first, or last, by the version of curl.
    let words = told.split_whitespace().filter(|word| word.len() == 3);
    let status_of_http = words.filter_map(|word| word.parse().ok()).next_back();
    Fetched {
        exit: status.code().expect("curl ends by itself"),
        body: stdout,
        status: status_of_http.unwrap_or_default(),
    }
}
