//! An inference request: JSON, or JSON followed by binary tensors (Open Inference Protocol v2 and its
//! binary extension). Everything a stranger can send ends in a clear 400.

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use farlight_release::manifest::{Datatype, TensorSpec};

use super::binary;

/// Most items in one request.
pub(super) const MAX_BATCH: usize = 256;

/// What a client asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) id: Option<String>,
    /// One raw input an item.
    pub(super) items: Vec<Vec<f32>>,
    /// Outputs asked for by name; all when empty.
    pub(super) outputs: Vec<Output>,
    /// Whether outputs are binary unless they say otherwise.
    pub(super) binary: bool,
}

/// An output asked for.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) binary: Option<bool>,
    /// Classes wanted by the classification extension.
    pub(super) classification: Option<usize>,
}

#[derive(Deserialize)]
struct Document {
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<Tensor>,
    #[serde(default)]
    outputs: Vec<OutputDocument>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Map<String, Value>,
    data: Option<Flat>,
}

#[derive(Deserialize)]
struct OutputDocument {
    name: String,
    #[serde(default)]
    parameters: Map<String, Value>,
}

/// Numbers, nested or flat, row-major. Read without building a tree.
struct Flat(Vec<f32>);

impl<'de> Deserialize<'de> for Flat {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers<'a>(&'a mut Vec<f32>);
        impl<'de> Visitor<'de> for Numbers<'_> {
            type Value = ();
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("numbers, nested or flat")
            }
            fn visit_f64<E>(self, value: f64) -> Result<(), E> {
                self.0.push(value as f32);
                Ok(())
            }
            fn visit_i64<E>(self, value: i64) -> Result<(), E> {
                self.0.push(value as f32);
                Ok(())
            }
            fn visit_u64<E>(self, value: u64) -> Result<(), E> {
                self.0.push(value as f32);
                Ok(())
            }
            fn visit_unit<E>(self) -> Result<(), E> {
                // null: a missing element, which the data contract judges.
                self.0.push(f32::NAN);
                Ok(())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
                while seq.next_element_seed(Element(self.0))?.is_some() {}
                Ok(())
            }
        }
        struct Element<'a>(&'a mut Vec<f32>);
        impl<'de> serde::de::DeserializeSeed<'de> for Element<'_> {
            type Value = ();
            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                deserializer.deserialize_any(Numbers(self.0))
            }
        }
        let mut flat = Vec::new();
        deserializer.deserialize_any(Numbers(&mut flat))?;
        if flat.len() > 1 << 28 { Err(D::Error::custom("too many numbers")) } else { Ok(Self(flat)) }
    }
}

/// Parses a body. `header_len` is the value of `Inference-Header-Content-Length` if it was sent.
pub(super) fn parse(spec: &TensorSpec, body: &[u8], header_len: Option<usize>) -> Result<Asked, String> {
    if header_len == Some(0) {
        // A raw body: one input, no JSON at all.
        let item = binary::read(body, datatype_name(spec.datatype))?;
        let items = split(spec, item, None)?;
        return Ok(Asked { id: None, items, outputs: Vec::new(), binary: true });
    }
    let header_len = header_len.unwrap_or(body.len());
    let (json, mut rest) = body.split_at_checked(header_len).ok_or_else(|| {
        format!("Inference-Header-Content-Length is {header_len}, the body has {}", body.len())
    })?;
    let document: Document =
        serde_json::from_slice(json).map_err(|e| format!("request is not valid: {e}"))?;
    let [tensor] = document.inputs.as_slice() else {
        return Err(format!(
            "{} inputs were sent; the model has one, {:?}",
            document.inputs.len(),
            spec.name
        ));
    };
    if tensor.name != spec.name {
        return Err(format!("input {:?} is unknown; the model's input is {:?}", tensor.name, spec.name));
    }
    let expected = datatype_name(spec.datatype);
    if tensor.datatype != expected {
        return Err(format!("input {:?} has datatype {}, expected {expected}", spec.name, tensor.datatype));
    }
    let size =
        tensor.parameters.get("binary_data_size").map(|v| v.as_u64().ok_or("binary_data_size is no number"));
    let values = match (size.transpose()?, &tensor.data) {
        (Some(size), None) => {
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let (bytes, after) = rest
                .split_at_checked(size)
                .ok_or_else(|| format!("binary_data_size is {size}, {} bytes follow the JSON", rest.len()))?;
            rest = after;
            binary::read(bytes, expected)?
        }
        (None, Some(Flat(values))) => values.clone(),
        (Some(_), Some(_)) => return Err("input has both data and binary_data_size".into()),
        (None, None) => return Err("input has neither data nor binary_data_size".into()),
    };
    if !rest.is_empty() {
        return Err(format!("{} bytes are left after the last binary tensor", rest.len()));
    }
    let items = split(spec, values, Some(&tensor.shape))?;
    let binary = document.parameters.get("binary_data_output").and_then(Value::as_bool).unwrap_or(false);
    let outputs = document.outputs.into_iter().map(output).collect();
    Ok(Asked { id: document.id, items, outputs, binary })
}

