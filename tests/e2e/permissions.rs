//! Under service managers: few capabilities, few descriptors, no terminal, and a restart at once.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::scripts::script;
use crate::sim::gwlb::Config;
use crate::support::clock::PATIENCE;
use crate::support::clock::wait_until;
use crate::support::engine::Engine;
use crate::support::engine::PASSTHROUGH;
use crate::support::engine::PROGRAM;
use crate::support::injector::Injector;
use crate::support::kernel_state::assert_same;
use crate::support::kernel_state::kernel_state;
use crate::support::kernel_state::wait_for_address;
use crate::support::lab::Lab;
use crate::support::lab::endpoint_id;
use crate::support::packets;
use crate::support::packets::V4;
use crate::support::packets::V6;
use crate::support::process::finish;
use crate::support::process::ordinary_user;
use crate::support::process::run;
use crate::support::scratch::Scratch;
use crate::support::scratch::unique_name;
use crate::support::service_manager::ServiceManager;
use crate::support::unit::Unit;

/// Every endpoint of `count` answers, over IPv4 and IPv6.
fn expect_traffic(injector: &mut Injector, count: usize) {
    for number in 0..count {
        for path in [V4, V6] {
            injector.exchange(endpoint_id(number), &packets::ping(path, 1, b"allowed"));
        }
    }
    injector.assert_clean();
}

/// The command line that `VyOS` writes into its unit, with `CapabilityBoundingSet=CAP_NET_ADMIN`.
/// The reference needs `CAP_NET_RAW` too and carries nothing then, at health 200.
#[test]
fn b11_the_vyos_unit_works_with_cap_net_admin_alone() {
    let lab = Lab::new(0, Config::default());
    let only = ["setpriv", "--bounding-set=-all,+net_admin"];
    let line = format!(
        "-c {PASSTHROUGH} -r {PASSTHROUGH} -p 8080 --tunthreads 2 --tunaffinity 0-1 \
         --udpthreads 2 --udpaffinity 0-1"
    );
    let args: Vec<_> = line.split(' ').collect();
    let mut engine = Engine::start_under(&lab, &only, &args);
    expect_traffic(&mut lab.injector(), 3);
    assert_eq!(engine.health("/").status, 200);
    let threads = engine.threads();
    assert!(threads.iter().any(|name| name == "gwlbtun UA000\n"), "{threads:?}");
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    assert_eq!(engine.links(), [""; 0]);
}

/// Not root at all: the inspection designs that give `AmbientCapabilities=CAP_NET_ADMIN`.
#[test]
fn an_ordinary_user_with_cap_net_admin_is_enough() {
    let lab = Lab::new(0, Config::default());
    // Where the program was built may be closed to others.
    let program = lab.scratch.file("gwlbtun");
    std::fs::copy(PROGRAM, &program).expect("a copy");
    let program = program.to_str().expect("UTF-8");
    // The hook's tc may do what the user may: CAP_NET_ADMIN is ambient.
    let hook = "exec tc qdisc add dev $GWLBTUN_GWI ingress #";
    let user = ordinary_user(65_534);
    let mut command = lab.topology.target().command(&user[0]);
    command.args(&user[1..]).args([program, "-p", "8080", "-c", hook]);
    let log = std::fs::File::create(lab.scratch.file("engine.log")).expect("a log file");
    let both = log.try_clone().expect("a second handle");
    let mut engine = Engine::launch(&lab, command.stdout(log).stderr(both));
    let mut injector = lab.injector();
    injector.send(endpoint_id(0), &packets::ping(V4, 1, b"in"));
    let target = lab.topology.target();
    wait_until("the hook has done its work", || {
        run(&target, "tc", &["qdisc", "show"]).contains("qdisc ingress ffff: dev gwi-")
    });
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    assert_eq!(engine.links(), [""; 0]);
}

