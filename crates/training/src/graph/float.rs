//! Tensor functions over burn's primitives with ONNX's shapes and rules. Each checks its shapes
//! first, because burn panics where they do not fit.

use burn_backend::ops::ConvOptions;
use burn_backend::tensor::FloatTensor;
use burn_backend::{Backend, DType, FloatDType, Shape, Slice, TensorData, TensorMetadata};

use super::op::{Binary, Padding, Reduction, Unary, Window};

/// A float tensor of backend `B`.
pub(crate) type Tensor<B> = FloatTensor<B>;

/// Most elements of one intermediate tensor: 4 GiB of f32.
const MAX_ELEMENTS: usize = 1 << 30;

/// The shape of a tensor.
pub(crate) fn dims<B: Backend>(tensor: &Tensor<B>) -> Vec<usize> {
    tensor.shape().as_ref().to_vec()
}

/// Puts values on the device, in the precision of the run.
pub(crate) fn lift<B: Backend>(
    values: &[f32],
    dims: &[usize],
    like: FloatDType,
    device: &B::Device,
) -> Tensor<B> {
    let data = TensorData::new(values.to_vec(), Shape::from(dims.to_vec()));
    B::float_from_data(data.convert_dtype(DType::from(like)), device)
}

/// Another shape over the same values.
pub(crate) fn reshape<B: Backend>(tensor: Tensor<B>, to: &[usize]) -> Result<Tensor<B>, String> {
    let from = dims::<B>(&tensor);
    if from == to {
        return Ok(tensor);
    }
    let count = |dims: &[usize]| dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    if count(&from) != count(to) {
        return Err(format!("{from:?} cannot be reshaped to {to:?}"));
    }
    Ok(B::float_reshape(tensor, Shape::from(to.to_vec())))
}

fn leading_ones<B: Backend>(tensor: Tensor<B>, rank: usize) -> Result<Tensor<B>, String> {
    let from = dims::<B>(&tensor);
    let mut to = vec![1; rank.saturating_sub(from.len())];
    to.extend(from);
    reshape::<B>(tensor, &to)
}

fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let joined = a.iter().zip(b).map(|(&a, &b)| match (a, b) {
        (a, b) if a == b => Some(a),
        (1, other) | (other, 1) => Some(other),
        _ => None,
    });
    let dims: Option<Vec<usize>> = joined.collect();
    let dims = dims.ok_or_else(|| format!("shapes {a:?} and {b:?} do not broadcast"))?;
    match dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)) {
        Some(count) if count <= MAX_ELEMENTS => Ok(dims),
        _ => Err(format!("a result of shape {dims:?} is too large")),
    }
}

/// Elementwise arithmetic with NumPy's broadcasting.
pub(super) fn binary<B: Backend>(op: Binary, a: Tensor<B>, b: Tensor<B>) -> Result<Tensor<B>, String> {
    let rank = dims::<B>(&a).len().max(dims::<B>(&b).len()).max(1);
    let (a, b) = (leading_ones::<B>(a, rank)?, leading_ones::<B>(b, rank)?);
    broadcast(&dims::<B>(&a), &dims::<B>(&b))?;
    Ok(match op {
        Binary::Add => B::float_add(a, b),
        Binary::Sub => B::float_sub(a, b),
        Binary::Mul => B::float_mul(a, b),
        Binary::Div => B::float_div(a, b),
        Binary::Pow => B::float_powf(a, b),
    })
}

/// An elementwise function.
pub(super) fn unary<B: Backend>(op: Unary, x: Tensor<B>) -> Tensor<B> {
    match op {
        Unary::Identity => x,
        Unary::Relu => B::relu(x),
        // max(x, 0) - alpha * max(-x, 0): both halves have the gradient of Relu.
        Unary::LeakyRelu(alpha) => {
            let negative = B::relu(B::float_neg(x.clone()));
            B::float_sub(B::relu(x), B::float_mul_scalar(negative, alpha.into()))
        }
        Unary::Sigmoid => B::sigmoid(x),
        Unary::HardSigmoid { alpha, beta } => hard_sigmoid::<B>(x, alpha, beta),
        Unary::HardSwish => B::float_mul(x.clone(), hard_sigmoid::<B>(x, 1.0 / 6.0, 0.5)),
        Unary::Tanh => B::float_tanh(x),
        Unary::Gelu { tanh: false } => {
            let half = B::float_mul_scalar(x.clone(), 0.5.into());
            let erf = B::float_erf(B::float_div_scalar(x, std::f64::consts::SQRT_2.into()));
            B::float_mul(half, B::float_add_scalar(erf, 1.0.into()))
        }
        Unary::Gelu { tanh: true } => {
            let cube = B::float_mul(x.clone(), B::float_mul(x.clone(), x.clone()));
            let inner = B::float_add(x.clone(), B::float_mul_scalar(cube, 0.044_715.into()));
            let inner = B::float_mul_scalar(inner, (2.0 / std::f64::consts::PI).sqrt().into());
            let half = B::float_mul_scalar(x, 0.5.into());
            B::float_mul(half, B::float_add_scalar(B::float_tanh(inner), 1.0.into()))
        }
        Unary::Erf => B::float_erf(x),
        Unary::Exp => B::float_exp(x),
        Unary::Log => B::float_log(x),
        Unary::Sqrt => B::float_sqrt(x),
        Unary::Neg => B::float_neg(x),
        Unary::Abs => B::float_abs(x),
        Unary::Reciprocal => B::float_recip(x),
    }
}

