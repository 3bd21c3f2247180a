//! libFuzzer's way into `controls`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gwlbtun_fuzz::run("controls", input));
