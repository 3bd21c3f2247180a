//! libFuzzer's way into `coalescer`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| gwlbtun_fuzz::run("coalescer", input));
