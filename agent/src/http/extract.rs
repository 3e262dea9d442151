//! Path parameters and bodies as axum reads them; what it refuses is answered in the protocol's form, not as plain
//! text. And JSON objects that are objects.

use std::fmt;
use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::{self, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::response::Response;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};

use super::refuse;

/// Parameters of the path; 400 when they are not UTF-8.
pub(super) struct Path<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let read = extract::Path::from_request_parts(parts, state).await;
        read.map(|extract::Path(value)| Self(value)).map_err(|no| refuse(no.status(), no.body_text()))
    }
}

/// The body, whatever type it says it has: clients of the protocol often say none. 413 when it is too large.
pub(super) struct Body(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let read = Bytes::from_request(request, state).await;
        read.map(Self).map_err(|no| refuse(no.status(), no.body_text()))
    }
}

/// A JSON object. A struct by itself is read from an array, too, field by field, which no description allows.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_no_array() {
        #[derive(serde::Deserialize)]
        struct One {
            #[serde(default)]
            n: u8,
        }
        let read = |json: &str| serde_json::from_str::<Object<One>>(json).map(|Object(one)| one.n);
        assert_eq!(read("{\"n\":3}").unwrap(), 3);
        assert_eq!(read("{}").unwrap(), 0);
        for json in ["[]", "[3]", "null", "3"] {
            assert!(read(json).unwrap_err().to_string().contains("an object"), "{json}");
        }
    }
}
