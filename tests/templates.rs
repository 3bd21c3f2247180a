//! The `CloudFormation` templates and the Terraform module say what README.md says, and each other;
//! their user data and `autoscaling.sh` do it in the right order.
//!
//! What AWS would refuse in them is cfn-lint's business, see `lint-templates.sh`. Nothing here runs
//! a command for real: programs are stand-ins that note how they were called.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use crate::support::scratch::Scratch;
use crate::support::scratch::unique_name;

const ONE_ARM: &str = include_str!("../example-scripts/example-topology-one-arm.template");
const TWO_ARM: &str = include_str!("../example-scripts/example-topology-two-arm.template");
const AUTOSCALING: &str = include_str!("../example-scripts/example-topology-autoscaling.template");

/// The user data of the Terraform module, whose resources are `lint-terraform.py`'s business.
const TERRAFORM: &str = include_str!("../example-scripts/terraform/user-data.sh.tftpl");

/// Heading and first lines of the README's commands that user data repeats.
const README_BLOCK: &str = "### From source, on Amazon Linux 2023\n";

/// The commands of the README's block, line by line.
fn readme_commands() -> Vec<&'static str> {
    let readme = include_str!("../README.md");
    let (_, section) = readme.split_once(README_BLOCK).expect("the section");
    let block = section.split("```\n").nth(1).expect("its first block");
    block.lines().collect()
}

/// The script that a template gives to its targets, as AWS does: without the indentation of YAML.
fn user_data(template: &str) -> String {
    let mut lines = template.lines().skip_while(|line| line.trim() != "Fn::Base64: !Sub |").skip(1);
    let first = lines.next().expect("user data");
    let indentation = first.len() - first.trim_start().len();
    let inside =
        |line: &&str| line.is_empty() || line.len() - line.trim_start().len() >= indentation;
    let rest = lines.take_while(inside);
    let all = std::iter::once(first).chain(rest);
    let text: Vec<&str> = all.map(|line| line.get(indentation..).unwrap_or_default()).collect();
    text.join("\n")
}

/// The scripts of all, of which Terraform's is a file with directives on lines of their own.
fn all_user_data() -> [String; 4] {
    let terraform: Vec<_> = TERRAFORM.lines().filter(|line| !line.starts_with("%{")).collect();
    let [one_arm, two_arm, autoscaling] = [ONE_ARM, TWO_ARM, AUTOSCALING].map(user_data);
    [one_arm, two_arm, autoscaling, terraform.join("\n")]
}

/// Every resource of a template: its name, and its text without comments before it.
fn resources(template: &str) -> Vec<(&str, String)> {
    let (_, resources) = template.split_once("\nResources:\n").expect("resources");
    let (resources, _) = resources.split_once("\nOutputs:\n").expect("outputs behind them");
    let mut found: Vec<(&str, String)> = Vec::new();
    for line in resources.lines().filter(|line| !line.starts_with("  #")) {
        if let Some(name) = line.strip_prefix("  ").filter(|name| !name.starts_with(' ')) {
            found.push((name, String::new()));
        } else if let Some((_, text)) = found.last_mut() {
            text.push_str(line);
            text.push('\n');
        }
    }
    found
}

#[test]
fn user_data_runs_the_readmes_commands() {
    let commands = readme_commands();
    assert!(commands.len() > 10, "{commands:?}");
    for script in all_user_data() {
        let (said, own): (Vec<&str>, Vec<&str>) =
            script.lines().partition(|line| commands.contains(line));
        assert_eq!(said, commands, "the README's commands, all, once, in its order");
        // What gets the program onto the machine is in the README, or it is none of ours.
        let own = own.iter().filter(|line| !line.starts_with('#'));
        let known = [
            "command -v cfn-signal || dnf install -y aws-cfn-bootstrap",
            "git checkout \"$revision\"",
        ];
        for line in own.filter(|line| !known.contains(line)) {
            for word in ["sudo", "dnf", "cargo", "rustup", "git", "install"] {
                let found = line.split(|c: char| !c.is_alphanumeric()).any(|part| part == word);
                assert!(!found, "README.md lacks: {line}");
            }
        }
    }
}

