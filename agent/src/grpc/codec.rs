//! Messages on the wire: protobuf by prost, held to a number of fields before anything is built from them.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// Most fields of one message, all that are in its inputs and outputs among them. A tensor without anything takes 2 bytes
/// on the wire and some 300 here, so that the largest message alone could ask for gigabytes. Numbers are one field,
/// however many; more texts than this are sent raw.
const MAX_FIELDS: usize = 1 << 18;
/// The messages within messages that hold many of something: `ModelInferRequest.inputs` and `.outputs`, and then
/// `InferInputTensor.contents`.
const NESTED: &[&[u32]] = &[&[5, 6], &[5]];

/// The codec of all methods.
#[derive(Debug, Clone, Copy)]
pub struct Wire<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Wire<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static, U: Message + Default + 'static> Codec for Wire<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<T: Message, U> Encoder for Wire<T, U> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out).map_err(|error| Status::internal(error.to_string()))
    }
}

impl<T, U: Message + Default> Decoder for Wire<T, U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // In one piece, so that raw contents are parts of it and not copies.
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        read(bytes).map(Some).map_err(Status::invalid_argument)
    }
}

/// Reads a message.
pub(super) fn read<M: Message + Default>(bytes: Bytes) -> Result<M, String> {
    let invalid = |error: prost::DecodeError| format!("the message is not valid: {error}");
    let mut left = MAX_FIELDS;
    count(&bytes, NESTED, &mut left).map_err(invalid)?;
    if left == 0 {
        return Err(format!("the message has {MAX_FIELDS} fields or more"));
    }
    M::decode(bytes).map_err(invalid)
}

/// Takes the fields of a message from what is `left`, until nothing is; those in `nested`, level by level, are read as
/// messages.
fn count(mut bytes: &[u8], nested: &[&[u32]], left: &mut usize) -> Result<(), prost::DecodeError> {
    let (tags, deeper) = nested.split_first().map_or((&[][..], nested), |(tags, deeper)| (*tags, deeper));
    while bytes.has_remaining() && *left > 0 {
        let (tag, wire_type) = decode_key(&mut bytes)?;
        *left -= 1;
        if wire_type != WireType::LengthDelimited || !tags.contains(&tag) {
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default())?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut bytes)?).unwrap_or(usize::MAX);
        // What is wrong with it is said by whoever knows what the field is.
        let Some((message, rest)) = bytes.split_at_checked(length) else { return Ok(()) };
        let _ = count(message, deeper, left);
        bytes = rest;
    }
    Ok(())
}
