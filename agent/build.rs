//! Temporary.
fn main() {
    println!(
        "cargo:rustc-env=CULVERT_BPF_OBJECT={}/../target/bpf/culvert.o",
        std::env::var("CARGO_MANIFEST_DIR").unwrap()
    );
}
