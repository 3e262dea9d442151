//! Applying a delta: a few hundred KiB at a time, whatever the files' size. Every number in the delta is
//! checked before it is used, so that a hostile one costs no more than an honest one of its length.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};

use zstd::stream::read::Decoder as Zstd;

use super::element::{self, Kind, MAX_ROW, STEPS};
use super::error::DeltaError;
use super::format::{
    BLOCK, Learned, MARK, Operation, TEXT, VERSION, WINDOW_LOG, get, load, max_coded, max_prefix, unzigzag,
};
use super::range::Decoder;

/// Makes the new file of an old one and a delta, and writes it to `new` in order. `expected` is its length
/// in bytes as its signed description says; no more than that is written.
///
/// The result is only as good as the delta: the caller checks what is written against the signed digests,
/// by a [`ChunkVerifier`](crate::blob::ChunkVerifier) in `new`.
///
/// # Errors
/// [`DeltaError`]; what was written until then is to be thrown away or resumed from its verified chunks.
pub fn apply(
    old: &mut (impl Read + Seek),
    delta: impl Read,
    new: &mut impl Write,
    expected: u64,
) -> Result<(), DeltaError> {
    let old_length = old.seek(SeekFrom::End(0)).map_err(DeltaError::Old)?;
    let mut apply = Apply {
        old: Old { file: old, length: old_length, at: 0 },
        delta,
        new,
        made: 0,
        length: expected,
        learned: Learned::default(),
        before: Vec::new(),
        coded: Vec::new(),
        after: Vec::new(),
    };
    apply.header()?;
    while apply.made < expected {
        apply.operation()?;
    }
    apply.end()
}

/// The old file and the place after what was last used of it, from which the next place is counted.
struct Old<'a, F> {
    file: &'a mut F,
    length: u64,
    at: u64,
}

impl<F: Read + Seek> Old<'_, F> {
    /// Moves by `jump` to a place from which `length` bytes can be read.
    fn move_by(&mut self, jump: i64, length: u64) -> Option<()> {
        let at = self.at.checked_add_signed(jump)?;
        at.checked_add(length).filter(|end| *end <= self.length)?;
        self.at = at;
        Some(())
    }

    /// Reads the next `length` bytes.
    fn read(&mut self, buffer: &mut Vec<u8>, length: usize) -> Result<(), DeltaError> {
        buffer.resize(length, 0);
        self.file.seek(SeekFrom::Start(self.at)).map_err(DeltaError::Old)?;
        self.file.read_exact(buffer).map_err(DeltaError::Old)?;
        self.at += length as u64;
        Ok(())
    }
}

struct Apply<'a, F, D, N> {
    old: Old<'a, F>,
    delta: D,
    new: &'a mut N,
    made: u64,
    length: u64,
    learned: Learned,
    // Buffers that every operation uses again.
    before: Vec<u8>,
    coded: Vec<u8>,
    after: Vec<u8>,
}

