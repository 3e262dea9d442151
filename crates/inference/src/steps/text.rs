//! Steps on symbols: one-hot axes and tokens of a text by a table.

use std::collections::BTreeMap;

use farlight_release::manifest::steps::{TokenUnit, Tokenise};

use super::pre::{Stage, Work};

/// A new last axis, 1 at the class.
pub(super) struct OneHot {
    classes: usize,
    length: usize,
}

impl OneHot {
    /// With the shape of the result.
    pub(super) fn new(classes: usize, result: &[usize]) -> Self {
        Self { classes, length: result.iter().product() }
    }
}

impl Stage for OneHot {
    fn length(&self) -> usize {
        self.length
    }

    fn run(&self, source: &[f32], target: &mut [f32], _: &mut Work) {
        target.fill(0.0);
        for (value, row) in source.iter().zip(target.chunks_exact_mut(self.classes.max(1))) {
            let class = value.round_ties_even();
            // A float below 0, or none, is no class; one too large is none of the row.
            if class >= 0.0
                && let Some(element) = row.get_mut(class as usize)
            {
                *element = 1.0;
            }
        }
    }
}

/// Token ids of texts.
pub(super) struct Tokens {
    unit: TokenUnit,
    /// Ids as floats, by the token's bytes.
    table: BTreeMap<Vec<u8>, f32>,
    /// Bytes of the longest token.
    longest: usize,
    /// Bytes of a text.
    bytes: usize,
    outer: usize,
    length: usize,
    pad: f32,
    unknown: Option<f32>,
    begin: Option<f32>,
    end: Option<f32>,
    lowercase: bool,
}

impl Tokens {
    pub(super) fn new(step: &Tokenise, shape: &[usize]) -> Self {
        let float = |id: u32| id as f32;
        Self {
            unit: step.unit,
            table: step.table.iter().map(|(token, id)| (token.as_bytes().to_vec(), float(*id))).collect(),
            longest: step.table.keys().map(String::len).max().unwrap_or(0),
            bytes: shape.last().copied().unwrap_or(0),
            outer: shape.iter().rev().skip(1).product(),
            length: step.length,
            pad: float(step.pad),
            unknown: step.unknown.map(float),
            begin: step.begin.map(float),
            end: step.end.map(float),
            lowercase: step.lowercase,
        }
    }

    /// Writes the ids of a text, and those before and after it, to the begin of `row`.
    fn write(&self, text: &[u8], row: &mut [f32]) {
        let room = row.len().saturating_sub(usize::from(self.end.is_some()));
        let mut used = 0;
        // Whether there was room for it.
        let mut push = |id: f32| match row.get_mut(used) {
            Some(slot) if used < room => {
                *slot = id;
                used += 1;
                true
            }
            _ => false,
        };
        let _ = self.begin.is_none_or(&mut push)
            && match self.unit {
                TokenUnit::Byte => text.iter().all(|byte| push(f32::from(*byte))),
                TokenUnit::Word => text
                    .split(u8::is_ascii_whitespace)
                    .filter(|word| !word.is_empty())
                    .filter_map(|word| self.table.get(word).copied().or(self.unknown))
                    .all(push),
                TokenUnit::Piece => {
                    let mut rest = text;
                    std::iter::from_fn(|| {
                        let (id, length) = self.piece(rest)?;
                        rest = rest.get(length..).unwrap_or_default();
                        Some(id)
                    })
                    .flatten()
                    .all(push)
                }
            };
        if let (Some(end), Some(slot)) = (self.end, row.get_mut(used)) {
            *slot = end;
        }
    }

    /// The id at the begin of `text` and the bytes it stands for; nothing at the end of the text.
    fn piece(&self, text: &[u8]) -> Option<(Option<f32>, usize)> {
        let lengths = (1..=self.longest.min(text.len())).rev();
        let mut found = lengths.filter_map(|n| Some((*self.table.get(text.get(..n)?)?, n)));
        if let Some((id, length)) = found.next() {
            return Some((Some(id), length));
        }
        // The whole character is unknown: its first byte and those that continue it.
        let (_, rest) = text.split_first()?;
        let more = rest.iter().take_while(|byte| **byte & 0b1100_0000 == 0b1000_0000).count();
        Some((self.unknown, 1 + more))
    }
}

impl Stage for Tokens {
    fn length(&self) -> usize {
        self.outer * self.length
    }

    fn run(&self, source: &[f32], target: &mut [f32], work: &mut Work) {
        let texts = source.chunks_exact(self.bytes.max(1));
        for (values, row) in texts.zip(target.chunks_exact_mut(self.length.max(1))) {
            let text = &mut work.text;
            text.clear();
            // The conversion saturates, and makes 0 of what is not a number.
            text.extend(values.iter().map(|value| value.round_ties_even() as u8));
            let length = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            text.truncate(length);
            if self.lowercase {
                text.make_ascii_lowercase();
            }
            row.fill(self.pad);
            self.write(text, row);
        }
    }
}
