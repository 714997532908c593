//! `KeyIndex`: the newest place, a file and a row of it, of every key of a table.
//!
//! Keys are hashed; hash and place go into memory first, then into immutable runs that are sorted by hash, mapped, and merged
//! when there are many (a log-structured merge tree). Which places count is said file by file: nothing is ever deleted from
//! a run, entries of dead places go when it is merged.

mod entry;
mod files;
mod folder;
mod keys;
mod merge;
mod run;
mod shard;
mod sort;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::{fmt, io};

use arrow_array::StructArray;

use crate::bitmap::Bitmap;
use entry::{Slim, Wide};
use files::Files;
use folder::{Folder, List, Stored};
use keys::{Encoded, Form, Keys};
use run::Held;
use store::{Shards, Store};

pub use entry::Place;

/// Why something cannot be done. Its words never hold a key.
#[derive(Debug)]
pub enum Error {
    /// What was given, or what was found in the folder, is not what it must be.
    Value(String),
    Io(io::Error),
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn value(what: impl Into<String>) -> Error {
        Error::Value(what.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Value(what) => f.write_str(what),
            Error::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

/// So many keys are encoded at once.
const CHUNK: usize = 1 << 16;

pub struct KeyIndex {
    folder: Folder,
    memory: usize,
    stamp: Vec<u8>,
    files: Files,
    /// Once there are keys.
    store: Option<(Form, Box<dyn Store>)>,
    encoded: Encoded,
}

fn store(held: Held, memory: usize, runs: [Vec<Stored>; 2]) -> Box<dyn Store> {
    match held {
        Held::Not => Box::new(Shards::<Slim>::new(held, memory, runs)),
        Held::Fixed(_) | Held::Any => Box::new(Shards::<Wide>::new(held, memory, runs)),
    }
}

impl KeyIndex {
    /// An empty one, of which at most about `memory` bytes are not in runs. It takes the place of what is in the folder when it
    /// is saved.
    pub fn new(folder: Option<PathBuf>, memory: usize) -> Result<KeyIndex> {
        let folder = Folder::new(folder)?;
        let (files, encoded) = (Files::default(), Encoded::default());
        Ok(KeyIndex { folder, memory, stamp: Vec::new(), files, store: None, encoded })
    }

    /// What was saved last.
    pub fn open(folder: PathBuf, memory: usize) -> Result<KeyIndex> {
        if !folder.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        let mut index = KeyIndex::new(Some(folder), memory)?;
        let (list, runs) = index.folder.read(|form| Ok(Form::parse(form)?.held))?;
        for (number, dead) in list.files {
            let dead = dead.map(|dead| Bitmap::parse(&dead)).transpose().map_err(Error::Value)?;
            index.files.set(number, dead);
        }
        if !list.form.is_empty() {
            let form = Form::parse(&list.form)?;
            let store = store(form.held, memory, runs);
            index.store = Some((form, store));
        }
        index.stamp = list.stamp;
        Ok(index)
    }

    /// What was saved with it.
    pub fn stamp(&self) -> &[u8] {
        &self.stamp
    }

    /// The file is live, except for these rows.
    pub fn set_file(&mut self, number: u32, dead: Option<Bitmap>) {
        self.files.set(number, dead);
    }

    /// No place in the file counts from now on.
    pub fn drop_file(&mut self, number: u32) {
        self.files.drop(number);
    }

    /// The keys of rows `first_row`… of a file; those of dead rows are passed over.
    pub fn add(&mut self, number: u32, first_row: u32, keys: &StructArray, dead: Option<&Bitmap>) -> Result<()> {
        let keys = self.keys(keys)?;
        if u32::try_from(keys.len()).ok().and_then(|count| first_row.checked_add(count)).is_none() {
            return Err(Error::value("rows beyond 2³² of a file"));
        }
        let (_, store) = self.store.get_or_insert_with(|| {
            let store = store(keys.form.held, self.memory, Default::default());
            (keys.form.clone(), store)
        });
        for start in (0..keys.len()).step_by(CHUNK) {
            keys.encode(start..keys.len().min(start + CHUNK), &mut self.encoded);
            let passed_over = |row: u32| dead.is_some_and(|dead| dead.contains(row));
            store.put(&self.encoded, number, first_row + start as u32, &passed_over);
            store.flush(&self.files, &self.folder)?;
        }
        Ok(())
    }

    /// Of each key the newest live place.
    pub fn locate(&mut self, keys: &StructArray) -> Result<Vec<Option<Place>>> {
        let keys = self.keys(keys)?;
        let Some((_, store)) = &mut self.store else { return Ok(vec![None; keys.len()]) };
        store.settle(&self.files, &self.folder);
        let mut found = Vec::with_capacity(keys.len());
        for start in (0..keys.len()).step_by(CHUNK) {
            keys.encode(start..keys.len().min(start + CHUNK), &mut self.encoded);
            store.locate(&self.encoded, &self.files, &mut found);
        }
        Ok(found)
    }

    /// Make everything one run, without dead places; how many keys have several live ones.
    pub fn compact(&mut self) -> Result<u64> {
        let Some((_, store)) = &mut self.store else { return Ok(0) };
        store.compact(&self.files, &self.folder)
    }

    /// Everything that is only in memory goes into a run.
    pub fn write_run(&mut self) -> Result<()> {
        let Some((_, store)) = &mut self.store else { return Ok(()) };
        store.spill(&self.files, &self.folder)?;
        store.tidy(&self.files, &self.folder)
    }

    /// Everything is what `open` gives from now on.
    pub fn save(&mut self, stamp: &[u8]) -> Result<()> {
        self.write_run()?;
        let files = self.files.all().into_iter().map(|(number, dead)| (number, dead.map(Bitmap::serialize)));
        let form = self.store.as_ref().map_or(String::new(), |(form, _)| form.text.clone());
        let list = List { form, stamp: stamp.to_vec(), files: files.collect() };
        let runs = self.store.as_ref().map_or([&[][..], &[]], |(_, store)| store.runs());
        self.folder.save(&list, runs)?;
        self.stamp = list.stamp;
        Ok(())
    }

    /// Bytes in memory, without what the system may drop.
    pub fn memory(&self) -> usize {
        self.store.as_ref().map_or(0, |(_, store)| store.memory())
    }

    /// Places in it, dead ones too.
    pub fn entries(&self) -> usize {
        self.store.as_ref().map_or(0, |(_, store)| store.entries())
    }

    /// How many runs a lookup may have to look at.
    pub fn runs(&self) -> usize {
        self.store.as_ref().map_or(0, |(_, store)| store.runs().map(<[Stored]>::len).into_iter().max().unwrap_or(0))
    }

    fn keys(&self, keys: &StructArray) -> Result<Keys> {
        let keys = Keys::new(keys)?;
        match &self.store {
            Some((form, _)) if *form != keys.form => {
                Err(Error::value(format!("keys of ({}) in an index of ({})", keys.form.text, form.text)))
            }
            _ => Ok(keys),
        }
    }
}
