//! What holds for every step and shape: invariants, and that whatever passes the rules runs.

use std::collections::BTreeMap;

use farlight_release::manifest::steps::{
    Border, BoxFormat, Centre, Filter, LogMel, Logarithm, MelNorm, MelScale, Nms, Spectrum, Stft, Suppress,
    Taper, TokenUnit, Tokenise, Trend,
};
use farlight_release::manifest::{Datatype, PostStep, PreStep};
use proptest::prelude::*;
use proptest::sample::select;

use crate::steps::nms::overlap;
use crate::steps::{Array, NamedArray, Post, Pre, Scratch};

const FILTERS: [Filter; 7] = [
    Filter::Nearest,
    Filter::Bilinear,
    Filter::Bicubic,
    Filter::Area,
    Filter::BilinearAntialias,
    Filter::BicubicAntialias,
    Filter::Lanczos,
];

fn filter() -> impl Strategy<Value = Filter> {
    select(&FILTERS[..])
}

fn stft() -> impl Strategy<Value = Stft> {
    let centre = select(vec![Centre::Zeros, Centre::Reflect, Centre::None]);
    let output = select(vec![Spectrum::Magnitude, Spectrum::Power]);
    (2..20_usize, 1..6_usize, prop::option::of(1..20_usize), centre, output).prop_map(
        |(n_fft, hop, window, centre, output)| {
            let window = window.map(|window| window.min(n_fft));
            Stft { n_fft, hop, window, taper: Taper::Hamming, centre, output }
        },
    )
}

fn log_mel() -> impl Strategy<Value = LogMel> {
    let scale = select(vec![MelScale::Slaney, MelScale::Htk]);
    let log = select(vec![Logarithm::Db, Logarithm::Ln, Logarithm::Log10]);
    (stft(), 1..12_usize, 0.0..500.0_f32, prop::option::of(400.0..1000.0_f32), scale, log).prop_map(
        |(stft, n_mels, f_min, f_max, scale, log)| LogMel {
            sample_rate: 2000,
            n_fft: stft.n_fft,
            hop: stft.hop,
            window: stft.window,
            taper: stft.taper,
            centre: stft.centre,
            spectrum: stft.output,
            n_mels,
            f_min,
            f_max,
            scale,
            norm: if n_mels % 2 == 0 { MelNorm::None } else { MelNorm::Slaney },
            log,
            offset: 0.0,
            floor: 1e-10,
            reference: 1.0,
            top: f_max.map(|_| 30.0),
        },
    )
}

fn tokenise() -> impl Strategy<Value = Tokenise> {
    let unit = select(vec![TokenUnit::Piece, TokenUnit::Word, TokenUnit::Byte]);
    let table = prop::collection::btree_map("[a-c \u{e9}]{1,3}", 0..50_u32, 1..5);
    (unit, table, 1..6_usize, any::<[Option<u8>; 3]>()).prop_map(|(unit, table, length, ids)| {
        let [unknown, begin, end] = ids.map(|id| id.map(u32::from));
        let table = if unit == TokenUnit::Byte { BTreeMap::new() } else { table };
        Tokenise { unit, table, length, pad: 0, unknown, begin, end, lowercase: true }
    })
}

fn axes() -> impl Strategy<Value = Vec<usize>> {
    select(vec![vec![0], vec![1], vec![0, 1], vec![1, 0], vec![2, 1], vec![0, 1, 2], vec![2, 0, 1]])
}

fn sizes(range: std::ops::Range<usize>) -> impl Strategy<Value = [usize; 3]> {
    [range.clone(), range.clone(), range]
}

