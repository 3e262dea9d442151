//! OLPC canonical JSON, the form in which TUF metadata is signed, and the strict reader in front of it:
//! duplicate keys are refused, depth is bounded, and signed documents hold no fractions.
//! <http://wiki.laptop.org/go/Canonical_JSON>

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a value has no canonical form, or bytes are not strict JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, or too deep.
    #[error("not strict JSON: {0}")]
    Syntax(String),
    /// A key that occurs twice in an object: readers disagree about which of the two counts.
    #[error("not strict JSON: {0}")]
    DuplicateKey(String),
    /// A fraction: canonical JSON has whole numbers only.
    #[error("the number {0} is no whole number, and canonical JSON has no others")]
    Fraction(String),
}

/// Whether a document may hold fractions. Signed ones may not: their text form is not unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fractions {
    Refuse,
    Allow,
}

/// Reads JSON strictly: no key twice in an object, no trailing bytes, at most 128 levels.
pub(crate) fn parse(bytes: &[u8], fractions: Fractions) -> Result<Value, JsonError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let Strict(value) = Strict::deserialize(&mut reader).map_err(|error| match error.is_data() {
        // All else that is JSON is taken.
        true => JsonError::DuplicateKey(error.to_string()),
        false => JsonError::Syntax(error.to_string()),
    })?;
    reader.end().map_err(|error| JsonError::Syntax(error.to_string()))?;
    if fractions == Fractions::Refuse {
        refuse_fractions(&value)?;
    }
    Ok(value)
}

/// Writes `value` canonically: keys sorted, no white space, only `"` and `\` escaped, whole numbers.
///
/// # Errors
/// [`JsonError::Fraction`] when the value holds a number that is not whole.
pub fn to_vec(value: &Value) -> Result<Vec<u8>, JsonError> {
    let mut out = Vec::new();
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), JsonError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => out.extend_from_slice(whole(number)?.to_string().as_bytes()),
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(map) => {
            // Sorted here and not by the map: its order depends on a feature of serde_json.
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            out.push(b'{');
            for (i, (key, item)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write(item, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if byte == b'"' || byte == b'\\' {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn whole(number: &Number) -> Result<i128, JsonError> {
    let unsigned = number.as_u64().map(i128::from);
    unsigned
        .or_else(|| number.as_i64().map(i128::from))
        .ok_or_else(|| JsonError::Fraction(number.to_string()))
}

fn refuse_fractions(value: &Value) -> Result<(), JsonError> {
    match value {
        Value::Number(number) => whole(number).map(|_| ()),
        Value::Array(items) => items.iter().try_for_each(refuse_fractions),
        Value::Object(map) => map.values().try_for_each(refuse_fractions),
        Value::Null | Value::Bool(_) | Value::String(_) => Ok(()),
    }
}

/// A JSON value whose objects name each key once.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> DeserializeSeed<'de> for StrictVisitor {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(StrictVisitor)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(StrictVisitor)?;
            if object.insert(key.clone(), value).is_some() {
                return Err(serde::de::Error::custom(format!("the key {key:?} occurs twice")));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_form_is_that_of_the_specification() {
        // What securesystemslib's encode_canonical writes for the same document.
        let value = parse(
            "{\"b\":[1,-2,true,null],\"a\":{\"ü\":\"x\\\"\\\\\\n\"},\"B\":18446744073709551615}".as_bytes(),
            Fractions::Refuse,
        )
        .unwrap();
        let expected = "{\"B\":18446744073709551615,\"a\":{\"ü\":\"x\\\"\\\\\n\"},\"b\":[1,-2,true,null]}";
        assert_eq!(String::from_utf8(to_vec(&value).unwrap()).unwrap(), expected);
    }

    #[test]
    fn what_is_not_strict_is_refused() {
        for text in ["{\"a\":1,\"a\":1}", "[{\"x\":{\"a\":1,\"b\":2,\"a\":3}}]"] {
            let refused = parse(text.as_bytes(), Fractions::Allow);
            assert!(matches!(refused, Err(JsonError::DuplicateKey(_))), "{text}");
        }
        for text in ["{} {}", "[1,]", "\"\\ud800\"", "\u{feff}{}", "1e999", ""] {
            assert!(matches!(parse(text.as_bytes(), Fractions::Allow), Err(JsonError::Syntax(_))), "{text}");
        }
        for text in ["1.5", "{\"a\":[1e3]}", "18446744073709551616"] {
            assert!(
                matches!(parse(text.as_bytes(), Fractions::Refuse), Err(JsonError::Fraction(_))),
                "{text}"
            );
        }
        let deep = "[".repeat(100_000);
        assert!(matches!(parse(deep.as_bytes(), Fractions::Allow), Err(JsonError::Syntax(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, Fractions::Refuse);
        }

        #[test]
        fn whole_documents_are_fixed_points(key in "\\PC*", number: i64, text in any::<String>()) {
            let value = serde_json::json!({ key: [number, text, { "x": null }] });
            prop_assert!(to_vec(&value).is_ok());
            let again = parse(&serde_json::to_vec(&value).unwrap(), Fractions::Refuse).unwrap();
            prop_assert_eq!(to_vec(&again).unwrap(), to_vec(&value).unwrap());
        }
    }
}
