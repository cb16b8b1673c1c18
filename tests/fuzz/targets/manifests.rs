//! Any bytes as a manifest file.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| culvert_fuzz::manifests(bytes));
