//! What is expected of the elements of a tensor, given the same element of the old tensor and the ones
//! before it. The same code runs in both directions (see [`Coder`]).

use std::ops::RangeInclusive;

use super::range::{Bit, Coder, MAX_EVEN};

/// How elements are read: width and whether the bits are a floating-point number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whole numbers of 1 byte, also booleans and 8-bit floats.
    Int8,
    /// Whole numbers of 2 bytes.
    Int16,
    /// Whole numbers of 4 bytes.
    Int32,
    /// Whole numbers of 8 bytes.
    Int64,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
}

impl Kind {
    /// Every kind, in the order of its code in a delta.
    pub(super) const ALL: [Self; 8] =
        [Self::Int8, Self::Int16, Self::Int32, Self::Int64, Self::F16, Self::Bf16, Self::F32, Self::F64];

    /// The kind of an ONNX element type; `None` for those without a fixed width in bytes.
    pub(super) fn of_onnx(element: i32) -> Option<Self> {
        Some(match element {
            // uint8, int8, bool, the 8-bit floats, and pairs of 4-bit numbers
            2 | 3 | 9 | 17..=24 => Self::Int8,
            // uint16, int16
            4 | 5 => Self::Int16,
            // int32, uint32
            6 | 12 => Self::Int32,
            // int64, uint64
            7 | 13 => Self::Int64,
            10 => Self::F16,
            16 => Self::Bf16,
            // float, complex64
            1 | 14 => Self::F32,
            // double, complex128
            11 | 15 => Self::F64,
            _ => return None,
        })
    }

    /// Bytes of an element.
    pub(super) fn width(self) -> usize {
        match self {
            Self::Int8 => 1,
            Self::Int16 | Self::F16 | Self::Bf16 => 2,
            Self::Int32 | Self::F32 => 4,
            Self::Int64 | Self::F64 => 8,
        }
    }

    /// Bits of an element.
    fn bits(self) -> u32 {
        self.width() as u32 * 8
    }

    /// Bits of the mantissa of a floating-point number.
    fn mantissa(self) -> Option<u32> {
        match self {
            Self::Int8 | Self::Int16 | Self::Int32 | Self::Int64 => None,
            Self::F16 => Some(10),
            Self::Bf16 => Some(7),
            Self::F32 => Some(23),
            Self::F64 => Some(52),
        }
    }

    fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Order of the value among all of its kind: neighbours in value are neighbours as integers. Its own
    /// inverse is [`Self::unordered`].
    fn ordered(self, bits: u64) -> u64 {
        let sign = 1 << (self.bits() - 1);
        match self.mantissa() {
            None => bits,
            Some(_) if bits & sign == 0 => bits | sign,
            Some(_) => !bits & self.mask(),
        }
    }

    fn unordered(self, order: u64) -> u64 {
        let sign = 1 << (self.bits() - 1);
        match self.mantissa() {
            None => order,
            Some(_) if order & sign == 0 => !order & self.mask(),
            Some(_) => order & !sign,
        }
    }

    /// The exponent of a value, at least 1 as in denormal numbers; 0 for whole numbers.
    fn exponent(self, bits: u64) -> i32 {
        match self.mantissa() {
            None => 0,
            Some(mantissa) => {
                let exponent = (bits & (self.mask() >> 1)) >> mantissa;
                // At most 11 bits.
                (exponent as i32).max(1)
            }
        }
    }
}

/// Most elements of a row: longer rows give the neighbours above no use, and cost memory.
pub(super) const MAX_ROW: usize = 64 * 1024;
/// Fractional bits of an estimated logarithm.
const FRACTION: u32 = 4;
/// Contexts for the estimate: half bits, of differences of 0 to 64 bits.
const CONTEXTS: usize = 129;
/// Lengths of a difference in bits.
const LENGTHS: usize = 65;

/// Differences to the old tensor. What training changes has a size that is much the same for neighbours in
/// a row and in a column whatever the size of the weight, so the number of digits of a difference is guessed
/// from those, relative to the exponent; and a weight tends to move like the one before it, and to shrink.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    kind: Kind,
    /// Logarithm of the size of the last differences, with [`FRACTION`] bits.
    near: i32,
    /// The same of each column.
    columns: Vec<i32>,
    /// Column of the next element.
    column: usize,
    /// Direction of the last difference: none, up, down.
    last: usize,
    /// By the guess: whether the difference is longer.
    longer: Vec<Bit>,
    /// By the guess and the length looked at: whether it is longer still, or shorter still.
    up: Vec<[Bit; LENGTHS]>,
    down: Vec<[Bit; LENGTHS]>,
    /// By length, sign of the old value and direction of the last difference: whether it goes down.
    sign: Vec<[[Bit; 3]; 2]>,
    /// By length: the two digits after the first.
    lead: Vec<[Bit; 4]>,
}

