//! Names of the kernel's own functions.

use std::fs;

/// Where each begins, in order.
pub(super) struct KernelSymbols(Vec<(u64, String)>);

impl KernelSymbols {
    /// From `/proc/kallsyms`; none where the kernel keeps the addresses to itself (`kernel.kptr_restrict`).
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/kallsyms").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let function = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok().filter(|address| *address != 0)?;
            words.next().filter(|kind| matches!(*kind, "t" | "T" | "w" | "W"))?;
            Some((address, words.next()?.to_owned()))
        };
        let mut found: Vec<_> = text.lines().filter_map(function).collect();
        found.sort();
        Self(found)
    }

    /// The function that has this address.
    pub(super) fn name(&self, address: u64) -> Option<&str> {
        let after = self.0.partition_point(|(begin, _)| *begin <= address);
        self.0.get(after.checked_sub(1)?).map(|(_, name)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::KernelSymbols;

    #[test]
    fn an_address_belongs_to_the_function_that_begins_before_it() {
        let text = "ffffffff81000010 T second\nffffffff81000000 t first\nffffffff81000020 D data\n\
                    ffffffffc0000000 t bpf_prog_1_culvert_admit\t[bpf]\n";
        let symbols = KernelSymbols::parse(text);
        assert_eq!(symbols.name(0xffff_ffff_8100_000f), Some("first"));
        assert_eq!(symbols.name(0xffff_ffff_8100_0010), Some("second"));
        assert_eq!(symbols.name(0xffff_ffff_c000_0001), Some("bpf_prog_1_culvert_admit"));
        assert_eq!(symbols.name(1), None);
        assert!(KernelSymbols::parse("0000000000000000 T hidden\n").name(1).is_none());
    }
}
