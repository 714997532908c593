//! Where runs are, and the one file that says which of them are the index.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::run::{Held, Part, Run, Shape, Sink};
use super::{Error, Result};

const INDEX: &str = "index";
const NEW: &str = "index.new";
const RUN: &str = "run";
const MAGIC: &[u8; 16] = b"lakesync-index\x00\x02";

/// A folder, or none: then runs are files that have no name any more, or memory where there cannot be such files.
pub struct Folder {
    path: Option<PathBuf>,
    next: AtomicU64,
    /// Runs that `index` names.
    saved: HashSet<u64>,
}

/// A run and where it is.
pub struct Stored {
    pub run: Run,
    /// Of the file's name; 0 if it has none.
    number: u64,
}

impl Folder {
    pub fn new(path: Option<PathBuf>) -> Result<Folder> {
        let mut next = 1;
        if let Some(path) = &path {
            fs::create_dir_all(path)?;
            next += numbers_in(path)?.into_iter().max().unwrap_or(0);
        }
        Ok(Folder { path, next: next.into(), saved: HashSet::new() })
    }

    /// Write a run with `make`, which is given where to.
    pub fn write<T>(&self, make: impl Fn(Sink) -> Result<(Run, T)>) -> Result<(Stored, T)> {
        let Some(folder) = &self.path else {
            let (run, more) = nameless().map_err(Error::Io).and_then(&make).or_else(|error| match error {
                Error::Io(_) => make(Sink::Memory(Vec::new())),
                error => Err(error),
            })?;
            return Ok((Stored { run, number: 0 }, more));
        };
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = named(folder, number);
        let file = created(&path)?;
        match make(Sink::File(file)) {
            Ok((run, more)) => Ok((Stored { run, number }, more)),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// Runs that are no longer used: they go, unless `index` still names them.
    pub fn discard(&self, gone: impl IntoIterator<Item = Stored>) {
        for stored in gone.into_iter().filter(|stored| !self.saved.contains(&stored.number)) {
            if let Some(folder) = self.path.as_ref().filter(|_| stored.number > 0) {
                let _ = fs::remove_file(named(folder, stored.number));
            }
        }
    }

    /// Make this what `read` gives, at once; runs that it does not name are removed. A machine that stops may lose runs that the disk did
    /// not get: their checksums say so, and the index is built again. That is rarer than waiting for the disk would be dear.
    pub fn save(&mut self, list: &List, runs: [&[Stored]; 2]) -> Result<()> {
        let Some(folder) = &self.path else { return Ok(()) };
        let numbers = || runs.into_iter().flatten().map(|stored| stored.number);
        let data = list.write(runs);
        let new = folder.join(NEW);
        // From here on `index` may name these, or the others.
        self.saved.extend(numbers());
        // One that a killed process left is no one's any more.
        let _ = fs::remove_file(&new);
        let mut file = created(&new)?;
        file.write_all(&data)?;
        file.sync_all()?;
        fs::rename(&new, folder.join(INDEX))?;
        File::open(folder)?.sync_all()?;
        self.saved = numbers().collect();
        for number in numbers_in(folder)? {
            if !self.saved.contains(&number) {
                let _ = fs::remove_file(named(folder, number));
            }
        }
        Ok(())
    }

    /// What was saved, and its runs, of keys that `held` says of their form.
    pub fn read(&mut self, held: impl Fn(&str) -> Result<Held>) -> Result<(List, [Vec<Stored>; 2])> {
        let Some(folder) = &self.path else { return Err(Error::value("an index without a folder")) };
        let (list, shapes) = List::parse(&fs::read(folder.join(INDEX))?)?;
        let held = if list.form.is_empty() { Held::Not } else { held(&list.form)? };
        let open = |shapes: Vec<Known>| -> Result<Vec<Stored>> {
            let one = |(number, shape)| {
                let file = File::open(named(folder, number)).map_err(|error| match error.kind() {
                    io::ErrorKind::NotFound => Error::value("a run of the index is missing"),
                    _ => error.into(),
                })?;
                Ok(Stored { run: Run::open(&file, shape, held)?, number })
            };
            shapes.into_iter().map(one).collect()
        };
        let [first, second] = shapes;
        // Every byte of them is read.
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| open(first));
            let second = open(second);
            (first.join().unwrap_or_else(|_| Err(Error::value("a run of the index cannot be read"))), second)
        });
        let runs = [first?, second?];
        self.saved = runs.iter().flatten().map(|stored| stored.number).collect();
        Ok((list, runs))
    }
}