/// The files that a word of a command stands for, with or without a star in its last part.
fn matching(root: &Path, word: &str) -> Vec<PathBuf> {
    let (folder, pattern) = word.rsplit_once('/').expect("a path");
    let (start, end) = pattern.split_once('*').unwrap_or((pattern, ""));
    let files = fs::read_dir(root.join(folder)).expect("a folder");
    let files = files.map(|entry| entry.expect("an entry").path());
    let matches = |name: &str| name.starts_with(start) && name.ends_with(end);
    let name = |file: &PathBuf| file.file_name().and_then(OsStr::to_str).map(matches);
    files.filter(|file| name(file) == Some(true)).collect()
}

/// What user data names is there, and where the units look for it.
#[test]
fn user_data_names_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (unit, program) in [
        ("gwlbtun", "/usr/bin/gwlbtun $GWLBTUN_OPTIONS"),
        ("gwlbtun-tune", "/usr/local/lib/gwlbtun/tune.sh apply $GWLBTUN_TUNE_OPTIONS"),
    ] {
        let unit = root.join(format!("tuning/{unit}.service"));
        let unit = fs::read_to_string(unit).expect("the unit");
        let program = format!("ExecStart={program}");
        for line in ["EnvironmentFile=-/etc/default/gwlbtun", &program] {
            assert!(unit.lines().any(|found| found == line), "the unit lacks {line}");
        }
    }
    for script in &all_user_data() {
        assert!(script.len() < 16 * 1024, "EC2 takes 16 KiB");
        let mut installed = Vec::new();
        for line in script.lines().filter(|line| line.starts_with("sudo install -D")) {
            let sources = line.split(' ').filter(|word| !word.starts_with("target/"));
            for source in sources.filter(|word| word.contains('/') && !word.starts_with('/')) {
                let found = matching(root, source);
                assert!(!found.is_empty(), "{source} of: {line}");
                installed.extend(found);
            }
        }
        for word in script.split([' ', '=', '\n']) {
            if let Some(name) = word.strip_prefix("/usr/local/lib/gwlbtun/")
                && !name.starts_with("${")
            {
                let file = installed.iter().find(|file| file.ends_with(name));
                let file = file.unwrap_or_else(|| panic!("nothing installs {name}"));
                let mode = fs::metadata(file).expect("it is there").permissions().mode();
                assert_eq!(mode & 0o111, 0o111, "{name} is no program");
            }
        }
    }
}

/// What Auto Scaling adds is the same in both languages, as are the two hooks.
#[test]
fn terraform_does_what_the_templates_do() {
    let [one_arm, two_arm, autoscaling, terraform] = all_user_data();
    let own = terraform
        .replace("${region}", "$region")
        .replace("${group}", "$stack-targets")
        .replace("${target_group}", "$target_group");
    let mut compared = 0;
    for line in own.lines().filter(|line| !line.contains("${") && !line.starts_with('#')) {
        let known = ["export HOME=/root", ""];
        assert!(known.contains(&line) || autoscaling.lines().any(|other| other == line), "{line}");
        compared += 1;
    }
    assert!(compared > 30, "{compared}");
    let main = include_str!("../example-scripts/terraform/main.tf");
    let hook = main.lines().find_map(|line| line.trim().strip_prefix("hook "));
    let names: Vec<_> = hook.expect("the hook").split('"').skip(1).step_by(2).collect();
    for (name, script) in names.iter().zip([two_arm, one_arm]) {
        assert!(script.contains(&format!("hook=/usr/local/lib/gwlbtun/{name}\n")), "{name}");
    }
}

/// The one-arm template and its Auto Scaling variant differ where they must.
#[test]
fn what_two_templates_share_is_the_same() {
    let differ = ["TargetGroup:", "TargetTemplate:", "ClientA:", "ClientB:"];
    let other = resources(AUTOSCALING);
    let mut shared = 0;
    for (name, text) in resources(ONE_ARM) {
        let Some((_, twin)) = other.iter().find(|(twin, _)| *twin == name) else { continue };
        if differ.contains(&name) {
            assert_ne!(text, *twin, "{name} need not be in the list any more");
        } else {
            assert_eq!(text, *twin, "{name}");
            shared += 1;
        }
    }
    assert!(shared > 40, "{shared}");
}

