//! The program under test as a process in the target's namespace.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::io::Read as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::clock;
use super::clock::PATIENCE;
use super::clock::wait_for;
use super::lab::Lab;
use super::process::run;
use crate::sim::netns::Namespace;

/// The program that Cargo built for these tests.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_gwlbtun");

/// The hook that sends every packet back.
pub(crate) const PASSTHROUGH: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/example-scripts/create-passthrough.sh");

const HEALTH_PORT: u16 = 8080;

/// How old a page of the health port may be.
const PAGE_AGE_MAX: Duration = Duration::from_millis(100);

/// How much of the program's log a failed test shows, in bytes.
const LOG_SHOWN_BYTES: usize = 4000;

/// An answer of the health port.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Status line and header fields.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// Reads until the other side closes, which must be with a FIN.
    pub(crate) fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Ok(Self {
            status: status.ok_or_else(|| io::Error::other(format!("no status in {text:?}")))?,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    /// The value of a header field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
    }

    /// Whether the body is as long as the head says.
    pub(crate) fn is_whole(&self) -> bool {
        self.field("Content-Length") == Some(&self.body.len().to_string())
    }
}

/// A running engine; killed on drop.
#[derive(Debug)]
pub(crate) struct Engine {
    child: Child,
    namespace: Namespace,
    log: PathBuf,
    health_port: u16,
}

impl Engine {
    /// Starts with the passthrough hooks and JSON health, and waits for the first health answer.
    pub(crate) fn passthrough(lab: &Lab, args: &[&str]) -> Self {
        let hooks = ["-c", PASSTHROUGH, "-r", PASSTHROUGH, "-j"];
        Self::start(lab, &[&hooks, args].concat())
    }

    /// Starts with these arguments and a health port, and waits for the first health answer.
    pub(crate) fn start(lab: &Lab, args: &[&str]) -> Self {
        Self::start_on(lab, HEALTH_PORT, args)
    }

    /// The same with a health port of the caller's choice.
    pub(crate) fn start_on(lab: &Lab, health_port: u16, args: &[&str]) -> Self {
        let port = health_port.to_string();
        let command = &mut Self::command_under(lab, &[], &[&["-p", &port], args].concat());
        Self::launch_on(lab, health_port, command)
    }

    /// Starts the program with `wrapper` before it; `args` say that the health port is 8080.
    pub(crate) fn start_under(lab: &Lab, wrapper: &[&str], args: &[&str]) -> Self {
        Self::launch(lab, &mut Self::command_under(lab, wrapper, args))
    }

    /// Starts from a shell that runs `preparation` before it becomes the program.
    pub(crate) fn start_from_shell(lab: &Lab, preparation: &str, args: &[&str]) -> Self {
        let script = format!("{preparation}; exec \"$@\"");
        let shell = ["sh", "-c", &script, "start"];
        Self::start_under(lab, &shell, &[&["-p", "8080"], args].concat())
    }

    /// Starts a command that ends in the program, and waits for the first health answer at 8080.
    pub(crate) fn launch(lab: &Lab, command: &mut Command) -> Self {
        Self::launch_on(lab, HEALTH_PORT, command)
    }

    /// The program in the target's namespace with its output in the log file.
    pub(crate) fn command_under(lab: &Lab, wrapper: &[&str], args: &[&str]) -> Command {
        Self::command_of(lab, &[wrapper, &[PROGRAM], args].concat())
    }

    /// The same for words that end in another copy of the program with its arguments.
    pub(crate) fn command_of(lab: &Lab, words: &[&str]) -> Command {
        let mut command = lab.topology.target().command(words[0]);
        let file = File::create(lab.scratch.file("engine.log")).expect("a log file");
        let both = file.try_clone().expect("a second handle");
        command.args(&words[1..]).stdout(file).stderr(both);
        command
    }

    /// Takes over a program that was started with the health port 8080, and waits for nothing.
    pub(crate) fn adopt(lab: &Lab, child: Child) -> Self {
        let (namespace, log) = (lab.topology.target(), lab.scratch.file("engine.log"));
        Self { child, namespace, log, health_port: HEALTH_PORT }
    }

