//! Indexes against a plain map, whatever is written, merged, saved and opened in between.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::types::{Decimal128Type, Int64Type};
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int8Array, Int32Array, Int64Array,
    PrimitiveArray, StringArray, StringViewArray, TimestampMicrosecondArray,
};
use arrow_schema::{Field, Fields};

use super::*;

/// Numbers that look random, from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A folder of its own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("keyindex-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn batch(columns: Vec<ArrayRef>) -> StructArray {
    let fields: Fields =
        columns.iter().enumerate().map(|(i, c)| Field::new(format!("c{i}"), c.data_type().clone(), true)).collect();
    StructArray::new(fields, columns, None)
}

/// Keys of every form, made from numbers injectively.
type Make = fn(&[u64]) -> StructArray;

fn of<T, A: FromIterator<T> + arrow_array::Array + 'static>(numbers: &[u64], value: impl Fn(u64) -> T) -> ArrayRef {
    Arc::new(numbers.iter().map(|n| value(*n)).collect::<A>())
}

const FORMS: [(&str, Make); 10] = [
    ("int64", |n| batch(vec![of::<_, Int64Array>(n, |n| n as i64 - 50)])),
    ("int32", |n| batch(vec![of::<_, Int32Array>(n, |n| -(n as i32))])),
    ("int32,bool,int8", |n| {
        batch(vec![
            of::<_, Int32Array>(n, |n| (n / 8) as i32),
            of::<_, BooleanArray>(n, |n| Some(n & 1 == 1)),
            of::<_, Int8Array>(n, |n| (n / 2 % 4) as i8 - 2),
        ])
    }),
    ("string", |n| batch(vec![of::<_, StringArray>(n, |n| Some("é".repeat(n as usize % 40) + &n.to_string()))])),
    ("string view", |n| {
        batch(vec![of::<_, StringViewArray>(n, |n| Some("x".repeat(n as usize % 40) + &n.to_string()))])
    }),
    ("binary", |n| {
        batch(vec![of::<_, BinaryArray>(n, |n| {
            Some(n.to_be_bytes()[8 - (n % 9) as usize..].iter().copied().chain(n.to_le_bytes()).collect::<Vec<u8>>())
        })])
    }),
    ("decimal128", |n| batch(vec![of::<_, Decimal128Array>(n, |n| i128::from(n) << 70)])),
    ("string,int64", |n| {
        batch(vec![
            of::<_, StringArray>(n, |n| Some("a".repeat(n as usize % 3))),
            of::<_, Int64Array>(n, |n| (n / 3) as i64),
        ])
    }),
    ("int64,string,string", |n| {
        batch(vec![
            of::<_, Int64Array>(n, |_| 1),
            of::<_, StringArray>(n, |n| Some("a".repeat(n as usize / 25))),
            of::<_, StringArray>(n, |n| Some("a".repeat(n as usize % 25))),
        ])
    }),
    ("date32,timestamp,float64", |n| {
        batch(vec![
            of::<_, Date32Array>(n, |n| Some(n as i32)),
            of::<_, TimestampMicrosecondArray>(n, |n| Some(n as i64)),
            of::<_, Float64Array>(n, |n| if n % 2 == 0 { 0.0 } else { -0.0 }),
        ])
    }),
];

/// A table of files, and what the index should say of it.
struct Table {
    make: Make,
    live: BTreeMap<u64, Place>,
    dead: HashMap<u32, Vec<u32>>,
    rows: HashMap<u32, Vec<u64>>,
    next: u32,
}

impl Table {
    fn new(make: Make) -> Table {
        Table { make, live: BTreeMap::new(), dead: HashMap::new(), rows: HashMap::new(), next: 0 }
    }

    fn kill(&mut self, index: &mut KeyIndex, places: impl Iterator<Item = Place>) {
        let mut touched = Vec::new();
        for place in places {
            self.dead.entry(place.file).or_default().push(place.row);
            touched.push(place.file);
        }
        touched.sort_unstable();
        touched.dedup();
        for file in touched {
            if self.dead[&file].len() == self.rows[&file].len() {
                index.drop_file(file);
            } else {
                index.set_file(file, Some(Bitmap::default().add(&self.dead[&file])));
            }
        }
    }

    /// A commit: these keys in a new file, what they were before dead.
    fn upsert(&mut self, index: &mut KeyIndex, keys: &[u64], index_first: bool) {
        let (file, make) = (self.next, self.make);
        self.next += 1;
        let old: Vec<Place> = keys.iter().filter_map(|key| self.live.remove(key)).collect();
        let add = |index: &mut KeyIndex| {
            index.set_file(file, None);
            let cut = keys.len() / 3;
            index.add(file, 0, &make(&keys[..cut]), None).unwrap();
            index.add(file, cut as u32, &make(&keys[cut..]), None).unwrap();
        };
        if index_first {
            add(index);
        }
        self.kill(index, old.into_iter());
        if !index_first {
            add(index);
        }
        self.rows.insert(file, keys.to_vec());
        self.live.extend(keys.iter().enumerate().map(|(row, key)| (*key, Place { file, row: row as u32 })));
    }

