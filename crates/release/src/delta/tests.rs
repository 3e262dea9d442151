//! Whole deltas: models and arbitrary files make the round trip, and no delta, however made, does more than
//! write the bytes it was allowed.

use std::io::{self, Cursor, Read, Write};

use farlight_onnx::proto::TensorProto;
use farlight_onnx::{Dim, GraphBuilder};
use proptest::prelude::*;

use super::format::{MARK, Operation, VERSION, put, zigzag};
use super::{DeltaError, apply, encode};

fn delta(old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut last = 0;
    let delta = encode(old, new, &mut |done| {
        assert!(done >= last, "progress only rises");
        last = done;
    });
    assert_eq!(last, new.len() as u64);
    delta.unwrap()
}

fn run(old: &[u8], delta: &[u8], length: usize) -> Result<Vec<u8>, DeltaError> {
    let mut out = Bounded { bytes: Vec::new(), limit: length };
    apply(&mut Cursor::new(old), delta, &mut out, length as u64).map(|()| out.bytes)
}

/// The name of an error's variant.
fn kind_of(error: &DeltaError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(']).next().unwrap_or_default().to_owned()
}

/// Panics when more is written than allowed.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        assert!(self.bytes.len() <= self.limit, "more was written than declared");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn round_trip(old: &[u8], new: &[u8]) -> usize {
    let delta = delta(old, new);
    assert!(run(old, &delta, new.len()).unwrap() == new);
    delta.len()
}

/// Noise from a counter: the same bytes every time.
fn noise(seed: u64) -> impl Iterator<Item = u64> {
    (1u64..).map(move |i| {
        let mut x = i.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    })
}

/// About normal numbers: sums of uniform ones.
fn normal(seed: u64) -> impl Iterator<Item = f32> {
    noise(seed).map(|x| (0..4).map(|i| (x >> (16 * i) & 0xffff) as f32 / 65536.0 - 0.5).sum::<f32>() * 1.7)
}

fn weights(count: usize, seed: u64) -> Vec<f32> {
    normal(seed).take(count).map(|x| x * 0.05).collect()
}

fn trained(weights: &[f32], by: f32) -> Vec<f32> {
    weights.iter().zip(normal(99)).map(|(weight, step)| weight + by * step).collect()
}

/// Each weight moved by a multiple of two to the power of `exponent`, about `size` of them.
fn stepped(weights: &[f32], size: f32, exponent: i32) -> Vec<f32> {
    let step = 2f64.powi(exponent);
    let moved = |(weight, by): (&f32, f32)| match (by * size).round() {
        0.0 => *weight,
        multiple => (f64::from(*weight) + f64::from(multiple) * step) as f32,
    };
    weights.iter().zip(normal(98)).map(moved).collect()
}

fn model(body: &[f32], head: &[f32], prefix: &str) -> Vec<u8> {
    GraphBuilder::new("g")
        .input("x", &[Dim::Fixed(1)])
        .output("y", &[Dim::Fixed(1)])
        .f32(&format!("{prefix}body"), &[body.len()], body)
        .f32(&format!("{prefix}head"), &[head.len()], head)
        .i64("shape", &[2], &[1, -1])
        .node("MatMul", &["x", "body"], &["h"], &[])
        .node("MatMul", &["h", "head"], &["y"], &[])
        .finish()
        .unwrap()
        .to_bytes()
}

fn raw(element: i32, raw: Vec<u8>) -> Vec<u8> {
    let tensor = TensorProto {
        name: Some("w".to_owned()),
        dims: vec![raw.len() as i64],
        data_type: Some(element),
        raw_data: Some(raw),
        ..TensorProto::default()
    };
    GraphBuilder::new("g").tensor(tensor).finish().unwrap().to_bytes()
}