fn hard_sigmoid<B: Backend>(x: Tensor<B>, alpha: f64, beta: f64) -> Tensor<B> {
    let line = B::float_add_scalar(B::float_mul_scalar(x, alpha.into()), beta.into());
    B::float_clamp(line, 0.0.into(), 1.0.into())
}

/// Matrix product with NumPy's rules, batches included.
pub(super) fn matmul<B: Backend>(a: Tensor<B>, b: Tensor<B>) -> Result<Tensor<B>, String> {
    let (da, db) = (dims::<B>(&a), dims::<B>(&b));
    let wide =
        |dims: &[usize], vector: [usize; 2]| if dims.len() == 1 { vector.to_vec() } else { dims.to_vec() };
    let (ra, rb) = match (da.as_slice(), db.as_slice()) {
        ([], _) | (_, []) => return Err("a matrix product with a scalar".into()),
        (a, b) => (wide(a, [1, a[0]]), wide(b, [b[0], 1])),
    };
    let (m, k, n) = (ra[ra.len() - 2], ra[ra.len() - 1], rb[rb.len() - 1]);
    if rb[rb.len() - 2] != k {
        return Err(format!("shapes {da:?} and {db:?} do not multiply"));
    }
    let (a, b) = (reshape::<B>(a, &ra)?, reshape::<B>(b, &rb)?);
    let (mut result, batch) = if rb.len() == 2 {
        // One matrix for all batches: one large product.
        let batch = ra[..ra.len() - 2].to_vec();
        let rows = ra[..ra.len() - 1].iter().product();
        (B::float_matmul(reshape::<B>(a, &[rows, k])?, b), batch)
    } else {
        let rank = ra.len().max(rb.len());
        let (a, b) = (leading_ones::<B>(a, rank)?, leading_ones::<B>(b, rank)?);
        let batch = broadcast(&dims::<B>(&a)[..rank - 2], &dims::<B>(&b)[..rank - 2])?;
        let to = |tail: [usize; 2]| Shape::from([batch.as_slice(), &tail].concat());
        (B::float_matmul(B::float_expand(a, to([m, k])), B::float_expand(b, to([k, n]))), batch)
    };
    let mut shape = batch;
    shape.extend((da.len() > 1).then_some(m));
    shape.extend((db.len() > 1).then_some(n));
    result = reshape::<B>(result, &shape)?;
    Ok(result)
}

/// What a window does along each spatial axis: stride, dilation, padding before and after.
struct Geometry {
    kernel: Vec<usize>,
    stride: Vec<usize>,
    dilation: Vec<usize>,
    before: Vec<usize>,
    after: Vec<usize>,
}

fn geometry(window: &Window, kernel: &[usize], spatial: &[usize]) -> Result<Geometry, String> {
    let axes = spatial.len();
    let fill = |values: &[usize]| if values.is_empty() { vec![1; axes] } else { values.to_vec() };
    let (stride, dilation) = (fill(&window.stride), fill(&window.dilation));
    if kernel.len() != axes || stride.len() != axes || dilation.len() != axes {
        return Err(format!("a window of {} axes on {axes} spatial axes", kernel.len()));
    }
    let reach: Vec<usize> = (0..axes).map(|at| (kernel[at] - 1) * dilation[at] + 1).collect();
    let (before, after) = match &window.padding {
        Padding::Explicit(pads) if pads.is_empty() => (vec![0; axes], vec![0; axes]),
        Padding::Explicit(pads) if pads.len() == 2 * axes => (pads[..axes].to_vec(), pads[axes..].to_vec()),
        Padding::Explicit(pads) => return Err(format!("{} pads for {axes} axes", pads.len())),
        same => (0..axes)
            .map(|at| {
                let outputs = spatial[at].div_ceil(stride[at]).max(1);
                let total = ((outputs - 1) * stride[at] + reach[at]).saturating_sub(spatial[at]);
                let small = total / 2;
                if *same == Padding::SameUpper { (small, total - small) } else { (total - small, small) }
            })
            .unzip(),
    };
    for at in 0..axes {
        if spatial[at] + before[at] + after[at] < reach[at] {
            return Err(format!("a window of {} on an axis of {}", reach[at], spatial[at]));
        }
    }
    Ok(Geometry { kernel: kernel.to_vec(), stride, dilation, before, after })
}