impl<F: Read + Seek, D: Read, N: Write> Apply<'_, F, D, N> {
    fn malformed<T>(&self, why: &'static str) -> Result<T, DeltaError> {
        Err(DeltaError::Malformed { made: self.made, why })
    }

    fn reading(&self, error: io::Error) -> DeltaError {
        match error.kind() {
            ErrorKind::UnexpectedEof => DeltaError::Truncated { made: self.made },
            _ => DeltaError::Delta(error),
        }
    }

    fn number(&mut self) -> Result<u64, DeltaError> {
        match get(&mut self.delta) {
            Ok(Some(number)) => Ok(number),
            Ok(None) => self.malformed("a number has more than 64 bits"),
            Err(error) => Err(self.reading(error)),
        }
    }

    fn header(&mut self) -> Result<(), DeltaError> {
        let mut mark = [0; MARK.len() + 1];
        let read = self.delta.read_exact(&mut mark);
        read.map_err(|error| self.reading(error))?;
        if mark[..MARK.len()] != MARK {
            return Err(DeltaError::Mark);
        }
        let found = mark[MARK.len()];
        if found != VERSION {
            return Err(DeltaError::Version { found });
        }
        let expected = self.number()?;
        if expected != self.old.length {
            return Err(DeltaError::Base { expected, found: self.old.length });
        }
        let declared = self.number()?;
        if declared != self.length {
            return Err(DeltaError::Length { declared, expected: self.length });
        }
        Ok(())
    }

    fn operation(&mut self) -> Result<(), DeltaError> {
        let mut code = [0];
        let read = self.delta.read_exact(&mut code);
        read.map_err(|error| self.reading(error))?;
        let Some(operation) = Operation::from_code(code[0]) else {
            return self.malformed("it has an operation that this version does not know");
        };
        let length = self.number()?;
        if length == 0 || length > self.length - self.made {
            return self.malformed("an operation makes no bytes, or more than there are to make");
        }
        match operation {
            Operation::Copy => self.copy(length),
            Operation::Text => self.text(length),
            Operation::Difference(kind) => self.difference(kind, length),
            Operation::Plain(kind) => self.plain(kind, length),
            Operation::Steps => self.steps(length),
        }
    }

    /// The length of an operation that is held in memory as a whole.
    fn held(&self, length: u64, most: usize) -> Result<usize, DeltaError> {
        match usize::try_from(length) {
            Ok(length) if length <= most => Ok(length),
            _ => self.malformed("an operation makes more bytes at once than allowed"),
        }
    }

    /// Moves to the next place in the old file, of which `length` bytes are used.
    fn jump(&mut self, length: u64) -> Result<(), DeltaError> {
        let by = unzigzag(self.number()?);
        match self.old.move_by(by, length) {
            Some(()) => Ok(()),
            None => self.malformed("an operation refers to bytes outside the old file"),
        }
    }

    /// Reads the coded bytes of an operation that makes `length` bytes.
    fn coded(&mut self, length: usize) -> Result<(), DeltaError> {
        let coded = self.number()?;
        let Some(coded) = usize::try_from(coded).ok().filter(|coded| *coded <= max_coded(length)) else {
            return self.malformed("an operation is coded in more bytes than it can need");
        };
        self.coded.resize(coded, 0);
        let read = self.delta.read_exact(&mut self.coded);
        read.map_err(|error| self.reading(error))
    }

    /// Hands on what an operation made.
    fn write(&mut self) -> Result<(), DeltaError> {
        self.new.write_all(&self.after).map_err(DeltaError::New)?;
        self.made += self.after.len() as u64;
        Ok(())
    }

    fn copy(&mut self, length: u64) -> Result<(), DeltaError> {
        self.jump(length)?;
        let mut left = length;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            self.old.read(&mut self.after, piece)?;
            self.write()?;
            left -= piece as u64;
        }
        Ok(())
    }

    fn text(&mut self, length: u64) -> Result<(), DeltaError> {
        let length = self.held(length, TEXT)?;
        let prefix = self.number()?;
        let Some(prefix) = usize::try_from(prefix).ok().filter(|prefix| *prefix <= max_prefix(length)) else {
            return self.malformed("a text refers to more of the old file than allowed");
        };
        self.jump(prefix as u64)?;
        self.old.read(&mut self.before, prefix)?;
        self.coded(length)?;
        // One byte more than declared would prove that the frame holds more.
        let read = Zstd::with_ref_prefix(&self.coded[..], &self.before).and_then(|mut frame| {
            frame.window_log_max(WINDOW_LOG)?;
            self.after.clear();
            frame.single_frame().take(length as u64 + 1).read_to_end(&mut self.after)
        });
        match read {
            Ok(read) if read == length => self.write(),
            Ok(read) if read > length => Err(DeltaError::Bomb { made: self.made, declared: length as u64 }),
            Ok(_) => self.malformed("a text does not have the length that is declared"),
            Err(_) => self.malformed("a text is not a whole zstd frame within the window allowed"),
        }
    }

    fn elements(&self, kind: Kind, length: u64) -> Result<usize, DeltaError> {
        let length = self.held(length, BLOCK)?;
        if length.is_multiple_of(kind.width()) {
            Ok(length)
        } else {
            self.malformed("a tensor ends in the middle of an element")
        }
    }

    fn row(&mut self) -> Result<usize, DeltaError> {
        let row = self.number()?;
        match usize::try_from(row) {
            Ok(row) if (1..=MAX_ROW).contains(&row) => Ok(row),
            _ => self.malformed("a row of a tensor has more elements than allowed, or none"),
        }
    }

    fn difference(&mut self, kind: Kind, length: u64) -> Result<(), DeltaError> {
        let length = self.elements(kind, length)?;
        let row = self.row()?;
        self.jump(length as u64)?;
        self.old.read(&mut self.before, length)?;
        self.coded(length)?;
        let mut coder = Decoder::new(&self.coded);
        let learned = self.learned.difference(kind);
        learned.set_row(row);
        self.after.clear();
        for old in self.before.chunks_exact(kind.width()) {
            let new = learned.code(&mut coder, load(old), 0);
            self.after.extend_from_slice(&new.to_le_bytes()[..kind.width()]);
        }
        if coder.overrun() {
            return self.malformed("the differences of a tensor have another length than declared");
        }
        self.write()
    }

    fn steps(&mut self, length: u64) -> Result<(), DeltaError> {
        let length = self.elements(Kind::F32, length)?;
        let row = self.row()?;
        let exponent = i32::try_from(unzigzag(self.number()?)).ok();
        let Some(exponent) = exponent.filter(|exponent| STEPS.contains(exponent)) else {
            return self.malformed("the step of a tensor is no power of two among its numbers");
        };
        self.jump(length as u64)?;
        self.old.read(&mut self.before, length)?;
        self.coded(length)?;
        let mut coder = Decoder::new(&self.coded);
        let learned = self.learned.steps();
        learned.set_row(row);
        self.after.clear();
        for old in self.before.chunks_exact(Kind::F32.width()) {
            let new = learned.code(&mut coder, element::step(exponent), load(old) as u32, 0);
            self.after.extend_from_slice(&new.to_le_bytes());
        }
        if coder.overrun() {
            return self.malformed("the steps of a tensor have another length than declared");
        }
        self.write()
    }

    fn plain(&mut self, kind: Kind, length: u64) -> Result<(), DeltaError> {
        let length = self.elements(kind, length)?;
        self.coded(length)?;
        let mut coder = Decoder::new(&self.coded);
        let learned = self.learned.plain(kind);
        self.after.clear();
        for _ in 0..length / kind.width() {
            let new = learned.code(&mut coder, 0);
            self.after.extend_from_slice(&new.to_le_bytes()[..kind.width()]);
        }
        if coder.overrun() {
            return self.malformed("the elements of a tensor have another length than declared");
        }
        self.write()
    }

    fn end(&mut self) -> Result<(), DeltaError> {
        let mut more = [0];
        match self.delta.read(&mut more) {
            Ok(0) => Ok(()),
            Ok(_) => self.malformed("it goes on after the end of the new file"),
            Err(error) => Err(DeltaError::Delta(error)),
        }
    }
}
