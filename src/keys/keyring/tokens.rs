//! The tokens that a keyring asks: the vault's own, the one that it moves to or has just left, and those that organizations
//! brought.

use super::Keyring;
use crate::keys::token::Token;
use crate::keys::{Home, KeyError, TokenPlace, configuration, unavailable};
use std::sync::Arc;

/// The vault's own tokens: one, or two while it moves.
pub(super) struct Own {
    pub(super) number: u32,
    pub(super) token: Arc<Token>,
    pub(super) place: TokenPlace,
    pub(super) other: Option<(u32, TokenPlace)>,
}

/// A token that is not the vault's.
pub(super) enum Beside {
    Open(Arc<Token>),
    /// It could not even be begun with: its module or the source of its PIN is not there.
    Failed(String),
}

impl Keyring {
    /// Which of the vault's tokens this is, and the other one while it moves.
    pub fn number_tokens(&self, number: u32, other: Option<(u32, TokenPlace)>) {
        let left = {
            let mut own = self.own.write();
            own.number = number;
            std::mem::replace(&mut own.other, other.clone())
        };
        if let Some(left) = left.filter(|left| Some(left) != other.as_ref()) {
            // An organization that brought the same token connects to it again.
            let left = self.others.lock().remove(&left.1);
            drop(left);
        }
    }

    /// The vault's own token: where it is.
    pub fn place(&self) -> TokenPlace {
        self.own.read().place.clone()
    }

    /// The vault goes over to the other of its tokens; the one before becomes the other, known as `left`.
    pub fn change_token(&self, left: TokenPlace) -> Result<(), KeyError> {
        let (mut own, mut others) = (self.own.write(), self.others.lock());
        let (number, place) = own.other.clone().ok_or_else(|| configuration("this vault moves to no other token"))?;
        // Not asked anything: this is no moment to fail at.
        let Some(Beside::Open(token)) = others.remove(&place) else {
            return Err(unavailable(format!("{}: it was not asked for anything yet", place.uri)));
        };
        let now = Own { number, token, place, other: Some((own.number, left.clone())) };
        let before = std::mem::replace(&mut *own, now);
        others.insert(left, Beside::Open(before.token));
        Ok(())
    }

    /// Connects to a token that is not the vault's, logs in and probes it. A PIN that it refused before is presented
    /// again: somebody asks for it.
    pub fn reach(&self, place: &TokenPlace) -> Result<(), KeyError> {
        let refused = |other: &Beside| matches!(other, Beside::Open(token) if token.status().state == "pin refused");
        {
            let mut others = self.others.lock();
            if others.get(place).is_some_and(refused) {
                others.remove(place);
            }
        }
        let status = self.other(place)?.status();
        let own = self.own.read().token.status();
        if (&status.label, &status.serial) == (&own.label, &own.serial) {
            return Err(configuration(format!("{} is the vault's token already", place.uri)));
        }
        Ok(())
    }

    /// Whether an organization's token can be used: it is logged in to, unless it is already, and probed.
    pub fn is_usable(&self, place: &TokenPlace) -> Result<(), KeyError> {
        self.other(place).map(drop)
    }

    /// The tokens beside the vault's own that were asked for since it was opened, and how they are; asks nobody.
    pub fn others(&self) -> Vec<(TokenPlace, &'static str, Option<String>)> {
        let state = |beside: &Beside| match beside {
            Beside::Open(token) => {
                let status = token.status();
                (status.state, status.last_error)
            }
            Beside::Failed(why) => ("unavailable", Some(why.clone())),
        };
        let others = self.others.lock();
        let told = |(place, beside): (&TokenPlace, &Beside)| {
            let (state, last_error) = state(beside);
            (place.clone(), state, last_error)
        };
        others.iter().map(told).collect()
    }

    pub(super) fn token(&self) -> Arc<Token> {
        self.own.read().token.clone()
    }

    pub(super) fn own_home(&self) -> Home {
        Home::Token(self.own.read().number)
    }

    /// The token that KEKs with this home are used on.
    pub(super) fn token_of(&self, home: &Home) -> Result<Arc<Token>, KeyError> {
        match home {
            Home::External(place) => self.other(place),
            Home::Token(number) | Home::Wrapped(number, _) => {
                let other = {
                    let own = self.own.read();
                    if own.number == *number {
                        return Ok(own.token.clone());
                    }
                    own.other.clone().filter(|(other, _)| other == number)
                };
                match other {
                    Some((_, place)) => self.other(&place),
                    None => Err(configuration(
                        "this key is on a token that the vault has left: restore the state directory from a copy made after the \
                         move to its token",
                    )),
                }
            }
        }
    }

    /// A token that is not the vault's, logged in to and probed.
    fn other(&self, place: &TokenPlace) -> Result<Arc<Token>, KeyError> {
        let token = {
            let mut others = self.others.lock();
            match others.get(place) {
                Some(Beside::Open(token)) => token.clone(),
                Some(Beside::Failed(_)) | None => {
                    let begun = place
                        .pin
                        .read()
                        .and_then(|pin| Token::beside(place.uri.clone(), pin, self.timeout))
                        .map(Arc::new);
                    // Kept whatever it says: a PIN that it refuses is not presented again.
                    let kept = match &begun {
                        Ok(token) => Beside::Open(token.clone()),
                        Err(error) => Beside::Failed(error.to_string()),
                    };
                    others.insert(place.clone(), kept);
                    begun?
                }
            }
        };
        token.probe()?;
        Ok(token)
    }
}
