//! A case: one input worth a person's look, or one of the uniform random control. Version 1, frozen.

use serde::{Deserialize, Serialize};

use crate::ids::{Millis, ReleaseId};

/// The newest case version.
pub type Case = CaseV1;

/// One captured input with what the model made of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseV1 {
    /// When it was seen, Unix time.
    pub at: Millis,
    /// The release that answered.
    pub release: ReleaseId,
    /// The request's id as the application gave it, or the agent's own.
    pub request_id: String,
    /// Why it was kept.
    pub kind: CaseKind,
    /// Probability with which the sampler kept it, thousandths (1 to 1000): its inverse is the weight.
    pub kept_permille: u16,
    /// Hardness, thousandths: 1000 is the hardest.
    pub hardness_permille: u16,
    /// Predicted class, index into the manifest's labels.
    pub class: u32,
    /// Score of that class, thousandths.
    pub score_permille: u16,
    /// The input tensor as the application sent it, before preprocessing.
    pub input: CaseTensor,
}

/// Why a case was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CaseKind {
    /// Uniform random control.
    Control,
    /// Small margin between the two best classes.
    Margin,
    /// Low best score, or nothing detected.
    LowScore,
    /// Far from the reference profile.
    Novelty,
    /// The input broke the data contract.
    Contract,
    /// Stages, candidate or neighbours in time disagree.
    Disagreement,
}

/// A tensor in a case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseTensor {
    /// Shape without the batch dimension.
    pub shape: Vec<u32>,
    /// How `bytes` is to be read.
    pub encoding: TensorEncoding,
    /// Little-endian elements, row-major.
    pub bytes: Vec<u8>,
}

/// Element type of a captured tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TensorEncoding {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16: half the bytes, the default for sensor data.
    F16,
    /// Unsigned bytes, for images.
    U8,
}

impl CaseTensor {
    /// Bytes that the shape and encoding ask for; `None` on overflow.
    pub fn expected_len(&self) -> Option<usize> {
        let width = match self.encoding {
            TensorEncoding::F32 => 4,
            TensorEncoding::F16 => 2,
            TensorEncoding::U8 => 1_usize,
        };
        self.shape.iter().try_fold(width, |len, dim| len.checked_mul(*dim as usize))
    }
}
