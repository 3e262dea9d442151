//! A binary range coder with adaptive probabilities (Martin 1979; the adaptive bit as in LZMA). One trait for
//! both directions, so that a model of the data is written once and cannot differ between them.

/// The range is widened by this many bits whenever it has become narrower than that.
const STEP: u32 = 32;
/// Bytes that the decoder takes at a time.
const STEP_BYTES: usize = STEP as usize / 8;
/// Bytes of `low` in the encoder and `code` in the decoder.
const STATE_BYTES: usize = 8;
/// Most equally likely bits at a time: what is lost to rounding stays below 2^-16 of a bit.
pub(super) const MAX_EVEN: u32 = 16;

/// How fast the two estimates of a probability follow, as right shifts: one that learns in a few bits,
/// one that settles.
const RATES: [u32; 2] = [4, 7];

/// An adaptive probability that a bit is set: the mean of a quick and a slow estimate, of 16 bits each.
/// Both stay away from 0 and 1 because a shift rounds down.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bit([u16; 2]);

impl Default for Bit {
    fn default() -> Self {
        Self([1 << 15; 2])
    }
}

impl Bit {
    /// Share of the range that a set bit gets: above 0 and below all of it.
    fn share(self, range: u64) -> u64 {
        (range >> 17) * (u64::from(self.0[0]) + u64::from(self.0[1]))
    }

    fn learn(&mut self, bit: bool) {
        for (estimate, rate) in self.0.iter_mut().zip(RATES) {
            if bit {
                *estimate += (u16::MAX - *estimate) >> rate;
            } else {
                *estimate -= *estimate >> rate;
            }
        }
    }
}

/// Either direction: the encoder writes what it is given and returns it, the decoder returns what was
/// written and does not look at what it is given.
pub(super) trait Coder {
    /// A bit that is expected to be set as often as `probability` says, which learns from it.
    fn bit(&mut self, probability: &mut Bit, bit: bool) -> bool;

    /// `count` bits of which nothing is known, at most [`MAX_EVEN`].
    fn even(&mut self, count: u32, value: u64) -> u64;
}

/// Writes.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    low: u64,
    range: u64,
    out: Vec<u8>,
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self { low: 0, range: u64::MAX, out: Vec::new() }
    }

    fn raise(&mut self, by: u64) {
        let (low, carry) = self.low.overflowing_add(by);
        self.low = low;
        if carry {
            for byte in self.out.iter_mut().rev() {
                *byte = byte.wrapping_add(1);
                if *byte != 0 {
                    break;
                }
            }
        }
    }

    fn widen(&mut self) {
        if self.range >> STEP == 0 {
            self.out.extend_from_slice(&self.low.to_be_bytes()[..STEP_BYTES]);
            self.low <<= STEP;
            self.range <<= STEP;
        }
    }

    /// The bytes written.
    pub(super) fn finish(mut self) -> Vec<u8> {
        // The range is at least 2^STEP wide here, so it holds a number whose low half is 0; zeros at its
        // end need not be written either, as the decoder reads zeros past the end.
        self.raise((1 << STEP) - 1);
        let mut last = &self.low.to_be_bytes()[..STEP_BYTES];
        while let Some((0, rest)) = last.split_last() {
            last = rest;
        }
        self.out.extend_from_slice(last);
        self.out
    }
}

impl Coder for Encoder {
    fn bit(&mut self, probability: &mut Bit, bit: bool) -> bool {
        let share = probability.share(self.range);
        if bit {
            self.range = share;
        } else {
            self.raise(share);
            self.range -= share;
        }
        probability.learn(bit);
        self.widen();
        bit
    }

    fn even(&mut self, count: u32, value: u64) -> u64 {
        self.range >>= count;
        self.raise(self.range * value);
        self.widen();
        value
    }
}