impl Difference {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            near: 0,
            columns: vec![0],
            column: 0,
            last: 0,
            longer: vec![Bit::default(); CONTEXTS],
            up: vec![[Bit::default(); LENGTHS]; CONTEXTS],
            down: vec![[Bit::default(); LENGTHS]; CONTEXTS],
            sign: vec![Default::default(); LENGTHS],
            lead: vec![Default::default(); LENGTHS],
        }
    }

    /// Says how many elements a row of the tensor has; rows go on from block to block.
    pub(super) fn set_row(&mut self, row: usize) {
        if self.columns.len() != row.max(1) {
            self.columns = vec![self.near; row.max(1)];
            self.column = 0;
        }
    }

    /// Codes `new`, of which `old` is known.
    pub(super) fn code(&mut self, coder: &mut impl Coder, old: u64, new: u64) -> u64 {
        let kind = self.kind;
        let from = kind.ordered(old);
        // Around the circle of all values, whichever way is shorter.
        let shift = 64 - kind.bits();
        let difference = ((kind.ordered(new).wrapping_sub(from) << shift) as i64) >> shift;
        let sign = (old >> (kind.bits() - 1)) as usize;
        let difference = self.number(coder, kind.exponent(old), sign, difference);
        kind.unordered(from.wrapping_add(difference as u64) & kind.mask())
    }

    /// Codes a difference: digits, direction, digits after the first.
    fn number(&mut self, coder: &mut impl Coder, exponent: i32, old_sign: usize, difference: i64) -> i64 {
        let size = difference.unsigned_abs();
        let length = self.length(coder, exponent, 64 - size.leading_zeros());
        if length == 0 {
            self.last = 0;
            return 0;
        }
        let sign = &mut self.sign[length as usize][old_sign][self.last];
        let down = coder.bit(sign, difference < 0);
        self.last = 1 + usize::from(down);
        let size = self.digits(coder, length, size) as i64;
        if down { size.wrapping_neg() } else { size }
    }

    /// Codes the number of digits, by steps up or down from the guess.
    fn length(&mut self, coder: &mut impl Coder, exponent: i32, new: u32) -> u32 {
        let bits = self.kind.bits();
        let exponent = exponent << FRACTION;
        let column = self.columns.get_mut(self.column);
        let above = column.as_ref().map_or(self.near, |column| **column);
        let guess = ((self.near + above) / 2 - exponent).clamp(0, (bits << FRACTION) as i32) as u32;
        let context = (guess >> (FRACTION - 1)) as usize;
        let mut length = guess >> FRACTION;
        if coder.bit(&mut self.longer[context], new > length) {
            length += 1;
            while length < bits && coder.bit(&mut self.up[context][length as usize], new > length) {
                length += 1;
            }
        } else {
            while length > 0 && coder.bit(&mut self.down[context][length as usize], new < length) {
                length -= 1;
            }
        }
        let seen = exponent + (length << FRACTION) as i32;
        self.near += (seen - self.near) >> 2;
        if let Some(column) = column {
            *column += (seen - *column) >> 3;
        }
        self.column += 1;
        if self.column >= self.columns.len() {
            self.column = 0;
        }
        length
    }

    /// Codes the digits after the first, which is set: the next two lean to 0, the others are noise.
    fn digits(&mut self, coder: &mut impl Coder, length: u32, new: u64) -> u64 {
        let lead = &mut self.lead[length as usize];
        let (mut size, mut left) = (1u64, length - 1);
        while left > 0 && size < 4 {
            left -= 1;
            let bit = coder.bit(&mut lead[size as usize], new >> left & 1 == 1);
            size = size << 1 | u64::from(bit);
        }
        even(coder, left, size, new)
    }
}