    fn delete(&mut self, index: &mut KeyIndex, keys: &[u64]) {
        let old: Vec<Place> = keys.iter().filter_map(|key| self.live.remove(key)).collect();
        self.kill(index, old.into_iter());
    }

    /// All rows of these files into a new one.
    fn rewrite(&mut self, index: &mut KeyIndex, files: &[u32]) {
        let keys: Vec<u64> =
            self.live.iter().filter(|(_, place)| files.contains(&place.file)).map(|(key, _)| *key).collect();
        self.upsert(index, &keys, true);
        files.iter().for_each(|file| index.drop_file(*file));
    }

    fn check(&self, index: &mut KeyIndex, most: u64) {
        let keys: Vec<u64> = (0..most).collect();
        let found = index.locate(&(self.make)(&keys)).unwrap();
        for (key, place) in keys.iter().zip(found) {
            assert_eq!(place, self.live.get(key).copied(), "key {key}");
        }
    }
}

fn distinct(dice: &mut Dice, count: u64, most: u64) -> Vec<u64> {
    let mut keys: Vec<u64> = (0..count).map(|_| dice.roll(most)).collect();
    keys.sort_unstable();
    keys.dedup();
    for i in (1..keys.len()).rev() {
        keys.swap(i, dice.roll(i as u64 + 1) as usize);
    }
    keys
}

fn random_history(name: &str, make: Make, memory: usize, in_folder: bool, seed: u64) {
    const MOST: u64 = 600;
    let dice = &mut Dice(seed);
    let folder = Scratch::new(&format!("{name}-{memory}-{in_folder}"));
    let path = in_folder.then(|| folder.0.clone());
    let mut index = KeyIndex::new(path.clone(), memory).unwrap();
    let mut table = Table::new(make);
    for step in 0..120u64 {
        let count = 1 + dice.roll(80);
        let keys = distinct(dice, count, MOST);
        match dice.roll(12) {
            0..=5 => table.upsert(&mut index, &keys, dice.roll(2) == 0),
            6 | 7 => table.delete(&mut index, &keys),
            8 => {
                let files: Vec<u32> = (0..table.next).filter(|_| dice.roll(3) == 0).collect();
                table.rewrite(&mut index, &files);
            }
            9 => assert_eq!(index.compact().unwrap(), 0),
            10 => index.write_run().unwrap(),
            _ => {
                let stamp = step.to_le_bytes();
                index.save(&stamp).unwrap();
                if let Some(path) = &path {
                    index = KeyIndex::open(path.clone(), memory).unwrap();
                }
                assert_eq!(index.stamp(), stamp);
            }
        }
        if dice.roll(3) > 0 {
            table.check(&mut index, MOST);
        }
    }
    table.check(&mut index, MOST);
    assert_eq!(index.compact().unwrap(), 0);
    assert_eq!(index.entries(), table.live.len());
    assert!(index.runs() <= 1);
    table.check(&mut index, MOST);
}

#[test]
fn every_form_of_key_agrees_with_a_map() {
    for (seed, (name, make)) in FORMS.into_iter().enumerate() {
        let memories = [0, 20_000, 1 << 20];
        for memory in memories {
            random_history(name, make, memory, false, 100 + seed as u64);
        }
        // These wait for a disk.
        random_history(name, make, memories[seed % 3], true, seed as u64);
    }
}

#[test]
fn many_keys_go_through_runs() {
    let folder = Scratch::new("many");
    for (memory, path) in [(1 << 20, Some(folder.0.clone())), (1 << 30, None)] {
        let mut index = KeyIndex::new(path, memory).unwrap();
        let keys: Vec<u64> = (0..700_000).collect();
        for file in 0..7u32 {
            index.set_file(file, None);
            let keys = &keys[file as usize * 100_000..][..100_000];
            let keys = batch(vec![of::<_, Int64Array>(keys, |n| n as i64)]);
            index.add(file, 0, &keys, Some(&Bitmap::of([3]))).unwrap();
        }
        let expected =
            |n: u64| (n % 100_000 != 3).then_some(Place { file: (n / 100_000) as u32, row: (n % 100_000) as u32 });
        for compacted in [false, true] {
            let asked = batch(vec![of::<_, Int64Array>(&keys, |n| n as i64 + 1000)]);
            let found = index.locate(&asked).unwrap();
            for (n, place) in keys.iter().zip(found) {
                assert_eq!(place, if *n < 699_000 { expected(n + 1000) } else { None });
            }
            assert!(index.memory() <= memory + (4 << 20), "{}", index.memory());
            if !compacted {
                assert_eq!(index.compact().unwrap(), 0);
            }
        }
        assert_eq!((index.runs(), index.entries()), (1, 699_993));
    }
}

