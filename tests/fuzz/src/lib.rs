//! What the fuzz targets check. A finding is a panic.
//!
//! # Layout
//!
//! * [`manifests`]: any bytes as a manifest file: no panic, each problem names its place, and what is valid compiles.
//! * [`policy`]: policies of every shape ([`Mesh`]) as text: the compiled rows decide as the reference does.
//! * [`requests`]: what HBONE peers ask for: only this pod is served; what is written is read again.

mod check;
mod generate;
mod requests;

use std::path::Path;

use culvert::control::manifests::parse;

pub use generate::Mesh;
pub use requests::{PeerRequest, requests};

/// The name that problems must bear.
const FILE: &str = "fuzz.yaml";
/// Objects beyond this only take time.
const MOST_OBJECTS: usize = 64;

/// Reads `bytes` as a manifest file, and compiles what is in it.
pub fn manifests(bytes: &[u8]) {
    match parse(Path::new(FILE), bytes) {
        Ok(objects) if objects.len() <= MOST_OBJECTS => check::rows_decide_as_the_reference(objects),
        Ok(_) => {}
        Err(problems) => check::problems(&problems),
    }
}

/// Writes each object of `mesh` as text, reads it back, and compiles those that are valid.
pub fn policy(mesh: &Mesh) {
    let mut objects = Vec::new();
    for text in mesh.documents() {
        match parse(Path::new(FILE), text.as_bytes()) {
            Ok(read) => objects.extend(read),
            Err(problems) => {
                check::problems(&problems);
                check::written_objects_are_named(&problems, &text);
            }
        }
    }
    check::rows_decide_as_the_reference(objects);
}
