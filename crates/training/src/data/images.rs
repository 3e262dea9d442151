//! Small images: a uint8 array `[n, height, width]` and their labels (`models/digits/data`). The first
//! two thirds may be trained on, the rest only evaluates; the order of the file is the order of writers.

use super::npy;
use super::{DataError, Part, Samples};

/// Decodes `images.npy` and `labels.npy` and returns one part, inputs `[1, height, width]`.
///
/// # Errors
/// [`DataError`] when either does not decode or they do not fit together.
pub fn parse(images: &[u8], labels: &[u8], part: Part) -> Result<Samples, DataError> {
    let images = npy::parse(images)?;
    let labels = npy::parse(labels)?.to_u32()?;
    let [count, height, width] = *images.dims.as_slice() else {
        return Err(DataError::Shape {
            what: "images",
            found: images.dims,
            expected: "[images, height, width]".into(),
        });
    };
    if labels.len() != count || height * width == 0 {
        return Err(DataError::Shape {
            what: "labels",
            found: vec![labels.len()],
            expected: format!("[{count}], one a picture"),
        });
    }
    let cut = count / 3 * 2;
    let range = match part {
        Part::Train => 0..cut,
        Part::Evaluate => cut..count,
    };
    let pixels = images.to_f32();
    let size = height * width;
    Ok(Samples {
        shape: vec![1, height, width],
        x: range.clone().map(|at| pixels[at * size..(at + 1) * size].to_vec()).collect(),
        y: labels[range].to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_images_are_split_as_documented() {
        let images = include_bytes!("../../../../models/digits/data/images.npy");
        let labels = include_bytes!("../../../../models/digits/data/labels.npy");
        let train = parse(images, labels, Part::Train).unwrap();
        let evaluate = parse(images, labels, Part::Evaluate).unwrap();
        assert_eq!((train.len(), evaluate.len()), (1198, 599));
        assert!(train.x.iter().flatten().all(|value| (0.0..=16.0).contains(value)));
        assert!(parse(images, &npy::write_u32(&[2], &[1, 2]), Part::Train).is_err());
    }
}
