//! The untrained reference networks, with initial weights from a seed (He et al. 2015). They end in
//! logits; the manifest's Softmax makes probabilities of them.

use farlight_onnx::builder::ints;
use farlight_onnx::{Dim, GraphBuilder, Model, OnnxError};
use serde::{Deserialize, Serialize};

use crate::random::Random;

/// A network that can be built from nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Network {
    /// Three 1-D convolutions with pooling for sensor windows, then mean and maximum over time.
    Conv1d {
        /// Channels of the sensor.
        channels: usize,
        /// Samples in a window.
        window: usize,
        /// Classes.
        classes: usize,
        /// Channels after each convolution.
        widths: [usize; 3],
        /// Samples that each convolution sees.
        kernels: [usize; 3],
    },
    /// Two 2-D convolutions with pooling for small images, then one layer.
    Conv2d {
        /// Height and width of an image, each a multiple of 4.
        size: [usize; 2],
        /// Classes.
        classes: usize,
        /// Channels after each convolution.
        widths: [usize; 2],
    },
}

/// A graph under construction with its source of weights.
struct Draft {
    graph: GraphBuilder,
    random: Random,
}

impl Draft {
    /// Weights with the variance that keeps a Relu layer's scale, and a bias of zeros.
    fn weights(mut self, name: &str, dims: &[usize]) -> Self {
        let fan_in: usize = dims[1..].iter().product();
        let deviation = (2.0 / fan_in as f32).sqrt();
        let count: usize = dims.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.random.normal() * deviation).collect();
        self.graph = self.graph.f32(&format!("{name}.weight"), dims, &values);
        self.graph = self.graph.f32(&format!("{name}.bias"), &dims[..1], &vec![0.0; dims[0]]);
        self
    }

    fn node(
        mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[farlight_onnx::proto::AttributeProto],
    ) -> Self {
        self.graph = self.graph.node(op, inputs, &[output], attributes);
        self
    }
}

impl Network {
    /// Shape of one input.
    pub fn input(&self) -> Vec<usize> {
        match self {
            Self::Conv1d { channels, window, .. } => vec![*channels, *window],
            Self::Conv2d { size: [height, width], .. } => vec![1, *height, *width],
        }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        match self {
            Self::Conv1d { classes, .. } | Self::Conv2d { classes, .. } => *classes,
        }
    }

    /// Builds it with the weights of `seed`: input `x`, output `logits`.
    ///
    /// # Errors
    /// [`OnnxError`]; does not occur for the names used here.
    pub fn build(&self, seed: u64) -> Result<Model, OnnxError> {
        let batch = Dim::Free("N".into());
        let mut shape = vec![batch.clone()];
        shape.extend(self.input().into_iter().map(Dim::Fixed));
        let graph = GraphBuilder::new("network").input("x", &shape);
        let draft = Draft { graph, random: Random::new(seed) };
        let draft = match self {
            Self::Conv1d { channels, classes, widths, kernels, .. } => {
                let mut draft = draft;
                let (mut from, mut last) = (*channels, "x".to_owned());
                for (at, (&width, &kernel)) in widths.iter().zip(kernels).enumerate() {
                    let name = format!("conv{}", at + 1);
                    let pad = (kernel / 2) as i64;
                    let pads = [ints("kernel_shape", &[kernel as i64]), ints("pads", &[pad, pad])];
                    let halve = [ints("kernel_shape", &[2]), ints("strides", &[2])];
                    draft = draft
                        .weights(&name, &[width, from, kernel])
                        .node(
                            "Conv",
                            &[&last, &format!("{name}.weight"), &format!("{name}.bias")],
                            &name,
                            &pads,
                        )
                        .node("Relu", &[&name], &format!("{name}.relu"), &[]);
                    last = format!("{name}.relu");
                    if at < 2 {
                        draft = draft.node("MaxPool", &[&last], &format!("{name}.pool"), &halve);
                        last = format!("{name}.pool");
                    }
                    from = width;
                }
                draft
                    .node("GlobalAveragePool", &[&last], "mean", &[])
                    .node("GlobalMaxPool", &[&last], "max", &[])
                    .node("Concat", &["mean", "max"], "both", &[farlight_onnx::builder::int("axis", 1)])
                    .node("Flatten", &["both"], "flat", &[])
                    .weights("head", &[*classes, 2 * from])
            }
            Self::Conv2d { size: [height, width], classes, widths } => {
                let pads = [ints("kernel_shape", &[3, 3]), ints("pads", &[1, 1, 1, 1])];
                let halve = [ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
                draft
                    .weights("conv1", &[widths[0], 1, 3, 3])
                    .node("Conv", &["x", "conv1.weight", "conv1.bias"], "conv1", &pads)
                    .node("Relu", &["conv1"], "conv1.relu", &[])
                    .node("MaxPool", &["conv1.relu"], "conv1.pool", &halve)
                    .weights("conv2", &[widths[1], widths[0], 3, 3])
                    .node("Conv", &["conv1.pool", "conv2.weight", "conv2.bias"], "conv2", &pads)
                    .node("Relu", &["conv2"], "conv2.relu", &[])
                    .node("MaxPool", &["conv2.relu"], "conv2.pool", &halve)
                    .node("Flatten", &["conv2.pool"], "flat", &[])
                    .weights("head", &[*classes, widths[1] * (height / 4) * (width / 4)])
            }
        };
        let transposed = [farlight_onnx::builder::int("transB", 1)];
        draft
            .node("Gemm", &["flat", "head.weight", "head.bias"], "logits", &transposed)
            .graph
            .output("logits", &[batch, Dim::Fixed(self.classes())])
            .finish()
    }
}
