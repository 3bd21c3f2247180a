//! libFuzzer's way into `parser`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gwlbtun_fuzz::run("parser", input));
