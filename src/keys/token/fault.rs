//! What an answer of the token other than CKR_OK means for the one who asked.
//!
//! Tokens disagree about their codes (a bad tag is CKR_GENERAL_ERROR on one and CKR_DEVICE_ERROR on
//! another), so codes only choose the rung of the recovery ladder to begin with; they decide nothing else.

use crate::keys::KeyError;
use cryptoki::error::{Error, RvError};

/// Why a question to the token was not answered.
pub enum Fault {
    /// A session or an object handle is no longer good: a new session may do.
    Refused(String),
    /// The token or its module does not work: it has to be initialized again.
    Sick(String),
    /// Asking again would not change the answer.
    Final(KeyError),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let refused = matches!(
            error,
            Error::Pkcs11(
                RvError::SessionHandleInvalid
                    | RvError::SessionClosed
                    | RvError::SessionCount
                    | RvError::OperationActive
                    | RvError::OperationNotInitialized
                    | RvError::UserNotLoggedIn
                    | RvError::KeyHandleInvalid
                    | RvError::ObjectHandleInvalid,
                _
            )
        );
        if refused { Fault::Refused(error.to_string()) } else { Fault::Sick(error.to_string()) }
    }
}

impl From<KeyError> for Fault {
    fn from(error: KeyError) -> Self {
        Fault::Final(error)
    }
}
