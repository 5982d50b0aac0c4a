//! `pkcs11:` URIs (RFC 7512): which token, and which module reaches it. Never a slot number, never a PIN.

use super::{KeyError, PinSource, configuration};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A token, and the PKCS#11 module that reaches it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenUri {
    token: Option<String>,
    manufacturer: Option<String>,
    serial: Option<String>,
    model: Option<String>,
    object: Option<String>,
    id: Option<Vec<u8>>,
    module_path: Option<PathBuf>,
    module_name: Option<String>,
    pin_source: Option<PinSource>,
    copies: Option<Copies>,
}

/// What the operator says of a token that does not keep CKA_COPYABLE.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Copies {
    Accepted,
}

impl TokenUri {
    const NAMELESS: TokenUri = TokenUri {
        token: None,
        manufacturer: None,
        serial: None,
        model: None,
        object: None,
        id: None,
        module_path: None,
        module_name: None,
        pin_source: None,
        copies: None,
    };

    /// The shared object to load, an absolute path.
    pub fn module_path(&self) -> Option<&Path> {
        self.module_path.as_deref()
    }

    /// Where the URI says that the PIN is; for callers without a setting of their own. Not part of `Display`.
    pub fn pin_source(&self) -> Option<&PinSource> {
        self.pin_source.as_ref()
    }

    /// Whether the operator takes a token that lets a KEK be copied, as long as no copy can be read.
    pub(super) fn accepts_copies(&self) -> bool {
        self.copies == Some(Copies::Accepted)
    }

    /// Whether a token with these descriptions is meant.
    pub(super) fn selects(&self, label: &str, manufacturer: &str, serial: &str, model: &str) -> bool {
        let fits = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        fits(&self.token, label)
            && fits(&self.manufacturer, manufacturer)
            && fits(&self.serial, serial)
            && fits(&self.model, model)
    }

    fn path_attribute(&mut self, name: &str, value: Vec<u8>) -> Result<(), KeyError> {
        match name {
            "token" => set(&mut self.token, name, text(name, value)?),
            "manufacturer" => set(&mut self.manufacturer, name, text(name, value)?),
            "serial" => set(&mut self.serial, name, text(name, value)?),
            "model" => set(&mut self.model, name, text(name, value)?),
            "object" => set(&mut self.object, name, text(name, value)?),
            "id" => set(&mut self.id, name, value),
            "slot-id" => {
                Err(refused("slot-id is refused, since slot numbers change: name the token by token= or serial="))
            }
            _ => Err(refused(&format!(
                "unknown attribute {name}; known are token, serial, manufacturer, model, object, id"
            ))),
        }
    }

    fn query_attribute(&mut self, name: &str, value: Vec<u8>) -> Result<(), KeyError> {
        match name {
            "module-path" => {
                let path = PathBuf::from(text(name, value)?);
                if !path.is_absolute() {
                    return Err(refused("module-path has to be absolute"));
                }
                set(&mut self.module_path, name, path)
            }
            "module-name" => set(&mut self.module_name, name, text(name, value)?),
            "pin-source" => set(&mut self.pin_source, name, text(name, value)?.parse()?),
            "copies" if value == b"accepted" => set(&mut self.copies, name, Copies::Accepted),
            "copies" => Err(refused("copies can be accepted, and nothing else")),
            "pin-value" => {
                Err(refused("pin-value is refused, since whoever sees the URI sees the PIN: use a PIN source"))
            }
            _ => Err(refused(&format!(
                "unknown attribute {name}; known are module-path, module-name, pin-source, copies"
            ))),
        }
    }
}

impl FromStr for TokenUri {
    type Err = KeyError;

    fn from_str(uri: &str) -> Result<Self, KeyError> {
        let rest = match uri.split_at_checked(7) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("pkcs11:") => rest,
            _ => {
                return Err(refused(
                    "it starts with pkcs11:, as in pkcs11:token=vault?module-path=/usr/lib/softhsm/libsofthsm2.so",
                ));
            }
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut parsed = TokenUri::NAMELESS;
        for (name, value) in attributes(path, ';') {
            parsed.path_attribute(name, decode(name, value?)?)?;
        }
        for (name, value) in attributes(query, '&') {
            parsed.query_attribute(name, decode(name, value?)?)?;
        }
        if parsed.token.is_none() && parsed.serial.is_none() {
            return Err(refused("name the token: pkcs11:token=LABEL or pkcs11:serial=SERIAL"));
        }
        Ok(parsed)
    }
}

type NameAndValue<'a> = (&'a str, Result<&'a str, KeyError>);

fn attributes(part: &str, separator: char) -> impl Iterator<Item = NameAndValue<'_>> {
    part.split(separator).filter(|attribute| !attribute.is_empty()).map(|attribute| match attribute.split_once('=') {
        Some((name, value)) => (name, Ok(value)),
        None => (attribute, Err(refused("an attribute is NAME=VALUE"))),
    })
}

fn decode(name: &str, value: &str) -> Result<Vec<u8>, KeyError> {
    let bad = || refused(&format!("{name} has a % that two hexadecimal digits do not follow"));
    let mut bytes = value.bytes();
    let mut decoded = Vec::with_capacity(value.len());
    let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16)).ok_or_else(bad);
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8,
            literal => literal,
        });
    }
    Ok(decoded)
}

