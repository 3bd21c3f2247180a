//! Every input of the corpus once more, without a fuzzer.

use std::fs;
use std::path::PathBuf;

use super::TARGETS;
use super::run;

fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = format!("{}/tests/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    files.map(|file| file.expect("it can be listed").path()).collect()
}

fn replay(target: &str) {
    let files = corpus(target);
    assert!(files.len() >= 10, "{} inputs for {target}: a corpus has more", files.len());
    for file in files {
        let input = fs::read(&file).expect("a file of the corpus");
        let outcome = std::panic::catch_unwind(|| run(target, &input));
        assert!(outcome.is_ok(), "found by {}", file.display());
    }
}

#[test]
fn the_parsers_corpus() {
    replay("parser");
}

#[test]
fn the_paths_corpus() {
    replay("path");
}

#[test]
fn the_coalescers_corpus() {
    replay("coalescer");
}

#[test]
fn the_segmenters_corpus() {
    replay("segmenter");
}

#[test]
fn the_controls_corpus() {
    replay("controls");
}

/// A target without a program is run by nobody; one without a test is forgotten.
#[test]
fn every_target_has_a_program_and_a_corpus() {
    let manifest = include_str!("Cargo.toml");
    for (target, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} in Cargo.toml");
        assert!(!corpus(target).is_empty());
    }
}
