//! The file format of pprof: gzipped protobuf (google/pprof, `proto/profile.proto`).

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::cpu::Place;
use super::symbols::Symbols;
use super::{Measured, told};

#[derive(Clone, PartialEq, Message)]
pub(super) struct Profile {
    #[prost(message, repeated, tag = "1")]
    pub(super) sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub(super) sample: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    pub(super) mapping: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    pub(super) location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    pub(super) function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub(super) string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    pub(super) time_nanos: i64,
    #[prost(int64, tag = "10")]
    pub(super) duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    pub(super) period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub(super) period: i64,
}

/// Both are places in the table of strings, as all names are.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueType {
    #[prost(int64, tag = "1")]
    pub(super) r#type: i64,
    #[prost(int64, tag = "2")]
    pub(super) unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    /// The innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub(super) location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    pub(super) value: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Mapping {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint64, tag = "2")]
    pub(super) memory_start: u64,
    #[prost(uint64, tag = "3")]
    pub(super) memory_limit: u64,
    #[prost(uint64, tag = "4")]
    pub(super) file_offset: u64,
    #[prost(int64, tag = "5")]
    pub(super) filename: i64,
    #[prost(bool, tag = "7")]
    pub(super) has_functions: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Location {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint64, tag = "2")]
    pub(super) mapping_id: u64,
    #[prost(uint64, tag = "3")]
    pub(super) address: u64,
    #[prost(message, repeated, tag = "4")]
    pub(super) line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Line {
    #[prost(uint64, tag = "1")]
    pub(super) function_id: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Function {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(int64, tag = "2")]
    pub(super) name: i64,
    #[prost(int64, tag = "3")]
    pub(super) system_name: i64,
}

/// A profile that is being put together.
#[derive(Default)]
struct Writer {
    profile: Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<i64, u64>,
    locations: HashMap<Place, u64>,
}

/// The file.
///
/// # Errors
///
/// Compression failed: never.
pub(super) fn write(measured: &Measured, symbols: &Symbols) -> io::Result<Vec<u8>> {
    let mut writer = Writer::default();
    writer.string("");
    writer.profile.sample_type = measured.kinds.iter().map(|kind| writer.kind(*kind)).collect();
    writer.profile.period_type = Some(writer.kind(measured.period_of));
    writer.add_mappings(symbols);
    for (stack, values) in &measured.stacks {
        let location_id =
            told(measured, stack, symbols).iter().map(|place| writer.location(*place, symbols)).collect();
        writer.profile.sample.push(Sample { location_id, value: values.clone() });
    }
    let mut profile = writer.profile;
    profile.period = i64::try_from(measured.period).unwrap_or(i64::MAX);
    profile.duration_nanos = nanos(measured.length.as_nanos());
    profile.time_nanos =
        nanos(measured.begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos());
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&profile.encode_to_vec())?;
    gzip.finish()
}

fn nanos(number: u128) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Writer {
    /// A string's place in the table.
    fn string(&mut self, text: &str) -> i64 {
        if let Some(place) = self.strings.get(text) {
            return *place;
        }
        let place = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), place);
        place
    }

    fn kind(&mut self, (kind, unit): (&str, &str)) -> ValueType {
        ValueType { r#type: self.string(kind), unit: self.string(unit) }
    }

    /// The names are in the file already: pprof need not look for them.
    fn add_mappings(&mut self, symbols: &Symbols) {
        for (n, mapping) in symbols.mappings().iter().enumerate() {
            let filename = self.string(&mapping.name);
            self.profile.mapping.push(Mapping {
                id: n as u64 + 1,
                memory_start: mapping.start,
                memory_limit: mapping.end,
                file_offset: mapping.offset,
                filename,
                has_functions: true,
            });
        }
    }

    fn location(&mut self, place: Place, symbols: &Symbols) -> u64 {
        if let Some(id) = self.locations.get(&place) {
            return *id;
        }
        let of = symbols.mappings().iter().position(|m| (m.start..m.end).contains(&place.inside()));
        let line = vec![self.line(&symbols.name(place))];
        let id = self.profile.location.len() as u64 + 1;
        let mapping_id = if place.in_kernel { 0 } else { of.map_or(0, |n| n as u64 + 1) };
        self.profile.location.push(Location { id, mapping_id, address: place.address, line });
        self.locations.insert(place, id);
        id
    }

    fn line(&mut self, function: &str) -> Line {
        let name = self.string(function);
        let next = self.profile.function.len() as u64 + 1;
        let function_id = *self.functions.entry(name).or_insert(next);
        if function_id == next {
            self.profile.function.push(Function { id: next, name, system_name: name });
        }
        Line { function_id }
    }
}
