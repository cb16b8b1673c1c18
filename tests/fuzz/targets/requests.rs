//! What HBONE peers ask for, and what pods tell of themselves.
#![no_main]

libfuzzer_sys::fuzz_target!(|request: culvert_fuzz::PeerRequest| culvert_fuzz::requests(&request));
