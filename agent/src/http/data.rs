//! The `data` of a JSON tensor: elements, nested or flat, row-major, read without building a tree. Their type
//! is told elsewhere in the document, so they are kept as they were written until it is known.

use farlight_inference::Values;
use farlight_release::manifest::Datatype;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

use crate::protocol::request::all;

/// Most elements of one tensor: what the largest input holds in a full batch is less.
const MAX_ELEMENTS: usize = 1 << 26;

/// Elements as they were written.
#[derive(Debug, Default)]
pub(crate) enum Data {
    /// None yet.
    #[default]
    Empty,
    /// Integers.
    Integers(Vec<i64>),
    /// Integers of which one at least is above the largest signed one.
    Large(Vec<u64>),
    /// Numbers with fractions among them; `null` is NaN.
    Floats(Vec<f64>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<String>),
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut data = Self::Empty;
        // An element alone is none: `data` is an array, of whatever depth.
        deserializer.deserialize_seq(Elements(&mut data))?;
        Ok(data)
    }
}

struct Elements<'a>(&'a mut Data);

const MIXED: &str = "elements of one tensor are of one kind: numbers, truth values or texts";

impl Data {
    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Integers(v) => v.len(),
            Self::Large(v) => v.len(),
            Self::Floats(v) => v.len(),
            Self::Bools(v) => v.len(),
            Self::Texts(v) => v.len(),
        }
    }

    fn push_float<E: Error>(&mut self, value: f64) -> Result<(), E> {
        match self {
            Self::Floats(v) => v.push(value),
            Self::Empty => *self = Self::Floats(vec![value]),
            Self::Integers(v) => {
                let mut floats: Vec<f64> = v.iter().map(|x| *x as f64).collect();
                floats.push(value);
                *self = Self::Floats(floats);
            }
            Self::Large(v) => {
                let mut floats: Vec<f64> = v.iter().map(|x| *x as f64).collect();
                floats.push(value);
                *self = Self::Floats(floats);
            }
            Self::Bools(_) | Self::Texts(_) => return Err(E::custom(MIXED)),
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("numbers, truth values or texts, nested or flat")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.0.push_float(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        match self.0 {
            Data::Integers(v) => v.push(value),
            Data::Empty => *self.0 = Data::Integers(vec![value]),
            data => return data.push_float(value as f64),
        }
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        match (i64::try_from(value), &mut *self.0) {
            (_, Data::Large(v)) => v.push(value),
            (Ok(value), _) => return self.visit_i64(value),
            (Err(_), Data::Empty) => *self.0 = Data::Large(vec![value]),
            (Err(_), Data::Integers(v)) if v.iter().all(|x| *x >= 0) => {
                let mut large: Vec<u64> = v.iter().map(|x| x.cast_unsigned()).collect();
                large.push(value);
                *self.0 = Data::Large(large);
            }
            (Err(_), data) => return data.push_float(value as f64),
        }
        Ok(())
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        match self.0 {
            Data::Bools(v) => v.push(value),
            Data::Empty => *self.0 = Data::Bools(vec![value]),
            _ => return Err(E::custom(MIXED)),
        }
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        match self.0 {
            Data::Texts(v) => v.push(value.to_owned()),
            Data::Empty => *self.0 = Data::Texts(vec![value.to_owned()]),
            _ => return Err(E::custom(MIXED)),
        }
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        // null: a missing element, which the data contract judges.
        self.0.push_float(f64::NAN)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        struct Element<'a>(&'a mut Data);
        impl<'de> DeserializeSeed<'de> for Element<'_> {
            type Value = ();
            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                deserializer.deserialize_any(Elements(self.0))
            }
        }
        while seq.next_element_seed(Element(self.0))?.is_some() {
            if self.0.len() > MAX_ELEMENTS {
                return Err(A::Error::custom(format!("more than {MAX_ELEMENTS} elements")));
            }
        }
        Ok(())
    }
}

impl Data {
    /// As elements of a type.
    ///
    /// # Errors
    /// A text that names the element which the type cannot hold.
    pub(crate) fn into_values(self, datatype: Datatype) -> Result<Values, String> {
        let name = datatype.name();
        match (datatype, self) {
            (Datatype::Bytes, Self::Texts(v)) => {
                Ok(Values::Bytes(v.into_iter().map(String::into_bytes).collect()))
            }
            (Datatype::Bool, Self::Bools(v)) => Ok(Values::Bool(v)),
            (_, Self::Empty) => Ok(Values::zeros(datatype, 0)),
            (Datatype::Bytes, _) => Err("BYTES elements are texts".to_owned()),
            (_, Self::Texts(_) | Self::Bools(_)) => Err(format!("{name} elements are numbers")),
            (Datatype::Fp32, Self::Floats(v)) => Ok(Values::Fp32(v.into_iter().map(|x| x as f32).collect())),
            (Datatype::Fp64, Self::Floats(v)) => Ok(Values::Fp64(v)),
            (Datatype::Fp16, Self::Floats(v)) => {
                Ok(Values::Fp16(v.into_iter().map(half::f16::from_f64).collect()))
            }
            (_, Self::Floats(v)) => {
                let integer = |x: f64| {
                    // 2^63 is the first that does not fit.
                    let fits = x.fract() == 0.0
                        && (-9.223_372_036_854_776e18..9.223_372_036_854_776e18).contains(&x);
                    if fits { Ok(x as i64) } else { Err(format!("{x} is no {name}")) }
                };
                integers(v.into_iter().map(integer).collect::<Result<Vec<i64>, _>>()?, datatype)
            }
            (_, Self::Integers(v)) => integers(v, datatype),
            (_, Self::Large(v)) => integers(v, datatype),
        }
    }
}