#[test]
fn fine_tuned_models_need_what_their_changes_need() {
    let (body, head) = (weights(200_000, 1), weights(2_000, 2));
    let old = model(&body, &head, "");
    let share = |new: &[u8]| round_trip(&old, new) as f64 / new.len() as f64;
    assert!(share(&old) < 0.001);
    let full = share(&model(&trained(&body, 1e-4), &trained(&head, 1e-4), ""));
    assert!((0.4..0.6).contains(&full), "{full}");
    let head_only = share(&model(&body, &trained(&head, 1e-4), ""));
    assert!(head_only < 0.008, "{head_only}");
    let renamed = share(&model(&body, &head, "net."));
    assert!(renamed < 0.001, "{renamed}");
    let renamed_and_trained = share(&model(&trained(&body, 1e-4), &trained(&head, 1e-4), "net."));
    assert!(renamed_and_trained < full + 0.001, "{renamed_and_trained}");
    // Of new weights only the exponents can be made smaller.
    let unrelated = share(&model(&weights(200_000, 8), &weights(2_000, 9), ""));
    assert!((0.8..0.86).contains(&unrelated), "{unrelated}");
    let other_shape = share(&model(&weights(150_000, 8), &weights(2_000, 9), ""));
    assert!((0.8..0.86).contains(&other_shape), "{other_shape}");
}

#[test]
fn weights_that_moved_in_steps_need_the_steps_alone() {
    let (body, head) = (weights(200_000, 1), weights(2_000, 2));
    let old = model(&body, &head, "");
    // The entropy of a normal number with this deviation is 8.05 bits (Cover and Thomas 2006, 8.1), also where
    // the step is as large as the weights; less is left where it is smaller than the last place of many.
    for exponent in [-30, -18, -12] {
        let new = model(&stepped(&body, 64.0, exponent), &head, "");
        let share = round_trip(&old, &new) as f64 / new.len() as f64;
        assert!((0.2..0.26).contains(&share), "2^{exponent}: {share}");
    }
    // Large and small weights that moved by any distance do so by multiples of the last place of the smallest:
    // that is no reason to write those, which would take 54 %.
    let some: Vec<f32> = body.iter().map(|w| w.signum() * (w.abs() + 0.002)).collect();
    let old = model(&some, &head, "");
    let new = model(&trained(&some, 1e-5), &head, "");
    let share = round_trip(&old, &new) as f64 / new.len() as f64;
    assert!((0.38..0.46).contains(&share), "{share}");
    // What is no number, or has no digits to spare, stays to the bit.
    let mut odd = body[..100].to_vec();
    odd[..6].copy_from_slice(&[f32::NAN, -f32::NAN, f32::INFINITY, -0.0, 1e-42, f32::MAX]);
    let mut new = stepped(&odd, 64.0, -18);
    new[..6].copy_from_slice(&odd[..6]);
    round_trip(&model(&odd, &head, ""), &model(&new, &head, ""));
}

#[test]
fn every_element_type_makes_the_round_trip() {
    let bytes: Vec<u8> = noise(3).take(3_000).flat_map(u64::to_le_bytes).collect();
    let changed: Vec<u8> = bytes.iter().zip(noise(4)).map(|(byte, n)| byte ^ u8::from(n % 50 == 0)).collect();
    for element in 0..30 {
        round_trip(&raw(element, bytes.clone()), &raw(element, changed.clone()));
        round_trip(&raw(element, bytes[..33].to_vec()), &raw(element, changed[..33].to_vec()));
    }
}

#[test]
fn a_quantised_tensor_with_few_changes_needs_few_bytes() {
    let bytes: Vec<u8> = normal(5).take(100_000).map(|x| (x * 40.0) as i8 as u8).collect();
    let changed: Vec<u8> =
        bytes.iter().zip(noise(6)).map(|(byte, n)| byte.wrapping_add(u8::from(n % 100 == 0))).collect();
    // One in a hundred: 0.081 bits an element by Shannon.
    let length = round_trip(&raw(3, bytes), &raw(3, changed));
    assert!(length < 1200, "{length}");
}

#[test]
fn files_that_are_no_models_are_text() {
    let old: Vec<u8> = noise(7).take(200_000).flat_map(u64::to_le_bytes).collect();
    let mut new = old.clone();
    new.splice(500_000..500_010, *b"other");
    assert!(round_trip(&old, &new) < 50_000);
    for (old, new) in [(&b""[..], &b"new"[..]), (b"old", b""), (b"", b""), (b"same", b"same"), (&old, b"x")] {
        round_trip(old, new);
    }
}

/// The header of a delta from `old` bytes to `new`, then `rest`.
fn made(old: u64, new: u64, rest: &[u8]) -> Vec<u8> {
    let mut delta = [&MARK[..], &[VERSION]].concat();
    put(&mut delta, old);
    put(&mut delta, new);
    delta.extend_from_slice(rest);
    delta
}

