//! What a request asks: tensors held against the manifest and taken apart into items, parameters, wanted outputs.
//! Everything a stranger can send ends in a text that says what is wrong.

use std::collections::HashSet;
use std::time::Duration;

use farlight_inference::{Item, Values};
use farlight_release::manifest::{BatchAxis, Datatype, Manifest, TensorSpec};

/// Most items in one request.
pub(crate) const MAX_BATCH: usize = 256;

/// What a client asked for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) id: Option<String>,
    /// One or more.
    pub(crate) items: Vec<Item>,
    /// Outputs asked for by name; all when empty.
    pub(crate) outputs: Vec<Output>,
    /// Whether outputs are binary unless they say otherwise.
    pub(crate) binary: bool,
    pub(crate) priority: u32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) stream: Option<Stream>,
}

/// An output asked for.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) name: String,
    pub(crate) binary: Option<bool>,
    /// Classes wanted by the classification extension.
    pub(crate) classification: Option<usize>,
}

/// The stream that a request belongs to.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: String,
    pub(crate) start: bool,
    pub(crate) end: bool,
}

/// The value of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parameter<'a> {
    Flag(bool),
    Number(u64),
    Text(&'a str),
    /// Anything else, such as a negative number.
    Other,
}

/// The parameters of a request or of an output.
pub(crate) trait Parameters {
    /// The value of one; `None` when it is not there.
    fn parameter(&self, key: &str) -> Option<Parameter<'_>>;

    /// A truth value; `None` when it is not there.
    fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        match self.parameter(key) {
            None => Ok(None),
            Some(Parameter::Flag(flag)) => Ok(Some(flag)),
            Some(_) => Err(format!("parameter {key} is neither true nor false")),
        }
    }

    /// A whole number; `None` when it is not there.
    fn number(&self, key: &str) -> Result<Option<u64>, String> {
        match self.parameter(key) {
            None => Ok(None),
            Some(Parameter::Number(number)) => Ok(Some(number)),
            Some(_) => Err(format!("parameter {key} is no whole number")),
        }
    }
}

impl Asked {
    /// A request for these items under the request's parameters.
    pub(crate) fn new(
        id: Option<String>,
        items: Vec<Item>,
        outputs: Vec<Output>,
        parameters: &impl Parameters,
    ) -> Result<Self, String> {
        Ok(Self {
            id: id.filter(|id| !id.is_empty()),
            items,
            outputs: once_each(outputs)?,
            binary: false,
            priority: parameters.number("priority")?.unwrap_or(0).try_into().unwrap_or(u32::MAX),
            // Microseconds; 0 is the model's own.
            timeout: parameters.number("timeout")?.filter(|micros| *micros > 0).map(Duration::from_micros),
            stream: stream(parameters)?,
        })
    }
}

impl Output {
    /// An output under its parameters.
    pub(crate) fn new(name: String, parameters: &impl Parameters) -> Result<Self, String> {
        let classification = parameters.number("classification")?.filter(|n| *n > 0);
        Ok(Self {
            name,
            binary: parameters.flag("binary_data")?,
            classification: classification.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        })
    }
}

/// Each output once: a request of a few bytes for one a million times would be answered with as many copies.
fn once_each(outputs: Vec<Output>) -> Result<Vec<Output>, String> {
    let mut names = HashSet::new();
    let twice = outputs.iter().find(|output| !names.insert(&output.name)).map(|output| &output.name);
    match twice {
        Some(name) => Err(format!("output {name:?} is asked for twice")),
        None => Ok(outputs),
    }
}

/// The sequence extension's parameters; an id of 0 or none is no stream.
fn stream(parameters: &impl Parameters) -> Result<Option<Stream>, String> {
    let id = match parameters.parameter("sequence_id") {
        None | Some(Parameter::Number(0)) => return Ok(None),
        Some(Parameter::Text(id)) => id.to_owned(),
        Some(Parameter::Number(id)) => id.to_string(),
        Some(_) => return Err("parameter sequence_id is neither a text nor a whole number".to_owned()),
    };
    let flag = |key| parameters.flag(key).map(|flag| flag.unwrap_or(false));
    let (start, end) = (flag("sequence_start")?, flag("sequence_end")?);
    Ok((!id.is_empty()).then_some(Stream { id, start, end }))
}

/// The inputs that clients send.
pub(crate) fn specs(manifest: &Manifest) -> impl Iterator<Item = &TensorSpec> {
    std::iter::once(&manifest.input).chain(&manifest.more_inputs)
}

/// Elements of one input and how many items they are.
struct Input {
    values: Values,
    items: usize,
}

/// The input tensors of one request, which come in any order.
pub(crate) struct Inputs<'a> {
    manifest: &'a Manifest,
    specs: Vec<&'a TensorSpec>,
    found: Vec<Option<Input>>,
}

impl<'a> Inputs<'a> {
    /// None yet.
    pub(crate) fn of(manifest: &'a Manifest) -> Self {
        let specs: Vec<&TensorSpec> = specs(manifest).collect();
        let found = specs.iter().map(|_| None).collect();
        Self { manifest, specs, found }
    }

