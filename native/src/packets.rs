//! Packets of the client protocol, cut anywhere: a header of four bytes (length 3, sequence number 1) and a payload. A payload of
//! 0xFFFFFF bytes goes on in the next packet.

use std::ops::Range;

use crate::error::{Result, damaged};

const HEADER: usize = 4;
const MOST: usize = 0xFF_FFFF;
/// Buffers larger than this are given back once they are empty.
const KEPT_CAPACITY: usize = 4 << 20;

/// What was fed and not processed yet. Payloads that lie whole in what is fed are not copied.
#[derive(Debug)]
pub struct Packets {
    kept: Vec<u8>,
    /// Where the bytes of `kept` begin that were not taken.
    head: usize,
    /// A payload that goes on over packets, so far; from `next` giving it on it is `done`.
    joined: Vec<u8>,
    done: bool,
    /// Of the next packet.
    sequence: Option<u8>,
    limit: usize,
}

enum Place {
    Kept(Range<usize>),
    Fed(Range<usize>),
}

impl Packets {
    /// `limit`: bytes of a payload.
    pub fn new(limit: usize) -> Packets {
        Packets { kept: Vec::new(), head: 0, joined: Vec::new(), done: false, sequence: None, limit }
    }

    /// How many bytes wait here.
    pub fn waiting(&self) -> usize {
        self.kept.len() - self.head
    }

    /// The next whole payload of what waits and then of `data`, which shrinks by what was taken; None: more bytes are needed.
    pub fn next<'a, 'd: 'a>(&'a mut self, data: &mut &'d [u8]) -> Result<Option<&'a [u8]>> {
        if self.done {
            self.done = false;
            self.joined.clear();
            self.joined.shrink_to(KEPT_CAPACITY);
        }
        loop {
            let Some(place) = self.packet(data)? else { return Ok(None) };
            let size = match &place {
                Place::Kept(range) | Place::Fed(range) => range.len(),
            };
            if self.joined.len() + size > self.limit {
                return damaged(format!("an event of more than {} bytes", self.limit.saturating_sub(1)));
            }
            if size < MOST && self.joined.is_empty() {
                return Ok(match place {
                    Place::Kept(range) => self.kept.get(range),
                    Place::Fed(range) => {
                        let fed = *data;
                        *data = fed.get(range.end..).unwrap_or_default();
                        fed.get(range)
                    }
                });
            }
            match place {
                Place::Kept(range) => self.joined.extend_from_slice(self.kept.get(range).unwrap_or_default()),
                Place::Fed(range) => {
                    let fed = *data;
                    *data = fed.get(range.end..).unwrap_or_default();
                    self.joined.extend_from_slice(fed.get(range).unwrap_or_default());
                }
            }
            if size < MOST {
                self.done = true;
                return Ok(Some(&self.joined));
            }
        }
    }

    /// Where the next whole packet's payload is. If it is in `kept` it is taken from there, not so from `data`.
    fn packet(&mut self, data: &mut &[u8]) -> Result<Option<Place>> {
        if self.waiting() == 0 {
            self.kept.clear();
            self.kept.shrink_to(KEPT_CAPACITY);
            self.head = 0;
            let size = header(data).map(|(size, sequence)| (HEADER + size, sequence));
            return match size {
                Some((end, sequence)) if data.len() >= end => {
                    self.follow(sequence)?;
                    Ok(Some(Place::Fed(HEADER..end)))
                }
                _ => {
                    self.kept.extend_from_slice(data);
                    *data = &[];
                    Ok(None)
                }
            };
        }
        // A packet of which a part waits: only what it lacks is copied.
        if !self.complete(HEADER, data) {
            return Ok(None);
        }
        let Some((size, sequence)) = self.kept.get(self.head..).and_then(header) else { return Ok(None) };
        if !self.complete(HEADER + size, data) {
            return Ok(None);
        }
        self.follow(sequence)?;
        let start = self.head + HEADER;
        self.head = start + size;
        Ok(Some(Place::Kept(start..self.head)))
    }