/// Pads the spatial axes where before and after differ and returns the symmetric rest.
fn even<B: Backend>(mut x: Tensor<B>, geometry: &Geometry, value: f64) -> (Tensor<B>, Vec<usize>) {
    if geometry.before == geometry.after {
        return (x, geometry.before.clone());
    }
    for (axis, (&before, &after)) in geometry.before.iter().zip(&geometry.after).enumerate() {
        for (width, first) in [(before, true), (after, false)] {
            if width > 0 {
                let mut shape = dims::<B>(&x);
                shape[axis + 2] = width;
                let dtype = FloatDType::from(x.dtype());
                let edge = B::float_full(Shape::from(shape), value.into(), &B::float_device(&x), dtype);
                x = B::float_cat(if first { vec![edge, x] } else { vec![x, edge] }, axis + 2);
            }
        }
    }
    (x, vec![0; geometry.before.len()])
}

/// Convolution over one or two spatial axes.
pub(super) fn conv<B: Backend>(
    x: Tensor<B>,
    weight: Tensor<B>,
    bias: Option<Tensor<B>>,
    window: &Window,
    groups: usize,
) -> Result<Tensor<B>, String> {
    let (dx, dw) = (dims::<B>(&x), dims::<B>(&weight));
    if dx.len() != dw.len() || !matches!(dx.len(), 3 | 4) || dw.contains(&0) {
        return Err(format!("a convolution of input {dx:?} with weights {dw:?}; 1-D and 2-D are supported"));
    }
    if dx[1] != dw[1] * groups || !dw[0].is_multiple_of(groups) {
        return Err(format!("{} channels, weights {dw:?} and {groups} groups do not fit", dx[1]));
    }
    if let Some(bias) = bias.as_ref().map(dims::<B>).filter(|bias| bias.as_slice() != [dw[0]]) {
        return Err(format!("a bias of shape {bias:?} for {} channels", dw[0]));
    }
    let geometry = geometry(window, &dw[2..], &dx[2..])?;
    let (x, pad) = even::<B>(x, &geometry, 0.0);
    let (stride, dilation) = (&geometry.stride, &geometry.dilation);
    let pairs = |values: &[usize], fill: usize| [values[0], values.get(1).copied().unwrap_or(fill)];
    let two = ConvOptions::new(pairs(stride, 1), pairs(&pad, 0), pairs(dilation, 1), groups);
    if dx.len() == 4 {
        return Ok(B::conv2d(x, weight, bias, two));
    }
    if groups == 1 {
        return Ok(B::conv1d(x, weight, bias, ConvOptions::new([stride[0]], [pad[0]], [dilation[0]], 1)));
    }
    // burn 0.21 gives a wrong weight gradient for a grouped 1-D convolution with a stride; over a
    // second axis of size 1 the gradient is right (tests.rs checks both).
    let wide = |dims: &[usize]| [dims, &[1]].concat();
    let x = {
        let dims = dims::<B>(&x);
        reshape::<B>(x, &wide(&dims))?
    };
    let y = B::conv2d(x, reshape::<B>(weight, &wide(&dw))?, bias, two);
    let to = dims::<B>(&y);
    reshape::<B>(y, &to[..3])
}

/// Maximum over a window of one or two spatial axes.
pub(super) fn max_pool<B: Backend>(x: Tensor<B>, window: &Window) -> Result<Tensor<B>, String> {
    pooled::<B>(x, window, f64::from(f32::MIN), |x, kernel, stride, pad, dilation| {
        B::max_pool2d(x, kernel, stride, pad, dilation, false)
    })
}

/// Mean over a window of one or two spatial axes.
pub(super) fn average_pool<B: Backend>(
    x: Tensor<B>,
    window: &Window,
    count_pad: bool,
) -> Result<Tensor<B>, String> {
    let asymmetric = match &window.padding {
        Padding::Explicit(pads) => pads[..pads.len() / 2] != pads[pads.len() / 2..],
        Padding::SameUpper | Padding::SameLower => true,
    };
    if asymmetric && !count_pad {
        return Err("uneven padding that does not count: pad the input instead".into());
    }
    if window.dilation.iter().any(|&dilation| dilation != 1) {
        return Err("dilation is not supported".into());
    }
    pooled::<B>(x, window, 0.0, |x, kernel, stride, pad, _| {
        B::avg_pool2d(x, kernel, stride, pad, count_pad, false)
    })
}

