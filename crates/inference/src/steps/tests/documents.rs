//! Every example of `docs/pipeline.md` is read as a recipe is and planned for the shapes that it states.

use farlight_release::manifest::{PostStep, PreStep};
use serde::Deserialize;

use crate::steps::{Post, Pre};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Example {
    #[serde(default)]
    pre: Vec<PreStep>,
    #[serde(default)]
    post: Vec<PostStep>,
}

/// `logits [3, 10]; boxes [4]` as names and shapes.
fn arrays(text: &str) -> Vec<(String, Vec<usize>)> {
    let array = |text: &str| {
        let (name, rest) = text.split_once('[').unwrap();
        let shape = rest.trim().trim_end_matches(']').split(',').map(|n| n.trim().parse().unwrap());
        (name.trim().to_owned(), shape.collect())
    };
    text.split(';').map(array).collect()
}

#[test]
fn examples_are_what_they_say() {
    let text = include_str!("../../../../../docs/pipeline.md");
    let mut seen = String::new();
    for (number, block) in text.split("```toml\n").skip(1).enumerate() {
        let block = block.split("```").next().unwrap();
        let example: Example =
            toml::from_str(block).unwrap_or_else(|e| panic!("example {number}: {e}\n{block}"));
        let shapes = block.lines().next().unwrap().trim_start_matches("# ");
        let (before, after) = shapes.split_once(" -> ").unwrap_or_else(|| panic!("no shapes: {block}"));
        let (before, after) = (arrays(before), arrays(after));
        if example.post.is_empty() {
            let plan = Pre::plan(&example.pre, &before[0].1).unwrap_or_else(|e| panic!("{block}: {e}"));
            assert_eq!(plan.output_shape(), after[0].1, "{block}");
        } else {
            let plan = Post::plan(&example.post, &before).unwrap_or_else(|e| panic!("{block}: {e}"));
            assert_eq!(plan.outputs(), after, "{block}");
        }
        seen.push_str(block);
    }
    let pre = [
        "scale",
        "normalise",
        "clip",
        "cast",
        "transpose",
        "reshape",
        "resize",
        "crop",
        "pad",
        "letterbox",
        "frame",
        "window",
        "detrend",
        "fft",
        "stft",
        "log_mel",
        "one_hot",
        "tokenise",
    ];
    let post = [
        "softmax",
        "sigmoid",
        "scale",
        "transpose",
        "argmax",
        "top_k",
        "threshold",
        "label_map",
        "split",
        "keep",
        "nms",
        "abstain",
    ];
    for (list, steps) in [("pre", &pre[..]), ("post", &post[..])] {
        for step in steps {
            assert!(
                seen.contains(&format!("[[{list}]]\nstep = \"{step}\"\n")),
                "no example of {list} {step}"
            );
        }
    }
}
