//! Changes of a content that are answered and not yet stored: runs of data, of holes, and of pieces that are stored
//! already and get a second place, over its bytes.

use super::row::Piece;
use std::collections::BTreeMap;
use std::ops::Range;

/// The longest run of bytes that becomes one extent.
pub const EXTENT_MAX: usize = 1 << 20;

/// One run: bytes, a hole up to an offset (exclusive), or what a piece of the same content holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Run {
    Data(Vec<u8>),
    Hole { end: u64 },
    Stored(Piece),
}

impl Run {
    /// The part of a run at `start` that lies in `range`, which it covers.
    pub fn part(&self, start: u64, range: Range<u64>) -> Run {
        match self {
            Run::Data(bytes) => Run::Data(bytes[(range.start - start) as usize..(range.end - start) as usize].to_vec()),
            Run::Hole { .. } => Run::Hole { end: range.end },
            Run::Stored(piece) => Run::Stored(piece.part(start, range)),
        }
    }

    /// The same at another place.
    pub fn moved(&self, from: u64, to: u64) -> Run {
        match self {
            Run::Hole { end } => Run::Hole { end: end - from + to },
            other => other.clone(),
        }
    }
}

/// Runs by their first offset; they do not overlap.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    runs: BTreeMap<u64, Run>,
}

impl Changes {
    pub fn runs(&self) -> impl Iterator<Item = (u64, &Run)> {
        self.runs.iter().map(|(at, run)| (*at, run))
    }

    /// Bytes of file data that they hold or name.
    pub fn bytes(&self) -> u64 {
        let bytes = |run: &Run| match run {
            Run::Data(bytes) => bytes.len() as u64,
            Run::Stored(piece) => u64::from(piece.len),
            Run::Hole { .. } => 0,
        };
        self.runs().map(|(_, run)| bytes(run)).sum()
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        if let Some((start, Run::Data(bytes))) = self.runs.range_mut(..=offset).next_back() {
            let at = (offset - start) as usize;
            if end <= start + bytes.len() as u64 {
                bytes[at..at + data.len()].copy_from_slice(data);
                return;
            }
            let grown = at + data.len();
            if at == bytes.len() && grown <= EXTENT_MAX {
                bytes.extend_from_slice(data);
                let bytes = std::mem::take(bytes);
                let start = *start;
                self.cut(start..end);
                self.runs.insert(start, Run::Data(bytes));
                return;
            }
        }
        self.cut(offset..end);
        self.runs.insert(offset, Run::Data(data.to_vec()));
    }

    /// Lays a run over what is there.
    pub fn lay(&mut self, at: u64, run: Run) {
        match run {
            Run::Data(bytes) => self.write(at, &bytes),
            other => {
                self.cut(at..end_of(at, &other));
                self.runs.insert(at, other);
            }
        }
    }

    /// Makes `range` a hole; `u64::MAX` as its end cuts everything behind its start.
    pub fn punch(&mut self, range: Range<u64>) {
        self.cut(range.clone());
        self.runs.insert(range.start, Run::Hole { end: range.end });
    }

    /// Lays the changes of `offset..` over `buffer`; `open` puts in what a piece, at its place in the file, has of it.
    pub fn overlay<E>(
        &self,
        offset: u64,
        buffer: &mut [u8],
        mut open: impl FnMut(u64, &Piece, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = offset + buffer.len() as u64;
        for (start, stop, run) in self.overlapping(offset..end) {
            let target = &mut buffer[(start.max(offset) - offset) as usize..(stop.min(end) - offset) as usize];
            match run {
                Run::Data(bytes) => {
                    let from = offset.saturating_sub(start) as usize;
                    target.copy_from_slice(&bytes[from..from + target.len()]);
                }
                Run::Hole { .. } => target.fill(0),
                Run::Stored(piece) => open(start, piece, buffer)?,
            }
        }
        Ok(())
    }

    /// Whether the changes determine every byte of `range`.
    pub fn cover(&self, range: Range<u64>) -> bool {
        let mut reached = range.start;
        for (start, stop, _) in self.overlapping(range.clone()) {
            if start > reached {
                return false;
            }
            reached = stop;
        }
        reached >= range.end
    }

    /// Runs that touch `range`: first offset, end, run.
    pub fn overlapping(&self, range: Range<u64>) -> impl Iterator<Item = (u64, u64, &Run)> {
        let first = self.runs.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        self.runs
            .range(first..range.end.max(first))
            .map(|(start, run)| (*start, end_of(*start, run), run))
            .filter(move |(_, end, _)| *end > range.start)
    }

    fn cut(&mut self, range: Range<u64>) {
        let touched: Vec<u64> = self.overlapping(range.clone()).map(|(start, _, _)| start).collect();
        for start in touched {
            let run = self.runs.remove(&start).expect("found above");
            let end = end_of(start, &run);
            if end > range.end {
                self.runs.insert(range.end, run.part(start, range.end..end));
            }
            if start < range.start {
                let kept = match run {
                    Run::Data(mut bytes) => {
                        bytes.truncate((range.start - start) as usize);
                        Run::Data(bytes)
                    }
                    other => other.part(start, start..range.start),
                };
                self.runs.insert(start, kept);
            }
        }
    }
}

fn end_of(start: u64, run: &Run) -> u64 {
    match run {
        Run::Data(bytes) => start + bytes.len() as u64,
        Run::Hole { end } => *end,
        Run::Stored(piece) => start + u64::from(piece.len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A byte that no operation writes.
    const UNTOUCHED: u8 = 0xEE;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, Vec<u8>),
        Punch(u64, u64),
        Truncate(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u64..200, proptest::collection::vec(1..UNTOUCHED, 1..60)).prop_map(|(at, data)| Op::Write(at, data)),
            (0u64..200, 1u64..60).prop_map(|(at, len)| Op::Punch(at, len)),
            (0u64..260).prop_map(Op::Truncate),
        ]
    }

    proptest! {
        #[test]
        fn changes_are_what_was_done(ops in proptest::collection::vec(op(), 1..40)) {
            let mut model = vec![UNTOUCHED; 300];
            let mut changes = Changes::default();
            for op in ops {
                match op {
                    Op::Write(at, data) => {
                        changes.write(at, &data);
                        model[at as usize..][..data.len()].copy_from_slice(&data);
                    }
                    Op::Punch(at, len) => {
                        changes.punch(at..at + len);
                        model[at as usize..][..len as usize].fill(0);
                    }
                    Op::Truncate(at) => {
                        changes.punch(at..u64::MAX);
                        model[at as usize..].fill(0);
                    }
                }
                let mut seen = vec![UNTOUCHED; 300];
                changes.overlay(0, &mut seen, |_, _, _| Err("no piece was laid")).unwrap();
                prop_assert_eq!(&seen, &model);
                prop_assert_eq!(changes.cover(0..300), !model.contains(&UNTOUCHED));
                let mut last = 0;
                for (start, run) in changes.runs() {
                    prop_assert!(start >= last);
                    last = end_of(start, run);
                    prop_assert!(last > start);
                }
            }
        }
    }
}