/// cfn-lint knows no names of attributes, and AWS wants both kinds of failover alike.
#[test]
fn attributes_are_those_that_aws_documents() {
    for (template, failover) in
        [(ONE_ARM, "rebalance"), (TWO_ARM, "no_rebalance"), (AUTOSCALING, "rebalance")]
    {
        let lines = template.lines().map(str::trim);
        let pairs: Vec<&str> = lines
            .filter_map(|line| line.strip_prefix("- {Key: ")?.strip_suffix('}'))
            .filter(|pair| !pair.starts_with("Name, "))
            .collect();
        let delay = if template == TWO_ARM { "350" } else { "60" };
        let expected = [
            "load_balancing.cross_zone.enabled, Value: \"true\"".to_owned(),
            format!("target_failover.on_deregistration, Value: {failover}"),
            format!("target_failover.on_unhealthy, Value: {failover}"),
            format!("deregistration_delay.timeout_seconds, Value: \"{delay}\""),
            "stickiness.enabled, Value: \"false\"".to_owned(),
            "tcp.idle_timeout.seconds, Value: !Ref TcpIdleSeconds".to_owned(),
        ];
        assert_eq!(pairs, expected);
        assert!(!template.contains("Matcher:"), "a gateway's target group takes only the default");
    }
}

/// A place where programs are stand-ins.
struct Stage(Scratch);

impl Stage {
    /// Each stand-in notes its name and arguments, then runs its line of shell.
    fn new(programs: &[(&str, &str)]) -> Self {
        let stage = Self(Scratch::new(&unique_name()));
        for (name, line) in programs {
            let note = "echo \"${0##*/} $*\" >>\"$NOTES\"";
            fs::create_dir_all(stage.path("bin")).expect("bin");
            let path = stage.path("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\n{note}\n{line}\n")).expect("a stand-in");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.file(name)
    }

    /// Runs a command with the stand-ins before the machine's own programs.
    fn run(&self, command: &mut Command) -> Output {
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        command
            .env_clear()
            .envs([("PATH", path), ("AWS_DEFAULT_REGION", "eu-north-1".to_owned())])
            .env("NOTES", self.path("notes"))
            .env("STAGE", self.path(""))
            .current_dir(self.path(""))
            .output()
            .expect("it can be started")
    }

    /// What was called, in order.
    fn notes(&self) -> Vec<String> {
        let notes = fs::read_to_string(self.path("notes")).unwrap_or_default();
        notes.lines().map(str::to_owned).collect()
    }
}

/// Programs that user data needs, as they are on a fresh target. `cargo` is left to the test.
const TARGET: [(&str, &str); 7] = [
    ("cfn-signal", ""),
    // The driver refuses a setting, which stops nothing.
    ("sudo", "[ \"$*\" != \"systemctl enable --now gwlbtun-tune\" ]"),
    ("uname", "echo 6.18.1"),
    ("curl", ""),
    ("git", "[ \"$1\" != clone ] || mkdir -p gwlbtun/example-scripts"),
    ("systemctl", ""),
    ("autoscaling.sh", ""),
];

/// What `tune.sh check` says of CPUs: whose line it is, and what gwlbtun is told.
const CPUS: [(&str, &str); 2] = [
    ("cpus: ok: interrupts on 0,4: start gwlbtun with --cores 1-3,5-7", " --cores 1-3,5-7"),
    ("cpus: ok: all CPUs do both, interrupts and workers: gwlbtun needs no --cores", ""),
];

/// Runs a template's user data with nothing written outside the stage.
fn run_user_data(stage: &Stage, template: &str) -> Output {
    let root = stage.path("").display().to_string();
    let mut script = user_data(template)
        .replace("HOME=/root", &format!("HOME={root}"))
        .replace("/usr/local/lib/gwlbtun/autoscaling.sh ready", "autoscaling.sh ready")
        .replace("/usr/local/lib/gwlbtun/tune.sh", "tune.sh");
    for folder in ["/etc/default", "/etc/systemd"] {
        script = script.replace(&format!(" {folder}"), &format!(" {root}{folder}"));
        script = script.replace(&format!(">{folder}"), &format!(">{root}{folder}"));
    }
    for (name, value) in [
        ("Repository", "https://example.org/gwlbtun"),
        ("Revision", "v1"),
        ("TcpIdleSeconds", "360"),
        ("ReadyHandle", "https://example.org/?a=b&c=d"),
        ("AWS::StackName", "stack"),
        ("AWS::Region", "eu-north-1"),
        ("TargetGroup", "arn:aws:targets"),
    ] {
        script = script.replace(&format!("${{{name}}}"), value);
    }
    fs::create_dir_all(stage.path(".cargo")).expect("folder");
    fs::create_dir_all(stage.path("etc/systemd/system")).expect("folder");
    fs::write(stage.path(".cargo/env"), "").expect("rustup's file");
    fs::write(stage.path("user-data"), script).expect("the script");
    stage.run(Command::new("bash").arg(stage.path("user-data")))
}