fn text(name: &str, value: Vec<u8>) -> Result<String, KeyError> {
    String::from_utf8(value).map_err(|_| refused(&format!("{name} is not UTF-8")))
}

fn set<T>(place: &mut Option<T>, name: &str, value: T) -> Result<(), KeyError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(refused(&format!("{name} appears twice"))),
    }
}

/// The URI itself is not repeated: it may hold a PIN.
fn refused(reason: &str) -> KeyError {
    configuration(format!("the token's URI is not usable (RFC 7512): {reason}"))
}

impl fmt::Display for TokenUri {
    /// The canonical form: attributes in a fixed order, without anything about a PIN.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = [
            ("token", &self.token),
            ("manufacturer", &self.manufacturer),
            ("serial", &self.serial),
            ("model", &self.model),
            ("object", &self.object),
        ];
        let mut uri = String::from("pkcs11:");
        let mut separator = "";
        for (name, value) in path {
            if let Some(value) = value {
                write!(uri, "{separator}{name}={}", encode(value.as_bytes(), b":"))?;
                separator = ";";
            }
        }
        if let Some(id) = &self.id {
            write!(uri, "{separator}id=")?;
            id.iter().try_for_each(|byte| write!(uri, "%{byte:02X}"))?;
        }
        separator = "?";
        if let Some(path) = &self.module_path {
            write!(uri, "{separator}module-path={}", encode(path.as_os_str().as_encoded_bytes(), b":/"))?;
            separator = "&";
        }
        if let Some(name) = &self.module_name {
            write!(uri, "{separator}module-name={}", encode(name.as_bytes(), b":"))?;
            separator = "&";
        }
        if self.accepts_copies() {
            write!(uri, "{separator}copies=accepted")?;
        }
        f.write_str(&uri)
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters and `also`.
fn encode(value: &[u8], also: &[u8]) -> String {
    let mut encoded = String::with_capacity(value.len());
    for &byte in value {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || also.contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

impl TryFrom<String> for TokenUri {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<TokenUri> for String {
    fn from(uri: TokenUri) -> Self {
        uri.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(uri: &str) -> String {
        uri.parse::<TokenUri>().unwrap_err().to_string()
    }

    #[test]
    fn the_canonical_form_is_stable_and_has_no_pin() {
        let written = "PKCS11:model=SoftHSM%20v2;token=fs%2dprod%3B1;id=%01a?copies=accepted&pin-source=file:/etc/pin&module-path=/usr/lib/a b.so";
        let uri: TokenUri = written.parse().unwrap();
        let canonical =
            "pkcs11:token=fs-prod%3B1;model=SoftHSM%20v2;id=%01%61?module-path=/usr/lib/a%20b.so&copies=accepted";
        assert_eq!(uri.to_string(), canonical);
        assert_eq!(uri.pin_source(), Some(&PinSource::File("/etc/pin".into())));
        assert_eq!(canonical.parse::<TokenUri>().unwrap().to_string(), canonical);
        let json = serde_json::to_string(&uri).unwrap();
        assert_eq!(serde_json::from_str::<TokenUri>(&json).unwrap().to_string(), canonical);
    }

    #[test]
    fn a_token_is_selected_by_all_that_is_named() {
        let uri: TokenUri = "pkcs11:token=t1;serial=12?module-path=/m.so".parse().unwrap();
        assert!(uri.selects("t1", "any", "12", "any"));
        assert!(!uri.selects("t1", "any", "13", "any"));
        assert!(!uri.selects("t2", "any", "12", "any"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_reason() {
        assert!(refusal("token=t1").contains("starts with pkcs11:"));
        assert!(refusal("pkcs11:?module-path=/m.so").contains("name the token"));
        assert!(refusal("pkcs11:token=a;token=b").contains("twice"));
        assert!(refusal("pkcs11:token=%zz").contains("hexadecimal"));
        assert!(refusal("pkcs11:token=a%2").contains("hexadecimal"));
        assert!(refusal("pkcs11:token=%ff").contains("UTF-8"));
        assert!(refusal("pkcs11:token").contains("NAME=VALUE"));
        assert!(refusal("pkcs11:token=a;slot-id=1").contains("slot-id"));
        assert!(refusal("pkcs11:token=a;colour=red").contains("unknown attribute colour"));
        assert!(refusal("pkcs11:token=a?module-path=m.so").contains("absolute"));
        assert!(refusal("pkcs11:token=a?copies=any").contains("accepted"));
        let message = refusal("pkcs11:token=a?pin-value=987654");
        assert!(message.contains("pin-value") && !message.contains("987654"), "{message}");
    }

    proptest::proptest! {
        #[test]
        fn any_label_survives_the_round_trip(label in ".*") {
            let uri = TokenUri { token: Some(label), ..TokenUri::NAMELESS };
            proptest::prop_assert_eq!(uri.to_string().parse::<TokenUri>().unwrap(), uri);
        }

        #[test]
        fn no_input_panics(text in "pkcs11:.*") {
            let _ = text.parse::<TokenUri>();
        }
    }
}
