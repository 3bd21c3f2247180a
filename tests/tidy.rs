//! Style that matters, as a test. Each message says what to do instead.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// Longest line, in characters, and longest function, in lines.
const LINE_CHARS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;

/// Who may import whom: the layer table of src/lib.rs. A module may import itself too.
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("wire", &["types"]),
    ("sync", &["types"]),
    ("flow", &["sync", "types", "wire"]),
    ("stats", &["sync", "types"]),
    ("log", &["sys", "types"]),
    ("cli", &["types"]),
    ("client", &["sys", "types"]),
    ("path", &["flow", "stats", "sync", "types", "wire"]),
    ("sys", &["sync", "types"]),
    ("steering", &["sys", "types"]),
    // An engine executes the plans of the path and knows nothing else of it.
    ("uring", &["path::plan", "sys", "types"]),
    ("settings", &["cli", "log", "types"]),
    ("worker", &["flow", "path", "stats", "sync", "sys", "types", "uring"]),
    (
        "control",
        &[
            "flow",
            "log",
            "settings",
            "stats",
            "steering",
            "sync",
            "sys",
            "types",
            "wire",
            "worker::mailbox",
        ],
    ),
    (
        "engine",
        &[
            "control", "flow", "log", "settings", "stats", "steering", "sys", "types", "uring",
            "wire", "worker",
        ],
    ),
    (
        "doctor",
        &[
            "client",
            "control::hooks",
            "control::netdev",
            "engine::StartError",
            "engine::trial",
            "settings",
            "stats",
            "steering",
            "sys",
            "types",
        ],
    ),
    ("lib", &[]),
    ("main", &[]),
];

/// What no file may contain. Written in two parts so that this file does not.
const LEFTOVERS: &[(&str, &str, &str)] = &[
    ("TO", "DO", "do it, or write the limit where a user meets it"),
    ("FIX", "ME", "fix it"),
    ("XX", "X", "say what is meant"),
    ("HA", "CK", "say why it must be so"),
    ("dbg", "!(", "remove it"),
    ("unimplement", "ed!(", "implement it"),
    ("todo", "!(", "do it"),
];

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Lines with their numbers.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }

    fn is_rust(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "rs")
    }

    /// The lines before the unit tests, which may import what they like.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.lines().take_while(|(_, line)| *line != "#[cfg(test)]")
    }

    /// `src/path/decap.rs` is of module `path`.
    fn module(&self) -> String {
        let inside = self.path.strip_prefix("src").expect("only asked for sources");
        let first = inside.iter().next().expect("a file has a name").to_string_lossy();
        first.trim_end_matches(".rs").to_owned()
    }

    fn is_unit_test(&self) -> bool {
        self.path.ends_with("tests.rs") && self.path.starts_with("src")
    }
}

#[derive(Default)]
struct Complaints(String);

impl Complaints {
    fn add(&mut self, source: &Source, line: usize, what: &str) {
        writeln!(self.0, "{}:{line}: {what}", source.path.display()).expect("a String grows");
    }

    fn expect_none(&self) {
        assert!(self.0.is_empty(), "\n{}", self.0);
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the folder is part of the project") {
            let path = entry.expect("it can be listed").path();
            if path.is_dir() {
                if !path.ends_with("target") {
                    folders.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(root).expect("below the root").to_owned();
                found.push(Source { path, text });
            }
        }
    }
    assert!(!found.is_empty());
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

#[test]
fn modules_import_from_layers_below_only() {
    let mut complaints = Complaints::default();
    for source in sources(&["src"]).iter().filter(|source| !source.is_unit_test()) {
        let module = source.module();
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
            complaints.add(source, 1, "module without a row in the layer table of tests/tidy.rs");
            continue;
        };
        for (number, line) in source.product_lines() {
            let Some(imported) = imported_path(line) else { continue };
            let within = |prefix: &str| {
                imported.strip_prefix(prefix).is_some_and(|rest| {
                    rest.is_empty() || rest.starts_with("::") || rest.starts_with(';')
                })
            };
            if !within(&module) && !allowed.iter().any(|prefix| within(prefix)) {
                let what = format!("{module} may not import {imported}; see the layer table");
                complaints.add(source, number, &what);
            }
        }
    }
    complaints.expect_none();
}

/// What stands behind `crate::` in an import.
fn imported_path(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("pub ").unwrap_or(line);
    line.strip_prefix("use crate::")
}

