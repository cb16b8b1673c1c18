//! Names for addresses: what of this process is mapped where, and which function of that file it is, by the file's table of symbols.
//! Debugging information would tell of inlined functions too, but takes ten times the agent's own memory to read.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use object::read::ReadCache;
use object::{Object, ObjectSymbol, SymbolKind};

use super::cpu::Place;
use super::kernel;

/// A part of a file that is mapped for execution.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) offset: u64,
    /// As the kernel calls it.
    pub(super) name: String,
    /// Where to read it.
    path: PathBuf,
    /// Where the file's first byte would be.
    base: u64,
}

/// Of this process and the kernel.
pub(super) struct Symbols {
    mappings: Vec<Mapping>,
    names: HashMap<Place, String>,
}

impl Symbols {
    /// Names for all of these.
    ///
    /// # Errors
    ///
    /// What is mapped cannot be told.
    pub(super) fn of(places: &HashSet<Place>) -> io::Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let own = fs::read_link("/proc/self/exe")?;
        let mappings = mappings(&maps, &own);
        let mut names = HashMap::new();
        let in_kernel: Vec<u64> = places.iter().filter(|p| p.in_kernel).map(|p| p.inside()).collect();
        let found = kernel::names(&in_kernel);
        let mut files: HashMap<&Path, Vec<(Place, u64)>> = HashMap::new();
        for place in places {
            if place.in_kernel {
                let name = found.get(&place.inside()).map_or("[kernel]", String::as_str);
                names.insert(*place, name.to_owned());
            } else if let Some(mapping) = at(&mappings, *place) {
                let in_file = place.inside().wrapping_sub(mapping.base);
                files.entry(&mapping.path).or_default().push((*place, in_file));
            }
        }
        for (path, wanted) in files {
            // What has no table goes by the name of the file.
            names.extend(functions(path, &wanted).unwrap_or_default());
        }
        Ok(Self { mappings, names })
    }

    /// What is mapped for execution, in order.
    pub(super) fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// The function at a place; the file in brackets where that is not known.
    pub(super) fn name(&self, place: Place) -> String {
        self.names.get(&place).cloned().unwrap_or_else(|| {
            let file = at(&self.mappings, place).map_or("unknown", |mapping| &mapping.name);
            format!("[{}]", file.rsplit('/').next().unwrap_or_default().trim_matches(['[', ']']))
        })
    }
}

fn at(mappings: &[Mapping], place: Place) -> Option<&Mapping> {
    mappings.iter().find(|m| (m.start..m.end).contains(&place.inside()))
}

/// By the table for debuggers, else by the one for the dynamic linker.
fn functions(path: &Path, wanted: &[(Place, u64)]) -> Option<Vec<(Place, String)>> {
    let cache = ReadCache::new(File::open(path).ok()?);
    let file = object::File::parse(&cache).ok()?;
    let of_debuggers = file.symbol_table().is_some();
    let begins = |symbol: &object::Symbol<'_, '_, _>| {
        let is_function = symbol.kind() == SymbolKind::Text && symbol.is_definition();
        is_function.then(|| (symbol.address(), symbol.size(), symbol.index()))
    };
    let mut table: Vec<_> = match of_debuggers {
        true => file.symbols().filter_map(|symbol| begins(&symbol)).collect(),
        false => file.dynamic_symbols().filter_map(|symbol| begins(&symbol)).collect(),
    };
    table.sort_unstable_by_key(|(address, ..)| *address);
    let name = |address: u64| {
        let after = table.partition_point(|(begin, ..)| *begin <= address);
        let (begin, size, index) = *table.get(after.checked_sub(1)?)?;
        // Assembly may say no size.
        if size != 0 && address - begin >= size {
            return None;
        }
        let symbols = if of_debuggers { file.symbol_table()? } else { file.dynamic_symbol_table()? };
        let symbol = object::ObjectSymbolTable::symbol_by_index(&symbols, index).ok()?;
        Some(format!("{:#}", rustc_demangle::demangle(symbol.name().ok()?)))
    };
    Some(wanted.iter().filter_map(|(place, address)| Some((*place, name(*address)?))).collect())
}

/// From `/proc/self/maps` (proc_pid_maps(5)). `own` is the agent's file: it is read through `/proc/self/exe`, where it still is after
/// an update has put another one in its place.
fn mappings(text: &str, own: &Path) -> Vec<Mapping> {
    let mut bases: HashMap<&str, u64> = HashMap::new();
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.splitn(6, ' ');
        let (Some(range), Some(access), Some(offset), Some(name)) =
            (words.next(), words.next(), words.next(), words.nth(2))
        else {
            continue;
        };
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let Some((start, end)) = range.split_once('-').and_then(|(a, b)| Some((number(a)?, number(b)?)))
        else {
            continue;
        };
        let (Some(offset), name) = (number(offset), name.trim_start()) else { continue };
        let base = *bases.entry(name).or_insert_with(|| start.wrapping_sub(offset));
        if !access.contains('x') || name.is_empty() {
            continue;
        }
        let path = if Path::new(name) == own { PathBuf::from("/proc/self/exe") } else { PathBuf::from(name) };
        found.push(Mapping { start, end, offset, name: name.to_owned(), path, base });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_looked_up_in_the_file_that_is_mapped_there() {
        let text = "5000-6000 r--p 00000000 fe:00 12   /usr/local/bin/culvert\n\
                    7000-9000 r-xp 00001000 fe:00 12   /usr/local/bin/culvert\n\
                    a000-b000 rw-p 00000000 00:00 0 \n\
                    c000-d000 r-xp 00000000 00:00 0    [vdso]\n";
        let found = mappings(text, Path::new("/usr/local/bin/culvert"));
        let told: Vec<_> =
            found.iter().map(|m| (m.start, m.end, m.offset, m.base, m.path.to_str().unwrap())).collect();
        assert_eq!(
            told,
            [(0x7000, 0x9000, 0x1000, 0x5000, "/proc/self/exe"), (0xc000, 0xd000, 0, 0xc000, "[vdso]")]
        );
    }
}