/// Steps that fit small arrays more often than not.
fn pre_step() -> impl Strategy<Value = PreStep> {
    let one = 0..3_usize;
    let channels = (one.clone(), prop::collection::vec(0.5..2.0_f32, 1..9));
    let taper = select(vec![Taper::Hann, Taper::Hamming, Taper::Blackman, Taper::Rectangular]);
    let border = select(vec![Border::Constant, Border::Edge, Border::Reflect]);
    prop_oneof![
        (0.1..2.0_f32, -1.0..1.0_f32).prop_map(|(factor, offset)| PreStep::Scale { factor, offset }),
        channels.prop_map(|(axis, std)| PreStep::Normalise { axis, mean: std.clone(), std }),
        Just(PreStep::Clip { min: -1.0, max: 1.0 }),
        select(&Datatype::ALL[..]).prop_map(|datatype| PreStep::Cast { datatype }),
        axes().prop_map(|axes| PreStep::Transpose { axes }),
        prop::collection::vec(1..9_usize, 1..4).prop_map(|shape| PreStep::Reshape { shape }),
        (axes(), sizes(1..12), filter()).prop_map(|(axes, size, filter)| {
            PreStep::Resize { size: size[..axes.len()].to_vec(), axes, filter }
        }),
        (axes(), sizes(1..5), prop::option::of(sizes(0..3))).prop_map(|(axes, size, offset)| {
            let n = axes.len();
            PreStep::Crop { axes, size: size[..n].to_vec(), offset: offset.map(|o| o[..n].to_vec()) }
        }),
        (axes(), sizes(0..4), sizes(0..4), border).prop_map(|(axes, before, after, border)| {
            let n = axes.len();
            let (before, after) = (before[..n].to_vec(), after[..n].to_vec());
            PreStep::Pad { axes, before, after, border, value: 0.5 }
        }),
        ([1..9_usize, 1..9_usize], filter()).prop_map(|(size, filter)| PreStep::Letterbox {
            axes: [0, 1],
            size,
            filter,
            value: 0.0
        }),
        (one.clone(), 1..5_usize, 1..4_usize).prop_map(|(axis, length, stride)| PreStep::Frame {
            axis,
            length,
            stride
        }),
        (one.clone(), taper, any::<bool>()).prop_map(|(axis, taper, symmetric)| PreStep::Window {
            axis,
            taper,
            symmetric
        }),
        (one.clone(), select(vec![Trend::Constant, Trend::Linear]))
            .prop_map(|(axis, kind)| PreStep::Detrend { axis, kind }),
        one.prop_map(|axis| PreStep::Fft { axis, output: Spectrum::Magnitude }),
        stft().prop_map(PreStep::Stft),
        log_mel().prop_map(PreStep::LogMel),
        (1..5_usize).prop_map(|classes| PreStep::OneHot { classes }),
        tokenise().prop_map(PreStep::Tokenise),
    ]
}

fn post_step() -> impl Strategy<Value = PostStep> {
    let axis = || prop::option::of(0..3_usize);
    let output = || select(vec![None, Some("a".to_owned()), Some("b".to_owned())]);
    prop_oneof![
        (axis(), output()).prop_map(|(axis, output)| PostStep::Softmax { axis, output }),
        output().prop_map(|output| PostStep::Sigmoid { output }),
        output().prop_map(|output| PostStep::Scale { factor: 2.0, offset: 1.0, output }),
        (axes(), output()).prop_map(|(axes, output)| PostStep::Transpose { axes, output }),
        (axis(), output()).prop_map(|(axis, output)| PostStep::Argmax { axis, output }),
        (1..5_usize, output()).prop_map(|(k, output)| PostStep::TopK { k, output }),
        output().prop_map(|output| PostStep::Threshold { at: 0.5, output }),
        (axis(), prop::collection::vec(0..5_usize, 1..4), output())
            .prop_map(|(axis, indices, output)| PostStep::LabelMap { axis, indices, output }),
        (0..3_usize, [1..3_usize, 1..3_usize], output()).prop_map(|(axis, lengths, output)| {
            let names = vec!["c".to_owned(), "d".to_owned()];
            PostStep::Split { axis, lengths: lengths.to_vec(), names, output }
        }),
        Just(PostStep::Keep { outputs: vec!["b".to_owned()] }),
        (0.0..1.0_f32, any::<bool>()).prop_map(|(iou, centre)| PostStep::Nms(Nms {
            boxes: "a".to_owned(),
            scores: "b".to_owned(),
            format: if centre { BoxFormat::Centre } else { BoxFormat::Corners },
            iou,
            score: 0.2,
            max_boxes: 3,
            suppress: if centre { Suppress::All } else { Suppress::Class },
            name: "detections".to_owned(),
        })),
        Just(PostStep::Abstain { threshold: 0.5 }),
    ]
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1..10_usize, 1..4)
}