    fn launch_on(lab: &Lab, health_port: u16, command: &mut Command) -> Self {
        let child = command.stdin(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut engine = Self::adopt(lab, child);
        engine.health_port = health_port;
        wait_for("the health port answers", || {
            if let Some(status) = engine.child.try_wait().expect("wait") {
                panic!("{command:?} ended at once: {status}");
            }
            engine.try_health("/").ok()
        });
        engine
    }

    /// Process id, which is the program's own.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the health port.
    pub(crate) fn health(&self, path: &str) -> Answer {
        self.try_health(path).expect("a health answer")
    }

    /// A connection to the health port, on which reading has a time-out.
    pub(crate) fn connect(&self) -> TcpStream {
        self.connect_to(Ipv4Addr::LOCALHOST.into()).expect("the health port takes connections")
    }

    /// The same by way of any address of the target.
    pub(crate) fn connect_to(&self, address: IpAddr) -> io::Result<TcpStream> {
        let connect = || TcpStream::connect((address, self.health_port));
        let stream = self.namespace.enter(connect)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    fn try_health(&self, path: &str) -> io::Result<Answer> {
        let mut stream = self.connect_to(Ipv4Addr::LOCALHOST.into())?;
        // One write: a server may answer and close before a second one.
        let request = format!("GET {path} HTTP/1.1\r\nHost: gwlb\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        Answer::read(&mut stream)
    }

    /// The health page as JSON, made after this was called; the engine must run with `-j`.
    pub(crate) fn status(&self) -> serde_json::Value {
        clock::pass(PAGE_AGE_MAX);
        let body = self.health("/").body;
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error} in {body:?}"))
    }

    /// How many packets or datagrams were dropped for a reason, over all endpoints.
    pub(crate) fn drops(&self, reason: &str) -> u64 {
        let status = self.status();
        let drops = status["drops"].as_object();
        let drops = drops.unwrap_or_else(|| panic!("no object \"drops\" in {status}"));
        drops.get(reason).map_or(0, |count| count.as_u64().expect("a count"))
    }

    /// Names of the endpoints' links that exist.
    pub(crate) fn links(&self) -> Vec<String> {
        tunnel_links(&self.namespace)
    }

    /// What the descriptors of the process are, each with how many there are of it.
    pub(crate) fn descriptors(&self) -> BTreeMap<String, usize> {
        let mut kinds = BTreeMap::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("/proc") {
            let target = entry.and_then(|entry| std::fs::read_link(entry.path()));
            // A descriptor that was closed meanwhile is none.
            let Ok(target) = target else { continue };
            let target = target.to_string_lossy();
            let kind = target.split('[').next().unwrap_or_default();
            *kinds.entry(kind.trim_end_matches(':').to_owned()).or_insert(0) += 1;
        }
        kinds
    }

    /// How many descriptors the process has, those of health checks that have just ended included.
    pub(crate) fn descriptor_count(&self) -> usize {
        self.descriptors().values().sum()
    }

    /// Takes from the process the right to open more than `more` descriptors. The limit is on
    /// numbers, so this needs that all below the highest are in use, but for one far above that it
    /// may have inherited; returns false, and does nothing, if not.
    pub(crate) fn limit_descriptors(&self, more: usize) -> bool {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("/proc");
        let names = open.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let numbers: Vec<usize> = names.filter_map(|name| name.parse().ok()).collect();
        let is_free = |number: &usize| !numbers.contains(number);
        let limit = (0..=numbers.len()).find(is_free).expect("one more than are in use");
        if numbers.iter().any(|number| (limit..limit + 100).contains(number)) {
            return false;
        }
        let limit = limit + more;
        let args = ["--pid", &self.pid().to_string(), &format!("--nofile={limit}:")];
        run(&self.namespace, "prlimit", &args);
        true
    }

    /// Resident memory at its highest since the process began or [`Self::forget_peak`], in bytes.
    pub(crate) fn peak_resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.expect("/proc");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let words = line.and_then(|line| line.split_whitespace().next());
        words.and_then(|kib| kib.parse::<u64>().ok()).expect("a number of KiB") << 10
    }

    /// Makes the memory that is resident now the highest until now.
    pub(crate) fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("/proc");
    }

    /// CPU time that the process has taken so far, of all threads, in ticks of 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("/proc");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        // From the third field on (proc_pid_stat(5)): utime and stime are the 14th and 15th.
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
        ticks.map(|ticks| ticks.expect("a number")).sum()
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Names of the process's threads, sorted.
    pub(crate) fn threads(&self) -> Vec<String> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("/proc") {
            let name = entry.and_then(|entry| std::fs::read_to_string(entry.path().join("comm")));
            names.extend(name.ok());
        }
        names.sort();
        names
    }

    /// Id of the thread with this name.
    pub(crate) fn thread_id(&self, name: &str) -> u32 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("/proc");
        let mut paths = tasks.filter_map(|task| Some(task.ok()?.path()));
        let is_it = |path: &PathBuf| {
            std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        let path = paths.find(is_it).unwrap_or_else(|| panic!("no thread {name}"));
        let id = path.file_name().and_then(|id| id.to_str()).and_then(|id| id.parse().ok());
        id.expect("a number")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        kill(pid, signal).expect("kill");
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        wait_for("the engine ends", || self.child.try_wait().expect("wait"))
    }
}

impl Engine {
    /// What a failed test wants to know of the target: how far the packets came.
    fn tell_counters(&self) {
        let page = self.try_health("/").map_or_else(|error| error.to_string(), |page| page.body);
        let _ = writeln!(io::stderr(), "--- the health page\n{page}");
        for command in ["ip -s link show eth0", "nstat -as", "ss -lunm"] {
            let words: Vec<_> = command.split(' ').collect();
            let output = self.namespace.command(words[0]).args(&words[1..]).output();
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            let _ = writeln!(io::stderr(), "--- {command}\n{}", text.unwrap_or_default());
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell_counters();
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let shown = log.len().saturating_sub(LOG_SHOWN_BYTES);
            let shown = log.get(shown..).unwrap_or(&log);
            let _ = writeln!(io::stderr(), "--- end of the engine's log\n{shown}\n---");
        }
    }
}

/// Names of the links in a namespace that belong to endpoints.
pub(crate) fn tunnel_links(namespace: &Namespace) -> Vec<String> {
    let listing = run(namespace, "ip", &["-o", "link"]);
    let names = listing.lines().filter_map(|line| line.split(": ").nth(1));
    let mut links: Vec<String> = names
        .filter(|name| name.starts_with("gwi-") || name.starts_with("gwo-"))
        .map(str::to_owned)
        .collect();
    links.sort();
    links
}
