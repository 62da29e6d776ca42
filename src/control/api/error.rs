//! Errors of the API: a status code that programs can act on and a text that people can.

use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use ipam::AllocError;
use mesh_proto::control::node::RevokeError;
use serde::de::DeserializeOwned;

use super::BODY_MAX;
use super::types::ErrorBody;
use crate::control::attach::AttachError;
use crate::control::names::BookError;
use crate::control::services::ServiceError;
use crate::router::{ReloadError, RevokeRefused, Stopped};

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The code.
    pub status: StatusCode,
    /// What was wrong, where, and what to do.
    pub error: String,
}

impl ApiError {
    /// A refusal with a code and a text.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    /// The request itself is wrong.
    pub fn bad(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.error })).into_response()
    }
}

impl From<Stopped> for ApiError {
    fn from(stopped: Stopped) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, stopped.to_string())
    }
}

impl From<ReloadError> for ApiError {
    fn from(error: ReloadError) -> Self {
        let status = match &error {
            ReloadError::NoFile | ReloadError::Wrong(_) => StatusCode::CONFLICT,
            ReloadError::Stopped(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<RevokeRefused> for ApiError {
    fn from(refused: RevokeRefused) -> Self {
        let status = match &refused {
            RevokeRefused::Unknown(_) => StatusCode::NOT_FOUND,
            RevokeRefused::Cannot { why: RevokeError::Myself, .. } => StatusCode::BAD_REQUEST,
            RevokeRefused::Ambiguous { .. } | RevokeRefused::Cannot { .. } => StatusCode::CONFLICT,
        };
        Self::new(status, refused.to_string())
    }
}

impl From<BookError> for ApiError {
    fn from(error: BookError) -> Self {
        let status = match &error {
            BookError::NotFound(_) => StatusCode::NOT_FOUND,
            BookError::Full(_) => StatusCode::CONFLICT,
            BookError::Storage(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        let status = match &error {
            ServiceError::Invalid(_) => StatusCode::BAD_REQUEST,
            ServiceError::NotFound(_) => StatusCode::NOT_FOUND,
            ServiceError::Unusable(_) => StatusCode::CONFLICT,
            ServiceError::Kernel(_) | ServiceError::Storage(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<AttachError> for ApiError {
    fn from(error: AttachError) -> Self {
        let status = match &error {
            AttachError::Invalid(_) => StatusCode::BAD_REQUEST,
            AttachError::NotFound(_) => StatusCode::NOT_FOUND,
            AttachError::Unusable(_) => StatusCode::CONFLICT,
            AttachError::Address(error) => match error {
                AllocError::OutOfRange { .. } | AllocError::Reserved { .. } | AllocError::NoRange(_) => {
                    StatusCode::BAD_REQUEST
                }
                AllocError::InUse { .. }
                | AllocError::HeldElsewhere { .. }
                | AllocError::Withdrawn { .. }
                | AllocError::Exhausted { .. } => StatusCode::CONFLICT,
                AllocError::TimedOut { .. } => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
            AttachError::Kernel(_)
            | AttachError::Guard(_)
            | AttachError::Masquerade(_)
            | AttachError::Outside(_)
            | AttachError::Storage(_) => StatusCode::INTERNAL_SERVER_ERROR,
            AttachError::Stopped(_) => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

/// The body of a request: JSON, with no field that the API does not know. An empty body is `{}`.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = axum::body::Bytes::from_request(request, state).await.map_err(|rejection| {
            let status = rejection.status();
            let why = if status == StatusCode::PAYLOAD_TOO_LARGE {
                format!("the body is longer than {BODY_MAX} bytes")
            } else {
                format!("the body did not come whole: {}", rejection.body_text())
            };
            ApiError::new(status, why)
        })?;
        let text: &[u8] = if bytes.trim_ascii().is_empty() { b"{}" } else { &bytes };
        // A list of the fields' values would do for the parser, and an empty one for `down`.
        if !text.trim_ascii_start().starts_with(b"{") {
            return Err(ApiError::bad("the body is not what is expected: it is no JSON object, such as {}"));
        }
        match serde_json::from_slice(text) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(ApiError::bad(format!("the body is not what is expected: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_had_is_no_fault_of_kernel_or_disk() {
        let address = std::net::IpAddr::from([10, 32, 0, 1]);
        let held = AllocError::HeldElsewhere { address, peer: "01234567".to_owned() };
        let used = AllocError::InUse { address, owner: "web".to_owned() };
        for error in [held, used, AllocError::Withdrawn { address }] {
            assert_eq!(ApiError::from(AttachError::from(error)).status, StatusCode::CONFLICT);
        }
        let full = AllocError::Storage("no space left on device".to_owned());
        assert_eq!(ApiError::from(AttachError::from(full)).status, StatusCode::INTERNAL_SERVER_ERROR);
    }
}
