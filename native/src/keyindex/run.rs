//! Runs: entries in the order of their hashes, in files that are written once and mapped.
//!
//! ```text
//! 16 bytes   magic and version
//! entries    16 bytes each, little-endian: the complement of the place, the hash; by hash, a key's newest place first
//! ends       u64 each: where the entry's key ends among the keys' bytes (only for keys of any length)
//! keys       their bytes, in the entries' order (none for keys that their hashes say all about)
//! directory  u32 each: how many entries have a hash whose first bits are less than 0, 1, 2, …
//! ```
//! Parts begin where there is room for as many entries as there might have been: the files have holes. Where that is, and the
//! parts' CRC-32s, is said by whoever knows of the run (`Shape`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crc32fast::Hasher;
use memmap2::{Mmap, MmapOptions};

use super::entry::Entry;
use super::{Error, Result};

const MAGIC: &[u8; 16] = b"lakesync-keys\x00\x00\x01";
/// About so many entries, as a power of two, share an entry of the directory: four cache lines.
const SHARE: u32 = 4;
/// Of each part, before it is written.
const BUFFER: usize = 256 << 10;
/// Numbers of entries are u32.
pub const MOST: usize = u32::MAX as usize;

/// How the bytes of keys are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Not at all: a key's hash says which one it is.
    Not,
    /// All of this length.
    Fixed(usize),
    /// Of any length.
    Any,
}

/// Where the parts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    pub count: u64,
    /// Of a hash, that the directory is by.
    pub bits: u32,
    pub parts: [Part; 4],
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    pub start: u64,
    pub length: u64,
    pub crc: u32,
}

/// Where the bytes are.
enum Data {
    Mapped(Mmap),
    Memory(Vec<u8>),
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Mapped(map) => map,
            Data::Memory(data) => data,
        }
    }

    fn part(&self, part: Part) -> &[u8] {
        let (start, length) = (part.start as usize, part.length as usize);
        self.bytes().get(start..).and_then(|rest| rest.get(..length)).unwrap_or_default()
    }
}

/// One run, to be read.
pub struct Run {
    pub shape: Shape,
    held: Held,
    data: Data,
}

impl Run {
    /// Of a file that somebody else wrote, perhaps long ago: an error unless it is what `shape` says, to the last bit.
    pub fn open(file: &File, shape: Shape, held: Held) -> Result<Run> {
        let run = Run::map(file, shape, held)?;
        if run.whole() { Ok(run) } else { Err(Error::value("a damaged run of the index")) }
    }

    fn whole(&self) -> bool {
        let Shape { count, bits, parts } = self.shape;
        if count > MOST as u64 || bits > 32 {
            return false;
        }
        let [entries, ends, keys, directory] = parts;
        let (ends_length, keys_length) = match self.held {
            Held::Not => (0, Some(0)),
            Held::Fixed(width) => (0, count.checked_mul(width as u64)),
            Held::Any => (8 * count, Some(keys.length)),
        };
        let data = self.data.bytes();
        data.starts_with(MAGIC)
            && entries.length == 16 * count
            && (ends.length, Some(keys.length)) == (ends_length, keys_length)
            && directory.length == 4 * ((1 << bits) + 1)
            && parts.iter().all(|part| {
                part.start.checked_add(part.length).is_some_and(|end| end <= data.len() as u64)
                    && crc32fast::hash(self.data.part(*part)) == part.crc
            })
    }

    fn map(file: &File, shape: Shape, held: Held) -> Result<Run> {
        // All of it was just written or will be read at once: its pages are mapped together, not one by one as they are met.
        // SAFETY: the file is ours, and nobody changes or shortens a run once it is written.
        let data = Data::Mapped(unsafe { MmapOptions::new().populate().map(file)? });
        Ok(Run { shape, held, data })
    }

    pub fn len(&self) -> usize {
        self.shape.count as usize
    }

    /// Bytes in memory that the system cannot drop.
    pub fn memory(&self) -> usize {
        match &self.data {
            Data::Mapped(_) => 0,
            Data::Memory(data) => data.len(),
        }
    }