/// Reads. Any bytes decode to something; [`Self::overrun`] tells whether there were too few.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    code: u64,
    range: u64,
    input: &'a [u8],
    /// Bytes taken past the end.
    missing: usize,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        let mut decoder = Self { code: 0, range: u64::MAX, input, missing: 0 };
        decoder.take();
        decoder.take();
        decoder
    }

    /// Whether more was read than was written.
    pub(super) fn overrun(&self) -> bool {
        self.missing > STATE_BYTES || !self.input.is_empty()
    }

    fn take(&mut self) {
        let mut bytes = [0; STEP_BYTES];
        if let Some((head, tail)) = self.input.split_first_chunk() {
            bytes = *head;
            self.input = tail;
        } else {
            let there = self.input.len();
            bytes[..there].copy_from_slice(self.input);
            self.missing += STEP_BYTES - there;
            self.input = &[];
        }
        self.code = self.code << STEP | u64::from(u32::from_be_bytes(bytes));
    }

    fn widen(&mut self) {
        if self.range >> STEP == 0 {
            self.range <<= STEP;
            self.take();
        }
    }
}

impl Coder for Decoder<'_> {
    fn bit(&mut self, probability: &mut Bit, _: bool) -> bool {
        let share = probability.share(self.range);
        let bit = self.code < share;
        if bit {
            self.range = share;
        } else {
            self.code -= share;
            self.range -= share;
        }
        probability.learn(bit);
        self.widen();
        bit
    }

    fn even(&mut self, count: u32, _: u64) -> u64 {
        self.range >>= count;
        // Bytes that no encoder wrote may lie in what rounding lost.
        let value = (self.code / self.range).min((1 << count) - 1);
        self.code -= self.range * value;
        self.widen();
        value
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(coder: &mut impl Coder, symbols: &[(bool, u8, u16)]) -> Vec<(bool, u8, u16)> {
        let mut skewed = Bit::default();
        symbols
            .iter()
            .map(|&(bit, count, value)| {
                let count = u32::from(count) % (MAX_EVEN + 1);
                let bit = coder.bit(&mut skewed, bit);
                (bit, count as u8, coder.even(count, u64::from(value) & ((1 << count) - 1)) as u16)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(symbols in prop::collection::vec(any::<(bool, u8, u16)>(), 0..400)) {
            let mut encoder = Encoder::new();
            let written = run(&mut encoder, &symbols);
            let bytes = encoder.finish();
            let mut decoder = Decoder::new(&bytes);
            prop_assert_eq!(run(&mut decoder, &symbols), written);
            prop_assert!(!decoder.overrun());
        }

        #[test]
        fn any_bytes_decode(bytes in prop::collection::vec(any::<u8>(), 0..64), count in 0usize..200) {
            run(&mut Decoder::new(&bytes), &vec![(true, 16, 0); count]);
        }
    }

    #[test]
    fn a_rare_bit_costs_little_and_noise_costs_itself() {
        let mut encoder = Encoder::new();
        let mut rare = Bit::default();
        for i in 0..8000 {
            encoder.bit(&mut rare, i % 1000 == 999);
        }
        // 8 of 8,000: 91 bits by Shannon.
        let length = encoder.finish().len();
        assert!(length < 30, "{length}");
        let mut encoder = Encoder::new();
        for i in 0..1000u64 {
            encoder.even(16, i.wrapping_mul(40_503) & 0xffff);
        }
        assert!(encoder.finish().len() <= 2004);
    }

    #[test]
    fn reading_too_far_or_not_far_enough_is_noticed() {
        let mut encoder = Encoder::new();
        for i in 1..100 {
            encoder.even(16, (i * 7919) & 0xffff);
        }
        let bytes = encoder.finish();
        let read = |count| {
            let mut decoder = Decoder::new(&bytes);
            for _ in 0..count {
                decoder.even(16, 0);
            }
            decoder.overrun()
        };
        assert!(!read(99));
        assert!(read(10));
        assert!(read(120));
    }
}