fn operation(operation: Operation, numbers: &[u64], coded: &[u8]) -> Vec<u8> {
    let mut out = vec![operation.code()];
    numbers.iter().for_each(|number| put(&mut out, *number));
    out.extend_from_slice(coded);
    out
}

#[test]
fn each_broken_rule_has_its_error() {
    let old = [1u8; 100];
    let text = zstd::encode_all(&[5u8; 90][..], 3).unwrap();
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    wide.window_log(27).unwrap();
    wide.write_all(&[5; 90]).unwrap();
    let wide = wide.finish().unwrap();
    let framed =
        |length: u64, frame: &[u8]| operation(Operation::Text, &[length, 0, 0, frame.len() as u64], frame);
    let f32 = super::element::Kind::F32;
    let cases: &[(Vec<u8>, &str)] = &[
        (b"FLDELTB\x01".to_vec(), "Mark"),
        (b"FLDELTA\x02".to_vec(), "Version"),
        (b"FLDEL".to_vec(), "Truncated"),
        (made(99, 90, &[]), "Base"),
        (made(100, 91, &[]), "Length"),
        (made(100, 90, &[]), "Truncated"),
        (made(100, 90, &[0xff]), "Malformed"),
        (made(100, 90, &[0x18, 4]), "Malformed"),
        (made(100, 90, &[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]), "Malformed"),
        (made(100, 90, &operation(Operation::Copy, &[0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Copy, &[91, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Copy, &[90, zigzag(11)], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Copy, &[90, zigzag(-1)], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Copy, &[90, zigzag(i64::MIN)], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Copy, &[90, 0], &[0])), "Malformed"),
        (made(100, 90, &operation(Operation::Difference(f32), &[6, 1, 0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Difference(f32), &[8, 0, 0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Difference(f32), &[8, 70_000, 0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Difference(f32), &[8, 1, 93, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Difference(f32), &[8, 1, 0, 64], &[0; 64])), "Malformed"),
        (made(100, 90, &operation(Operation::Steps, &[6, 1, 0, 0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Steps, &[8, 0, 0, 0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Steps, &[8, 1, zigzag(128), 0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Steps, &[8, 1, zigzag(-150), 0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Steps, &[8, 1, zigzag(i64::MIN), 0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Steps, &[8, 1, 0, zigzag(93), 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Steps, &[8, 1, 0, 0, 64], &[0; 64])), "Malformed"),
        (made(100, 90, &operation(Operation::Plain(f32), &[8, 9999], &[0; 9999])), "Malformed"),
        (made(100, 90, &operation(Operation::Plain(f32), &[8, 64], &[0; 3])), "Truncated"),
        // A frame of more bytes than declared, fewer, none, and one that asks for a window of 128 MiB.
        (made(100, 90, &framed(80, &text)), "Bomb"),
        (made(100, 90, &framed(90, &zstd::encode_all(&[5u8; 80][..], 3).unwrap())), "Malformed"),
        (made(100, 90, &framed(90, &text[..text.len() - 1])), "Malformed"),
        (made(100, 90, &framed(90, b"no frame")), "Malformed"),
        (made(100, 90, &framed(90, &wide)), "Malformed"),
        (made(100, 90, &operation(Operation::Text, &[90, 101, 0, 0], &[])), "Malformed"),
        (made(100, 90, &operation(Operation::Text, &[90, 1 << 20, 0, 0], &[])), "Malformed"),
    ];
    for (delta, kind) in cases {
        assert_eq!(kind_of(&run(&old, delta, 90).unwrap_err()), *kind, "{delta:?}");
    }
    assert_eq!(run(&old, &made(100, 90, &framed(90, &text)), 90).unwrap(), [5; 90]);
    let huge = made(100, u64::MAX, &operation(Operation::Plain(f32), &[u64::MAX - 3, 4], &[0; 4]));
    let error = apply(&mut Cursor::new(old), &huge[..], &mut Vec::new(), u64::MAX).unwrap_err();
    assert_eq!(kind_of(&error), "Malformed");
}

#[test]
fn a_frame_that_unpacks_without_end_is_cut_off() {
    let bomb = zstd::encode_all(io::repeat(0).take(64 << 20), 19).unwrap();
    let rest = operation(Operation::Text, &[200_000, 0, 0, bomb.len() as u64], &bomb);
    assert_eq!(kind_of(&run(b"", &made(0, 200_000, &rest), 200_000).unwrap_err()), "Malformed");
}

#[test]
fn failures_of_the_files_are_told_apart() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    impl io::Seek for Broken {
        fn seek(&mut self, _: io::SeekFrom) -> io::Result<u64> {
            Ok(100)
        }
    }
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let delta = made(100, 90, &operation(Operation::Copy, &[90, 0], &[]));
    let kind = |result: Result<(), DeltaError>| kind_of(&result.unwrap_err());
    let mut old = Cursor::new([1u8; 100]);
    assert_eq!(kind(apply(&mut Broken, &delta[..], &mut Vec::new(), 90)), "Old");
    assert_eq!(kind(apply(&mut old, Broken, &mut Vec::new(), 90)), "Delta");
    assert_eq!(kind(apply(&mut old, &delta[..], &mut Broken, 90)), "New");
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, Vec<u8>)>> {
    let edit = (any::<prop::sample::Index>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..20));
    prop::collection::vec(edit, 0..6)
}

/// Replaces, removes and inserts.
fn edited(file: &[u8], edits: &[(prop::sample::Index, u8, Vec<u8>)]) -> Vec<u8> {
    let mut file = file.to_vec();
    for (at, removed, inserted) in edits {
        let at = at.index(file.len() + 1);
        let end = (at + usize::from(*removed)).min(file.len());
        file.splice(at..end, inserted.iter().copied());
    }
    file
}

proptest! {
    #[test]
    fn any_two_files_make_the_round_trip(
        old in prop::collection::vec(any::<u8>(), 0..600),
        new in prop::collection::vec(any::<u8>(), 0..600),
        edits in edits(),
    ) {
        round_trip(&old, &new);
        round_trip(&old, &edited(&old, &edits));
    }

    #[test]
    fn any_two_models_make_the_round_trip(
        seed in any::<u64>(),
        count in 1usize..400,
        by in prop::sample::select(vec![0.0f32, 1e-6, 1e-3, 10.0, f32::NAN, f32::INFINITY]),
        element in 0i32..26,
        edits in edits(),
    ) {
        let (body, head) = (weights(count, seed), weights(7, seed));
        let old = model(&body, &head, "");
        let new = model(&trained(&body, by), &head, "");
        round_trip(&old, &new);
        round_trip(&old, &edited(&new, &edits));
        round_trip(&edited(&old, &edits), &new);
        round_trip(&raw(element, old.clone()), &raw(element, edited(&old, &edits)));
    }

    #[test]
    fn any_steps_make_the_round_trip(
        seed in any::<u64>(),
        count in 1usize..300,
        size in 0.0f32..1e7,
        exponent in -160i32..130,
        scale in -130i32..130,
        edits in edits(),
    ) {
        let old: Vec<f32> = weights(count, seed).iter().map(|weight| weight * 2f32.powi(scale)).collect();
        let new = model(&stepped(&old, size, exponent), &[], "");
        let old = model(&old, &[], "");
        round_trip(&old, &new);
        round_trip(&old, &edited(&new, &edits));
        round_trip(&edited(&old, &edits), &new);
    }

    #[test]
    fn any_bytes_as_a_delta_are_refused_or_make_what_was_declared(
        rest in prop::collection::vec(any::<u8>(), 0..300),
        length in 0usize..2000,
    ) {
        let old = weights(100, 1).iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        for delta in [&rest[..], &made(old.len() as u64, length as u64, &rest)] {
            if let Ok(new) = run(&old, delta, length) {
                prop_assert_eq!(new.len(), length);
            }
        }
    }

    #[test]
    fn a_changed_delta_is_refused_or_makes_what_was_declared(seed in any::<u64>(), edits in edits()) {
        let (body, head) = (weights(300, seed), weights(7, seed));
        let old = model(&body, &head, "");
        let new = model(&trained(&body, 1e-3), &weights(9, seed), "x");
        let delta = edited(&delta(&old, &new), &edits);
        if let Ok(made) = run(&old, &delta, new.len()) {
            prop_assert_eq!(made.len(), new.len());
        }
    }
}