    pub fn entries(&self) -> Entries<'_> {
        Entries(self.data.part(self.shape.parts[0]).as_chunks().0)
    }

    /// The bytes of an entry's key; none if they are not held.
    pub fn key(&self, i: usize) -> &[u8] {
        let keys = self.data.part(self.shape.parts[2]);
        let bounds = match self.held {
            Held::Not => return &[],
            Held::Fixed(width) => (i * width, (i + 1) * width),
            Held::Any => {
                let ends = self.data.part(self.shape.parts[1]).as_chunks::<8>().0;
                let end = |i: usize| ends.get(i).map_or(0, |end| u64::from_le_bytes(*end) as usize);
                (i.checked_sub(1).map_or(0, end), end(i))
            }
        };
        keys.get(bounds.0..bounds.1).unwrap_or_default()
    }

    /// What `find` needs, taken out of the parts once for many keys.
    pub fn finder(&self) -> Finder<'_> {
        Finder {
            entries: self.entries(),
            directory: self.data.part(self.shape.parts[3]).as_chunks().0,
            shift: 64 - self.shape.bits,
        }
    }
}

/// A run's entries.
#[derive(Clone, Copy)]
pub struct Entries<'a>(&'a [[u8; 16]]);

impl Entries<'_> {
    pub fn get(self, i: usize) -> Option<Entry> {
        self.0.get(i).map(|bytes| Entry(u128::from_le_bytes(*bytes)))
    }
}

/// Finds hashes in a run.
pub struct Finder<'a> {
    entries: Entries<'a>,
    directory: &'a [[u8; 4]],
    shift: u32,
}

impl Finder<'_> {
    /// Where to look for a hash: the entries of its part of the directory.
    pub fn bucket(&self, hash: u64) -> (u32, u32) {
        let bucket = hash.checked_shr(self.shift).unwrap_or(0) as usize;
        match self.directory.get(bucket..) {
            Some([first, end, ..]) => (u32::from_le_bytes(*first), u32::from_le_bytes(*end)),
            _ => (0, 0),
        }
    }

    /// The first entry of the hash in a bucket, if there is one.
    pub fn find(&self, hash: u64, (first, end): (u32, u32)) -> Option<usize> {
        let bucket = self.entries.0.get(first as usize..end as usize)?;
        let at = |i: usize| bucket.get(i).map(|bytes| Entry(u128::from_le_bytes(*bytes)).hash());
        // Hashes are spread evenly: begin where it should be.
        let within = if self.shift == 0 { 0 } else { hash.checked_shl(64 - self.shift).unwrap_or(hash) };
        let mut i = ((u128::from(within) * bucket.len() as u128) >> 64) as usize;
        while i > 0 && at(i - 1)? >= hash {
            i -= 1;
        }
        while at(i)? < hash {
            i += 1;
        }
        (at(i)? == hash).then_some(first as usize + i)
    }

    pub fn entries(&self) -> Entries<'_> {
        self.entries
    }
}

/// Where a run is written to.
pub enum Sink {
    File(File),
    Memory(Vec<u8>),
}

impl Sink {
    fn write_at(&mut self, data: &[u8], start: u64) -> io::Result<()> {
        match self {
            Sink::File(file) => file.write_all_at(data, start),
            Sink::Memory(memory) => {
                let start = start as usize;
                memory.resize(memory.len().max(start + data.len()), 0);
                memory[start..start + data.len()].copy_from_slice(data);
                Ok(())
            }
        }
    }
}

/// A part as it is written.
struct Stream {
    start: u64,
    length: u64,
    crc: Hasher,
    waiting: Vec<u8>,
}

impl Stream {
    fn new(start: u64) -> Stream {
        Stream { start, length: 0, crc: Hasher::new(), waiting: Vec::new() }
    }

    fn put(&mut self, data: &[u8], sink: &mut Sink) -> io::Result<()> {
        self.waiting.extend_from_slice(data);
        if self.waiting.len() >= BUFFER { self.flush(sink) } else { Ok(()) }
    }

    fn flush(&mut self, sink: &mut Sink) -> io::Result<()> {
        sink.write_at(&self.waiting, self.start + self.length)?;
        self.crc.update(&self.waiting);
        self.length += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }

    fn end(mut self, sink: &mut Sink) -> io::Result<Part> {
        self.flush(sink)?;
        Ok(Part { start: self.start, length: self.length, crc: self.crc.finalize() })
    }
}