/// Codes the lowest `left` bits of `new`, of which nothing is known, after those in `found`.
fn even(coder: &mut impl Coder, mut left: u32, mut found: u64, new: u64) -> u64 {
    while left > 0 {
        let count = left.min(MAX_EVEN);
        left -= count;
        found = found << count | coder.even(count, new >> left & ((1 << count) - 1));
    }
    found
}

/// How a tensor of f32 moved whose every element moved by a multiple of one power of two: the multiples are
/// differences too, but of one scale, and without the noise below it.
#[derive(Debug, Clone)]
pub(super) struct Steps(Difference);

impl Steps {
    pub(super) fn new() -> Self {
        Self(Difference::new(Kind::Int32))
    }

    /// As [`Difference::set_row`].
    pub(super) fn set_row(&mut self, row: usize) {
        self.0.set_row(row);
    }

    /// Codes the multiple of `step` by which `old` moves to `new`; all are f32 bits, as in [`steps`].
    pub(super) fn code(&mut self, coder: &mut impl Coder, step: f64, old: u32, new: u32) -> u32 {
        let multiple = self.0.number(coder, 0, (old >> 31) as usize, multiple(step, old, new));
        moved(step, old, multiple)
    }
}

/// `old`, moved by a multiple of `step`. Nothing but one product, one sum and one rounding of IEEE 754 doubles,
/// so that all machines agree; and what does not move keeps its bits, whatever they are.
fn moved(step: f64, old: u32, multiple: i64) -> u32 {
    if multiple == 0 {
        return old;
    }
    // At most 32 bits: exact.
    ((f64::from(f32::from_bits(old)) + multiple as f64 * step) as f32).to_bits()
}

/// The multiple of `step` by which `old` moved most likely.
fn multiple(step: f64, old: u32, new: u32) -> i64 {
    let difference = f64::from(f32::from_bits(new)) - f64::from(f32::from_bits(old));
    // As a cast does, numbers that are none become 0, and too large ones something that is then not `new`.
    let most = f64::from(i32::MAX);
    (difference / step).round().clamp(-most, most) as i64
}

/// Exponents of steps: of the smallest and the largest power of two among the f32.
pub(super) const STEPS: RangeInclusive<i32> = -149..=127;
/// Most digits of a multiple that are looked for: from there on a difference of the bits is as short.
const MOST_DIGITS: i32 = 20;

/// Two to the power of `exponent`, which is one of [`STEPS`].
pub(super) fn step(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

/// The exponent of the largest step of which all elements moved a multiple, as their trainer may have made
/// them; `None` when there is none worth its while.
pub(super) fn steps(pairs: impl Iterator<Item = (u32, u32)> + Clone) -> Option<i32> {
    let distance = |(old, new): (u32, u32)| (f32::from_bits(new) - f32::from_bits(old)).abs();
    let most = pairs.clone().map(distance).fold(0.0, f32::max);
    if most == 0.0 || !most.is_finite() {
        return None;
    }
    // Its exponent; the sign bit is not set.
    let top = (most.to_bits() >> 23) as i32 - 127;
    (top - MOST_DIGITS..=top).rev().filter(|exponent| STEPS.contains(exponent)).find(|&exponent| {
        let step = step(exponent);
        pairs.clone().all(|(old, new)| moved(step, old, multiple(step, old, new)) == new)
    })
}

/// Elements of which no old one is known: the byte that holds the exponent or the highest digits follows
/// a distribution, the others are noise.
#[derive(Debug, Clone)]
pub(super) struct Plain {
    kind: Kind,
    top: Vec<Bit>,
}

impl Plain {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, top: vec![Bit::default(); 256] }
    }

    /// Codes `new`.
    pub(super) fn code(&mut self, coder: &mut impl Coder, new: u64) -> u64 {
        let (kind, bits) = (self.kind, self.kind.bits());
        // The sign is noise too: it goes below the mantissa, so that the exponent comes first.
        let turned = kind.mantissa().is_some();
        let value = if turned { (new << 1 | new >> (bits - 1)) & kind.mask() } else { new };
        let left = bits - 8;
        let mut node = 1;
        for level in (0..8).rev() {
            let bit = coder.bit(&mut self.top[node], value >> left >> level & 1 == 1);
            node = node << 1 | usize::from(bit);
        }
        let found = even(coder, left, node as u64 & 0xff, value);
        if turned { (found >> 1 | found << (bits - 1)) & kind.mask() } else { found }
    }
}
