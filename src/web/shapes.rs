//! What several resources share.

use std::marker::PhantomData;

use axum::http::HeaderValue;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::problem::Problem;

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// In the list's order.
    pub data: Vec<T>,
    /// To be given as `cursor` for the next page; null: this was the last.
    pub next_cursor: Option<String>,
}

/// A JSON object and nothing else: serde would take an array of a struct's fields for the struct.
#[derive(Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfMap<T> {
            type Value = T;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_map(OfMap(PhantomData)).map(Self)
    }
}

/// What becomes of a turn that comes while another of its session is unfinished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// It waits for its turn.
    Queue,
    /// It is not taken.
    Reject,
    /// What runs is cancelled for it.
    Interrupt,
}

impl OnBusy {
    /// As SQL has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Reject => "reject",
            Self::Interrupt => "interrupt",
        }
    }
}

/// A path with an id as its last step, whatever is in it.
pub fn location(path: &str, id: &str) -> Result<HeaderValue, Problem> {
    use std::fmt::Write as _;
    let mut at = path.to_owned();
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            at.push(char::from(byte));
        } else {
            let _ = write!(at, "%{byte:02X}");
        }
    }
    HeaderValue::from_str(&at).map_err(|_| Problem::new("internal", "The location can't be written."))
}
