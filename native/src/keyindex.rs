//! `KeyIndex`: the newest place, a file and a row of it, of every key of a table.

mod keys;

use std::collections::HashMap;
use std::path::PathBuf;
use std::{fmt, fs, io};

use arrow_array::StructArray;

use crate::bitmap::Bitmap;
use keys::{Encoded, Keys};

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

/// A row of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: u32,
    pub row: u32,
}

/// How many keys are encoded at once.
const CHUNK: usize = 1 << 16;
const NAME: &str = "index";
const MAGIC: &[u8; 8] = b"LSKEYS\x00\x01";

pub struct KeyIndex {
    folder: Option<PathBuf>,
    form: Option<keys::Form>,
    stamp: Vec<u8>,
    files: HashMap<u32, Option<Bitmap>>,
    places: HashMap<Vec<u8>, Vec<Place>>,
}

impl KeyIndex {
    pub fn new(folder: Option<PathBuf>, _memory: usize) -> Result<KeyIndex> {
        if let Some(folder) = &folder {
            fs::create_dir_all(folder)?;
        }
        let (files, places) = (HashMap::new(), HashMap::new());
        Ok(KeyIndex { folder, form: None, stamp: Vec::new(), files, places })
    }

    pub fn stamp(&self) -> &[u8] {
        &self.stamp
    }

    pub fn set_file(&mut self, number: u32, dead: Option<Bitmap>) {
        self.files.insert(number, dead);
    }

    pub fn drop_file(&mut self, number: u32) {
        self.files.remove(&number);
    }

    pub fn add(&mut self, number: u32, first_row: u32, keys: &StructArray, dead: Option<&Bitmap>) -> Result<()> {
        let keys = self.keys(keys)?;
        if u32::try_from(keys.len()).ok().and_then(|count| first_row.checked_add(count)).is_none() {
            return Err(Error::value("rows beyond 2³² of a file"));
        }
        if self.form.is_none() {
            self.form = Some(keys.form.clone());
        }
        let mut encoded = Encoded::default();
        for start in (0..keys.len()).step_by(CHUNK) {
            let rows = start..keys.len().min(start + CHUNK);
            keys.encode(rows.clone(), &mut encoded);
            for (i, row) in rows.enumerate() {
                let place = Place { file: number, row: first_row + row as u32 };
                if dead.is_some_and(|dead| dead.contains(place.row)) {
                    continue;
                }
                let known = self.places.entry(named(&encoded, i)).or_default();
                known.retain(|old| *old != place && live(&self.files, *old));
                known.push(place);
            }
        }
        Ok(())
    }

    pub fn locate(&mut self, keys: &StructArray) -> Result<Vec<Option<Place>>> {
        let keys = self.keys(keys)?;
        let mut found = Vec::with_capacity(keys.len());
        let mut encoded = Encoded::default();
        for start in (0..keys.len()).step_by(CHUNK) {
            let rows = start..keys.len().min(start + CHUNK);
            keys.encode(rows.clone(), &mut encoded);
            found.extend((0..rows.len()).map(|i| {
                let places = self.places.get(&named(&encoded, i))?;
                places.iter().copied().rev().find(|place| live(&self.files, *place))
            }));
        }
        Ok(found)
    }

    pub fn compact(&mut self) -> Result<u64> {
        self.places.retain(|_, places| {
            places.retain(|place| live(&self.files, *place));
            !places.is_empty()
        });
        Ok(self.places.values().filter(|places| places.len() > 1).count() as u64)
    }

    pub fn write_run(&mut self) -> Result<()> {
        Ok(())
    }

    pub fn save(&mut self, stamp: &[u8]) -> Result<()> {
        self.stamp = stamp.to_vec();
        let Some(folder) = &self.folder else { return Ok(()) };
        let mut data = MAGIC.to_vec();
        block(&mut data, self.form.as_ref().map_or("", |form| &form.text).as_bytes());
        block(&mut data, stamp);
        data.extend_from_slice(&(self.files.len() as u64).to_le_bytes());
        for (number, dead) in &self.files {
            data.extend_from_slice(&number.to_le_bytes());
            block(&mut data, &dead.as_ref().map_or(Vec::new(), Bitmap::serialize));
        }
        for (key, places) in &self.places {
            for place in places {
                block(&mut data, key);
                data.extend_from_slice(&place.file.to_le_bytes());
                data.extend_from_slice(&place.row.to_le_bytes());
            }
        }
        data.extend_from_slice(&crc32fast::hash(&data).to_le_bytes());
        let (new, old) = (folder.join("index.new"), folder.join(NAME));
        fs::write(&new, &data)?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, &old)?;
        fs::File::open(folder)?.sync_all()?;
        Ok(())
    }

    pub fn open(folder: PathBuf, memory: usize) -> Result<KeyIndex> {
        let data = fs::read(folder.join(NAME))?;
        let damaged = || Error::value("a damaged index");
        let (data, crc) = data.split_last_chunk::<4>().ok_or_else(damaged)?;
        if crc32fast::hash(data) != u32::from_le_bytes(*crc) {
            return Err(damaged());
        }
        let mut index = KeyIndex::new(Some(folder), memory)?;
        let mut rest = data.strip_prefix(MAGIC).ok_or_else(|| Error::value("an index of another form"))?;
        let form = String::from_utf8_lossy(take_block(&mut rest).ok_or_else(damaged)?).into_owned();
        index.form = if form.is_empty() { None } else { Some(keys::Form::parse(&form)?) };
        index.stamp = take_block(&mut rest).ok_or_else(damaged)?.to_vec();
        for _ in 0..u64::from_le_bytes(take(&mut rest).ok_or_else(damaged)?) {
            let number = u32::from_le_bytes(take(&mut rest).ok_or_else(damaged)?);
            let dead = take_block(&mut rest).ok_or_else(damaged)?;
            let dead = if dead.is_empty() { None } else { Some(Bitmap::parse(dead).map_err(Error::Value)?) };
            index.files.insert(number, dead);
        }
        while !rest.is_empty() {
            let key = take_block(&mut rest).ok_or_else(damaged)?.to_vec();
            let file = u32::from_le_bytes(take(&mut rest).ok_or_else(damaged)?);
            let row = u32::from_le_bytes(take(&mut rest).ok_or_else(damaged)?);
            index.places.entry(key).or_default().push(Place { file, row });
        }
        Ok(index)
    }

    pub fn memory(&self) -> usize {
        self.places.len() * 64
    }

    pub fn entries(&self) -> u64 {
        self.places.len() as u64
    }

    pub fn runs(&self) -> usize {
        0
    }

    fn keys(&self, keys: &StructArray) -> Result<Keys> {
        let keys = Keys::new(keys)?;
        match &self.form {
            Some(form) if *form != keys.form => {
                Err(Error::value(format!("keys of ({}) in an index of ({})", keys.form.text, form.text)))
            }
            _ => Ok(keys),
        }
    }
}

fn live(files: &HashMap<u32, Option<Bitmap>>, place: Place) -> bool {
    files.get(&place.file).is_some_and(|dead| dead.as_ref().is_none_or(|dead| !dead.contains(place.row)))
}

fn named(encoded: &Encoded, i: usize) -> Vec<u8> {
    [&encoded.hashes[i].to_le_bytes(), encoded.bytes(i)].concat()
}

fn block(data: &mut Vec<u8>, bytes: &[u8]) {
    data.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    data.extend_from_slice(bytes);
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

fn take_block<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(u64::from_le_bytes(take(rest)?)).ok()?;
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}
