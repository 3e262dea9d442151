//! What is expected of the elements of a tensor, given the same element of the old tensor and the ones
//! before it. The same code runs in both directions (see [`Coder`]).

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
    pub(super) const ALL: [Self; 8] = [
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::F16,
        Self::Bf16,
        Self::F32,
        Self::F64,
    ];

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

/// Fractional bits of the running estimate of a magnitude.
const FRACTION: u32 = 4;
/// Contexts a bit of estimated magnitude.
const STEPS: i32 = 2;
/// Contexts of the estimate: differences have 0 to 64 bits.
const CONTEXTS: usize = 64 * STEPS as usize + 1;

/// Differences to the old tensor.
#[derive(Debug, Clone)]
pub(super) struct Difference {
    kind: Kind,
    /// Estimate of the logarithm of the last differences' absolute size, with [`FRACTION`] bits.
    size: i32,
    /// Sign of the last difference: none, up, down.
    last: usize,
    zero: Vec<[Bit; 32]>,
    length: Vec<[Bit; 64]>,
    sign: Vec<[[Bit; 3]; 2]>,
    lead: Vec<[Bit; 4]>,
}

impl Difference {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            size: 0,
            last: 0,
            zero: vec![[Bit::default(); 32]; CONTEXTS],
            length: vec![[Bit::default(); 64]; CONTEXTS],
            sign: vec![Default::default(); 65],
            lead: vec![Default::default(); 65],
        }
    }

    /// Codes `new`, of which `old` is known.
    pub(super) fn code(&mut self, coder: &mut impl Coder, old: u64, new: u64) -> u64 {
        let kind = self.kind;
        let bits = kind.bits();
        let from = kind.ordered(old);
        let shift = 64 - bits;
        // Sign-extended, so that its absolute value is that of the shorter way around.
        let difference = ((kind.ordered(new).wrapping_sub(from) << shift) as i64) >> shift;
        let size = difference.unsigned_abs();

        let exponent = kind.exponent(old) << FRACTION;
        let expected = (self.size - exponent).clamp(0, (bits << FRACTION) as i32);
        let context = (expected * STEPS >> FRACTION) as usize;
        let high = if kind == Kind::Int8 { (old >> 3) as usize } else { 0 };
        let is_zero = coder.bit(&mut self.zero[context][high], size == 0);
        let length = if is_zero {
            0
        } else {
            // A tree over the lengths 1 to `bits`, from its root at 1.
            let depth = bits.trailing_zeros();
            let tree = &mut self.length[context];
            let wanted = 64 - size.leading_zeros();
            let mut at = 1;
            for level in (0..depth).rev() {
                let bit = coder.bit(&mut tree[at], wanted.wrapping_sub(1) >> level & 1 == 1);
                at = at << 1 | usize::from(bit);
            }
            (at as u32 - (1 << depth)) + 1
        };
        // Half a unit below the last place stands for no difference.
        let seen = exponent + ((length as i32) << FRACTION);
        self.size += (seen - self.size) >> 3;
        if length == 0 {
            self.last = 0;
            return old;
        }
        let old_sign = (old >> (bits - 1)) as usize;
        let down = coder.bit(&mut self.sign[length as usize][old_sign][self.last], difference < 0);
        self.last = 1 + usize::from(down);
        // The leading bit is known to be set; the next two still lean to the small side.
        let mut found = 1u64;
        let mut left = length - 1;
        let mut node = 1;
        while left > 0 && node < 4 {
            left -= 1;
            let bit = coder.bit(&mut self.lead[length as usize][node], size >> left & 1 == 1);
            node = node << 1 | usize::from(bit);
            found = found << 1 | u64::from(bit);
        }
        while left > 0 {
            let count = left.min(MAX_EVEN);
            left -= count;
            let part = coder.even(count, size >> left & ((1 << count) - 1));
            found = found << count | part;
        }
        let step = if down { found.wrapping_neg() } else { found };
        kind.unordered(from.wrapping_add(step) & kind.mask())
    }
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
        let bits = self.kind.bits();
        // The sign is noise too: it goes below the mantissa.
        let turn = u32::from(self.kind.mantissa().is_some());
        let value = (new << turn | new >> (bits - 1) >> (1 - turn)) & self.kind.mask();
        let value = if turn == 0 { new } else { value };
        let mut left = bits - 8;
        let mut node = 1usize;
        for level in (0..8).rev() {
            let bit = coder.bit(&mut self.top[node], value >> left >> level & 1 == 1);
            node = node << 1 | usize::from(bit);
        }
        let mut found = node as u64 & 0xff;
        while left > 0 {
            let count = left.min(MAX_EVEN);
            left -= count;
            found = found << count | coder.even(count, value >> left & ((1 << count) - 1));
        }
        if turn == 0 { found } else { (found >> 1 | found << (bits - 1)) & self.kind.mask() }
    }
}
