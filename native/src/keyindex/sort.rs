//! Sorting entries in place, which have hashes: they are spread evenly.

use super::entry::Item;

/// What fits the second cache is compared.
const SMALL: usize = 32 << 10;
const DIGITS: usize = 256;

pub fn sort<I: Item>(items: &mut [I]) {
    if items.len() <= SMALL {
        items.sort_unstable();
        return;
    }
    let digit = |item: &I| (item.entry().hash() >> 56) as usize;
    let mut ends = [0; DIGITS];
    items.iter().for_each(|item| ends[digit(item)] += 1);
    let mut starts = [0; DIGITS];
    let mut before = 0;
    for (start, end) in starts.iter_mut().zip(&mut ends) {
        *start = before;
        before += *end;
        *end = before;
    }
    let mut next = starts;
    // Each item goes where the next of its digit belongs, and what was there comes here (American flag sort).
    for here in 0..DIGITS {
        while next[here] < ends[here] {
            let there = digit(&items[next[here]]);
            items.swap(next[here], next[there]);
            next[there] += 1;
        }
    }
    for (start, end) in starts.into_iter().zip(ends) {
        items[start..end].sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{Entry, Place, Slim};
    use super::*;

    #[test]
    fn many_items_are_sorted() {
        let hash = |i: u32| u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i % 64);
        let item = |i: u32| Slim::new(Entry::new(hash(i % 70_000), Place { file: i / 9, row: i }), 0);
        for count in [0, 1, SMALL as u32, SMALL as u32 + 1, 200_000] {
            let mut items: Vec<Slim> = (0..count).map(item).collect();
            let mut sorted = items.clone();
            sorted.sort();
            sort(&mut items);
            assert!(items == sorted);
        }
    }
}
