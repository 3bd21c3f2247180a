//! libFuzzer's way into `path`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gwlbtun_fuzz::run("path", input));
