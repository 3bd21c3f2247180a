//! libFuzzer's way into `segmenter`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gwlbtun_fuzz::run("segmenter", input));
