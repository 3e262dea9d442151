//! Making a delta: finds the tensors of both files, takes for each block the way that needs fewest bytes,
//! and for everything between them the nearest bytes of the old file.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::ops::Range;

use farlight_onnx::{Limits, Payload, payloads};
use zstd::stream::write::Encoder as Zstd;

use super::element::{self, Kind, MAX_ROW, Steps};
use super::format::{
    BLOCK, Learned, MARK, MAX_PREFIX, Operation, TEXT, VERSION, WINDOW_LOG, load, max_coded, max_prefix, put,
    zigzag,
};
use super::range::Encoder;

/// zstd's level for text: there is little of it, and a release is made once.
const LEVEL: i32 = 19;
/// Fewest bytes that are worth an operation of their own to copy.
const MIN_COPY: usize = 16;

/// Makes the delta from `old` to `new`. It is best for two ONNX files whose tensors have the same names
/// and sizes, but makes `new` of any two files. `progress` hears how many bytes of `new` are done.
///
/// It may be larger than `new`: the caller offers the smaller of the two.
///
/// # Errors
/// When zstd cannot get the memory it needs.
pub fn encode(old: &[u8], new: &[u8], progress: &mut dyn FnMut(u64)) -> io::Result<Vec<u8>> {
    let mut out = MARK.to_vec();
    out.push(VERSION);
    put(&mut out, old.len() as u64);
    put(&mut out, new.len() as u64);
    let mut encode = Encode { old, new, old_at: 0, out, learned: Learned::default(), progress };
    let fields = Limits::DEFAULT.fields;
    // Files that are no models are all text.
    let before = payloads(old, fields).unwrap_or_default();
    let after = payloads(new, fields).unwrap_or_default();
    let pairs = pair(old, &before, new, &after);
    let mut done = 0;
    for (tensor, partner) in after.iter().zip(pairs) {
        let partner = partner.map(|partner| before[partner].range.clone());
        let end = partner.as_ref().map_or(old.len(), |partner| partner.start);
        encode.text(done..tensor.range.start, end)?;
        encode.tensor(tensor, partner)?;
        done = tensor.range.end;
    }
    encode.text(done..new.len(), old.len())?;
    Ok(encode.out)
}

/// For each new tensor the old one that it is most likely made of.
fn pair(old: &[u8], before: &[Payload], new: &[u8], after: &[Payload]) -> Vec<Option<usize>> {
    // By name; by content, for tensors that were renamed; by type and shape in their order, for those that
    // were renamed and trained.
    let mut pairs = vec![None; after.len()];
    let mut free = vec![true; before.len()];
    for rule in 0..3 {
        let key = |file: &[u8], tensor: &Payload| {
            let length = tensor.range.len();
            let bytes = file.get(tensor.range.clone()).unwrap_or_default();
            match rule {
                0 => (tensor.element, length, tensor.name.as_bytes().to_vec()),
                1 => (tensor.element, length, crate::digest::sha256(bytes).into_bytes()),
                _ => (tensor.element, length, tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()).collect()),
            }
        };
        let mut offered: HashMap<_, VecDeque<usize>> = HashMap::new();
        for (number, tensor) in before.iter().enumerate().filter(|(number, _)| free[*number]) {
            offered.entry(key(old, tensor)).or_default().push_back(number);
        }
        for (tensor, partner) in after.iter().zip(&mut pairs).filter(|(_, partner)| partner.is_none()) {
            *partner = offered.get_mut(&key(new, tensor)).and_then(VecDeque::pop_front);
            if let Some(partner) = *partner {
                free[partner] = false;
            }
        }
    }
    pairs
}

struct Encode<'a> {
    old: &'a [u8],
    new: &'a [u8],
    /// Where the last operation that used the old file ended in it.
    old_at: usize,
    out: Vec<u8>,
    learned: Learned,
    progress: &'a mut dyn FnMut(u64),
}

