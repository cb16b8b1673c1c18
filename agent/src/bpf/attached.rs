//! What instances have in the kernel, seen from outside: by their pins, whether or not an agent runs.

use std::fs;
use std::io;
use std::path::Path;

use super::PIN_ROOT;
use super::link;
use super::load::NODE_PROGRAMS;
use super::pins::aside;

/// The programs of an instance.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Instance {
    /// Its name.
    pub(crate) name: String,
    /// Programs of the node's hooks that are attached.
    pub(crate) attached: usize,
    /// The node's hooks that have lost their program: a missing pin, or a link whose cgroup is gone.
    pub(crate) detached: Vec<&'static str>,
    /// Network namespaces with the destination's verdict.
    pub(crate) pods: usize,
    /// Interfaces with the source guard, as a link.
    pub(crate) guards: usize,
    /// Pins of namespaces and interfaces that are gone.
    pub(crate) gone: usize,
    /// Programs of another map layout wait to be replaced.
    pub(crate) set_aside: bool,
}

/// All of this machine, by name.
///
/// # Errors
///
/// The pins cannot be listed or opened: root is needed.
pub(crate) fn instances() -> io::Result<Vec<Instance>> {
    let entries = match fs::read_dir(PIN_ROOT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut instances = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.ends_with('~') {
            instances.push(look_at(name)?);
        }
    }
    instances.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(instances)
}

fn look_at(name: String) -> io::Result<Instance> {
    let pins = Path::new(PIN_ROOT).join(&name);
    let links = pins.join("links");
    let mut instance = Instance { name, set_aside: aside(&pins).exists(), ..Instance::default() };
    for (_, _, pin) in NODE_PROGRAMS {
        match link::is_attached(&links.join(pin))? {
            Some(true) => instance.attached += 1,
            _ => instance.detached.push(pin),
        }
    }
    let entries = match fs::read_dir(&links) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(instance),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name();
        let file = file.to_string_lossy();
        let count = match file.split_once('-') {
            Some(("admit", _)) => &mut instance.pods,
            Some(("guard", _)) => &mut instance.guards,
            _ => continue,
        };
        match link::is_attached(&entry.path())? {
            Some(true) => *count += 1,
            Some(false) => instance.gone += 1,
            None => {} // gone since the listing
        }
    }
    Ok(instance)
}
