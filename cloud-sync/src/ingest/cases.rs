//! Cases as rows, with their tensor.

use farlight_wire::case::{CaseKind, TensorEncoding};
use farlight_wire::limits::MAX_CASE_TENSOR;
use farlight_wire::{Case, DeviceId, Millis, Seq};

use super::writer::{Outcome, text};
use crate::store::{During, StoreError, Write, int};

/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

pub(super) async fn store(
    write: &mut Write,
    device: &DeviceId,
    epoch: i64,
    seq: Seq,
    case: &Case,
    now: Millis,
) -> Result<Outcome, StoreError> {
    let tensor = &case.input;
    if tensor.bytes.len() > MAX_CASE_TENSOR || tensor.shape.len() > MAX_RANK {
        return Ok(Outcome::Refused("a case with too large a tensor"));
    }
    if tensor.expected_len() != Some(tensor.bytes.len()) {
        return Ok(Outcome::Refused("a case whose bytes do not fit its shape"));
    }
    let rows = sqlx::query(
        "INSERT INTO cases (id, device, epoch, seq, model, release, at, received, request_id, kind, kept_permille, \
         hardness_permille, class, score_permille, shape, encoding, tensor) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) \
         ON CONFLICT (device, epoch, seq) DO NOTHING",
    )
    .bind(format!("{device}.{epoch:016x}.{}", seq.0))
    .bind(device.as_str())
    .bind(epoch)
    .bind(int(seq.0))
    .bind(case.release.model.as_str())
    .bind(case.release.to_string())
    .bind(int(case.at.0))
    .bind(int(now.0))
    .bind(text(&case.request_id))
    .bind(kind_name(case.kind))
    .bind(i64::from(case.kept_permille.clamp(1, 1000)))
    .bind(i64::from(case.hardness_permille.min(1000)))
    .bind(i64::from(case.class))
    .bind(i64::from(case.score_permille.min(1000)))
    .bind(serde_json::to_string(&tensor.shape).unwrap_or_default())
    .bind(encoding_name(tensor.encoding))
    .bind(tensor.bytes.clone())
    .execute(write.connection())
    .await
    .during("store a case")?
    .rows_affected();
    Ok(if rows == 0 { Outcome::Known } else { Outcome::Stored })
}

fn kind_name(kind: CaseKind) -> &'static str {
    match kind {
        CaseKind::Control => "control",
        CaseKind::Margin => "margin",
        CaseKind::LowScore => "low_score",
        CaseKind::Novelty => "novelty",
        CaseKind::Contract => "contract",
        CaseKind::Disagreement => "disagreement",
    }
}

fn encoding_name(encoding: TensorEncoding) -> &'static str {
    match encoding {
        TensorEncoding::F32 => "f32",
        TensorEncoding::F16 => "f16",
        TensorEncoding::U8 => "u8",
    }
}
