//! The token itself: what it is and lets others do, and its PIN.

use super::error::Result;
use super::header::Header;
use super::opening::{parse_pin, parse_token};
use super::row::Kek;
use super::{AuditEvent, Caller, TokenCheck, Vault};
use crate::keys::{Home, Keyring};
use crate::store::RealDisk;

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
        Ok(self.keyring.check(&home.unwrap_or(Home::Token))?)
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
        let mut header = Header::read(&self.state)?;
        header.pin_source = source;
        header.write(&self.state, &RealDisk)
    }
}
