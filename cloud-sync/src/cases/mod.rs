//! Cases from the field and their labels: what people look at, and what training learns from.

pub mod api;
pub mod feedback;
mod tensor;

use farlight_wire::ModelName;
use sqlx::Row;

pub use tensor::{TensorError, decode_tensor};

use crate::store::{During, Store, StoreError};

/// Most cases of one training job.
const MAX_LABELLED: i64 = 1_000_000;

/// A case with a label, as training takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledCase {
    /// Id.
    pub id: String,
    /// The device it comes from.
    pub device: String,
    /// Why it was kept, for example `margin` or `control`.
    pub kind: String,
    /// Inverse of the probability that it was kept.
    pub weight: f32,
    /// The input as the application sent it, row-major.
    pub input: Vec<f32>,
    /// Its shape without the batch dimension.
    pub shape: Vec<usize>,
    /// Index of the label in the manifest's labels.
    pub label: u32,
}

/// The labelled cases of a model, oldest first. One that cannot be read is left out and logged.
///
/// # Errors
/// [`StoreError`] when they cannot be read.
pub async fn labelled_cases(store: &Store, model: &ModelName) -> Result<Vec<LabelledCase>, StoreError> {
    let rows = sqlx::query(
        "SELECT id, device, kind, kept_permille, shape, encoding, tensor, label_index FROM cases \
         WHERE model = $1 AND label_index IS NOT NULL ORDER BY received, id LIMIT $2",
    )
    .bind(model.as_str())
    .bind(MAX_LABELLED)
    .fetch_all(store.reader())
    .await
    .during("read labelled cases")?;
    let mut cases = Vec::with_capacity(rows.len());
    for row in &rows {
        let id: String = row.get(0);
        match decode_tensor(&row.get::<String, _>(4), &row.get::<String, _>(5), &row.get::<Vec<u8>, _>(6)) {
            Ok((shape, input)) => cases.push(LabelledCase {
                device: row.get(1),
                kind: row.get(2),
                weight: 1000.0 / row.get::<i64, _>(3).clamp(1, 1000) as f32,
                input,
                shape,
                label: u32::try_from(row.get::<i64, _>(7)).unwrap_or(u32::MAX),
                id,
            }),
            Err(error) => tracing::warn!(case = id, %error, "labelled case left out"),
        }
    }
    Ok(cases)
}