#[test]
fn one_path_per_import() {
    let mut complaints = Complaints::default();
    for source in sources(&["src", "tests", "benches"]).iter().filter(|source| source.is_rust()) {
        for (number, line) in source.lines() {
            let line = line.trim_start();
            let import = line.starts_with("use ") || line.starts_with("pub use ");
            if import && line.contains('{') {
                complaints.add(source, number, "one path per use: merge conflicts stay readable");
            }
        }
    }
    complaints.expect_none();
}

#[test]
fn unsafe_stays_behind_its_fence() {
    let mut complaints = Complaints::default();
    let fence = ["src/sys", "src/uring", "src/wire/checksum/simd.rs"];
    let fenced = |path: &Path| fence.iter().any(|inside| path.starts_with(inside));
    let outside = |source: &&Source| source.is_rust() && !fenced(&source.path);
    for source in sources(&["src"]).iter().filter(outside) {
        for (number, line) in source.lines() {
            let code = line.split("//").next().unwrap_or_default();
            if code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                complaints.add(source, number, &format!("unsafe belongs into {fence:?}"));
            }
        }
    }
    complaints.expect_none();
}

#[test]
fn functions_fit_a_screen() {
    let mut complaints = Complaints::default();
    for source in sources(&["src", "tests", "benches"]).iter().filter(|source| source.is_rust()) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            if !is_function(line.trim_start()) {
                continue;
            }
            // rustfmt puts the closing brace below the first letter of the signature.
            let closing = format!("{}}}", " ".repeat(indent));
            let length = lines[start..].iter().position(|line| *line == closing);
            if length.is_some_and(|length| length >= FUNCTION_LINES_MAX) {
                let what = format!("longer than {FUNCTION_LINES_MAX} lines: split off a leaf");
                complaints.add(source, start + 1, &what);
            }
        }
    }
    complaints.expect_none();
}

fn is_function(line: &str) -> bool {
    let mut words = line.split_whitespace().peekable();
    while words
        .next_if(|word| {
            matches!(*word, "async" | "const" | "unsafe" | "extern") || word.starts_with("pub")
        })
        .is_some()
    {}
    words.next() == Some("fn")
}

#[test]
fn files_say_what_they_are_for() {
    let mut complaints = Complaints::default();
    for source in sources(&["src", "tests", "benches"]).iter().filter(|source| source.is_rust()) {
        if !source.text.starts_with("//! ") {
            complaints.add(source, 1, "open with why the file exists (//! …)");
        }
    }
    complaints.expect_none();
}

#[test]
fn nothing_is_left_over_and_lines_are_short() {
    let mut complaints = Complaints::default();
    for source in &sources(&["src", "tests", "benches", "example-scripts"]) {
        let generated = source.path.iter().any(|part| part == "corpus");
        for (number, line) in source.lines().filter(|_| !generated) {
            let code = source.is_rust() || source.path.extension().is_some_and(|e| e == "sh");
            if code && line.chars().count() > LINE_CHARS_MAX {
                complaints.add(source, number, "longer than 100 characters");
            }
            for (first, second, instead) in LEFTOVERS {
                let leftover = format!("{first}{second}");
                let mut words = line.split(|c: char| !c.is_alphanumeric() && !"!(".contains(c));
                let macros = leftover.ends_with('(');
                if words.any(|word| word == leftover || macros && word.starts_with(&leftover)) {
                    complaints.add(source, number, &format!("{leftover}: {instead}"));
                }
            }
        }
    }
    complaints.expect_none();
}

/// A reason that nobody gives is a promise that nobody keeps.
#[test]
fn every_drop_reason_is_given_somewhere() {
    let sources = sources(&["src"]);
    let product: String = sources
        .iter()
        .filter(|source| !source.is_unit_test() && !source.path.ends_with("drop_reason.rs"))
        .flat_map(|source| source.product_lines().map(|(_, line)| line))
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect();
    for reason in gwlbtun::types::DropReason::ALL {
        assert!(product.contains(&format!("DropReason::{reason:?}")), "nobody gives {reason}");
    }
}

/// Reasons that no traffic gives reliably, and why; a unit test asserts that they are counted.
const NOT_END_TO_END: &[(&str, &str)] =
    &[("no_buffer", "a worker stops reading before it is out of slots and buffers")];

