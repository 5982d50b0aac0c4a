//! The suites: how one layer of a wrapped DEK is made and opened under a key of the token.

use super::count;
use super::fault::Fault;
use super::hot::{LONGEST_IV, Output, Place};
use super::seat::At;
use crate::crypto::{TAG, kdf_input, random, unwrap_once, wrap_once};
use crate::keys::{KeyError, SUITE_HMAC_KDF, SUITE_TOKEN_GCM};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{KeyType, ObjectHandle};
use cryptoki::session::Session;
use zeroize::Zeroizing;

/// Bytes of the IV that the host draws for GCM, and of the salt of suite 2.
pub const IV: usize = 12;
const SALT: usize = 32;

/// How a KEK wraps. A KEK is of one suite for good, by its key type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    /// AES-256-GCM inside the token.
    TokenGcm,
    /// HMAC-SHA256 inside the token makes a key for one wrapping on the host.
    HmacKdf,
}

/// Who makes the IV of a GCM encryption.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IvSource {
    Host,
    /// The token writes its own where it was handed the host's (AWS CloudHSM).
    InPlace,
    /// The token appends its own, of this many bytes, to the ciphertext (Thales Luna in FIPS mode).
    Appended(usize),
}

impl IvSource {
    pub fn name(self) -> &'static str {
        match self {
            IvSource::Host => "host",
            IvSource::InPlace => "in place",
            IvSource::Appended(_) => "appended",
        }
    }
}

/// A KEK on the token.
#[derive(Clone, Copy)]
pub struct Key {
    pub handle: ObjectHandle,
    pub suite: Suite,
}

impl Suite {
    /// The byte that names it in a layer.
    pub fn number(self) -> u8 {
        match self {
            Suite::TokenGcm => SUITE_TOKEN_GCM,
            Suite::HmacKdf => SUITE_HMAC_KDF,
        }
    }

    pub fn key_type(self) -> KeyType {
        match self {
            Suite::TokenGcm => KeyType::AES,
            Suite::HmacKdf => KeyType::GENERIC_SECRET,
        }
    }

    pub fn of_key(key_type: KeyType) -> Option<Suite> {
        match key_type {
            KeyType::AES => Some(Suite::TokenGcm),
            KeyType::GENERIC_SECRET | KeyType::SHA256_HMAC => Some(Suite::HmacKdf),
            _ => None,
        }
    }

    /// Whether an IV or salt of this length can belong to a layer.
    pub fn takes(self, iv: &[u8]) -> bool {
        match self {
            Suite::TokenGcm => (IV..=LONGEST_IV).contains(&iv.len()),
            Suite::HmacKdf => iv.len() == SALT,
        }
    }
}

impl At<'_> {
    /// The IV or salt, and what is 16 bytes longer than `inner`.
    pub fn wrap(&self, key: Key, source: IvSource, aad: &[u8; 32], inner: &[u8]) -> Result<(Vec<u8>, Vec<u8>), Fault> {
        match key.suite {
            Suite::TokenGcm => self.encrypt(key.handle, source, aad, inner),
            Suite::HmacKdf => {
                let salt = random::<SALT>();
                let once = self.derive(self.session, key.handle, aad, &salt)?;
                Ok((salt.to_vec(), wrap_once(once, aad, inner)))
            }
        }
    }

    /// On the given session, which is of no more use after an error. What does not authenticate is [`Fault::Sick`] on
    /// every token: only a comparison tells it from a token that does not work.
    pub fn unwrap(
        &self,
        session: &Session,
        key: Key,
        iv: &[u8],
        aad: &[u8; 32],
        outer: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Fault> {
        match key.suite {
            Suite::TokenGcm => {
                count(&self.link.counters.calls);
                let at = Place { session: session.handle(), key: key.handle.handle() };
                let output = self.entered.hot().ok_or_else(no_gcm)?.decrypt(at, iv, aad, outer)?;
                Ok(Zeroizing::new(whole(&output, outer.len() - TAG)?.to_vec()))
            }
            Suite::HmacKdf => {
                let salt = iv.try_into().map_err(|_| KeyError::Authentication)?;
                let once = self.derive(session, key.handle, aad, salt)?;
                unwrap_once(once, aad, outer).map_err(|_| Fault::Sick("the wrapped key does not authenticate".into()))
            }
        }
    }

    fn encrypt(
        &self,
        key: ObjectHandle,
        source: IvSource,
        aad: &[u8; 32],
        inner: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), Fault> {
        let offered = if source == IvSource::InPlace { [0; IV] } else { random() };
        let (left, output) = self.encrypt_with(key, offered, aad, inner)?;
        let own =
            || Fault::Sick("the token changed how it makes IVs: start again, so that it is probed anew".to_owned());
        let bytes = match source {
            IvSource::Appended(len) => whole(&output, inner.len() + TAG + len)?,
            _ => whole(&output, inner.len() + TAG)?,
        };
        match source {
            IvSource::Host if left == offered => Ok((offered.to_vec(), bytes.to_vec())),
            IvSource::InPlace if left != offered => Ok((left.to_vec(), bytes.to_vec())),
            IvSource::Appended(_) => {
                let (sealed, iv) = bytes.split_at(inner.len() + TAG);
                Ok((iv.to_vec(), sealed.to_vec()))
            }
            _ => Err(own()),
        }
    }

    /// The IV as the token leaves it, and what it wrote.
    pub fn encrypt_with(
        &self,
        key: ObjectHandle,
        mut iv: [u8; IV],
        aad: &[u8; 32],
        inner: &[u8],
    ) -> Result<([u8; IV], Output), Fault> {
        count(&self.link.counters.calls);
        let at = Place { session: self.session.handle(), key: key.handle() };
        let output = self.entered.hot().ok_or_else(no_gcm)?.encrypt(at, &mut iv, aad, inner)?;
        Ok((iv, output))
    }

    fn derive(
        &self,
        session: &Session,
        key: ObjectHandle,
        aad: &[u8; 32],
        salt: &[u8; SALT],
    ) -> Result<Zeroizing<[u8; 32]>, Fault> {
        count(&self.link.counters.calls);
        let input = kdf_input(aad, salt);
        let mut once = Zeroizing::new([0; 32]);
        match self.entered.hot() {
            Some(hot) => {
                let output = hot.sign(Place { session: session.handle(), key: key.handle() }, &input)?;
                once.copy_from_slice(whole(&output, 32)?);
            }
            None => {
                let output = Zeroizing::new(session.sign(&Mechanism::Sha256Hmac, key, &input)?);
                let whole = <&[u8; 32]>::try_from(&output[..]);
                *once = *whole.map_err(|_| Fault::Sick(format!("its HMAC-SHA256 has {} bytes", output.len())))?;
            }
        }
        Ok(once)
    }

    /// Whether a fresh secret survives the way through the key.
    pub fn round_trip(&self, key: Key, source: IvSource) -> Result<bool, Fault> {
        let (secret, aad) = (random::<32>(), random());
        let (iv, sealed) = self.wrap(key, source, &aad, &secret)?;
        Ok(**self.unwrap(self.session, key, &iv, &aad, &sealed)? == secret)
    }
}

fn no_gcm() -> Fault {
    Fault::Sick("its module cannot be asked for AES-GCM directly".to_owned())
}

/// The output, when it has the length it has to have.
pub fn whole(output: &Output, len: usize) -> Result<&[u8], Fault> {
    let wrote = output.bytes().len();
    if wrote == len {
        return Ok(output.bytes());
    }
    Err(Fault::Sick(format!("it wrote {wrote} bytes where {len} are due")))
}