fn pooled<B: Backend>(
    x: Tensor<B>,
    window: &Window,
    edge: f64,
    pool: impl FnOnce(Tensor<B>, [usize; 2], [usize; 2], [usize; 2], [usize; 2]) -> Tensor<B>,
) -> Result<Tensor<B>, String> {
    let from = dims::<B>(&x);
    if !matches!(from.len(), 3 | 4) {
        return Err(format!("pooling of shape {from:?}; 1-D and 2-D are supported"));
    }
    let geometry = geometry(window, &window.kernel, &from[2..])?;
    let (x, pad) = even::<B>(x, &geometry, edge);
    // One spatial axis is a second one of size 1.
    let two = |values: &[usize], fill: usize| match values {
        [one] => [*one, fill],
        more => [more[0], more[1]],
    };
    if (0..pad.len()).any(|at| pad[at] > geometry.kernel[at] / 2) {
        return Err("padding of more than half the window".into());
    }
    let padded = dims::<B>(&x);
    let x = if from.len() == 3 { reshape::<B>(x, &[padded[0], padded[1], padded[2], 1])? } else { x };
    let y =
        pool(x, two(&geometry.kernel, 1), two(&geometry.stride, 1), two(&pad, 0), two(&geometry.dilation, 1));
    let to = dims::<B>(&y);
    if from.len() == 3 { reshape::<B>(y, &to[..3]) } else { Ok(y) }
}

/// Reduces `axes`, which are in ascending order.
pub(super) fn reduce<B: Backend>(
    how: Reduction,
    mut x: Tensor<B>,
    axes: &[usize],
    keep: bool,
) -> Result<Tensor<B>, String> {
    let from = dims::<B>(&x);
    for &axis in axes {
        x = match how {
            Reduction::Mean => B::float_mean_dim(x, axis),
            Reduction::Sum => B::float_sum_dim(x, axis),
            Reduction::Max => B::float_max_dim(x, axis),
        };
    }
    if keep {
        return Ok(x);
    }
    let to: Vec<usize> =
        from.iter().enumerate().filter(|(at, _)| !axes.contains(at)).map(|(_, &dim)| dim).collect();
    reshape::<B>(x, &to)
}

/// Softmax or its logarithm over `axis`.
pub(crate) fn softmax<B: Backend>(x: Tensor<B>, axis: usize, log: bool) -> Tensor<B> {
    let max = B::float_max_dim(B::float_detach(x.clone()), axis);
    let shifted = B::float_sub(x, max);
    let exp = B::float_exp(shifted.clone());
    let sum = B::float_sum_dim(exp.clone(), axis);
    if log { B::float_sub(shifted, B::float_log(sum)) } else { B::float_div(exp, sum) }
}

/// `(x - mean) / sqrt(variance + epsilon) * scale + bias`, all of one broadcastable rank.
pub(super) fn normalise<B: Backend>(
    x: Tensor<B>,
    mean: Tensor<B>,
    variance: Tensor<B>,
    scale: Tensor<B>,
    bias: Option<Tensor<B>>,
    epsilon: f64,
) -> Result<Tensor<B>, String> {
    let deviation = B::float_sqrt(B::float_add_scalar(variance, epsilon.into()));
    let centred = binary::<B>(Binary::Sub, x, mean)?;
    let scaled = binary::<B>(Binary::Mul, binary::<B>(Binary::Div, centred, deviation)?, scale)?;
    match bias {
        Some(bias) => binary::<B>(Binary::Add, scaled, bias),
        None => Ok(scaled),
    }
}

/// A part of one axis.
pub(super) fn slice<B: Backend>(
    x: Tensor<B>,
    axis: usize,
    start: usize,
    end: usize,
) -> Result<Tensor<B>, String> {
    if start >= end {
        return Err("an empty slice".into());
    }
    let signed = |at: usize| isize::try_from(at).unwrap_or(isize::MAX);
    let slices: Vec<Slice> = dims::<B>(&x)
        .iter()
        .enumerate()
        .map(|(at, &size)| {
            let (from, to) = if at == axis { (start, end) } else { (0, size) };
            Slice::new(signed(from), Some(signed(to)), 1)
        })
        .collect();
    Ok(B::float_slice(x, &slices))
}