fn output(document: OutputDocument) -> Output {
    let number = |key: &str| document.parameters.get(key).and_then(Value::as_u64);
    Output {
        classification: number("classification").filter(|n| *n > 0).map(|n| n.min(1 << 16) as usize),
        binary: document.parameters.get("binary_data").and_then(Value::as_bool),
        name: document.name,
    }
}

fn split(spec: &TensorSpec, values: Vec<f32>, shape: Option<&[usize]>) -> Result<Vec<Vec<f32>>, String> {
    let elements: usize = spec.shape.iter().product();
    let batch = match shape {
        None => values.len() / elements.max(1),
        Some(shape) if shape == spec.shape => 1,
        Some([batch, rest @ ..]) if rest == spec.shape => *batch,
        Some(shape) => {
            return Err(format!(
                "input {:?} has shape {shape:?}, expected [N] + {:?}",
                spec.name, spec.shape
            ));
        }
    };
    if !(1..=MAX_BATCH).contains(&batch) {
        return Err(format!("batch of {batch}; 1 to {MAX_BATCH} items are allowed"));
    }
    if values.len() != batch * elements {
        return Err(format!("input has {} elements, its shape asks for {}", values.len(), batch * elements));
    }
    if batch == 1 {
        return Ok(vec![values]);
    }
    Ok(values.chunks_exact(elements).map(<[f32]>::to_vec).collect())
}

/// The protocol's name of an element type.
pub(super) fn datatype_name(datatype: Datatype) -> &'static str {
    match datatype {
        Datatype::Fp32 => "FP32",
        Datatype::Uint8 => "UINT8",
    }
}

#[cfg(test)]
mod tests {
    use farlight_release::manifest::OnViolation;

    use super::*;

    fn spec() -> TensorSpec {
        TensorSpec {
            name: "x".into(),
            datatype: Datatype::Fp32,
            shape: vec![2, 2],
            min: -1.0,
            max: 1.0,
            on_violation: OnViolation::Flag,
        }
    }

    fn asked(json: &str) -> Result<Asked, String> {
        parse(&spec(), json.as_bytes(), None)
    }

    #[test]
    fn nested_and_flat_numbers_are_the_same() {
        for data in ["[[[1,2],[3,4]]]", "[1,2,3,4]", "[[1,2],[3,4.0]]"] {
            let json =
                format!(r#"{{"inputs":[{{"name":"x","shape":[1,2,2],"datatype":"FP32","data":{data}}}]}}"#);
            assert_eq!(asked(&json).unwrap().items, [[1.0, 2.0, 3.0, 4.0]]);
        }
        let two = r#"{"id":"a","inputs":[{"name":"x","shape":[2,2,2],"datatype":"FP32","data":[1,2,3,4,5,6,7,null]}]}"#;
        let two = asked(two).unwrap();
        assert_eq!(two.items.len(), 2);
        assert!(two.items[1][3].is_nan());
        assert_eq!(two.id.as_deref(), Some("a"));
    }

    #[test]
    fn binary_tensors_follow_the_json() {
        let json = r#"{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}],"parameters":{"binary_data_output":true}}"#;
        let mut body = json.as_bytes().to_vec();
        body.extend([1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()));
        let asked = parse(&spec(), &body, Some(json.len())).unwrap();
        assert!(asked.binary && asked.items == [[1.0, 2.0, 3.0, 4.0]]);
        assert!(parse(&spec(), &body[..body.len() - 1], Some(json.len())).is_err());
        body.push(0);
        assert!(parse(&spec(), &body, Some(json.len())).unwrap_err().contains("left"));
        assert!(parse(&spec(), &body, Some(9_999)).is_err());
        let raw: Vec<u8> = [1.0_f32; 4].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(parse(&spec(), &raw, Some(0)).unwrap().items.len(), 1);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (json, part) in [
            ("{", "not valid"),
            (r#"{"inputs":[]}"#, "0 inputs"),
            (r#"{"inputs":[{"name":"y","shape":[4],"datatype":"FP32","data":[]}]}"#, "\"y\""),
            (r#"{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[1]}]}"#, "shape"),
            (r#"{"inputs":[{"name":"x","shape":[1,2,2],"datatype":"INT8","data":[1]}]}"#, "datatype"),
            (r#"{"inputs":[{"name":"x","shape":[1,2,2],"datatype":"FP32","data":[1]}]}"#, "elements"),
            (r#"{"inputs":[{"name":"x","shape":[0,2,2],"datatype":"FP32","data":[]}]}"#, "batch of 0"),
            (
                r#"{"inputs":[{"name":"x","shape":[18446744073709551615,2,2],"datatype":"FP32","data":[]}]}"#,
                "batch",
            ),
            (r#"{"inputs":[{"name":"x","shape":[1,2,2],"datatype":"FP32"}]}"#, "neither"),
            (r#"{"inputs":[{"name":"x","shape":[1,2,2],"datatype":"FP32","data":["a"]}]}"#, "not valid"),
        ] {
            let error = asked(json).unwrap_err();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
