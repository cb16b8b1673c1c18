//! Policies of every shape, as text.
#![no_main]

libfuzzer_sys::fuzz_target!(|mesh: culvert_fuzz::Mesh| culvert_fuzz::policy(&mesh));
