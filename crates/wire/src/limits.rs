//! Every limit of the wire, with its reason. A receiver enforces all of them.

/// Largest MQTT payload in bytes: brokers commonly refuse more, and AWS IoT Core stops at 128 KiB.
pub const MAX_PAYLOAD: usize = 128 * 1024;
/// Largest decoded payload in bytes: bounds what a compressed bomb can make a receiver allocate.
pub const MAX_DECODED: usize = 1024 * 1024;
/// Most records in one batch: keeps one cloud transaction short.
pub const MAX_RECORDS: usize = 256;
/// Most models in one window: a gateway holds tens, not hundreds.
pub const MAX_MODELS: usize = 64;
/// Most features of one model's drift profile.
pub const MAX_FEATURES: usize = 256;
/// Most bins or classes in one count vector.
pub const MAX_BINS: usize = 4096;
/// Most bins of one latency sketch: a 1 % sketch of 1 µs to 1 h needs about 1,100.
pub const MAX_SKETCH_BINS: usize = 2048;
/// Largest hard-case tensor payload in bytes on MQTT; larger ones go by HTTPS.
pub const MAX_CASE_TENSOR: usize = 96 * 1024;
/// Longest free text (a reason, a hint) in bytes.
pub const MAX_TEXT: usize = 4096;
/// Largest diagnostics document in bytes: it travels as one report.
pub const MAX_DIAGNOSTICS: usize = 32 * 1024;
