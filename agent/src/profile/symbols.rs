//! Names for addresses: what of this process is mapped where, and the functions and lines of that, inlined ones too.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use addr2line::Loader;

use super::cpu::Place;
use super::kernel::KernelSymbols;

/// A function that was running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) function: String,
    /// Empty when it is not known.
    pub(super) file: String,
    /// 0 when it is not known.
    pub(super) line: u32,
}

impl Frame {
    fn unknown(function: String) -> Self {
        Self { function, file: String::new(), line: 0 }
    }

    /// The name without what separates names.
    pub(super) fn plain(&self) -> String {
        self.function.replace(';', ":")
    }
}

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
    loaders: HashMap<PathBuf, Option<Loader>>,
    kernel: Option<KernelSymbols>,
    known: HashMap<Place, Vec<Frame>>,
}

impl Symbols {
    /// Reads what is mapped now; names are looked up when they are asked for.
    pub(super) fn of_this_process() -> io::Result<Self> {
        let maps = fs::read_to_string("/proc/self/maps")?;
        let own = fs::read_link("/proc/self/exe")?;
        Ok(Self {
            mappings: mappings(&maps, &own),
            loaders: HashMap::new(),
            kernel: None,
            known: HashMap::new(),
        })
    }

    /// What is mapped for execution, in order.
    pub(super) fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// The functions at a place, innermost first; at least one.
    pub(super) fn frames(&mut self, place: Place) -> &[Frame] {
        if !self.known.contains_key(&place) {
            let frames = self.look_up(place);
            self.known.insert(place, frames);
        }
        self.known.get(&place).map_or(&[], Vec::as_slice)
    }

    fn look_up(&mut self, place: Place) -> Vec<Frame> {
        if place.in_kernel {
            let kernel = self.kernel.get_or_insert_with(KernelSymbols::read);
            let name = kernel.name(place.inside()).unwrap_or("[kernel]").to_owned();
            return vec![Frame::unknown(name)];
        }
        let inside = place.inside();
        let Some(mapping) = self.mappings.iter().find(|m| (m.start..m.end).contains(&inside)) else {
            return vec![Frame::unknown("[unknown]".to_owned())];
        };
        let loader = self
            .loaders
            .entry(mapping.path.clone())
            // A file without debugging information has no names; that is shown by the file's own.
            .or_insert_with(|| Loader::new(&mapping.path).ok());
        let found = loader.as_ref().map(|loader| functions(loader, inside.wrapping_sub(mapping.base)));
        found.filter(|frames| !frames.is_empty()).unwrap_or_else(|| {
            let file = mapping.name.rsplit('/').next().unwrap_or_default();
            vec![Frame::unknown(format!("[{}]", file.trim_matches(['[', ']'])))]
        })
    }
}

fn functions(loader: &Loader, address: u64) -> Vec<Frame> {
    let mut frames = Vec::new();
    if let Ok(mut found) = loader.find_frames(address) {
        while let Ok(Some(frame)) = found.next() {
            let Some(name) = frame.function.as_ref().and_then(|f| f.demangle().ok().map(|n| n.into_owned()))
            else {
                continue;
            };
            let (file, line) =
                frame.location.map_or(("", 0), |l| (l.file.unwrap_or(""), l.line.unwrap_or(0)));
            frames.push(Frame { function: name, file: file.to_owned(), line });
        }
    }
    if frames.is_empty()
        && let Some(name) = loader.find_symbol(address)
    {
        frames.push(Frame::unknown(addr2line::demangle_auto(name.into(), None).into_owned()));
    }
    frames
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