    /// Take from `data` until `size` bytes wait; whether they do.
    fn complete(&mut self, size: usize, data: &mut &[u8]) -> bool {
        let lacking = size.saturating_sub(self.waiting());
        let (taken, left) = data.split_at(lacking.min(data.len()));
        if !taken.is_empty() {
            self.make_room();
            self.kept.extend_from_slice(taken);
            *data = left;
        }
        taken.len() == lacking
    }

    /// Keep `data` for later.
    pub fn keep(&mut self, data: &[u8]) {
        if !data.is_empty() {
            self.make_room();
            self.kept.extend_from_slice(data);
        }
    }

    fn make_room(&mut self) {
        if self.head > self.kept.len() / 2 {
            self.kept.drain(..self.head);
            self.head = 0;
        }
    }

    fn follow(&mut self, sequence: u8) -> Result<()> {
        if self.sequence.is_some_and(|expected| expected != sequence) {
            return damaged("a packet that does not follow the one before");
        }
        self.sequence = Some(sequence.wrapping_add(1));
        Ok(())
    }
}

/// Size and sequence number of the packet that begins with `data`.
fn header(data: &[u8]) -> Option<(usize, u8)> {
    match data {
        [low, middle, high, sequence, ..] => {
            Some((usize::from(*low) | usize::from(*middle) << 8 | usize::from(*high) << 16, *sequence))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(payloads: &[Vec<u8>], first: u8) -> Vec<u8> {
        let (mut out, mut sequence) = (Vec::new(), first);
        for payload in payloads {
            let mut left = &payload[..];
            loop {
                let (now, after) = left.split_at(left.len().min(MOST));
                out.extend_from_slice(&(now.len() as u32).to_le_bytes()[..3]);
                out.push(sequence);
                out.extend_from_slice(now);
                sequence = sequence.wrapping_add(1);
                left = after;
                if now.len() < MOST {
                    break;
                }
            }
        }
        out
    }

    fn read(packets: &mut Packets, mut data: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while let Some(payload) = packets.next(&mut data).unwrap() {
            out.push(payload.to_vec());
        }
        assert!(data.is_empty());
        out
    }

    #[test]
    fn any_cut_gives_the_same_payloads() {
        let payloads: Vec<Vec<u8>> = (0..300usize).map(|i| vec![i as u8; i * 7 % 50]).collect();
        let bytes = wire(&payloads, 250);
        for step in [1, 2, 3, 4, 5, 7, 64, 1000, bytes.len()] {
            let mut packets = Packets::new(1000);
            let found: Vec<Vec<u8>> = bytes.chunks(step).flat_map(|chunk| read(&mut packets, chunk)).collect();
            assert_eq!(found, payloads, "{step}");
        }
    }

    #[test]
    fn large_payloads_go_on_over_packets() {
        let payloads = vec![vec![1; 2 * MOST], vec![2; 5], vec![3; MOST + 1], vec![4; 1]];
        let bytes = wire(&payloads, 0);
        for step in [1 << 20, bytes.len()] {
            let mut packets = Packets::new(3 * MOST);
            let found: Vec<Vec<u8>> = bytes.chunks(step).flat_map(|chunk| read(&mut packets, chunk)).collect();
            assert!(found == payloads);
        }
        assert!(Packets::new(2 * MOST - 1).next(&mut &bytes[..]).is_err());
    }

    #[test]
    fn what_is_kept_comes_first() {
        let bytes = wire(&[vec![1], vec![2], vec![3], vec![4]], 1);
        let mut packets = Packets::new(100);
        let mut data = &bytes[..7];
        assert_eq!(packets.next(&mut data).unwrap(), Some(&[1][..]));
        packets.keep(data);
        packets.keep(&bytes[7..12]);
        assert_eq!(read(&mut packets, &bytes[12..]), [vec![2], vec![3], vec![4]]);
    }

    #[test]
    fn sequence_numbers_are_followed() {
        let mut bytes = wire(&[vec![1], vec![2]], 255);
        assert_eq!(read(&mut Packets::new(9), &bytes).len(), 2);
        bytes[8] = 1;
        let (mut packets, mut data) = (Packets::new(9), &bytes[..]);
        assert!(packets.next(&mut data).is_ok());
        assert!(packets.next(&mut data).is_err());
    }
}
