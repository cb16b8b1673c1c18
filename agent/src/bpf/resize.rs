//! Pinned maps of another size than is wanted. The layout is the same, so nothing has to be set aside: what is in them
//! goes into new ones, and the programs behind the links are replaced as at any start. Until then the old programs enforce
//! with the old maps, which wait under another name; a start that breaks off in the middle begins again from them.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapError};
use culvert_common::{Connection, Tuple};

use super::batch;
use super::capacity::{Capacities, Content, SIZED, Sized};
use super::load::KernelError;

/// Maps that are about to be replaced.
pub(super) struct Resize {
    pins: PathBuf,
    maps: Vec<&'static Sized>,
}

impl Resize {
    /// Takes away the pins of maps whose size is not the wanted one. Returns the room that the maps are going to have: one
    /// that holds more than it may keeps its size, for nothing may be lost.
    pub(super) fn prepare(pins: &Path, wanted: &Capacities) -> Result<(Self, Capacities), KernelError> {
        let (mut maps, mut capacities) = (Vec::new(), wanted.clone());
        for map in &SIZED {
            let (path, old) = (pins.join(map.name), waiting(pins, map.name));
            let failed = |source| KernelError::Path { path: path.clone(), source };
            if old.exists() {
                fs::rename(&old, &path).map_err(failed)?;
            }
            if !path.exists() {
                continue;
            }
            let (size, used) =
                measure(&path, map).map_err(|source| KernelError::Map { name: map.name, source })?;
            let wanted = wanted.of(map.name);
            if size as usize == wanted {
                continue;
            }
            if used > wanted {
                tracing::warn!(
                    map = map.name,
                    size,
                    used,
                    wanted,
                    "the BPF map holds more than it is to have room for: it keeps its size"
                );
                capacities.set(map.name, size);
                continue;
            }
            tracing::info!(map = map.name, size, wanted, "the BPF map gets another size");
            fs::rename(&path, &old).map_err(failed)?;
            maps.push(map);
        }
        Ok((Self { pins: pins.to_owned(), maps }, capacities))
    }

    /// Whether any map is replaced.
    pub(super) fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// Fills the new maps with what only agents write; before any program uses them.
    pub(super) fn copy_tables(&self) -> Result<(), KernelError> {
        self.of(Content::Agent).try_for_each(|map| {
            copy(&waiting(&self.pins, map.name), &self.pins.join(map.name))
                .map_err(|source| KernelError::Map { name: map.name, source })
        })
    }

    /// The new programs are in place: what the old ones wrote until then follows, and their maps go.
    pub(super) fn finish(self) -> Result<(), KernelError> {
        if let Some(map) = self.of(Content::Connections).next() {
            add_connections(&waiting(&self.pins, map.name), &self.pins.join(map.name))
                .map_err(|source| KernelError::Map { name: map.name, source })?;
        }
        for map in &self.maps {
            let path = waiting(&self.pins, map.name);
            fs::remove_file(&path).map_err(|source| KernelError::Path { path, source })?;
        }
        Ok(())
    }

    fn of(&self, content: Content) -> impl Iterator<Item = &&'static Sized> {
        self.maps.iter().filter(move |map| map.content == content)
    }
}

/// Where a map waits for its successor.
fn waiting(pins: &Path, name: &str) -> PathBuf {
    pins.join(format!("{name}~"))
}

/// How many entries a pinned map has room for, and how many it has that must not be lost.
fn measure(path: &Path, map: &Sized) -> Result<(u32, usize), MapError> {
    let data = MapData::from_pin(path)?;
    let info = data.info()?;
    let used = match map.content {
        Content::Moment => 0,
        Content::Agent | Content::Connections => {
            let (key, value) = (info.key_size() as usize, info.value_size() as usize);
            batch::read(data.fd().as_fd(), key, value).map_err(MapError::IoError)?.count
        }
    };
    Ok((info.max_entries(), used))
}

fn copy(from: &Path, to: &Path) -> Result<(), MapError> {
    let (from, to) = (MapData::from_pin(from)?, MapData::from_pin(to)?);
    let info = from.info()?;
    let entries = batch::read(from.fd().as_fd(), info.key_size() as usize, info.value_size() as usize);
    entries.and_then(|entries| batch::write(to.fd().as_fd(), &entries)).map_err(MapError::IoError)
}

/// Adds the open connections that the new programs have not written themselves. One that ended meanwhile is found out when
/// the agent compares the map with the pods' sockets.
fn add_connections(from: &Path, to: &Path) -> Result<(), MapError> {
    const BPF_NOEXIST: u64 = 1;
    let from = MapData::from_pin(from)?;
    let entries = batch::read_as::<Tuple, Connection>(from.fd().as_fd()).map_err(MapError::IoError)?;
    let mut to: HashMap<_, Tuple, Connection> = Map::HashMap(MapData::from_pin(to)?).try_into()?;
    for (tuple, connection) in entries {
        match to.insert(tuple, connection, BPF_NOEXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result?,
        }
    }
    Ok(())
}