#[test]
fn keys_that_are_live_twice_are_counted() {
    for make in [FORMS[0].1, FORMS[3].1] {
        let mut index = KeyIndex::new(None, 1 << 20).unwrap();
        for file in 0..3 {
            index.set_file(file, None);
            index.add(file, 0, &make(&[1, 2, 3 + u64::from(file), 3 + u64::from(file)]), None).unwrap();
            if file == 1 {
                index.write_run().unwrap();
            }
        }
        // The same rows once more are the same places.
        index.add(0, 0, &make(&[1]), None).unwrap();
        let newest = Some(Place { file: 2, row: 0 });
        assert_eq!(index.locate(&make(&[1])).unwrap(), [newest]);
        assert_eq!(index.compact().unwrap(), 5);
        assert_eq!(index.compact().unwrap(), 5);
        assert_eq!(index.locate(&make(&[1])).unwrap(), [newest]);
        index.drop_file(2);
        assert_eq!(index.locate(&make(&[1])).unwrap(), [Some(Place { file: 1, row: 0 })]);
        index.drop_file(1);
        assert_eq!(index.compact().unwrap(), 1);
    }
}

#[test]
fn hashes_that_collide_are_told_apart() {
    use super::run::Sink;
    let entry = |row| entry::Entry::new(7, Place { file: 0, row });
    let mut arena = keys::Arena::new(Held::Any);
    let items: Vec<Wide> = ["b", "a", "b"]
        .iter()
        .zip([2, 1, 0])
        .map(|(key, row)| entry::Item::new(entry(row), arena.put(key.as_bytes())))
        .collect();
    let mut files = Files::default();
    files.set(0, None);
    let source = [merge::Source::Memory(&items, &arena)];
    let (run, several) = merge::merge(&source, Sink::Memory(Vec::new()), Held::Any, &files).unwrap();
    assert_eq!((run.len(), several), (3, 1));
    assert_eq!((run.key(0), run.key(1), run.key(2)), (&b"b"[..], &b"a"[..], &b"b"[..]));
}

#[test]
fn other_types_and_nulls_are_refused() {
    let mut index = KeyIndex::new(None, 1 << 20).unwrap();
    let null = batch(vec![Arc::new(PrimitiveArray::<Int64Type>::from(vec![Some(1), None]))]);
    assert!(matches!(index.add(0, 0, &null, None), Err(Error::Value(_))));
    assert!(matches!(index.locate(&null), Err(Error::Value(_))));
    index.add(0, 0, &FORMS[0].1(&[1]), None).unwrap();
    for (_, make) in &FORMS[1..] {
        assert!(matches!(index.locate(&make(&[1])), Err(Error::Value(_))));
    }
    let decimals = PrimitiveArray::<Decimal128Type>::from(vec![1]).with_precision_and_scale(20, 3).unwrap();
    assert!(matches!(index.locate(&batch(vec![Arc::new(decimals)])), Err(Error::Value(_))));
    assert!(matches!(index.locate(&StructArray::new_empty_fields(1, None)), Err(Error::Value(_))));
    assert!(matches!(index.add(0, u32::MAX, &FORMS[0].1(&[1]), None), Err(Error::Value(_))));
}

