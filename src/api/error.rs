//! What a request is refused with: the one table from the vault's errors to a status and a code.
//!
//! The body is `{"error": "what happened", "message": the same, "code": "one word"}`; the command line turns the code into its
//! exit code, other clients look at the status.

use crate::store::StoreError;
use crate::vault;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// One word for the kind of refusal. Scripts compare them: they stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    Invalid,
    Denied,
    NotFound,
    Exists,
    NotEmpty,
    VersionLost,
    Token,
    Integrity,
    NoSpace,
    Failure,
    /// Understood, and not to be done: a rule of the vault stands against it.
    Unprocessable,
    /// A quota of the organization is used up.
    Quota,
    Unauthorized,
    /// The route is there and does not take this method.
    Method,
    TooLarge,
    TooMany,
    Timeout,
    Busy,
}

/// A refusal, in the form in which it travels.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    pub error: String,
    /// The same text, where some client libraries look for it.
    #[serde(default)]
    pub message: String,
    pub code: Code,
}

impl Problem {
    pub fn new(code: Code, error: impl Into<String>) -> Self {
        let error = error.into();
        Problem { message: error.clone(), error, code }
    }

    pub fn invalid(error: impl Into<String>) -> Self {
        Self::new(Code::Invalid, error)
    }

    pub fn status(&self) -> StatusCode {
        match self.code {
            Code::Invalid => StatusCode::BAD_REQUEST,
            Code::Denied => StatusCode::FORBIDDEN,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Exists | Code::NotEmpty | Code::VersionLost => StatusCode::CONFLICT,
            Code::Token | Code::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Code::Unprocessable | Code::Quota => StatusCode::UNPROCESSABLE_ENTITY,
            Code::Unauthorized => StatusCode::UNAUTHORIZED,
            Code::Method => StatusCode::METHOD_NOT_ALLOWED,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Code::Timeout => StatusCode::REQUEST_TIMEOUT,
            Code::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Code::Integrity | Code::Failure => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<vault::Error> for Problem {
    fn from(error: vault::Error) -> Self {
        use vault::Error;
        let code = match error.errno() {
            // All EIO to an application: a disk that fails is not a value that was tampered with.
            libc::EIO
                if matches!(
                    error,
                    Error::Stopped | Error::Store(StoreError::Io { .. } | StoreError::Locked { .. }) | Error::Header(_)
                ) =>
            {
                Code::Failure
            }
            libc::ENOENT => Code::NotFound,
            libc::ESTALE if matches!(error, Error::Stale(_)) => Code::NotFound,
            libc::EEXIST => Code::Exists,
            libc::ENOTEMPTY | libc::EBUSY => Code::NotEmpty,
            libc::ESTALE => Code::VersionLost,
            libc::ENOKEY => Code::Token,
            libc::EIO => Code::Integrity,
            libc::ENOSPC => Code::NoSpace,
            libc::EDQUOT => Code::Quota,
            libc::EACCES | libc::EPERM | libc::EROFS => Code::Denied,
            libc::EINVAL | libc::ENAMETOOLONG | libc::ENOTDIR | libc::EISDIR | libc::EXDEV => Code::Invalid,
            _ => Code::Failure,
        };
        Problem::new(code, error.to_string())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (&self).into_response()
    }
}

impl IntoResponse for &Problem {
    fn into_response(self) -> Response {
        (self.status(), Json(self)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_travels_as_error_and_code() {
        let problem = Problem::new(Code::VersionLost, "the object is at version 3");
        let text = serde_json::to_string(&problem).unwrap();
        assert_eq!(
            text,
            r#"{"error":"the object is at version 3","message":"the object is at version 3","code":"version_lost"}"#
        );
        assert_eq!(serde_json::from_str::<Problem>(&text).unwrap(), problem);
        assert_eq!(problem.status(), StatusCode::CONFLICT);
    }
}