/// The unit that we ship: its command line, limits, capabilities, read-only tree and watchdog. With
/// the hooks of its command line, which are to be had where the repository is.
#[test]
fn the_shipped_unit_works_within_its_limits() {
    let lab = Lab::new(0, Config::default());
    let unit = Unit::read("gwlbtun.service");
    let wrapper = [unit.limits(), unit.tree(), unit.privileges()].concat();
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    let (_, options) = unit.value("Environment").split_once('=').expect("a variable");
    let installed = "/usr/local/lib/gwlbtun/create-passthrough.sh";
    let args: Vec<_> = options
        .trim_end_matches('"')
        .split(' ')
        .map(|word| if word == installed { PASSTHROUGH } else { word })
        .collect();
    assert_eq!(args.iter().filter(|word| **word == PASSTHROUGH).count(), 2, "{args:?}");
    assert_eq!(unit.value("Type"), "notify");
    let watchdog = unit.value("WatchdogSec").strip_suffix('s').expect("in seconds");
    let manager = ServiceManager::at_a_path(&lab);
    let mut command = Engine::command_under(&lab, &wrapper, &args);
    manager.supervise(command.env("WATCHDOG_USEC", format!("{watchdog}000000")));
    let mut engine = Engine::launch(&lab, &mut command);
    let mut told = manager.until("READY=1");
    if !told.iter().any(|line| line == "WATCHDOG=1") {
        told.extend(manager.until("WATCHDOG=1"));
    }
    assert!(told.iter().any(|line| line.starts_with("STATUS=Healthy; ")), "{told:?}");
    expect_traffic(&mut lab.injector(), 3);
    assert_eq!(engine.health("/").status, 200);
    // Nothing was done without for want of a right or a limit.
    let log = engine.log();
    assert!(!log.contains("warning") && !log.contains("critical"), "{log}");
    assert!(!log.contains("The limit on"), "{log}");
    assert!(log.contains("queues by a program"), "{log}");
    let read_only = format!("/proc/{}/root{}/new", engine.pid(), env!("CARGO_MANIFEST_DIR"));
    let error = std::fs::write(read_only, "").expect_err("the tree is read-only");
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    engine.signal(unit.value("KillSignal").parse().expect("a signal"));
    assert_eq!(engine.wait().code(), Some(0));
    assert_eq!(engine.links(), [""; 0]);
}

/// The example hooks but `create-netns.sh`, each with the firewalls that it knows.
const FENCED_HOOKS: [(&str, &str); 9] = [
    ("passthrough", "nft"),
    ("route", "nft"),
    ("nat", "nft"),
    ("nat", "iptables"),
    ("nat-overlapping", "nft"),
    ("nat-overlapping", "iptables"),
    ("local", "nft"),
    ("local", "iptables"),
    ("shape", "nft"),
];

/// A lab whose target has a way out that is not the load balancer's.
fn lab_with_a_way_out() -> Lab {
    let lab = Lab::new(0, Config::default());
    let target = lab.topology.target();
    let lines = [
        "link add eth1 type veth peer name eth2",
        "link set eth1 addrgenmode none up",
        "link set eth2 addrgenmode none up",
        "addr add 192.0.2.1/24 dev eth1",
        "addr add 2001:db8::1/64 dev eth1 nodad",
        "route add default via 192.0.2.2",
        "route add default via 2001:db8::2",
    ];
    target.ip(&lines.map(str::to_owned)).expect("a way out");
    wait_for_address(&target, "2001:db8::1");
    lab
}

/// Runs the hook `script` for one endpoint under `program`, which is its words before its
/// arguments. It must do its work, keep its notes below /run, and undo all.
fn expect_hook_to_work(lab: &Lab, program: &[&str], script: &str, firewall: &str) {
    let before = kernel_state(&lab.topology.target());
    let hook = format!("run() {{ FIREWALL={firewall} {script} \"$@\" && echo $1 done; }}; run");
    let args = ["-p", "8080", "-c", &hook, "-r", &hook];
    let mut engine = Engine::launch(lab, &mut Engine::command_of(lab, &[program, &args].concat()));
    lab.injector().send(endpoint_id(0), &packets::ping(V4, 1, b"wake"));
    wait_until("CREATE", || engine.log().contains("CREATE done"));
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0), "{script}");
    let log = engine.log();
    assert!(log.contains("DESTROY done") && !log.contains("ended with"), "{script}: {log}");
    assert_same(&before, &kernel_state(&lab.topology.target()));
}

/// Every hook keeps its notes below /run and undoes all.
#[test]
fn example_hooks_work_within_the_shipped_units_fences() {
    let unit = Unit::read("gwlbtun.service");
    let wrapper = [unit.limits(), unit.tree(), unit.privileges(), vec![PROGRAM.into()]].concat();
    let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
    for (name, firewall) in FENCED_HOOKS {
        expect_hook_to_work(&lab_with_a_way_out(), &wrapper, &script(name), firewall);
    }
}