    /// Adds a tensor; `read` gives its elements, of the type that it is told.
    pub(crate) fn add(
        &mut self,
        name: &str,
        datatype: &str,
        shape: &[usize],
        read: impl FnOnce(Datatype) -> Result<Values, String>,
    ) -> Result<(), String> {
        let mut places = self.specs.iter().zip(&mut self.found);
        let Some((spec, place)) = places.find(|(spec, _)| spec.name == name) else {
            return Err(format!("input {name:?} is unknown; the model takes {}", self.names()));
        };
        if place.is_some() {
            return Err(format!("input {name:?} is there twice"));
        }
        if Datatype::parse(datatype) != Some(spec.datatype) {
            let expected = spec.datatype.name();
            return Err(format!("input {name:?} has datatype {datatype}, expected {expected}"));
        }
        let items = items(self.manifest, spec, shape).map_err(|e| format!("input {name:?}: {e}"))?;
        let values = read(spec.datatype).map_err(|e| format!("input {name:?}: {e}"))?;
        let wanted = items.saturating_mul(elements(spec));
        if values.len() != wanted {
            let count = values.len();
            return Err(format!("input {name:?} has {count} elements, its shape asks for {wanted}"));
        }
        *place = Some(Input { values, items });
        Ok(())
    }

    fn names(&self) -> String {
        self.specs.iter().map(|spec| format!("{:?}", spec.name)).collect::<Vec<_>>().join(", ")
    }

    /// The items, once all tensors are there.
    pub(crate) fn items(self) -> Result<Vec<Item>, String> {
        let missing = self.specs.iter().zip(&self.found).find(|(_, input)| input.is_none());
        if let Some((spec, _)) = missing {
            return Err(format!("input {:?} is missing; the model takes {}", spec.name, self.names()));
        }
        split(&self.specs, self.found.into_iter().flatten().collect())
    }
}

/// The items of a request that is the one input and nothing else, as many as its elements are.
pub(crate) fn whole(
    manifest: &Manifest,
    read: impl FnOnce(Datatype) -> Result<Values, String>,
) -> Result<Vec<Item>, String> {
    if !manifest.more_inputs.is_empty() {
        return Err(format!("a raw body is one input; the model takes {}", 1 + manifest.more_inputs.len()));
    }
    let spec = &manifest.input;
    let values = read(spec.datatype)?;
    let elements = elements(spec);
    let items = match values.len().checked_div(elements) {
        Some(items) if items * elements == values.len() => items,
        _ => return Err(format!("{} elements are no whole number of {:?}", values.len(), spec.shape)),
    };
    split(&[spec], vec![Input { values, items: batch(manifest, items)? }])
}

/// Whole numbers as elements of a type.
///
/// # Errors
/// A text that names the first that does not fit.
pub(crate) fn all<I: Copy + std::fmt::Display, T: TryFrom<I>>(
    values: Vec<I>,
    datatype: Datatype,
) -> Result<Vec<T>, String> {
    let one = |x: I| T::try_from(x).map_err(|_| format!("{x} is no {}", datatype.name()));
    values.into_iter().map(one).collect()
}

fn elements(spec: &TensorSpec) -> usize {
    farlight_inference::tensor::elements(&spec.shape).unwrap_or(usize::MAX)
}

/// How many items a tensor of this shape is.
fn items(manifest: &Manifest, spec: &TensorSpec, shape: &[usize]) -> Result<usize, String> {
    let items = match (shape, manifest.batch_axis) {
        (shape, _) if shape == spec.shape => 1,
        ([items, rest @ ..], BatchAxis::Leading) if *rest == *spec.shape => *items,
        (_, BatchAxis::Leading) => {
            return Err(format!("shape {shape:?}, expected [N] + {:?}", spec.shape));
        }
        (_, BatchAxis::None) => return Err(format!("shape {shape:?}, expected {:?}", spec.shape)),
    };
    batch(manifest, items)
}

fn batch(manifest: &Manifest, items: usize) -> Result<usize, String> {
    match manifest.batch_axis {
        BatchAxis::None if items != 1 => Err("the model takes one item at a time".to_owned()),
        _ if !(1..=MAX_BATCH).contains(&items) => {
            Err(format!("batch of {items}; 1 to {MAX_BATCH} items are allowed"))
        }
        BatchAxis::Leading | BatchAxis::None => Ok(items),
    }
}

/// Takes a batch apart: each item gets its part of every input.
fn split(specs: &[&TensorSpec], inputs: Vec<Input>) -> Result<Vec<Item>, String> {
    let count = inputs.first().map_or(0, |input| input.items);
    if let Some((spec, other)) = specs.iter().zip(&inputs).find(|(_, input)| input.items != count) {
        return Err(format!("input {:?} has {} items, the first one {count}", spec.name, other.items));
    }
    for (spec, input) in specs.iter().zip(&inputs) {
        let Values::Bytes(texts) = &input.values else { continue };
        if let Some(index) = texts.iter().position(|text| std::str::from_utf8(text).is_err()) {
            return Err(format!("input {:?}: element {index} is no text in UTF-8", spec.name));
        }
    }
    let mut inputs = inputs.into_iter().map(|input| input.values);
    let Some(main) = inputs.next() else { return Err("no input was sent".to_owned()) };
    let more: Vec<Values> = inputs.collect();
    if count == 1 {
        return Ok(vec![Item { main, more }]);
    }
    let part = |values: &Values, index: usize| {
        let size = values.len() / count.max(1);
        values.part(index * size, size)
    };
    let item = |index| Item {
        main: part(&main, index),
        more: more.iter().map(|values| part(values, index)).collect(),
    };
    Ok((0..count).map(item).collect())
}

#[cfg(test)]
pub(crate) mod sample;
