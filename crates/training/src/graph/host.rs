//! Small integer tensors on the host: the shape arithmetic that exporters write into graphs.

/// An integer tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Host {
    pub(super) dims: Vec<usize>,
    pub(super) values: Vec<i64>,
}

/// Resolves a possibly negative axis of a tensor of `rank` dimensions.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, String> {
    let signed = i64::try_from(rank).unwrap_or(i64::MAX);
    let resolved = if axis < 0 { axis.saturating_add(signed) } else { axis };
    usize::try_from(resolved)
        .ok()
        .filter(|&resolved| resolved < rank)
        .ok_or_else(|| format!("axis {axis} does not exist in a tensor of rank {rank}"))
}

/// Resolves several axes, ascending and each once.
pub(super) fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, String> {
    let mut resolved = list.iter().map(|&one| axis(one, rank)).collect::<Result<Vec<_>, _>>()?;
    resolved.sort_unstable();
    resolved.dedup();
    Ok(resolved)
}

/// Start and end of a slice with step 1 along an axis of `size`.
pub(super) fn bounds(start: i64, end: i64, step: i64, size: usize) -> Result<(usize, usize), String> {
    if step != 1 {
        return Err(format!("a slice with step {step} is not supported"));
    }
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let clamp = |at: i64| if at < 0 { at.saturating_add(size).max(0) } else { at.min(size) };
    let (start, end) = (clamp(start), clamp(end));
    Ok((start as usize, end.max(start) as usize))
}

/// The dimensions that Reshape asks for.
pub(super) fn reshaped(from: &[usize], to: &[i64], zero_is_zero: bool) -> Result<Vec<usize>, String> {
    let total: usize = from.iter().product();
    let mut dims = Vec::with_capacity(to.len());
    let mut open = None;
    for (at, &size) in to.iter().enumerate() {
        dims.push(match size {
            -1 if open.replace(at).is_some() => return Err("two dimensions are -1".into()),
            -1 => 1,
            0 if !zero_is_zero => {
                *from.get(at).ok_or_else(|| format!("dimension {at} cannot be copied from {from:?}"))?
            }
            size => usize::try_from(size).map_err(|_| format!("dimension {at} is {size}"))?,
        });
    }
    let known = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).unwrap_or(0);
    if let Some(at) = open {
        if known == 0 || !total.is_multiple_of(known) {
            return Err(format!("{from:?} cannot be reshaped to {to:?}"));
        }
        dims[at] = total / known;
    } else if known != total {
        return Err(format!("{from:?} cannot be reshaped to {to:?}"));
    }
    Ok(dims)
}

impl Host {
    /// A list of integers.
    pub(super) fn list(values: Vec<i64>) -> Self {
        Self { dims: vec![values.len()], values }
    }

    /// Picks along the only axis (or the first, of a vector).
    pub(super) fn gather(&self, indices: &Host) -> Result<Self, String> {
        if self.dims.len() != 1 {
            return Err("Gather on an integer tensor that is not a list".into());
        }
        let values = indices
            .values
            .iter()
            .map(|&index| axis(index, self.values.len()).map(|at| self.values[at]))
            .collect::<Result<_, _>>()?;
        Ok(Self { dims: indices.dims.clone(), values })
    }

    /// Elementwise arithmetic; one side may be a single number.
    pub(super) fn zip(&self, other: &Self, op: fn(i64, i64) -> Option<i64>) -> Result<Self, String> {
        let (long, dims) = if self.values.len() >= other.values.len() {
            (self.values.len(), self.dims.clone())
        } else {
            (other.values.len(), other.dims.clone())
        };
        let at = |side: &Self, index: usize| match side.values.len() {
            1 => Some(side.values[0]),
            length if length == long => Some(side.values[index]),
            _ => None,
        };
        let values = (0..long)
            .map(|index| at(self, index).zip(at(other, index)).and_then(|(a, b)| op(a, b)))
            .collect::<Option<_>>()
            .ok_or("integer shapes disagree, or a division by zero")?;
        Ok(Self { dims, values })
    }
}
