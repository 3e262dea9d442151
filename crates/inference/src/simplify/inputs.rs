//! Applies what a release fixes to the inputs of a graph: shapes, and inputs that become constants.

use std::collections::HashSet;

use farlight_onnx::proto::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use farlight_onnx::proto::type_proto::{Tensor, Value as TypeValue};
use farlight_onnx::proto::{GraphProto, TensorShapeProto, ValueInfoProto};

use super::constant::{element, to_proto};
use super::{Report, Simplify, SimplifyError};
use crate::tensor::elements;

/// ONNX element type f16.
pub(super) const FLOAT16: i32 = 10;

/// Fixes the inputs of `graph` as `options` say.
pub(super) fn fix(
    graph: &mut GraphProto,
    options: &Simplify,
    report: &mut Report,
) -> Result<(), SimplifyError> {
    for (name, constant) in &options.constants {
        if options.shapes.contains_key(name) {
            return Err(SimplifyError::ConstantWithShape(name.clone()));
        }
        let tensor = tensor_of(find(graph, name)?)?;
        let (declared, given) = (tensor.elem_type(), element(constant.values.datatype()));
        if declared != given {
            return Err(SimplifyError::Element { name: name.clone(), declared, given });
        }
        fits(name, tensor, &constant.shape)?;
        if elements(&constant.shape) != Some(constant.values.len()) {
            return Err(SimplifyError::Elements(name.clone()));
        }
        graph.input.retain(|input| input.name() != name);
        graph.initializer.retain(|tensor| tensor.name() != name);
        graph.initializer.push(to_proto(name, constant));
        report.constants.push(name.clone());
    }
    // An initialiser that is an input as well is a default; engines here never pass such an input.
    let defaults: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name()).collect();
    graph.input.retain(|input| !defaults.contains(input.name()));
    for (name, shape) in &options.shapes {
        let tensor = tensor_of(find(graph, name)?)?;
        fits(name, tensor, shape)?;
        tensor.shape = Some(TensorShapeProto { dim: shape.iter().map(fixed).collect() });
        report.shapes.push(name.clone());
    }
    Ok(())
}

fn find<'a>(graph: &'a mut GraphProto, name: &str) -> Result<&'a mut ValueInfoProto, SimplifyError> {
    let inputs = graph.input.iter().map(|input| input.name().to_owned()).collect();
    let input = graph.input.iter_mut().find(|input| input.name() == name);
    input.ok_or_else(|| SimplifyError::UnknownInput { name: name.to_owned(), inputs })
}

fn tensor_of(input: &mut ValueInfoProto) -> Result<&mut Tensor, SimplifyError> {
    match input.r#type.as_mut().and_then(|kind| kind.value.as_mut()) {
        Some(TypeValue::TensorType(tensor)) => Ok(tensor),
        _ => Err(SimplifyError::NotTensor(input.name.clone().unwrap_or_default())),
    }
}

/// Whether `given` has the rank and the sizes that the file fixes. Sizes below zero are open, as old exporters wrote.
fn fits(name: &str, tensor: &Tensor, given: &[usize]) -> Result<(), SimplifyError> {
    let Some(shape) = &tensor.shape else { return Ok(()) };
    let sizes: Vec<Option<usize>> = shape.dim.iter().map(size).collect();
    let fit =
        |(declared, given): (&Option<usize>, &usize)| declared.is_none_or(|declared| declared == *given);
    if sizes.len() == given.len() && sizes.iter().zip(given).all(fit) {
        return Ok(());
    }
    let text = |size: &Option<usize>| size.map_or_else(|| "?".to_owned(), |size| size.to_string());
    let declared = format!("[{}]", sizes.iter().map(text).collect::<Vec<_>>().join(", "));
    Err(SimplifyError::Shape { name: name.to_owned(), declared, given: given.to_vec() })
}

/// A size that the file fixes. Exporters write 0 for an open size, too.
fn size(dim: &Dimension) -> Option<usize> {
    match dim.value {
        Some(DimValue::DimValue(size)) => usize::try_from(size).ok().filter(|size| *size > 0),
        _ => None,
    }
}

fn fixed(size: &usize) -> Dimension {
    let size = i64::try_from(*size).unwrap_or(i64::MAX);
    Dimension { value: Some(DimValue::DimValue(size)), ..Dimension::default() }
}

/// Whether an input is declared as f16.
pub(super) fn is_half(input: &ValueInfoProto) -> bool {
    match input.r#type.as_ref().and_then(|kind| kind.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => tensor.elem_type() == FLOAT16,
        _ => false,
    }
}
