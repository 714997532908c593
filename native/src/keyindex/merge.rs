//! Entries from several places into one run, without those that count no more.

use super::Result;
use super::entry::{Entry, Item};
use super::files::Files;
use super::keys::Arena;
use super::run::{Held, Run, Sink, Writer};

/// Entries of about so many hashes are brought together at once: they fit the second cache.
const BLOCK: usize = 8 << 10;

/// Entries in order.
pub enum Source<'a, I> {
    Memory(&'a [I], &'a Arena),
    Run(&'a Run),
}

impl<I: Item> Source<'_, I> {
    pub fn len(&self) -> usize {
        match self {
            Source::Memory(items, _) => items.len(),
            Source::Run(run) => run.len(),
        }
    }

    fn key(&self, i: usize) -> &[u8] {
        match self {
            Source::Memory(items, arena) => arena.get(items[i].at()),
            Source::Run(run) => run.key(i),
        }
    }

    /// Go over the entries from `next` on up to the last whose hash is at most `last`; `next` is behind it then.
    fn upto(&self, next: &mut usize, last: u64, mut each: impl FnMut(Entry, usize)) {
        match self {
            Source::Memory(items, _) => {
                while let Some(item) = items.get(*next).filter(|item| item.entry().hash() <= last) {
                    each(item.entry(), *next);
                    *next += 1;
                }
            }
            Source::Run(run) => {
                let entries = run.entries();
                while let Some(entry) = entries.get(*next).filter(|entry| entry.hash() <= last) {
                    each(entry, *next);
                    *next += 1;
                }
            }
        }
    }
}

/// The run, and how many keys in it have several live places.
pub fn merge<I: Item>(sources: &[Source<'_, I>], sink: Sink, held: Held, files: &Files) -> Result<(Run, u64)> {
    let total: usize = sources.iter().map(Source::len).sum();
    let mut chosen = Chosen::new(Writer::new(sink, held, total)?, held, files);
    if let [source] = sources {
        let mut result = Ok(());
        source.upto(&mut 0, u64::MAX, |entry, i| {
            if result.is_ok() {
                let key = if held == Held::Not { &[] } else { source.key(i) };
                result = chosen.put(entry, key);
            }
        });
        result?;
    } else {
        let mut next = vec![0; sources.len()];
        let mut block: Vec<(Entry, u32, u32)> = Vec::with_capacity(2 * BLOCK);
        let step = u64::MAX / (total / BLOCK + 1) as u64;
        let mut last = step;
        loop {
            for (number, (source, next)) in sources.iter().zip(&mut next).enumerate() {
                source.upto(next, last, |entry, i| block.push((entry, number as u32, i as u32)));
            }
            // The sort that finds what is in order already.
            block.sort_by_key(|(entry, ..)| *entry);
            for (entry, number, i) in block.drain(..) {
                let key = if held == Held::Not { &[] } else { sources[number as usize].key(i as usize) };
                chosen.put(entry, key)?;
            }
            if last == u64::MAX {
                break;
            }
            last = last.saturating_add(step);
        }
    }
    Ok((chosen.writer.end()?, chosen.several))
}

/// Of the entries of each key those that count.
struct Chosen<'a> {
    writer: Writer,
    files: &'a Files,
    held: Held,
    hash: Option<u64>,
    /// Of this hash: each key's bytes, its last entry and how many were written.
    same: Vec<(Vec<u8>, Entry, u32)>,
    /// How many of `same` are of this hash: their memory is used again.
    known: usize,
    several: u64,
}

impl<'a> Chosen<'a> {
    fn new(writer: Writer, held: Held, files: &'a Files) -> Chosen<'a> {
        Chosen { writer, files, held, hash: None, same: Vec::new(), known: 0, several: 0 }
    }

    fn put(&mut self, entry: Entry, key: &[u8]) -> Result<()> {
        if !self.files.live(entry.place()) {
            return Ok(());
        }
        if self.hash != Some(entry.hash()) {
            self.hash = Some(entry.hash());
            self.known = 0;
        }
        let same = &mut self.same[..self.known];
        match same.iter_mut().find(|(bytes, ..)| self.held == Held::Not || bytes == key) {
            Some((_, last, _)) if *last == entry => return Ok(()),
            Some((_, last, count)) => {
                *last = entry;
                *count += 1;
                self.several += u64::from(*count == 2);
            }
            None => {
                if self.known == self.same.len() {
                    self.same.push((Vec::new(), entry, 1));
                }
                let new = &mut self.same[self.known];
                new.0.clear();
                new.0.extend_from_slice(key);
                (new.1, new.2) = (entry, 1);
                self.known += 1;
            }
        }
        self.writer.put(entry, key)?;
        Ok(())
    }
}