#[test]
fn user_data_builds_installs_starts_and_tells() {
    for (template, hook, last, (said, cores)) in [
        (ONE_ARM, "passthrough", "--reason ", CPUS[0]),
        (ONE_ARM, "passthrough", "--reason ", CPUS[1]),
        (TWO_ARM, "nat", "--reason ", CPUS[0]),
        (TWO_ARM, "nat", "--reason ", CPUS[1]),
        (AUTOSCALING, "passthrough", "--region eu-north-1 ", CPUS[0]),
        (AUTOSCALING, "passthrough", "--region eu-north-1 ", CPUS[1]),
    ] {
        // It would change something, and that is its status.
        let check = format!("echo 'profile: ok: c6gn'; echo '{said}'; exit 1");
        let stage = Stage::new(&[&TARGET[..], &[("cargo", ""), ("tune.sh", &check)]].concat());
        let output = run_user_data(&stage, template);
        let notes = stage.notes();
        assert!(output.status.success(), "{notes:#?}\n{}", String::from_utf8_lossy(&output.stderr));
        let mut steps = vec![
            "sudo dnf install -y ethtool gcc git",
            "curl -sSf --proto =https https://sh.rustup.rs",
            "git clone https://example.org/gwlbtun gwlbtun",
            "git checkout v1",
            "cargo build --release --locked",
            "sudo install -D -t /usr/bin target/release/gwlbtun",
            "tune.sh check",
            "sudo systemctl enable --now gwlbtun-tune",
            "sudo journalctl -n 20 -u gwlbtun-tune",
            "sudo systemctl enable --now gwlbtun",
            "curl -fsS --retry",
        ];
        if template == AUTOSCALING {
            steps.extend([
                "systemctl enable --now gwlbtun-drain",
                "autoscaling.sh ready stack-targets ready",
            ]);
        }
        let last = format!("cfn-signal --exit-code 0 {last}");
        steps.push(&last);
        expect_in_order(&notes, &steps);
        let options = fs::read_to_string(stage.path("etc/default/gwlbtun")).expect("options");
        let path = format!("/usr/local/lib/gwlbtun/create-{hook}.sh");
        let mut expected =
            format!("GWLBTUN_OPTIONS=\"-p 8080 -i 360{cores} -c {path} -r {path}\"\n");
        if template == TWO_ARM {
            expected.push_str("GWLBTUN_TUNE_OPTIONS=\"--two-arm\"\n");
        }
        assert_eq!(options, expected);
        if template == AUTOSCALING {
            let unit = stage.path("etc/systemd/system/gwlbtun-drain.service");
            let unit = fs::read_to_string(unit).expect("the unit");
            assert!(unit.contains("Environment=AWS_DEFAULT_REGION=eu-north-1\n"), "{unit}");
            let command = "autoscaling.sh drain stack-targets drain arn:aws:targets\n";
            assert!(unit.contains(command), "{unit}");
        }
    }
}

#[test]
fn user_data_that_fails_says_so_and_starts_nothing() {
    for template in [ONE_ARM, TWO_ARM, AUTOSCALING] {
        let stage = Stage::new(&[&TARGET[..], &[("cargo", "exit 101")]].concat());
        let output = run_user_data(&stage, template);
        assert_eq!(output.status.code(), Some(101));
        let notes = stage.notes();
        assert!(notes.last().is_some_and(|last| last.starts_with("cfn-signal --exit-code 101 ")));
        assert!(!notes.iter().any(|note| note.contains("systemctl")), "{notes:#?}");
        assert!(!notes.iter().any(|note| note.contains("autoscaling")), "{notes:#?}");
    }
}

/// Each step is the beginning of a note, and they come in this order.
fn expect_in_order(notes: &[String], steps: &[&str]) {
    let mut rest = notes.iter();
    for step in steps {
        assert!(rest.any(|note| note.starts_with(step)), "{step} in its place in {notes:#?}");
    }
}

