//! The forms of an input: JSON, raw elements, CSV and `.npy`. All read bytes that are in memory and bounded already.

use farlight_device::stream::EventTime;
use serde::Deserialize;

use crate::settings::source::Datatype;

/// Longest id of an input in bytes: ids are kept with cases.
const MAX_ID: usize = 256;
/// Largest time in milliseconds either side of 1970: its microseconds are exact in a double.
const MAX_TIME_MS: f64 = 9e12;

/// A whole input.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct Whole {
    /// Its id; may be empty.
    #[serde(default)]
    pub(super) id: String,
    /// Its elements, row-major.
    pub(super) data: Vec<f32>,
}

/// A sample of a stream.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Sample {
    /// When it was taken, milliseconds; of the source's own counting when absent.
    pub(super) t: Option<f64>,
    /// A value a channel.
    pub(super) values: Vec<f32>,
}

/// Reads `{"id": "…", "data": [numbers]}`.
pub(super) fn whole(json: &[u8]) -> Result<Whole, String> {
    let whole: Whole =
        serde_json::from_slice(json).map_err(|error| format!("input is not valid: {error}"))?;
    if whole.id.len() > MAX_ID {
        return Err(format!("input is not valid: its id has more than {MAX_ID} bytes"));
    }
    Ok(whole)
}

/// Reads `{"t": milliseconds, "values": [numbers]}`, or an array of these.
pub(super) fn samples(json: &[u8]) -> Result<Vec<Sample>, String> {
    let several = json.trim_ascii_start().first() == Some(&b'[');
    let read = if several {
        serde_json::from_slice(json)
    } else {
        serde_json::from_slice(json).map(|sample| vec![sample])
    };
    read.map_err(|error| format!("sample is not valid: {error}"))
}

/// Milliseconds as event time.
pub(super) fn event_time(milliseconds: f64) -> Result<EventTime, String> {
    if milliseconds.abs() <= MAX_TIME_MS {
        Ok(EventTime((milliseconds * 1e3).round() as i64))
    } else {
        Err(format!("{milliseconds} is no time in milliseconds"))
    }
}

/// Event time as milliseconds.
pub(super) fn milliseconds(at: EventTime) -> f64 {
    at.0 as f64 / 1e3
}

fn words<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Result<Vec<f32>, String> {
    let (words, rest) = bytes.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(format!("{} bytes are no whole number of elements of {N} bytes", bytes.len()));
    }
    Ok(words.iter().map(|word| read(*word)).collect())
}

/// Reads little-endian elements.
pub(super) fn elements(bytes: &[u8], datatype: Datatype) -> Result<Vec<f32>, String> {
    match datatype {
        Datatype::Fp32 => words(bytes, f32::from_le_bytes),
        Datatype::Fp64 => words(bytes, |word| f64::from_le_bytes(word) as f32),
        Datatype::Fp16 => words(bytes, |word| half::f16::from_le_bytes(word).to_f32()),
        Datatype::Int8 => words(bytes, |word| f32::from(i8::from_le_bytes(word))),
        Datatype::Int16 => words(bytes, |word| f32::from(i16::from_le_bytes(word))),
        Datatype::Int32 => words(bytes, |word| i32::from_le_bytes(word) as f32),
        Datatype::Uint8 => words(bytes, |word| f32::from(u8::from_le_bytes(word))),
        Datatype::Uint16 => words(bytes, |word| f32::from(u16::from_le_bytes(word))),
        Datatype::Uint32 => words(bytes, |word| u32::from_le_bytes(word) as f32),
    }
}

/// Reads the numbers of a CSV file, row after row. A first row that is not numbers names the columns.
pub(super) fn csv(bytes: &[u8]) -> Result<Vec<f32>, String> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).flexible(true).from_reader(bytes);
    let mut values = Vec::new();
    for (number, row) in reader.deserialize::<Vec<f32>>().enumerate() {
        match row {
            Ok(row) => values.extend(row),
            Err(_) if number == 0 => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(values)
}

/// Reads a file by the ending of its name, with the id that it names; `None` for an ending that is no input's.
pub(super) fn file(ending: &str, bytes: &[u8], datatype: Datatype) -> Option<Result<Whole, String>> {
    let nameless = |data| Whole { id: String::new(), data };
    Some(match ending {
        "json" => whole(bytes),
        "csv" => csv(bytes).map(nameless),
        "npy" => farlight_npy::parse(bytes).map(|array| nameless(array.to_f32())).map_err(|e| e.to_string()),
        "bin" => elements(bytes, datatype).map(nameless),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_one_sample_or_several() {
        let sample = |t, value| Sample { t, values: vec![value] };
        assert_eq!(samples(br#"{"t": 1.5, "values": [2]}"#).unwrap(), [sample(Some(1.5), 2.0)]);
        let two = samples(br#" [{"values": [1]}, {"t": 2, "values": [3]}]"#).unwrap();
        assert_eq!(two, [sample(None, 1.0), sample(Some(2.0), 3.0)]);
        assert!(samples(b"[1]").is_err() && samples(b"").is_err());
        assert!(whole(format!(r#"{{"id":"{}","data":[]}}"#, "x".repeat(300)).as_bytes()).is_err());
    }

    #[test]
    fn times_are_exact_to_the_microsecond_or_refused() {
        assert_eq!(event_time(1_700_000_000_000.25).unwrap(), EventTime(1_700_000_000_000_250));
        assert_eq!(milliseconds(EventTime(1_500)), 1.5);
        for bad in [f64::NAN, f64::INFINITY, 1e13] {
            assert!(event_time(bad).is_err());
        }
    }

    #[test]
    fn files_are_read_by_their_ending() {
        let read = |ending, bytes: &[u8], datatype| file(ending, bytes, datatype).unwrap().map(|w| w.data);
        assert_eq!(read("csv", b"a,b\n1, 2\n3,4\n", Datatype::Fp32).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert!(read("csv", b"1,2\n3,x\n", Datatype::Fp32).is_err());
        assert_eq!(read("bin", &[1, 255], Datatype::Uint8).unwrap(), [1.0, 255.0]);
        assert_eq!(read("bin", &[0xff, 0xff, 0, 0x3c], Datatype::Int16).unwrap(), [-1.0, 15_360.0]);
        assert_eq!(read("bin", &[0, 0x3c], Datatype::Fp16).unwrap(), [1.0]);
        assert!(read("bin", &[1, 2, 3], Datatype::Fp32).unwrap_err().contains("3 bytes"));
        assert_eq!(
            read("npy", &farlight_npy::write_f32(&[1, 2], &[5.0, 6.0]), Datatype::Fp32).unwrap(),
            [5.0, 6.0]
        );
        assert!(file("txt", b"", Datatype::Fp32).is_none());
    }
}