/// The same where a drop-in takes root away: a hook of each kind.
#[test]
fn example_hooks_work_for_the_unprivileged_user() {
    let unit = Unit::read("gwlbtun.service");
    let drop_in = Unit::read("unprivileged.conf");
    for (name, firewall) in
        [("passthrough", "nft"), ("nat", "iptables"), ("local", "nft"), ("shape", "nft")]
    {
        let lab = lab_with_a_way_out();
        // Where the program was built may be closed to others.
        let copies = lab.scratch.file("lib");
        std::fs::create_dir(&copies).expect("a folder");
        let sources = [PROGRAM.to_owned(), script(name), script("passthrough")];
        let library = script(name).replace(&format!("create-{name}"), "hook-lib");
        for source in sources.iter().chain([&library]) {
            let file = std::path::Path::new(source).file_name().expect("a name");
            std::fs::copy(source, copies.join(file)).expect("a copy");
        }
        let program = copies.join("gwlbtun").to_str().expect("UTF-8").to_owned();
        let hook = copies.join(format!("create-{name}.sh"));
        let words = [unit.limits(), unit.tree(), drop_in.user(65_534), vec![program]].concat();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        expect_hook_to_work(&lab, &words, hook.to_str().expect("UTF-8"), firewall);
    }
}

/// systemd itself understands the units and drop-ins, and thinks the service well fenced.
#[test]
#[ignore = "needs systemd-analyze, which only .ci/run full installs"]
fn systemd_accepts_the_units() {
    let scratch = Scratch::new(&unique_name());
    let shipped = |name| format!("{}/tuning/{name}", env!("CARGO_MANIFEST_DIR"));
    let units = ["gwlbtun.service", "gwlbtun-tune.service"];
    for name in units {
        let text = std::fs::read_to_string(shipped(name)).expect("the unit");
        // What it starts need not be installed here.
        let text = text.replace("=/usr/bin/gwlbtun ", "=/bin/true ");
        let text = text.replace("=/usr/local/lib/gwlbtun/tune.sh ", "=/bin/true ");
        std::fs::write(scratch.file(name), text).expect("a copy");
    }
    let mut analyze = Command::new("systemd-analyze");
    // In tenths: up to 30 its scale says OK, and 96 without any fence.
    analyze.args(["security", "--no-pager", "--offline=true", "--threshold=30"]);
    finish(analyze.arg(scratch.file("gwlbtun.service")));
    let drop_ins = scratch.file("gwlbtun.service.d");
    std::fs::create_dir(&drop_ins).expect("a folder");
    let unprivileged = drop_ins.join("unprivileged.conf");
    std::fs::copy(shipped("unprivileged.conf"), &unprivileged).expect("a copy");
    // Drop-ins are not heeded by an offline look at one file, so they are put behind it.
    let unit = std::fs::read_to_string(scratch.file("gwlbtun.service")).expect("the unit");
    let drop_in = std::fs::read_to_string(&unprivileged).expect("the drop-in");
    let both = scratch.file("gwlbtun-unprivileged.service");
    std::fs::write(&both, format!("{unit}\n{drop_in}")).expect("a unit");
    finish(
        Command::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=true", "--threshold=26"])
            .arg(both),
    );
    std::fs::remove_file(unprivileged).expect("it was there");
    for name in ["override.conf", "unfenced.conf"] {
        std::fs::copy(shipped(name), drop_ins.join(name)).expect("a copy");
    }
    for name in units {
        let output = Command::new("systemd-analyze").arg("verify").arg(scratch.file(name)).output();
        let output = output.expect("systemd-analyze");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains(name), "{said}");
    }
}