/// A counter that no test has seen counting may count nothing.
#[test]
fn every_drop_reason_is_seen_by_a_test() {
    let end_to_end = sources(&["tests/e2e"]);
    let cases = sources(&["tests/cases"]);
    let units = sources(&["src"]);
    let mut missing = String::new();
    for reason in gwlbtun::types::DropReason::ALL {
        let name = reason.name();
        let outcome = format!("=> {name}");
        let by_case = cases.iter().any(|file| file.lines().any(|(_, l)| l.ends_with(&outcome)));
        let is_seen = by_case
            || end_to_end.iter().any(|file| file.lines().any(|(_, line)| is_counted(line, name)));
        if !NOT_END_TO_END.iter().any(|(other, _)| *other == name) {
            if !is_seen {
                let how = "no test in tests/e2e waits for";
                let or = "and no case in tests/cases ends in";
                writeln!(missing, "{how} drops(\"{name}\") above 0, {or} {outcome}")
                    .expect("grows");
            }
            continue;
        }
        assert!(!is_seen, "{name} is seen end to end: it is no exception any more");
        let variant = format!("DropReason::{reason:?}");
        let asserts = |line: &str| line.contains("assert") && line.contains(&variant);
        let is_unit_tested = units.iter().any(|file| {
            let product = if file.is_unit_test() { 0 } else { file.product_lines().count() };
            file.lines().skip(product).any(|(_, line)| asserts(line))
        });
        assert!(is_unit_tested, "no unit test asserts {variant}");
    }
    assert!(missing.is_empty(), "\n{missing}");
}

/// Whether a test wants the reason's counter to be something else than 0 here.
fn is_counted(line: &str, name: &str) -> bool {
    let [call, field] = [format!("drops(\"{name}\")"), format!("[\"drops\"][\"{name}\"].as_u64()")];
    let behind = |what: &str| line.split_once(what).map(|(_, rest)| rest);
    behind(&call).is_some_and(|rest| {
        [" == ", " > ", " >= "].iter().any(|compare| rest.starts_with(compare))
            && !rest.starts_with(" == 0")
            || rest.starts_with(", ") && !rest.starts_with(", 0)")
    }) || behind(&field).is_some_and(|rest| rest.starts_with(" > Some("))
}

/// What a user reads about a counter is what the program means by it.
#[test]
fn the_readme_explains_every_drop_reason() {
    let readme = include_str!("../README.md");
    for reason in gwlbtun::types::DropReason::ALL {
        let row = format!("| `{reason}` | {} |", reason.explanation());
        assert!(readme.contains(&row), "README.md lacks: {row}");
    }
}

/// Ids of events are for programs that others wrote: each is in the README's list.
#[test]
fn the_readme_lists_every_event() {
    let readme = include_str!("../README.md");
    for event in gwlbtun::log::LogEvent::ALL {
        let id = format!("`{}`", event.id());
        assert!(readme.contains(&id), "README.md's list of events lacks {id}");
    }
}

#[test]
fn the_top_level_is_fixed() {
    let fixed = [
        "Cargo.toml",
        "Cargo.lock",
        "src",
        "benches",
        "example-scripts",
        "tuning",
        "tests",
        "README.md",
        "LICENSE",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        // Not committed.
        "target",
        "proptest-regressions",
    ];
    for entry in fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("the root can be listed") {
        let name = entry.expect("it can be listed").file_name().to_string_lossy().into_owned();
        let known = fixed.contains(&name.as_str()) || name.starts_with('.');
        assert!(known, "{name} has no place at the top level; see the README's map");
    }
}

/// The reference takes the time of its flows from the wall clock, and a step of it empties or
/// freezes its tables. Here the wall clock is for the eyes that read the log, and the metrics.
#[test]
fn b14_only_the_log_and_metrics_know_the_wall_clock() {
    let mut complaints = Complaints::default();
    for source in sources(&["src"]).iter().filter(|source| !source.is_unit_test()) {
        let may = ["src/log.rs", "src/sys/wall_clock.rs", "src/control/civil.rs"]
            .iter()
            .any(|path| source.path == Path::new(path));
        for (number, line) in source.product_lines().filter(|_| !may) {
            let says = ["SystemTime", "CLOCK_REALTIME", "wall_clock::", "gettimeofday"];
            if says.iter().any(|word| line.contains(word)) {
                complaints.add(source, number, "the wall clock steps: use sys::clock");
            }
        }
    }
    complaints.expect_none();
}
/// Every bug of the reference that facts about it list is a test by its number.
#[test]
fn every_bug_of_the_reference_is_a_test() {
    let sources = sources(&["src", "tests"]);
    for number in 1..=20 {
        let prefix = format!("fn b{number:02}_");
        let found = sources.iter().any(|source| source.lines().any(|(_, l)| l.contains(&prefix)));
        assert!(found, "no test is called b{number:02}_…");
    }
}
