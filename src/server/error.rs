//! Why a request has no result.

use crate::error::Error;
use crate::report::text::clean_message;
use serde_json::{Value, json};

/// The `error` of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    kind: &'static str,
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub fn new(kind: &'static str, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), hint: None }
    }

    pub fn malformed(message: impl Into<String>) -> Failure {
        Failure::new("malformed", message)
    }

    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new("not_found", message)
    }

    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new("failed", message)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    pub fn json(&self) -> Value {
        json!({
            "kind": self.kind,
            "message": clean_message(&self.message),
            "hint": self.hint.as_deref().map(clean_message),
        })
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Failure {
        let kind = match e {
            Error::File { .. }
            | Error::Core { .. }
            | Error::Attach { .. }
            | Error::Wasm { .. }
            | Error::Artifact { .. }
            | Error::Symbols { .. }
            | Error::Analysis { .. }
            | Error::Document { .. }
            | Error::Program { .. }
            | Error::Output { .. } => "failed",
            Error::Unusable { .. }
            | Error::NotAnImage { .. }
            | Error::NoSuchThread { .. }
            | Error::NoSuchInstance { .. }
            | Error::NoSuchMemory { .. }
            | Error::NoWasm { .. }
            | Error::NoImage { .. }
            | Error::Ambiguous { .. }
            | Error::OutOfBounds { .. }
            | Error::Unreadable { .. }
            | Error::Changed { .. }
            | Error::Unsupported { .. }
            | Error::NotInWasm { .. }
            | Error::Refused { .. }
            | Error::TargetBroken { .. }
            | Error::Plugin { .. } => "not_found",
        };
        Failure { kind, message: e.to_string(), hint: e.hint() }
    }
}