fn named(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}.{RUN}"))
}

/// The numbers of all runs in a folder.
fn numbers_in(folder: &Path) -> Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = PathBuf::from(entry?.file_name());
        if path.extension().is_some_and(|extension| extension == RUN)
            && let Some(number) =
                path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<u32>().ok())
        {
            numbers.push(number.into());
        }
    }
    Ok(numbers)
}

/// A new file that only its owner may read: keys are rows' values.
fn created(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// A file that is gone when it is closed.
fn nameless() -> io::Result<Sink> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("lakesync-keys-{}-{number}", std::process::id()));
    let file = created(&path)?;
    fs::remove_file(&path)?;
    Ok(Sink::File(file))
}

/// The number of a run and what is in it.
type Known = (u64, Shape);

/// What `index` says besides the runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Of the keys; empty while there were none.
    pub form: String,
    pub stamp: Vec<u8>,
    /// Live files, and the bitmaps of their dead rows.
    pub files: Vec<(u32, Option<Vec<u8>>)>,
}

impl List {
    fn write(&self, runs: [&[Stored]; 2]) -> Vec<u8> {
        let mut data = MAGIC.to_vec();
        put_block(&mut data, self.form.as_bytes());
        put_block(&mut data, &self.stamp);
        put(&mut data, self.files.len() as u64);
        for (number, dead) in &self.files {
            put(&mut data, u64::from(*number));
            put(&mut data, u64::from(dead.is_some()));
            if let Some(dead) = dead {
                put_block(&mut data, dead);
            }
        }
        for runs in runs {
            put(&mut data, runs.len() as u64);
            for Stored { run, number, .. } in runs {
                put(&mut data, *number);
                put(&mut data, run.shape.count);
                put(&mut data, run.shape.bits.into());
                for part in run.shape.parts {
                    put(&mut data, part.start);
                    put(&mut data, part.length);
                    put(&mut data, part.crc.into());
                }
            }
        }
        data.extend_from_slice(&crc32fast::hash(&data).to_le_bytes());
        data
    }

    fn parse(data: &[u8]) -> Result<(List, [Vec<Known>; 2])> {
        let (data, crc) = data.split_last_chunk().ok_or_else(damaged)?;
        if !data.starts_with(MAGIC) {
            return Err(Error::value("not an index, or one of another version"));
        }
        if crc32fast::hash(data) != u32::from_le_bytes(*crc) {
            return Err(damaged());
        }
        let mut rest = Rest(&data[MAGIC.len()..]);
        let form = String::from_utf8(rest.block()?.to_vec()).map_err(|_| damaged())?;
        let stamp = rest.block()?.to_vec();
        let mut list = List { form, stamp, files: Vec::new() };
        for _ in 0..rest.number()? {
            let number = u32::try_from(rest.number()?).map_err(|_| damaged())?;
            let dead = if rest.number()? == 0 { None } else { Some(rest.block()?.to_vec()) };
            list.files.push((number, dead));
        }
        let mut shapes = [Vec::new(), Vec::new()];
        for shapes in &mut shapes {
            for _ in 0..rest.number()? {
                let (number, count) = (rest.number()?, rest.number()?);
                let mut shape = Shape { count, bits: rest.number()? as u32, parts: [Part::default(); 4] };
                for part in &mut shape.parts {
                    *part = Part { start: rest.number()?, length: rest.number()?, crc: rest.number()? as u32 };
                }
                shapes.push((number, shape));
            }
        }
        if rest.0.is_empty() { Ok((list, shapes)) } else { Err(damaged()) }
    }
}

fn damaged() -> Error {
    Error::value("a damaged index")
}

fn put(data: &mut Vec<u8>, number: u64) {
    data.extend_from_slice(&number.to_le_bytes());
}

fn put_block(data: &mut Vec<u8>, block: &[u8]) {
    put(data, block.len() as u64);
    data.extend_from_slice(block);
}

/// What is still to be read.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn number(&mut self) -> Result<u64> {
        let (number, rest) = self.0.split_first_chunk().ok_or_else(damaged)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*number))
    }

    fn block(&mut self) -> Result<&'a [u8]> {
        let length = usize::try_from(self.number()?).map_err(|_| damaged())?;
        let (block, rest) = self.0.split_at_checked(length).ok_or_else(damaged)?;
        self.0 = rest;
        Ok(block)
    }
}
