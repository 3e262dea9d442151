//! Small graphs with the recipes of their releases: every element type, a state, a long computation. What the
//! reference models do not have.

use farlight_onnx::builder::int;
use farlight_onnx::{Dim, GraphBuilder, Model, OnnxError, tensor};

/// Width of the matrices of [`Graph::slow`], and how often they are multiplied: some tenths of a second.
const WIDTH: usize = 512;
const PRODUCTS: usize = 24;

/// Element types by the protocol's name and by their number in ONNX (`TensorProto.DataType`).
const TYPES: [(&str, i32); 13] = [
    ("FP32", tensor::FLOAT),
    ("UINT8", 2),
    ("INT8", 3),
    ("UINT16", 4),
    ("INT16", 5),
    ("INT32", 6),
    ("INT64", tensor::INT64),
    ("BYTES", 8),
    ("BOOL", 9),
    ("FP16", 10),
    ("FP64", 11),
    ("UINT32", 12),
    ("UINT64", 13),
];

/// A graph and the recipe of its release.
#[derive(Debug)]
pub struct Graph {
    /// The model's name.
    pub name: &'static str,
    /// TOML.
    pub recipe: String,
    /// The graph.
    pub model: Model,
}

impl Graph {
    /// `types`: an input of every element type, `x_fp32` to `x_uint64` of shape `[2]`, each given back as
    /// `y_fp32` to `y_uint64`.
    ///
    /// # Errors
    /// Never for this graph.
    pub fn types() -> Result<Self, OnnxError> {
        let dims = [Dim::Free("N".to_owned()), Dim::Fixed(2)];
        let mut graph = GraphBuilder::new("types");
        let mut more = String::new();
        for (name, number) in TYPES {
            let (input, output) =
                (format!("x_{}", name.to_lowercase()), format!("y_{}", name.to_lowercase()));
            graph = graph.input_of(number, &input, &dims).output_of(number, &output, &dims);
            graph = graph.node("Identity", &[&input], &[&output], &[]);
            if number != tensor::FLOAT {
                more += &format!(
                    "[[more_inputs]]\nname = {input:?}\ndatatype = {name:?}\nshape = [2]\nmin = 0.0\nmax = 100.0\non_violation = \"flag\"\n"
                );
            }
        }
        let recipe = recipe("types", "x_fp32", &[2], &more);
        Ok(Self { name: "types", recipe, model: graph.finish()? })
    }

    /// `counter`: `y` is the sum of all `x` of the stream so far. Both are `[1]`, without a batch.
    ///
    /// # Errors
    /// Never for this graph.
    pub fn counter() -> Result<Self, OnnxError> {
        let one = [Dim::Fixed(1)];
        let graph = GraphBuilder::new("counter")
            .input("x", &one)
            .input("total", &one)
            .output("y", &one)
            .output("next", &one)
            .f32("nothing", &[1], &[0.0])
            .node("Add", &["x", "total"], &["next"], &[])
            .node("Add", &["next", "nothing"], &["y"], &[]);
        let state = "[[states]]\ninput = \"total\"\noutput = \"next\"\ndatatype = \"FP32\"\nshape = [1]\n";
        let recipe = recipe("counter", "x", &[1], state);
        Ok(Self { name: "counter", recipe: unbatched(&recipe), model: graph.finish()? })
    }

    /// `slow`: takes some tenths of a second to give `x`, `[1]`, back as `y`, `[1, 1]`.
    ///
    /// # Errors
    /// Never for this graph.
    pub fn slow() -> Result<Self, OnnxError> {
        let one = [Dim::Fixed(1)];
        // Each product gives every element the mean of its row, which it is already.
        let mean = vec![1.0 / WIDTH as f32; WIDTH * WIDTH];
        let mut graph = GraphBuilder::new("slow")
            .input("x", &one)
            .output("y", &[Dim::Fixed(1), Dim::Fixed(1)])
            .f32("mean", &[WIDTH, WIDTH], &mean)
            .f32("nothing", &[WIDTH, WIDTH], &vec![0.0; WIDTH * WIDTH])
            .node("Add", &["x", "nothing"], &["m0"], &[]);
        for product in 0..PRODUCTS {
            let (from, to) = (format!("m{product}"), format!("m{}", product + 1));
            graph = graph.node("MatMul", &[&from, "mean"], &[&to], &[]);
        }
        let last = format!("m{PRODUCTS}");
        let graph = graph.node("ReduceMean", &[&last], &["y"], &[int("keepdims", 1)]);
        let recipe = recipe("slow", "x", &[1], "");
        Ok(Self { name: "slow", recipe: unbatched(&recipe), model: graph.finish()? })
    }
}

/// A recipe of a model of tensors with one FP32 input, and more tables.
fn recipe(name: &str, input: &str, shape: &[usize], more: &str) -> String {
    format!(
        "model = {name:?}\ntask = \"tensors\"\n\
         [input]\nname = {input:?}\ndatatype = \"FP32\"\nshape = {shape:?}\nmin = -1000.0\nmax = 1000.0\n\
         on_violation = \"flag\"\n\
         [budgets]\nmemory_kib = 262144\np95_us = 30000000\n\
         [sampling]\nhard_permille = 0\ncontrol_permille = 0\nbytes_per_day = 0\n\
         [golden]\ncount = 2\ntolerance = 0.01\n{more}"
    )
}

/// The recipe of a graph without a batch axis.
fn unbatched(recipe: &str) -> String {
    format!("batch_axis = \"none\"\n{recipe}")
}
