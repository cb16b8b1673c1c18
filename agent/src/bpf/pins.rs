//! The pins of an instance: set aside when their layout is another one, and removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{Array, MapData};
use culvert_common::{ABI_VERSION, Config};

use super::load::{KernelError, create_dir};

/// Maps of another layout cannot be adopted. Their programs stay attached, under another name, until the new ones
/// enforce: see [`super::Kernel::retire_predecessor`].
pub(super) fn set_foreign_abi_aside(pins: &Path) -> Result<(), KernelError> {
    let pinned = pins.join("config");
    if !pinned.exists() {
        return Ok(());
    }
    let version = MapData::from_pin(&pinned)
        .and_then(|data| Array::<_, Config>::try_from(aya::maps::Map::Array(data)))
        .and_then(|config| config.get(&0, 0))
        .map(|config| config.abi_version);
    if matches!(version, Ok(ABI_VERSION)) {
        return Ok(());
    }
    tracing::warn!(
        pins = %pins.display(),
        ?version,
        ours = ABI_VERSION,
        "pinned maps have another layout: their programs go on until the new ones enforce"
    );
    let aside = aside(pins);
    let moved = remove_pins(&aside).and_then(|()| fs::rename(pins, &aside));
    // They know another agent's cgroup, and would keep this one from the mesh's ports.
    let ports = |name| match fs::remove_file(aside.join("links").join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    moved
        .and_then(|()| ports("bind4"))
        .and_then(|()| ports("bind6"))
        .map_err(|source| KernelError::Path { path: pins.to_owned(), source })?;
    create_dir(&pins.join("links"))
}

/// Where the pins of a predecessor with another layout wait. No instance has such a name.
pub(super) fn aside(pins: &Path) -> PathBuf {
    let mut name = pins.file_name().unwrap_or_default().to_owned();
    name.push("~");
    pins.with_file_name(name)
}

/// Removes an instance's pins, links before maps, and those that were set aside. Missing is no error.
pub(crate) fn remove_pins(pins: &Path) -> io::Result<()> {
    let aside = aside(pins);
    for dir in [pins.join("links"), pins.to_owned(), aside.join("links"), aside] {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
