//! One half of the keys: what is only in memory, and runs.

use hashbrown::HashTable;

use super::Result;
use super::entry::{Entry, Item, Place};
use super::files::Files;
use super::folder::{Folder, Stored};
use super::keys::{Arena, Encoded};
use super::merge::{Source, merge};
use super::run::Held;
use super::sort::sort;

/// More new entries than this go into a run directly: that costs less than the table.
const DIRECT: usize = 128 << 10;
/// What waits grows by at most so many entries at a time.
const GROWTH: usize = 256 << 10;
/// A run is merged into an older one of up to so many times its size.
const RATIO: usize = 3;
/// While entries are only added, so many runs may wait to be merged.
const WAITING_RUNS: usize = 16;
/// So many keys are looked for at the same time: their memory is waited for together.
const TOGETHER: usize = 32;

pub struct Shard<I> {
    held: Held,
    /// Bytes in memory from which on a run is written.
    limit: usize,
    /// Newest entries, in no order.
    waiting: Vec<I>,
    /// Entries before these. A key is in here several times only if it was when these places were live at once.
    table: HashTable<I>,
    /// Keys of the table up to `settled`, then of what waits.
    arena: Arena,
    settled: u64,
    /// Oldest first.
    pub runs: Vec<Stored>,
}

impl<I: Item> Shard<I> {
    pub fn new(held: Held, limit: usize, runs: Vec<Stored>) -> Shard<I> {
        Shard { held, limit, waiting: Vec::new(), table: HashTable::new(), arena: Arena::new(held), settled: 0, runs }
    }

    /// Note that a key is in a place. Whoever does asks whether it is `full` now.
    pub fn put(&mut self, entry: Entry, key: &[u8]) {
        if self.waiting.len() == self.waiting.capacity() {
            self.waiting.reserve_exact((self.waiting.len() / 2).clamp(64, GROWTH));
        }
        let at = if self.held == Held::Not { 0 } else { self.arena.put(key) };
        self.waiting.push(I::new(entry, at));
    }

    /// Whether there is more in memory than there may be, or would be once it was sorted.
    pub fn full(&self) -> bool {
        let sorted = (self.waiting.len() + self.table.len()) * I::SIZE;
        sorted + self.table.allocation_size() + self.arena.len() as usize > self.limit
    }

    /// Everything that is in memory becomes a run.
    pub fn spill(&mut self, files: &Files, folder: &Folder) -> Result<()> {
        if self.runs.len() >= WAITING_RUNS {
            self.merge_from(self.runs.len() / 2, files, folder)?;
        }
        self.gather();
        if self.waiting.is_empty() {
            return Ok(());
        }
        let source = [Source::Memory(&self.waiting, &self.arena)];
        let (stored, _) = folder.write(|sink| merge(&source, sink, self.held, files))?;
        self.keep(stored, folder);
        self.forget();
        Ok(())
    }

    /// What is in memory, sorted in `waiting`.
    fn gather(&mut self) {
        self.waiting.reserve_exact(self.table.len());
        self.waiting.extend(std::mem::take(&mut self.table));
        self.settled = self.arena.len();
        sort(&mut self.waiting);
    }

    /// What was in memory is in a run.
    fn forget(&mut self) {
        self.waiting.clear();
        self.arena = Arena::new(self.held);
        self.settled = 0;
    }

    fn keep(&mut self, stored: Stored, folder: &Folder) {
        if stored.run.len() > 0 {
            self.runs.push(stored);
        } else {
            folder.discard([stored]);
        }
    }

    /// Bring entries where they can be looked up. Where no run can be written they stay in memory: whoever adds more will hear
    /// of it.
    pub fn settle(&mut self, files: &Files, folder: &Folder) {
        if !self.waiting.is_empty() {
            let much = self.waiting.len() > DIRECT || self.memory() + self.growth() > self.limit;
            if !much || self.spill(files, folder).and_then(|()| self.merge_tiers(files, folder)).is_err() {
                self.tabulate(files);
            }
        }
        self.waiting.shrink_to(DIRECT);
    }

    /// Bytes that the table would take more if what waits came into it.
    fn growth(&self) -> usize {
        let entries = self.table.len() + self.waiting.len();
        if entries <= self.table.capacity() { 0 } else { (entries * 8 / 7).next_power_of_two() * (I::SIZE + 1) }
    }

