//! The two halves of an index, worked on by two threads where that is worth it.

use super::Result;
use super::entry::{Entry, Item, Place};
use super::files::Files;
use super::folder::{Folder, Stored};
use super::keys::Encoded;
use super::run::Held;
use super::shard::Shard;

/// From so many keys on, a second thread costs less than it saves.
const PARALLEL: usize = 4 << 10;

/// An index of keys that are held in one way.
pub trait Store: Send {
    /// Key `i` is in row `first + i` of the file, unless it is passed over.
    fn put(&mut self, keys: &Encoded, number: u32, first: u32, passed_over: &dyn Fn(u32) -> bool);
    /// Write runs if there is more in memory than there may be.
    fn flush(&mut self, files: &Files, folder: &Folder) -> Result<()>;
    /// Write everything that is in memory into runs.
    fn spill(&mut self, files: &Files, folder: &Folder) -> Result<()>;
    /// Merge runs if there are many.
    fn tidy(&mut self, files: &Files, folder: &Folder) -> Result<()>;
    /// Everything can be looked up.
    fn settle(&mut self, files: &Files, folder: &Folder);
    /// Everything is in one run; how many keys have several live places.
    fn compact(&mut self, files: &Files, folder: &Folder) -> Result<u64>;
    /// The keys' places are added to `found`.
    fn locate(&self, keys: &Encoded, files: &Files, found: &mut Vec<Option<Place>>);
    fn runs(&self) -> [&[Stored]; 2];
    fn memory(&self) -> usize;
    fn entries(&self) -> usize;
}

pub struct Shards<I>([Shard<I>; 2]);

impl<I: Item> Shards<I> {
    pub fn new(held: Held, memory: usize, runs: [Vec<Stored>; 2]) -> Shards<I> {
        Shards(runs.map(|runs| Shard::new(held, memory / 2, runs)))
    }

    /// On both halves, by two threads if there are many entries to do it with.
    fn both<T: Send>(&mut self, entries: usize, of: impl Fn(&mut Shard<I>) -> T + Sync) -> [T; 2] {
        let [first, second] = &mut self.0;
        if entries < PARALLEL {
            return [of(first), of(second)];
        }
        std::thread::scope(|scope| {
            let first = scope.spawn(|| of(first));
            let second = of(second);
            [first.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), second]
        })
    }
}

/// Neither the bits that runs are sorted by nor those that tables look at.
fn shard(hash: u64) -> usize {
    (hash >> 32) as usize & 1
}

impl<I: Item> Store for Shards<I> {
    fn put(&mut self, keys: &Encoded, number: u32, first: u32, passed_over: &dyn Fn(u32) -> bool) {
        for (i, hash) in keys.hashes.iter().enumerate() {
            let row = first + i as u32;
            if !passed_over(row) {
                self.0[shard(*hash)].put(Entry::new(*hash, Place { file: number, row }), keys.bytes(i));
            }
        }
    }

    fn flush(&mut self, files: &Files, folder: &Folder) -> Result<()> {
        if self.0.iter().any(Shard::full) { self.spill(files, folder) } else { Ok(()) }
    }

    fn spill(&mut self, files: &Files, folder: &Folder) -> Result<()> {
        let [first, second] = self.both(self.entries(), |shard| shard.spill(files, folder));
        first.and(second)
    }

    fn tidy(&mut self, files: &Files, folder: &Folder) -> Result<()> {
        let [first, second] = self.both(self.entries(), |shard| shard.merge_tiers(files, folder));
        first.and(second)
    }

    fn settle(&mut self, files: &Files, folder: &Folder) {
        self.both(self.0.iter().map(Shard::waiting).sum(), |shard| shard.settle(files, folder));
    }

    fn compact(&mut self, files: &Files, folder: &Folder) -> Result<u64> {
        let [first, second] = self.both(self.entries(), |shard| shard.compact(files, folder));
        Ok(first? + second?)
    }

    fn locate(&self, keys: &Encoded, files: &Files, found: &mut Vec<Option<Place>>) {
        let count = keys.hashes.len();
        let mut numbers = [Vec::with_capacity(count / 2 + count / 16), Vec::with_capacity(count / 2 + count / 16)];
        for (i, hash) in keys.hashes.iter().enumerate() {
            numbers[shard(*hash)].push(i as u32);
        }
        let [first, second] = &self.0;
        let [in_first, in_second] = numbers;
        let places = if count < PARALLEL {
            [first.locate(keys, in_first, files), second.locate(keys, in_second, files)]
        } else {
            std::thread::scope(|scope| {
                let first = scope.spawn(|| first.locate(keys, in_first, files));
                let second = second.locate(keys, in_second, files);
                [first.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), second]
            })
        };
        let start = found.len();
        found.resize(start + count, None);
        for (i, place) in places.into_iter().flatten() {
            found[start + i as usize] = Some(place);
        }
    }

    fn runs(&self) -> [&[Stored]; 2] {
        self.0.each_ref().map(|shard| &shard.runs[..])
    }

    fn memory(&self) -> usize {
        self.0.iter().map(Shard::memory).sum()
    }

    fn entries(&self) -> usize {
        self.0.iter().map(Shard::entries).sum()
    }
}