fn saved(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut index = KeyIndex::new(Some(path.to_path_buf()), 1 << 20).unwrap();
    let dead = Bitmap::of([2]);
    for (file, dead) in [(0, Some(dead)), (1, None)] {
        index.set_file(file, dead);
        let keys: Vec<u64> = (u64::from(file) * 50..u64::from(file) * 50 + 40).collect();
        index.add(file, 0, &FORMS[3].1(&keys), None).unwrap();
        index.save(b"stamp").unwrap();
    }
    let files = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    files.map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

#[test]
fn damage_is_found() {
    let folder = Scratch::new("damage");
    let files = saved(&folder.0);
    assert!(files.len() >= 3);
    let open = || KeyIndex::open(folder.0.clone(), 1 << 20);
    for (path, data) in &files {
        // A hole is nobody's; every other bit matters.
        let mut unnoticed = 0;
        for i in 0..data.len() {
            let mut damaged = data.clone();
            damaged[i] ^= 1 << (i % 8);
            fs::write(path, &damaged).unwrap();
            match open() {
                Err(Error::Value(_)) => {}
                Err(error) => panic!("{error}"),
                Ok(_) => {
                    assert_eq!(data[i], 0);
                    unnoticed += 1;
                }
            }
        }
        assert!(unnoticed * 4 < data.len());
        for length in [0, 1, 15, 16, data.len() / 2, data.len() - 1] {
            fs::write(path, &data[..length]).unwrap();
            assert!(matches!(open(), Err(Error::Value(_))), "{length}");
        }
        fs::remove_file(path).unwrap();
        match open() {
            Err(Error::Value(_)) => assert!(path.extension().is_some()),
            Err(Error::Io(error)) => assert_eq!((error.kind(), path.extension()), (io::ErrorKind::NotFound, None)),
            Ok(_) => panic!("something is missing"),
        }
        fs::write(path, data).unwrap();
        assert_eq!(open().unwrap().stamp(), b"stamp");
    }
    // A run of another index, whole in itself.
    let other = Scratch::new("damage-other");
    let mut index = KeyIndex::new(Some(other.0.clone()), 0).unwrap();
    index.add(0, 0, &FORMS[3].1(&[1, 2, 3, 4]), None).unwrap();
    index.set_file(0, None);
    index.add(0, 0, &FORMS[3].1(&[1, 2, 3, 4]), None).unwrap();
    index.save(b"").unwrap();
    let (run, data) = files.iter().find(|(path, _)| path.extension().is_some()).unwrap();
    let foreign =
        fs::read_dir(&other.0).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.extension().is_some());
    fs::copy(foreign.unwrap(), run).unwrap();
    assert!(matches!(open(), Err(Error::Value(_))));
    fs::write(run, data).unwrap();
    fs::remove_dir_all(&folder.0).unwrap();
    assert!(matches!(open(), Err(Error::Io(error)) if error.kind() == io::ErrorKind::NotFound));
}

#[test]
fn what_was_not_saved_is_not_there_and_nothing_is_left_over() {
    let folder = Scratch::new("unsaved");
    let open = || KeyIndex::open(folder.0.clone(), 0).unwrap();
    let make = FORMS[0].1;
    let mut index = KeyIndex::new(Some(folder.0.clone()), 0).unwrap();
    index.set_file(0, None);
    index.add(0, 0, &make(&[1, 2, 3]), None).unwrap();
    index.save(b"1").unwrap();
    index.set_file(1, None);
    index.set_file(0, Some(Bitmap::of([0])));
    index.add(1, 0, &make(&[1]), None).unwrap();
    index.write_run().unwrap();
    index.compact().unwrap();
    drop(index);
    let mut index = open();
    assert_eq!(index.stamp(), b"1");
    assert_eq!(index.locate(&make(&[1, 4])).unwrap(), [Some(Place { file: 0, row: 0 }), None]);
    // One that begins anew does not touch it before it is saved.
    let mut anew = KeyIndex::new(Some(folder.0.clone()), 0).unwrap();
    anew.set_file(7, None);
    anew.add(7, 0, &make(&[9]), None).unwrap();
    anew.write_run().unwrap();
    assert_eq!(open().locate(&make(&[9])).unwrap(), [None]);
    anew.save(b"2").unwrap();
    assert_eq!(open().locate(&make(&[9, 1])).unwrap(), [Some(Place { file: 7, row: 0 }), None]);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);
    // Files that are gone from the folder are still mapped.
    assert_eq!(index.locate(&make(&[2])).unwrap(), [Some(Place { file: 0, row: 1 })]);
}

#[test]
fn a_folder_that_cannot_be_written_costs_nothing() {
    let folder = Scratch::new("full");
    let make = FORMS[3].1;
    let mut index = KeyIndex::new(Some(folder.0.clone()), 100_000).unwrap();
    index.set_file(0, None);
    index.add(0, 0, &make(&[1, 2, 3]), None).unwrap();
    index.locate(&make(&[1])).unwrap();
    index.add(0, 3, &make(&[4, 5]), None).unwrap();
    fs::remove_dir_all(&folder.0).unwrap();
    assert!(matches!(index.write_run(), Err(Error::Io(_))));
    assert!(matches!(index.compact(), Err(Error::Io(_))));
    index.add(0, 5, &make(&[6]), None).unwrap();
    let many = (100..5000).collect::<Vec<_>>();
    assert!(matches!(index.add(1, 0, &make(&many), None), Err(Error::Io(_))));
    assert_eq!(index.locate(&make(&[100, 1])).unwrap(), [None, Some(Place { file: 0, row: 0 })]);
    let places: Vec<_> = (0..6).map(|row| Some(Place { file: 0, row })).collect();
    assert_eq!(index.locate(&make(&[1, 2, 3, 4, 5, 6])).unwrap(), places);
    fs::create_dir(&folder.0).unwrap();
    index.save(b"").unwrap();
    let mut index = KeyIndex::open(folder.0.clone(), 0).unwrap();
    assert_eq!(index.locate(&make(&[1, 2, 3, 4, 5, 6])).unwrap(), places);
}