    fn tabulate(&mut self, files: &Files) {
        let before = self.settled;
        for item in self.waiting.drain(..) {
            let (entry, key) = (item.entry(), self.arena.get(item.at()));
            let mut known = false;
            for other in self.table.iter_hash_mut(entry.hash()) {
                if other.entry().hash() != entry.hash() || self.arena.get(other.at()) != key {
                    continue;
                }
                if other.entry() == entry || !files.live(other.entry().place()) {
                    *other = I::new(entry, other.at());
                    known = true;
                    break;
                }
            }
            if !known {
                // It stays where it is if it could not be written before.
                let mut at = item.at();
                if at >= before {
                    (at, self.settled) = (self.settled, self.arena.shift(at, self.settled));
                }
                self.table.insert_unique(entry.hash(), I::new(entry, at), |item| item.entry().hash());
            }
        }
        self.arena.truncate(self.settled);
    }

    /// Merge the newest runs, as long as the one before is not far larger than all these.
    pub fn merge_tiers(&mut self, files: &Files, folder: &Folder) -> Result<()> {
        let mut first = self.runs.len();
        let mut size = 0;
        while let Some(run) = first.checked_sub(1).map(|i| &self.runs[i].run)
            && (size == 0 || run.len() <= RATIO * size)
        {
            size += run.len();
            first -= 1;
        }
        if first + 1 < self.runs.len() { self.merge_from(first, files, folder) } else { Ok(()) }
    }

    fn merge_from(&mut self, first: usize, files: &Files, folder: &Folder) -> Result<()> {
        let sources: Vec<Source<'_, I>> = self.runs[first..].iter().map(|stored| Source::Run(&stored.run)).collect();
        let (stored, _) = folder.write(|sink| merge(&sources, sink, self.held, files))?;
        folder.discard(self.runs.drain(first..));
        self.keep(stored, folder);
        Ok(())
    }

    /// All in one run; how many keys have several live places.
    pub fn compact(&mut self, files: &Files, folder: &Folder) -> Result<u64> {
        self.gather();
        let mut sources: Vec<Source<'_, I>> = self.runs.iter().map(|stored| Source::Run(&stored.run)).collect();
        if !self.waiting.is_empty() {
            sources.push(Source::Memory(&self.waiting, &self.arena));
        }
        if sources.is_empty() {
            return Ok(0);
        }
        let (stored, several) = folder.write(|sink| merge(&sources, sink, self.held, files))?;
        folder.discard(self.runs.drain(..));
        self.keep(stored, folder);
        self.forget();
        self.waiting.shrink_to(DIRECT);
        Ok(several)
    }

    /// The newest live places of these of the keys, each with its number.
    pub fn locate(&self, keys: &Encoded, mut numbers: Vec<u32>, files: &Files) -> Vec<(u32, Place)> {
        let mut found = Vec::with_capacity(numbers.len());
        let same = |key: &[u8], number: u32| self.held == Held::Not || key == keys.bytes(number as usize);
        if !self.table.is_empty() {
            numbers.retain(|number| {
                let hash = keys.hashes[*number as usize];
                let places = self
                    .table
                    .iter_hash(hash)
                    .filter(|item| item.entry().hash() == hash && same(self.arena.get(item.at()), *number));
                let newest = places.map(|item| item.entry().place()).filter(|place| files.live(*place)).max();
                found.extend(newest.map(|place| (*number, place)));
                newest.is_none()
            });
        }
        for Stored { run, .. } in self.runs.iter().rev() {
            let finder = run.finder();
            let mut buckets = [(0, 0); TOGETHER];
            let mut left = 0;
            for start in (0..numbers.len()).step_by(TOGETHER) {
                let end = numbers.len().min(start + TOGETHER);
                for (bucket, number) in buckets.iter_mut().zip(&numbers[start..end]) {
                    *bucket = finder.bucket(keys.hashes[*number as usize]);
                }
                for (i, bucket) in (start..end).zip(buckets) {
                    let number = numbers[i];
                    let hash = keys.hashes[number as usize];
                    let newest = finder.find(hash, bucket).and_then(|first| {
                        (first..)
                            .map_while(|at| {
                                finder
                                    .entries()
                                    .get(at)
                                    .filter(|entry| entry.hash() == hash)
                                    .map(|entry| (at, entry.place()))
                            })
                            .find(|(at, place)| same(run.key(*at), number) && files.live(*place))
                    });
                    if let Some((_, place)) = newest {
                        found.push((number, place));
                    } else {
                        numbers[left] = number;
                        left += 1;
                    }
                }
            }
            numbers.truncate(left);
        }
        found
    }

    /// Entries that cannot be looked up yet.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Bytes in memory.
    pub fn memory(&self) -> usize {
        let runs: usize = self.runs.iter().map(|stored| stored.run.memory()).sum();
        self.waiting.capacity() * I::SIZE + self.table.allocation_size() + self.arena.memory() + runs
    }

    /// Entries, dead ones too.
    pub fn entries(&self) -> usize {
        let runs: usize = self.runs.iter().map(|stored| stored.run.len()).sum();
        self.waiting.len() + self.table.len() + runs
    }
}
