//! Names one BTF type of the object anew, so that a dump shows text as text.
//!
//! bpftool prints an array as a string only when its element type is called `char` (checked in 7.1 to 7.6). Rust has no
//! such type: `culvert_common` uses `i8` for text, and nothing else does. The type information is rewritten at the end
//! of the file with that one name changed; instructions and relocations stay as they are.

use anyhow::{Context, Result, bail};

const SECTION_HEADER: usize = 64; // sizeof(Elf64_Shdr)
const INT: u32 = 1;
const TEXT_TYPE: &[u8] = b"i8";

/// Calls the element type of texts `char`.
///
/// # Errors
///
/// When the file is not a little-endian ELF64 object with BTF of a known shape.
pub(crate) fn name_text_type(object: &mut Vec<u8>) -> Result<()> {
    let header = section_header(object, b".BTF").context("the BPF object has no .BTF section")?;
    let (offset, size) = (long(object, header + 24)?, long(object, header + 32)?);
    let mut btf = object.get(offset..offset + size).context(".BTF lies outside the object")?.to_vec();
    rename(&mut btf)?;
    object.resize(object.len().next_multiple_of(8), 0);
    let place = object.len() as u64;
    object.extend_from_slice(&btf);
    put(object, header + 24, &place.to_le_bytes())?;
    put(object, header + 32, &(btf.len() as u64).to_le_bytes())
}

fn rename(btf: &mut Vec<u8>) -> Result<()> {
    if word(btf, 0)? & 0xffff != 0xeb9f {
        bail!("the BTF is not little-endian BTF");
    }
    let head = word(btf, 4)? as usize;
    let (types, types_len) = (head + word(btf, 8)? as usize, word(btf, 12)? as usize);
    let (strings, strings_len) = (head + word(btf, 16)? as usize, word(btf, 20)?);
    if strings + strings_len as usize != btf.len() {
        bail!("the BTF's strings are not at its end");
    }
    let mut at = types;
    while at < types + types_len {
        let info = word(btf, at + 4)?;
        let kind = info >> 24 & 0x1f;
        let name = strings + word(btf, at)? as usize;
        if kind == INT && btf.get(name..name + 3) == Some(&[TEXT_TYPE, b"\0"].concat()) {
            put(btf, at, &strings_len.to_le_bytes())?;
        }
        at += 12 + trailer(kind, (info & 0xffff) as usize)?;
    }
    btf.extend_from_slice(b"char\0");
    put(btf, 20, &(strings_len + 5).to_le_bytes())
}

/// Bytes after `struct btf_type`, by kind (include/uapi/linux/btf.h, Linux 6.18).
fn trailer(kind: u32, members: usize) -> Result<usize> {
    Ok(match kind {
        1 | 14 | 17 => 4,                // int, var, declaration tag
        2 | 7..=12 | 16 | 18 => 0,       // pointer, forward, typedef, qualifiers, function, float, type tag
        3 => 12,                         // array
        4 | 5 | 15 | 19 => members * 12, // struct, union, data section, 64-bit enum
        6 | 13 => members * 8,           // enum, function prototype
        other => bail!("BTF kind {other} is unknown"),
    })
}

/// Offset of the header of the section with this name.
fn section_header(object: &[u8], name: &[u8]) -> Result<usize> {
    if object.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("the BPF object is not a little-endian ELF64 file");
    }
    let (table, count, names) = (long(object, 40)?, half(object, 60)?, half(object, 62)?);
    let names = long(object, table + names * SECTION_HEADER + 24)?;
    for number in 0..count {
        let header = table + number * SECTION_HEADER;
        let text = names + word(object, header)? as usize;
        if object.get(text..text + name.len()) == Some(name) && object.get(text + name.len()) == Some(&0) {
            return Ok(header);
        }
    }
    bail!("no section {}", String::from_utf8_lossy(name))
}

fn bytes<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N]> {
    let slice = data.get(at..at + N).context("the BPF object ends too soon")?;
    Ok(slice.try_into()?)
}

fn half(data: &[u8], at: usize) -> Result<usize> {
    Ok(u16::from_le_bytes(bytes(data, at)?).into())
}

fn word(data: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes(data, at)?))
}

fn long(data: &[u8], at: usize) -> Result<usize> {
    Ok(usize::try_from(u64::from_le_bytes(bytes(data, at)?))?)
}

fn put(data: &mut [u8], at: usize, value: &[u8]) -> Result<()> {
    let place = data.get_mut(at..at + value.len()).context("the BPF object ends too soon")?;
    place.copy_from_slice(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_type_is_renamed_and_the_rest_stays() {
        let strings = b"\0i8\0u8\0";
        let mut btf = Vec::new();
        for value in [0x0001_eb9f_u32, 24, 0, 32, 32, strings.len() as u32] {
            btf.extend_from_slice(&value.to_le_bytes());
        }
        for name in [1_u32, 4] {
            for value in [name, INT << 24, 1, 8] {
                btf.extend_from_slice(&value.to_le_bytes());
            }
        }
        btf.extend_from_slice(strings);
        rename(&mut btf).unwrap();
        assert_eq!(word(&btf, 24).unwrap(), 7, "i8 points at the new string");
        assert_eq!(word(&btf, 40).unwrap(), 4, "u8 keeps its name");
        assert!(btf.ends_with(b"u8\0char\0"));
        assert_eq!(word(&btf, 20).unwrap(), 12);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(name_text_type(&mut b"not an object".to_vec()).is_err());
        assert!(name_text_type(&mut Vec::new()).is_err());
    }
}