/// Integers as elements of a type other than text.
fn integers<I>(values: Vec<I>, datatype: Datatype) -> Result<Values, String>
where
    I: Copy + std::fmt::Display + Into<i128>,
    u8: TryFrom<I>,
    u16: TryFrom<I>,
    u32: TryFrom<I>,
    u64: TryFrom<I>,
    i8: TryFrom<I>,
    i16: TryFrom<I>,
    i32: TryFrom<I>,
    i64: TryFrom<I>,
{
    let float = |x: &I| -> f64 { Into::<i128>::into(*x) as f64 };
    Ok(match datatype {
        Datatype::Bool => {
            let bits = all::<I, u8>(values, datatype)?;
            if let Some(other) = bits.iter().find(|bit| **bit > 1) {
                return Err(format!("{other} is no BOOL"));
            }
            Values::Bool(bits.into_iter().map(|bit| bit == 1).collect())
        }
        Datatype::Uint8 => Values::Uint8(all(values, datatype)?),
        Datatype::Uint16 => Values::Uint16(all(values, datatype)?),
        Datatype::Uint32 => Values::Uint32(all(values, datatype)?),
        Datatype::Uint64 => Values::Uint64(all(values, datatype)?),
        Datatype::Int8 => Values::Int8(all(values, datatype)?),
        Datatype::Int16 => Values::Int16(all(values, datatype)?),
        Datatype::Int32 => Values::Int32(all(values, datatype)?),
        Datatype::Int64 => Values::Int64(all(values, datatype)?),
        Datatype::Fp16 => Values::Fp16(values.iter().map(|x| half::f16::from_f64(float(x))).collect()),
        Datatype::Fp32 => Values::Fp32(values.iter().map(|x| float(x) as f32).collect()),
        Datatype::Fp64 => Values::Fp64(values.iter().map(float).collect()),
        Datatype::Bytes => return Err("BYTES elements are texts".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(json: &str, datatype: Datatype) -> Result<Values, String> {
        serde_json::from_str::<Data>(json).map_err(|e| e.to_string())?.into_values(datatype)
    }

    #[test]
    fn every_element_is_what_its_type_holds() {
        assert_eq!(
            values("[[1,2],[3,4.0]]", Datatype::Fp32).unwrap(),
            Values::Fp32(vec![1.0, 2.0, 3.0, 4.0])
        );
        assert_eq!(values("[1,2.0]", Datatype::Int8).unwrap(), Values::Int8(vec![1, 2]));
        let large = "[0,18446744073709551615,9007199254740993]";
        assert_eq!(
            values(large, Datatype::Uint64).unwrap(),
            Values::Uint64(vec![0, u64::MAX, 9_007_199_254_740_993])
        );
        assert_eq!(values("[-9223372036854775808]", Datatype::Int64).unwrap(), Values::Int64(vec![i64::MIN]));
        assert_eq!(values("[true,false]", Datatype::Bool).unwrap(), Values::Bool(vec![true, false]));
        assert_eq!(values("[1,0]", Datatype::Bool).unwrap(), Values::Bool(vec![true, false]));
        assert_eq!(values("[\"a\"]", Datatype::Bytes).unwrap(), Values::Bytes(vec![b"a".to_vec()]));
        assert_eq!(values("[]", Datatype::Fp16).unwrap(), Values::Fp16(vec![]));
        let Values::Fp64(missing) = values("[1,null]", Datatype::Fp64).unwrap() else { panic!() };
        assert!(missing[1].is_nan());
    }

    #[test]
    fn what_a_type_cannot_hold_is_named() {
        for (json, datatype, part) in [
            ("[256]", Datatype::Uint8, "256 is no UINT8"),
            ("[-1]", Datatype::Uint64, "-1 is no UINT64"),
            ("[1.5]", Datatype::Int32, "1.5 is no INT32"),
            ("[null]", Datatype::Int32, "NaN is no INT32"),
            ("[1e19]", Datatype::Int64, "no INT64"),
            ("[18446744073709551615]", Datatype::Int64, "no INT64"),
            ("[2]", Datatype::Bool, "2 is no BOOL"),
            ("[\"a\"]", Datatype::Fp32, "numbers"),
            ("[1]", Datatype::Bytes, "texts"),
            ("[1,\"a\"]", Datatype::Fp32, "one kind"),
            ("[true,1]", Datatype::Bool, "one kind"),
            ("{}", Datatype::Fp32, "numbers"),
            ("1", Datatype::Fp32, "nested or flat"),
            ("\"a\"", Datatype::Bytes, "nested or flat"),
        ] {
            let error = values(json, datatype).unwrap_err();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
