//! Names of the kernel's own functions, from `/proc/kallsyms`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

/// The function that has each of these addresses. None where the kernel keeps its addresses to itself
/// (`kernel.kptr_restrict`).
pub(super) fn names(addresses: &[u64]) -> HashMap<u64, String> {
    if addresses.is_empty() {
        return HashMap::new();
    }
    let open = || File::open("/proc/kallsyms").map(BufReader::new);
    // Twice: of 200,000 names few are wanted, and the memory that they would take is not easily given back.
    find(addresses, open).unwrap_or_default()
}

fn find<R: BufRead>(addresses: &[u64], open: impl Fn() -> io::Result<R>) -> io::Result<HashMap<u64, String>> {
    let mut begins = Vec::new();
    for (n, line) in open()?.lines().enumerate() {
        begins.extend(function(&line?).map(|(begin, _)| (begin, n)));
    }
    begins.sort_unstable();
    let mut wanted: HashMap<usize, Vec<u64>> = HashMap::new();
    for address in addresses {
        let after = begins.partition_point(|(begin, _)| begin <= address);
        if let Some((_, n)) = after.checked_sub(1).and_then(|before| begins.get(before)) {
            wanted.entry(*n).or_default().push(*address);
        }
    }
    let mut found = HashMap::new();
    for (n, line) in open()?.lines().enumerate() {
        let Some(addresses) = wanted.get(&n) else { continue };
        if let Some((_, name)) = function(&line?) {
            found.extend(addresses.iter().map(|address| (*address, name.to_owned())));
        }
    }
    Ok(found)
}

/// Where a line's function begins, and its name.
fn function(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16).ok().filter(|address| *address != 0)?;
    words.next().filter(|kind| matches!(*kind, "t" | "T" | "w" | "W"))?;
    Some((address, words.next()?))
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_address_belongs_to_the_function_that_begins_before_it() {
        let text = "ffffffff81000010 T second\nffffffff81000000 t first\nffffffff81000020 D data\n\
                    ffffffffc0000000 t bpf_prog_1_culvert_admit\t[bpf]\n0000000000000000 T hidden\n";
        let asked = [0xffff_ffff_8100_000f, 0xffff_ffff_8100_0010, 0xffff_ffff_c000_0001, 1];
        let found = super::find(&asked, || Ok(text.as_bytes())).unwrap();
        let names: Vec<_> = asked.iter().map(|address| found.get(address).map(String::as_str)).collect();
        assert_eq!(names, [Some("first"), Some("second"), Some("bpf_prog_1_culvert_admit"), None]);
    }
}
