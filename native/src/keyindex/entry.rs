//! What there is an index of: the hash of a key and a place, in one number that sorts by hash, newest place first.

/// A row of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: u32,
    pub row: u32,
}

/// The hash above the place's complement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry(pub u128);

impl Entry {
    pub fn new(hash: u64, place: Place) -> Entry {
        let place = u64::from(place.file) << 32 | u64::from(place.row);
        Entry(u128::from(hash) << 64 | u128::from(!place))
    }

    pub fn hash(self) -> u64 {
        (self.0 >> 64) as u64
    }

    pub fn place(self) -> Place {
        let place = !(self.0 as u64);
        Place { file: (place >> 32) as u32, row: place as u32 }
    }
}

/// An entry in memory, with where its key's bytes are, if these are needed.
pub trait Item: Copy + Ord + Send + Sync + 'static {
    /// In bytes.
    const SIZE: usize = size_of::<Self>();

    fn new(entry: Entry, at: u64) -> Self;
    fn entry(self) -> Entry;
    /// Where its key begins among the keys' bytes.
    fn at(self) -> u64;
}

/// Of a key that its hash says all about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slim(Entry);

impl Item for Slim {
    fn new(entry: Entry, _: u64) -> Slim {
        Slim(entry)
    }

    fn entry(self) -> Entry {
        self.0
    }

    fn at(self) -> u64 {
        0
    }
}

/// Hash, complement of the place, where its key is: three words, since a larger number would be aligned to a fourth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wide([u64; 3]);

impl Item for Wide {
    fn new(entry: Entry, at: u64) -> Wide {
        Wide([entry.hash(), entry.0 as u64, at])
    }

    fn entry(self) -> Entry {
        Entry(u128::from(self.0[0]) << 64 | u128::from(self.0[1]))
    }

    fn at(self) -> u64 {
        self.0[2]
    }
}