/// The reference's sample unit: nothing in it but `ExecStart`, `Restart=always` and `RestartSec`;
/// the rest is what systemd gives every service. Later rounds have our drop-in's limits too.
#[test]
fn the_sample_unit_starts_stops_and_starts_again() {
    let lab = Lab::new(0, Config::default());
    let mut injector = lab.injector();
    for round in 0..3 {
        let (journal, mut reader) = UnixStream::pair().expect("a socket pair");
        let mut command = lab.topology.target().command("env");
        command.current_dir("/");
        command.args(["-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        command.args(["LANG=C.UTF-8", "INVOCATION_ID=1", "JOURNAL_STREAM=8:1", "setsid"]);
        if round > 0 {
            command.args(Unit::read("override.conf").limits());
        }
        command.args([PROGRAM, "-c", PASSTHROUGH, "-p", "8080"]);
        let both = journal.try_clone().expect("a second handle");
        command.stdout(OwnedFd::from(journal)).stderr(OwnedFd::from(both));
        let mut engine = Engine::launch(&lab, &mut command);
        // Nobody else writes there once the program has ended.
        drop(command);
        expect_traffic(&mut injector, 2);
        if round == 0 {
            // journald was restarted: its end of the stream is closed.
            reader.shutdown(std::net::Shutdown::Both).expect("shutdown");
            expect_traffic(&mut injector, 3);
        }
        engine.signal(Signal::SIGTERM);
        assert_eq!(engine.wait().code(), Some(0));
        assert_eq!(engine.links(), [""; 0]);
        let mut journal = String::new();
        reader.set_read_timeout(Some(Duration::from_secs(10))).expect("a time-out");
        reader.read_to_string(&mut journal).expect("the journal");
        assert!(round == 0 || journal.ends_with(" : : Shutdown complete.\n"), "{journal}");
    }
}

/// A limit on open files of 1,024, soft and hard, as containers have it: it serves what that
/// carries, and says what would carry all. The reference wrote past its `fd_set` there (B9).
#[test]
fn b09_few_open_files_limit_the_endpoints_and_not_the_service() {
    let lab = Lab::new(0, Config::default());
    let few = ["prlimit", "--nofile=1024:1024"];
    let args = ["-c", PASSTHROUGH, "-r", PASSTHROUGH, "-p", "8080", "--workers", "32", "-j"];
    let engine = Engine::start_under(&lab, &few, &args);
    let limited = "The limit on open files, 1024, carries 10 endpoints with 32 workers, not 1024: \
                   set LimitNOFILE=68936.";
    wait_until("it is told", || engine.log().contains(limited));
    let mut injector = lab.injector();
    expect_traffic(&mut injector, 10);
    wait_until("the eleventh is refused", || {
        injector.send(endpoint_id(10), &packets::ping(V4, 1, b"one too many"));
        engine.drops("endpoint_limit") > 0
    });
    let page = engine.status();
    assert_eq!(page["healthy"], true, "{page}");
    assert_eq!(page["enis"].as_array().map(Vec::len), Some(10), "{page}");
    assert!(page["warnings"].to_string().contains("--max-endpoints"), "{page}");
    expect_traffic(&mut injector, 10);
}

/// What systemd gives a service: few at first, many if it asks.
#[test]
fn the_limit_on_open_files_is_raised_to_what_may_be() {
    let lab = Lab::new(0, Config::default());
    let few = ["prlimit", "--nofile=256:8192"];
    let mut engine = Engine::start_under(
        &lab,
        &few,
        &["-p", "8080", "--workers", "4", "--max-endpoints", "100"],
    );
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
    let log = engine.log();
    assert!(!log.contains("The limit on open files"), "{log}");
}

/// What systemd lets a service lock, without the capability to lock more: since Linux 6.14 that
/// is the memory of rings. 64 workers make do with smaller ones.
#[test]
fn sixty_four_workers_fit_into_8_mebibytes_of_locked_memory() {
    let lab = Lab::new(0, Config::default());
    let wrapper = ["prlimit", "--memlock=8388608", "setpriv", "--bounding-set=-all,+net_admin"];
    let args = ["-c", PASSTHROUGH, "-p", "8080", "--workers", "64", "-j"];
    let mut engine = Engine::start_under(&lab, &wrapper, &args);
    let mut injector = lab.injector();
    expect_traffic(&mut injector, 3);
    // More than the small completion queues hold.
    for port in 0..2000 {
        injector.send(endpoint_id(0), &packets::udp(V4, (port, 53), b"many at once"));
    }
    for _ in 0..2000 {
        assert!(injector.receive(PATIENCE).is_some());
    }
    injector.assert_clean();
    assert_eq!(engine.health("/").status, 200);
    engine.signal(Signal::SIGTERM);
    assert_eq!(engine.wait().code(), Some(0));
}