/// Writes a run, entry by entry in order.
pub struct Writer {
    sink: Sink,
    held: Held,
    count: u32,
    entries: Stream,
    ends: Stream,
    keys: Stream,
    keys_length: u64,
    bits: u32,
    /// Below each of these hashes' first bits, how many entries there are.
    directory: Vec<u32>,
}

impl Writer {
    /// For at most `most` entries.
    pub fn new(mut sink: Sink, held: Held, most: usize) -> Result<Writer> {
        if most > MOST {
            return Err(Error::value("more keys than an index can hold"));
        }
        sink.write_at(MAGIC, 0)?;
        let ends = MAGIC.len() as u64 + 16 * most as u64;
        let keys = if held == Held::Any { ends + 8 * most as u64 } else { ends };
        let bits = (most as u32).checked_ilog2().unwrap_or(0).saturating_sub(SHARE);
        Ok(Writer {
            sink,
            held,
            count: 0,
            entries: Stream::new(MAGIC.len() as u64),
            ends: Stream::new(ends),
            keys: Stream::new(keys),
            keys_length: 0,
            bits,
            directory: Vec::with_capacity((1 << bits) + 1),
        })
    }

    pub fn put(&mut self, entry: Entry, key: &[u8]) -> io::Result<()> {
        let bucket = entry.hash().checked_shr(64 - self.bits).unwrap_or(0) as usize;
        while self.directory.len() <= bucket {
            self.directory.push(self.count);
        }
        self.count += 1;
        self.entries.put(&entry.0.to_le_bytes(), &mut self.sink)?;
        if self.held != Held::Not {
            self.keys.put(key, &mut self.sink)?;
            self.keys_length += key.len() as u64;
            if self.held == Held::Any {
                self.ends.put(&self.keys_length.to_le_bytes(), &mut self.sink)?;
            }
        }
        Ok(())
    }

    /// The run, to be read.
    pub fn end(mut self) -> Result<Run> {
        self.directory.resize((1 << self.bits) + 1, self.count);
        let keys_start = self.keys.start;
        let entries = self.entries.end(&mut self.sink)?;
        let ends = self.ends.end(&mut self.sink)?;
        let keys = self.keys.end(&mut self.sink)?;
        let mut directory = Stream::new(keys_start + self.keys_length);
        for count in &self.directory {
            directory.put(&count.to_le_bytes(), &mut self.sink)?;
        }
        let directory = directory.end(&mut self.sink)?;
        let shape = Shape { count: self.count.into(), bits: self.bits, parts: [entries, ends, keys, directory] };
        match self.sink {
            Sink::File(file) => Run::map(&file, shape, self.held),
            Sink::Memory(data) => Ok(Run { shape, held: self.held, data: Data::Memory(data) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Place;
    use super::*;

    fn run(hashes: &[u64], held: Held) -> Run {
        let mut writer = Writer::new(Sink::Memory(Vec::new()), held, hashes.len() + 5).unwrap();
        for (i, hash) in hashes.iter().enumerate() {
            writer.put(Entry::new(*hash, Place { file: 1, row: i as u32 }), &i.to_le_bytes()).unwrap();
        }
        writer.end().unwrap()
    }

    #[test]
    fn hashes_are_found_however_they_are_spread() {
        let even: Vec<u64> = (0..5000).map(|i| i * (u64::MAX / 5000)).collect();
        let crowded: Vec<u64> = (0..5000).map(|i| 77 + 2 * i).chain([u64::MAX]).collect();
        for hashes in [vec![], vec![0], vec![u64::MAX], vec![5, 5, 5], even, crowded] {
            for held in [Held::Not, Held::Fixed(8), Held::Any] {
                let run = run(&hashes, held);
                let finder = run.finder();
                for hash in hashes.iter().flat_map(|hash| [*hash, hash.wrapping_add(1), hash.wrapping_sub(1)]) {
                    let found = finder.find(hash, finder.bucket(hash));
                    assert_eq!(found, hashes.iter().position(|other| *other == hash));
                    if let Some(i) = found.filter(|_| held != Held::Not) {
                        assert_eq!(run.key(i), i.to_le_bytes());
                    }
                }
            }
        }
    }
}
