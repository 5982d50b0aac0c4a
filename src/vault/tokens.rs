//! The token itself: what it is and lets others do, and its PIN.

use super::error::Result;
use super::ids::OrgNo;
use super::opening::{parse_pin, parse_token};
use super::row::{Kek, Record};
use super::{AuditEvent, Caller, OwnTokenInfo, TokenCheck, TokenOwner, Vault};
use crate::keys::{Home, Keyring, TokenPlace};
use crate::store::Key;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};

type Owners = HashMap<TokenPlace, BTreeSet<OrgNo>>;

/// The tokens that organizations brought, and whose KEKs each holds. Found by a look at all records of KEKs when somebody
/// asks, and forgotten when such a record changes.
#[derive(Default)]
pub struct OwnTokens(Mutex<Option<Owners>>);

impl OwnTokens {
    /// To be called when the change can be seen.
    pub fn forget(&self) {
        *self.0.lock() = None;
    }
}

impl Vault {
    /// `vaultfs key check`: the token that holds the keys of an organization, or the vault's own.
    pub fn check_token(&self, which: Option<&str>) -> Result<TokenCheck> {
        let home = match which {
            None => None,
            Some(which) => {
                let organization = self.living(self.number_of(which)?)?;
                let own = self.records.get::<Kek>(self.kek_place(organization.no, &organization.context()[0])?)?;
                own.and_then(|kek| kek.versions.last().map(|version| version.home.clone()))
            }
        };
        Ok(self.keyring.check(&home.unwrap_or_else(|| Home::Token(self.numbers().own)))?)
    }

    /// `vaultfs key check --token`: a token without a vault.
    pub fn check_other_token(token: &str, pin_source: &str) -> Result<TokenCheck> {
        Ok(Keyring::check_token(parse_token(token)?, &parse_pin(pin_source)?)?)
    }

    /// `vaultfs key set-pin`: first the token has the new PIN, then the header says where that is read.
    ///
    /// A crash between the two leaves a header that names the old PIN: mounting with the new source, as an option,
    /// works, and the same command puts the header right.
    pub fn set_pin(&self, caller: &Caller, pin_source: &str) -> Result<()> {
        let source = parse_pin(pin_source)?;
        self.keyring.set_pin(&source)?;
        self.audit(AuditEvent::by(caller, "key.pin_changed"));
        let _one_at_a_time = self.making_keks.lock();
        self.change_header(|mut header| {
            header.pin_source = source;
            Ok(header)
        })
    }

    fn own_tokens(&self) -> Result<Owners> {
        // Held during the look, so that a change comes before it or is seen after it.
        let mut known = self.own_tokens.0.lock();
        if let Some(owners) = &*known {
            return Ok(owners.clone());
        }
        let mut owners = Owners::new();
        let (from, to) = (Key::from(&[][..]), Key::from(&[0xFF; 20][..]));
        for (key, kek) in self.records.scan_all::<Kek>(Kek::at((OrgNo::VAULT, [0; 16])), from, to)? {
            let Some((organization, _)) = key.split_first_chunk::<4>() else { continue };
            for version in &kek.versions {
                if let Home::External(place) = &version.home {
                    let organization = OrgNo(u32::from_be_bytes(*organization));
                    owners.entry((**place).clone()).or_default().insert(organization);
                }
            }
        }
        Ok(known.insert(owners).clone())
    }

    /// How the tokens of organizations' own are; asks none of them.
    pub(super) fn own_token_states(&self) -> Vec<OwnTokenInfo> {
        let asked = self.keyring.others();
        let owner = |no| {
            let organization = self.organizations.find(no)?;
            Some(TokenOwner { id: organization.id.to_string(), name: organization.name() })
        };
        let info = |(place, organizations): (TokenPlace, BTreeSet<OrgNo>)| {
            let (state, last_error) = match asked.iter().find(|(other, ..)| *other == place) {
                Some((_, state, last_error)) => (*state, last_error.clone()),
                None => ("not asked", None),
            };
            OwnTokenInfo {
                uri: place.uri.to_string(),
                state: state.to_owned(),
                last_error,
                organizations: organizations.into_iter().filter_map(owner).collect(),
            }
        };
        // Records that do not open are reported where they are needed.
        let mut all: Vec<_> = self.own_tokens().unwrap_or_default().into_iter().map(info).collect();
        all.sort_by(|a, b| a.uri.cmp(&b.uri));
        all
    }
}