fn value() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -3.0..3.0_f32,
        2 => (0..256_u16).prop_map(f32::from),
        1 => select(vec![0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE]),
    ]
}

fn run(steps: &[PreStep], shape: &[usize], input: &[f32]) -> (Vec<usize>, Vec<f32>) {
    let plan = Pre::plan(steps, shape).unwrap();
    let mut scratch = Scratch::default();
    (plan.output_shape().to_vec(), plan.run(&mut scratch, input).unwrap().to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_passes_the_rules_runs(
        first in shape(),
        candidates in prop::collection::vec(pre_step(), 1..10),
        values in prop::collection::vec(value(), 1000),
    ) {
        let mut shape = first.clone();
        let mut steps = Vec::new();
        for step in candidates {
            if let Ok(next) = step.shape(&shape) && next.iter().product::<usize>() < 20_000 {
                shape = next;
                steps.push(step);
            }
        }
        let input = &values[..first.iter().product()];
        let (found, output) = run(&steps, &first, input);
        prop_assert_eq!(&found, &shape);
        prop_assert_eq!(output.len(), shape.iter().product::<usize>());
    }

    #[test]
    fn what_can_be_planned_after_a_model_runs(
        a in shape(),
        b in shape(),
        candidates in prop::collection::vec(post_step(), 1..8),
        boxes in any::<bool>(),
        values in prop::collection::vec(value(), 1000),
    ) {
        let (a, b) = if boxes { (vec![a[0], 4], vec![a[0], 2]) } else { (a, b) };
        let shapes = [("a".to_owned(), a), ("b".to_owned(), b)];
        let mut steps = Vec::new();
        for step in candidates {
            steps.push(step);
            if Post::plan(&steps, &shapes).is_err() {
                steps.pop();
            }
        }
        let plan = Post::plan(&steps, &shapes).unwrap();
        let mut outputs: Vec<NamedArray> = shapes
            .iter()
            .map(|(name, shape)| {
                let values = values[..shape.iter().product()].to_vec();
                NamedArray { name: name.clone(), array: Array { shape: shape.clone(), values } }
            })
            .collect();
        // Fewer boxes than planned for may leave too little for a step after them: an error, never a panic.
        if plan.run(&mut outputs).is_ok() {
            for (output, (name, shape)) in outputs.iter().zip(plan.outputs()) {
                prop_assert_eq!(&output.name, name);
                prop_assert_eq!(output.array.values.len(), output.array.shape.iter().product::<usize>());
                if !steps.iter().any(|step| matches!(step, PostStep::Nms(_))) {
                    prop_assert_eq!(&output.array.shape, shape);
                }
            }
        }
    }

    #[test]
    fn softmax_is_a_distribution(values in prop::collection::vec(-1e30_f32..1e30, 1..20)) {
        let shape = vec![values.len()];
        let plan = Post::plan(&[PostStep::Softmax { axis: None, output: None }], &[("x".to_owned(), shape.clone())]);
        let mut outputs = vec![NamedArray { name: "x".to_owned(), array: Array { shape, values } }];
        plan.unwrap().run(&mut outputs).unwrap();
        let values = &outputs[0].array.values;
        prop_assert!(values.iter().all(|v| (0.0..=1.0).contains(v)));
        prop_assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-4);
    }

    #[test]
    fn transposing_back_is_the_identity(
        dims in [1..6_usize, 1..6_usize, 1..6_usize],
        axes in Just(vec![0, 1, 2]).prop_shuffle(),
        values in prop::collection::vec(-1.0..1.0_f32, 125),
    ) {
        let input = &values[..dims.iter().product()];
        let back = (0..3).map(|axis| axes.iter().position(|a| *a == axis).unwrap()).collect();
        let (shape, output) = run(&[PreStep::Transpose { axes }, PreStep::Transpose { axes: back }], &dims, input);
        prop_assert_eq!(shape, dims);
        prop_assert_eq!(output, input);
    }

    #[test]
    fn a_constant_stays_it_when_resized(
        from in [1..40_usize, 1..40_usize],
        to in [1..40_usize, 1..40_usize],
        filter in filter(),
        value in -10.0..10.0_f32,
    ) {
        let step = PreStep::Resize { axes: vec![0, 1], size: to.to_vec(), filter };
        let (_, output) = run(&[step], &from, &vec![value; from[0] * from[1]]);
        prop_assert_eq!(output.len(), to[0] * to[1]);
        prop_assert!(output.iter().all(|v| (v - value).abs() < 1e-4), "{:?}", output);
    }

    #[test]
    fn frames_are_all_that_fit(n in 1..200_usize, length in 1..50_usize, stride in 1..20_usize) {
        let step = PreStep::Frame { axis: 0, length, stride };
        let Ok(shape) = step.shape(&[n]) else {
            prop_assert!(length > n);
            return Ok(());
        };
        let begins = (0..n).step_by(stride).filter(|at| at + length <= n);
        let expected: Vec<f32> = begins.clone().flat_map(|at| at..at + length).map(|i| i as f32).collect();
        prop_assert_eq!(shape, [begins.count(), length]);
        let input: Vec<f32> = (0..n).map(|i| i as f32).collect();
        prop_assert_eq!(run(&[step], &[n], &input).1, expected);
    }

    #[test]
    fn suppression_leaves_no_pair_that_overlaps(
        boxes in prop::collection::vec([0.0..8.0_f32, 0.0..8.0_f32, 0.5..6.0_f32, 0.5..6.0_f32, 0.0..1.0_f32], 1..40),
        iou in 0.0..0.9_f32,
    ) {
        let n = boxes.len();
        let corners = boxes.iter().flat_map(|[x, y, w, h, _]| [*x, *y, x + w, y + h]).collect();
        let scores: Vec<f32> = boxes.iter().map(|b| b[4]).collect();
        let step = Nms {
            boxes: "b".to_owned(),
            scores: "s".to_owned(),
            format: BoxFormat::Corners,
            iou,
            score: 0.1,
            max_boxes: 1000,
            suppress: Suppress::Class,
            name: "d".to_owned(),
        };
        let array = |name: &str, shape: [usize; 2], values| {
            NamedArray { name: name.to_owned(), array: Array { shape: shape.to_vec(), values } }
        };
        let mut outputs = vec![array("b", [n, 4], corners), array("s", [n, 1], scores.clone())];
        let shapes: Vec<_> = outputs.iter().map(|o| (o.name.clone(), o.array.shape.clone())).collect();
        Post::plan(&[PostStep::Nms(step)], &shapes).unwrap().run(&mut outputs).unwrap();
        let rows: Vec<&[f32]> = outputs[0].array.values.chunks(6).collect();
        let corners = |row: &[f32]| [row[0], row[1], row[2], row[3]];
        for (i, row) in rows.iter().enumerate() {
            for before in &rows[..i] {
                prop_assert!(overlap(&corners(before), &corners(row)) <= iou);
                prop_assert!(before[4] >= row[4]);
            }
        }
        // Whatever scores enough was kept, or lies under one that was.
        prop_assert_eq!(rows.is_empty(), scores.iter().all(|score| *score < 0.1));
    }
}