/// A target whose group lets it go, whose load balancer sends two packets more.
const LEAVING: [(&str, &str); 4] = [
    ("aws", ""),
    ("sleep", ""),
    ("systemctl", ""),
    (
        "curl",
        // Calls of a kind are numbered; what is asked for is the last word.
        "for url; do :; done
        count=$(cat \"$STAGE/count\" 2>/dev/null || echo 0)
        case $url in
        */token) echo token ;;
        */instance-id) echo i-0123456789abcdef0 ;;
        */target-lifecycle-state)
            if [ -e \"$STAGE/asked\" ]; then echo Terminated; else echo InService; fi
            : >\"$STAGE/asked\" ;;
        *)
            echo $((count + 1)) >\"$STAGE/count\"
            [ $count -lt 2 ] || count=2
            echo \"UDP receiver thread 0 (ID 7): Healthy, $count packets in, 9 bytes in, 1s.\"
            echo \"UDP receiver thread 1 (ID 8): NOT healthy, 40 packets in, 9 bytes in, 1s.\"
            echo \"Tunnel handler thread 0 (ID 9): Healthy, $$ packets in from OS, 1 bytes in.\" ;;
        esac",
    ),
];

fn autoscaling(stage: &Stage, arguments: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("example-scripts/autoscaling.sh");
    stage.run(Command::new(script).args(arguments))
}

#[test]
fn a_target_that_is_ready_lets_the_launching_hook_go_on() {
    let stage = Stage::new(&LEAVING);
    let output = autoscaling(&stage, &["ready", "group", "hook"]);
    assert!(output.status.success(), "{output:?}");
    let done = "aws autoscaling complete-lifecycle-action --auto-scaling-group-name group \
                --lifecycle-hook-name hook --instance-id i-0123456789abcdef0 \
                --lifecycle-action-result CONTINUE";
    assert_eq!(stage.notes().last().map(String::as_str), Some(done));
}

#[test]
fn a_target_is_drained_before_it_goes() {
    let stage = Stage::new(&LEAVING);
    let output = autoscaling(&stage, &["drain", "group", "hook", "arn:aws:targets"]);
    assert!(output.status.success(), "{output:?}");
    let notes = stage.notes();
    let mut steps =
        vec!["sleep 5", "aws elbv2 deregister-targets", "aws elbv2 wait target-deregistered"];
    // The first look, two that find a packet more, and four without: 20 seconds.
    steps.extend(["curl -s -m 5 http://127.0.0.1:8080/"; 7]);
    steps.extend(["systemctl stop gwlbtun", "aws autoscaling complete-lifecycle-action"]);
    expect_in_order(&notes, &steps);
    let looks = notes.iter().filter(|note| note.ends_with(":8080/")).count();
    assert_eq!(looks, 7, "{notes:#?}");
}

/// Neither packets without end, nor a refusal of the load balancer, nor a gwlbtun that is gone
/// keep an instance for ever.
#[test]
fn draining_ends_whatever_happens() {
    let endless = LEAVING[3].1.replace("[ $count -lt 2 ] || count=2", "");
    let gone = LEAVING[3].1.replace("*)\n", "*) exit 7\n");
    for (aws, curl, said) in [
        ("", &endless, "packets still come"),
        ("[ \"$1\" != elbv2 ]", &gone, "not taken out of the target group"),
    ] {
        let mut programs = LEAVING;
        programs[0].1 = aws;
        programs[3].1 = curl;
        let stage = Stage::new(&programs);
        let output = autoscaling(&stage, &["drain", "group", "hook", "arn:aws:targets"]);
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(said), "{output:?}");
        let end = ["systemctl stop gwlbtun", "aws autoscaling complete-lifecycle-action"];
        expect_in_order(&stage.notes(), &end);
    }
}

#[test]
fn autoscaling_refuses_in_one_line() {
    let stage = Stage::new(&LEAVING);
    for arguments in [&[][..], &["ready"], &["ready", "a", "b", "c"], &["drain", "a", "b"], &["x"]]
    {
        let output = autoscaling(&stage, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.starts_with("autoscaling.sh: usage: ") && said.lines().count() == 1, "{said}");
        assert_eq!(stage.notes(), [""; 0], "nothing was done");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("example-scripts/autoscaling.sh");
    let mut without_aws = Command::new("env");
    without_aws.args(["PATH=bin", script.to_str().expect("UTF-8"), "ready", "group", "hook"]);
    let bare = Stage::new(&LEAVING[1..]);
    let output = bare.run(&mut without_aws);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(output.stderr, b"autoscaling.sh: aws is missing; install it\n");
    assert_eq!(bare.notes(), [""; 0], "nothing was done");
    let mut programs = LEAVING;
    programs[0].1 = "exit 255";
    let stage = Stage::new(&programs);
    let output = autoscaling(&stage, &["ready", "group", "hook"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