impl Encode<'_> {
    fn begin(&mut self, operation: Operation, length: usize) {
        self.out.push(operation.code());
        put(&mut self.out, length as u64);
    }

    /// Says which bytes of the old file an operation uses.
    fn uses(&mut self, old: Range<usize>) {
        let jump = (old.start as i64).wrapping_sub(self.old_at as i64);
        put(&mut self.out, zigzag(jump));
        self.old_at = old.end;
    }

    fn coded(&mut self, bytes: &[u8]) {
        put(&mut self.out, bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    fn copy(&mut self, old: Range<usize>) {
        if !old.is_empty() {
            self.begin(Operation::Copy, old.len());
            self.uses(old);
        }
    }

    /// Bytes between tensors: what follows the last bytes used, or comes before `old_end`, is mostly the same.
    fn text(&mut self, range: Range<usize>, old_end: usize) -> io::Result<()> {
        let new = &self.new[range.clone()];
        let ahead = &self.old[self.old_at..];
        let mut same = common(new.iter(), ahead.iter());
        if same < MIN_COPY && same < new.len() {
            same = 0;
        }
        let rest = &new[same..];
        let behind = &self.old[..old_end];
        let mut tail = common(rest.iter().rev(), behind.iter().rev());
        if tail < MIN_COPY && tail < rest.len() {
            tail = 0;
        }
        self.copy(self.old_at..self.old_at + same);
        let between = range.start + same..range.end - tail;
        let from = self.old_at;
        let until = (old_end - tail).max(from);
        let mut at = between.start;
        while at < between.end {
            let piece = at..between.end.min(at + TEXT);
            // The part of the old text that lies as far in it as the piece in the new one, and around it.
            let room = max_prefix(piece.len());
            let place = scaled(at - between.start, between.len(), until - from) + from;
            let spare = room.saturating_sub(piece.len()) / 2;
            let start = place.saturating_sub(spare).max(from.saturating_sub(spare));
            let end = start.saturating_add(room).min(self.old.len());
            self.piece(piece.clone(), start.min(end)..end)?;
            at = piece.end;
        }
        self.copy(old_end - tail..old_end);
        (self.progress)(range.end as u64);
        Ok(())
    }

    /// A text of at most [`TEXT`] bytes.
    fn piece(&mut self, new: Range<usize>, prefix: Range<usize>) -> io::Result<()> {
        let coded = frame(&self.new[new.clone()], &self.old[prefix.clone()])?;
        self.begin(Operation::Text, new.len());
        put(&mut self.out, prefix.len() as u64);
        self.uses(prefix);
        self.coded(&coded);
        Ok(())
    }

    fn tensor(&mut self, tensor: &Payload, old: Option<Range<usize>>) -> io::Result<()> {
        let range = tensor.range.clone();
        if let Some(old) = &old
            && self.old[old.clone()] == self.new[range.clone()]
        {
            self.copy(old.clone());
            (self.progress)(range.end as u64);
            return Ok(());
        }
        let kind = Kind::of_onnx(tensor.element).filter(|kind| range.len().is_multiple_of(kind.width()));
        let Some(kind) = kind else {
            return self.text(range, old.map_or(self.old.len(), |old| old.end));
        };
        // Of a tensor without rows, or with very long ones, each element has its own.
        let row =
            tensor.dims.get(1..).unwrap_or_default().iter().fold(1, |row: u64, dim| row.saturating_mul(*dim));
        let row = usize::try_from(row).ok().filter(|row| (1..=MAX_ROW).contains(row)).unwrap_or(1);
        let mut at = range.start;
        while at < range.end {
            let block = at..range.end.min(at + BLOCK);
            let from = at - range.start;
            let old = old.as_ref().map(|old| old.start + from..old.start + from + block.len());
            self.block(kind, row, block.clone(), old)?;
            at = block.end;
            (self.progress)(at as u64);
        }
        Ok(())
    }

    /// At most [`BLOCK`] bytes of a tensor, in the way that needs the fewest bytes.
    fn block(
        &mut self,
        kind: Kind,
        row: usize,
        new: Range<usize>,
        old: Option<Range<usize>>,
    ) -> io::Result<()> {
        let elements = self.new[new.clone()].chunks_exact(kind.width()).map(load);
        let mut plain = self.learned.plain(kind).clone();
        let mut coder = Encoder::new();
        for element in elements.clone() {
            plain.code(&mut coder, element);
        }
        let alone = coder.finish();
        let steps = old.clone().filter(|_| kind == Kind::F32);
        let steps = steps.and_then(|old| Some((old.clone(), self.steps(row, new.clone(), old)?)));
        let difference = old.map(|old| {
            let mut difference = self.learned.difference(kind).clone();
            let mut coder = Encoder::new();
            difference.set_row(row);
            let before = self.old[old.clone()].chunks_exact(kind.width()).map(load);
            for (old, new) in before.zip(elements) {
                difference.code(&mut coder, old, new);
            }
            (old, difference, coder.finish())
        });
        let least = difference.as_ref().map_or(alone.len(), |(_, _, coded)| coded.len().min(alone.len()));
        if let Some((old, (exponent, steps, coded))) = steps.filter(|(_, (_, _, coded))| coded.len() < least)
        {
            self.begin(Operation::Steps, new.len());
            put(&mut self.out, row as u64);
            put(&mut self.out, zigzag(exponent.into()));
            self.uses(old);
            self.coded(&coded);
            *self.learned.steps() = steps;
            return Ok(());
        }
        match difference {
            Some((old, difference, coded)) if coded.len() < alone.len() => {
                self.begin(Operation::Difference(kind), new.len());
                put(&mut self.out, row as u64);
                self.uses(old);
                self.coded(&coded);
                *self.learned.difference(kind) = difference;
            }
            // Lists of indices and the like repeat themselves.
            _ => {
                let text = frame(&self.new[new.clone()], &[])?;
                if alone.len() < text.len() && alone.len() <= max_coded(new.len()) {
                    self.begin(Operation::Plain(kind), new.len());
                    self.coded(&alone);
                    *self.learned.plain(kind) = plain;
                } else {
                    self.piece(new, self.old_at..self.old_at)?;
                }
            }
        }
        Ok(())
    }

    /// f32 as multiples of a step, when they moved so: the exponent, what was learned, the coded bytes.
    fn steps(&mut self, row: usize, new: Range<usize>, old: Range<usize>) -> Option<(i32, Steps, Vec<u8>)> {
        let load = |bytes: &[u8]| load(bytes) as u32;
        let before = self.old[old].chunks_exact(Kind::F32.width()).map(load);
        let pairs = before.zip(self.new[new].chunks_exact(Kind::F32.width()).map(load));
        let exponent = element::steps(pairs.clone())?;
        let mut steps = self.learned.steps().clone();
        let mut coder = Encoder::new();
        steps.set_row(row);
        for (old, new) in pairs {
            steps.code(&mut coder, element::step(exponent), old, new);
        }
        Some((exponent, steps, coder.finish()))
    }
}

/// A zstd frame of `bytes` that refers to `prefix`.
fn frame(bytes: &[u8], prefix: &[u8]) -> io::Result<Vec<u8>> {
    debug_assert!(bytes.len() <= TEXT && prefix.len() <= MAX_PREFIX, "within the window");
    let mut zstd = Zstd::with_ref_prefix(Vec::new(), LEVEL, prefix)?;
    zstd.window_log(WINDOW_LOG)?;
    zstd.include_checksum(false)?;
    zstd.set_pledged_src_size(Some(bytes.len() as u64))?;
    zstd.write_all(bytes)?;
    zstd.finish()
}

fn common<'a>(a: impl Iterator<Item = &'a u8>, b: impl Iterator<Item = &'a u8>) -> usize {
    a.zip(b).take_while(|(a, b)| a == b).count()
}

/// `part` of `whole` as a part of `other`.
fn scaled(part: usize, whole: usize, other: usize) -> usize {
    (part as u128 * other as u128 / (whole as u128).max(1)) as usize
}
