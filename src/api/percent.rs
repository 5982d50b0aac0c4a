//! Percent-encoding of paths and queries (RFC 3986): names are bytes, so they are decoded once, to bytes.
//!
//! An object's place `ORG/PATH` travels as one segment, its slashes encoded, so that `…/metadata` and
//! `…/versions` can follow a name that ends in the same words.

use super::error::Problem;
use std::fmt::Write;

/// Every byte but the unreserved ones encoded: fit for one segment, or one value of a query.
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(byte.into()),
            _ => write!(text, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    text
}

pub fn decode(text: &str) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digit = |at: usize| after.get(at).and_then(|d| char::from(*d).to_digit(16)).map(|d| d as u8);
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(Problem::invalid(format!("{text}: % stands before two hex digits")));
        };
        bytes.push(high << 4 | low);
        rest = &after[2..];
    }
    Ok(bytes)
}

/// The pairs of a request's query.
pub struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    pub fn of(uri: &axum::http::Uri) -> Result<Self, Problem> {
        let pairs = uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let decoded = pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((name.to_owned(), decode(&value.replace('+', " "))?))
        });
        decoded.collect::<Result<_, _>>().map(Query)
    }

    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_slice())
    }

    /// The values of a name that may come more than once.
    pub fn all(&self, name: &str) -> Result<Vec<&str>, Problem> {
        let values = self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| std::str::from_utf8(value));
        values.collect::<Result<_, _>>().map_err(|_| Problem::invalid(format!("{name}: not UTF-8")))
    }

    pub fn text(&self, name: &str) -> Result<Option<&str>, Problem> {
        let value = self.bytes(name).map(std::str::from_utf8).transpose();
        value.map_err(|_| Problem::invalid(format!("{name}: not UTF-8")))
    }

    /// As [`Self::text`], for what an empty value says nothing about: a place in a list, a date.
    pub fn given(&self, name: &str) -> Result<Option<&str>, Problem> {
        Ok(self.text(name)?.filter(|text| !text.is_empty()))
    }

    pub fn parsed<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Problem> {
        let value = self.text(name)?.map(str::parse).transpose();
        value.map_err(|_| Problem::invalid(format!("{name}: not a value that it can have")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_travel_as_one_segment() {
        let name = b"acme/db pass:w\xc3\xb6rd?#%2F\xff";
        let segment = encode(name);
        assert_eq!(segment, "acme%2Fdb%20pass%3Aw%C3%B6rd%3F%23%252F%FF");
        assert_eq!(decode(&segment).unwrap(), name);
    }

    #[test]
    fn a_name_is_decoded_once() {
        assert_eq!(decode("%252F").unwrap(), b"%2F");
        for text in ["%", "%4", "%zz", "a%"] {
            assert!(decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn queries_hold_bytes_text_and_numbers() {
        let query = Query::of(&"/x?prefix=a%2F%FF&limit=7&organization=Foo+Corp".parse().unwrap()).unwrap();
        assert_eq!(query.bytes("prefix"), Some(&b"a/\xff"[..]));
        assert!(query.text("prefix").is_err());
        assert_eq!(query.parsed::<usize>("limit").unwrap(), Some(7));
        assert_eq!(query.text("organization").unwrap(), Some("Foo Corp"));
        assert_eq!(query.text("after").unwrap(), None);
    }
}
