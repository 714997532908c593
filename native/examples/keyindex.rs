//! Measures a key index in the folder given: `cargo run --release --no-default-features --example keyindex -- FOLDER [MILLIONS [MiB]]`.

use std::sync::Arc;
use std::time::Instant;

use _native::bitmap::Bitmap;
use _native::keyindex::{KeyIndex, Result};
use arrow_array::{ArrayRef, Int64Array, StringArray, StructArray};
use arrow_schema::{DataType, Field};

const FILE: u64 = 1 << 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = arguments.first().expect("a folder");
    let number = |i: usize, default: u64| arguments.get(i).map_or(default, |text| text.parse().expect("a number"));
    let (count, memory) = (number(1, 10) * 1_000_000, number(2, 64) as usize * (1 << 20));
    for (form, keys) in [("int64", longs as fn(&[u64]) -> StructArray), ("string", strings)] {
        let path = std::path::Path::new(folder).join(form);
        let mut index = KeyIndex::new(Some(path.clone()), memory)?;
        let mut filling = 0.0;
        for file in 0..count.div_ceil(FILE) {
            let rows: Vec<u64> = (file * FILE..count.min((file + 1) * FILE)).collect();
            let batch = keys(&rows);
            let start = Instant::now();
            index.set_file(file as u32, None);
            index.add(file as u32, 0, &batch, None)?;
            filling += start.elapsed().as_secs_f64();
        }
        say(form, "add all, s", filling, &index);
        timed(form, "compact, ms", &mut index, |index| index.compact().map(|several| assert_eq!(several, 0)))?;
        timed(form, "save, ms", &mut index, |index| index.save(b""))?;
        drop(index);
        let start = Instant::now();
        let mut index = KeyIndex::open(path, memory)?;
        say(form, "open, ms", start.elapsed().as_secs_f64() * 1e3, &index);
        let mut random = 1_u64;
        let mut roll = |many: usize| -> Vec<u64> {
            let mut next = || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 16) % count
            };
            (0..many).map(|_| next()).collect()
        };
        for round in 0..3 {
            let what = ["first", "second", "third"][round];
            let many = keys(&roll(100_000));
            timed(form, &format!("locate 100,000, {what}, ms"), &mut index, |index| index.locate(&many).map(drop))?;
        }
        let few: Vec<StructArray> = (0..20).map(|_| keys(&roll(1000))).collect();
        timed(form, "locate 20 times 1,000, ms", &mut index, |index| {
            few.iter().try_for_each(|few| index.locate(few).map(drop))
        })?;
        let mut number = count.div_ceil(FILE) as u32;
        let (mut adding, mut locating) = (0.0, 0.0);
        for _ in 0..40 {
            let mut rows = roll(100_000);
            rows.sort_unstable();
            rows.dedup();
            let batch = keys(&rows);
            let start = Instant::now();
            let found = index.locate(&batch)?;
            locating += start.elapsed().as_secs_f64();
            let mut dead: std::collections::BTreeMap<u32, Vec<u32>> = Default::default();
            found.iter().flatten().for_each(|place| dead.entry(place.file).or_default().push(place.row));
            let start = Instant::now();
            index.set_file(number, None);
            index.add(number, 0, &batch, None)?;
            adding += start.elapsed().as_secs_f64();
            number += 1;
        }
        say(form, "upsert 100,000 (mean of 40): locate, ms", locating * 25.0, &index);
        say(form, "upsert 100,000 (mean of 40): add, ms", adding * 25.0, &index);
        let many = keys(&roll(100_000));
        timed(form, "locate 100,000 after that, ms", &mut index, |index| index.locate(&many).map(drop))?;
        let dead = Bitmap::of((0..FILE).step_by(3));
        (0..number).for_each(|number| index.set_file(number, Some(dead.clone())));
        timed(form, "locate 100,000 with vectors, ms", &mut index, |index| index.locate(&many).map(drop))?;
        timed(form, "save, ms", &mut index, |index| index.save(b""))?;
        timed(form, "compact, ms", &mut index, |index| index.compact().map(drop))?;
        timed(form, "locate 100,000 after that, ms", &mut index, |index| index.locate(&many).map(drop))?;
    }
    Ok(())
}

fn timed(form: &str, what: &str, index: &mut KeyIndex, of: impl FnOnce(&mut KeyIndex) -> Result<()>) -> Result<()> {
    let start = Instant::now();
    of(index)?;
    say(form, what, start.elapsed().as_secs_f64() * 1e3, index);
    Ok(())
}

fn say(form: &str, what: &str, figure: f64, index: &KeyIndex) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default().trim();
    println!(
        "{form:8} {what:42} {figure:9.2}   {} entries, {} runs, {} MiB, anonymous {anonymous}",
        index.entries(),
        index.runs(),
        index.memory() >> 20
    );
}

fn longs(numbers: &[u64]) -> StructArray {
    batch(DataType::Int64, Arc::new(numbers.iter().map(|n| *n as i64).collect::<Int64Array>()))
}

fn strings(numbers: &[u64]) -> StructArray {
    batch(DataType::Utf8, Arc::new(numbers.iter().map(|n| Some(format!("customer-{n:012}"))).collect::<StringArray>()))
}

fn batch(kind: DataType, column: ArrayRef) -> StructArray {
    StructArray::new(vec![Field::new("key", kind, false)].into(), vec![column], None)
}
