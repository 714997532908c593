//! Memory of columns that their readers have released, used again: asking the system for fresh pages costs more than filling them.

use std::sync::{Mutex, PoisonError};

use arrow_buffer::Buffer;
use bytes::Bytes;

/// Smaller ones are quick to get anyway.
const SMALLEST: usize = 32 << 10;
/// What is kept for later, in bytes.
const KEPT: usize = 64 << 20;

static SPARE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty vector, with room for about `expected` bytes if there is a spare one.
pub fn take(expected: usize) -> Vec<u8> {
    if expected < SMALLEST {
        return Vec::new();
    }
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    // The smallest that is large enough, but not far larger than needed; else the largest.
    let fitting = (0..spare.len()).filter(|i| spare[*i].capacity() >= expected).min_by_key(|i| spare[*i].capacity());
    let found = match fitting {
        Some(i) if spare[i].capacity() / 4 <= expected => Some(i),
        Some(_) => None,
        None => (0..spare.len()).max_by_key(|i| spare[*i].capacity()),
    };
    found.map(|i| spare.swap_remove(i)).unwrap_or_default()
}

/// `data` for Arrow; its memory comes back here when the last reader has released it.
pub fn buffer(data: Vec<u8>) -> Buffer {
    if data.capacity() < SMALLEST {
        return Buffer::from_vec(data);
    }
    Buffer::from(Bytes::from_owner(Lent(data)))
}

struct Lent(Vec<u8>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut data = std::mem::take(&mut self.0);
        data.clear();
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = spare.iter().map(Vec::capacity).sum();
        if kept + data.capacity() <= KEPT {
            spare.push(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_released_is_taken_again() {
        let mut data = take(0);
        data.resize(3 * SMALLEST, 7);
        let place = data.as_ptr();
        let lent = buffer(data);
        let second = lent.clone();
        assert_eq!(lent.as_ptr(), place);
        drop(lent);
        let other = take(SMALLEST);
        assert_ne!(other.as_ptr(), place);
        assert_eq!(second.len(), 3 * SMALLEST);
        drop(second);
        let again = (0..300).map(|_| take(2 * SMALLEST)).find(|v| v.as_ptr() == place);
        assert!(again.is_some_and(|v| v.is_empty() && v.capacity() >= 3 * SMALLEST));
    }
}
