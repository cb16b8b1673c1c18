//! The culvert binary.
fn main() {}
