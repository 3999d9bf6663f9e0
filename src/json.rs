//! JSON from outside, as a tree that remembers where each value stands.
//!
//! Configuration and admin bodies are read through [`Field`], so that every error names the field, what was
//! found and what was wanted. Duplicate members are rejected (with most parsers the last one silently wins),
//! and values are never printed from fields that may hold a secret.

mod members;

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::shown::{Shown, quoted};

pub use members::{Batch, MAX_MEMBER_BYTES, MemberReader};

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Null,
    Bool(bool),
    /// A number written without fraction and sign that fits 64 bits.
    Whole(u64),
    /// Any other number.
    Real(f64),
    Text(String),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
}

/// A parsed text.
#[derive(Clone, Debug, PartialEq)]
pub struct Json(Value);

impl Json {
    /// Parses a text; the error says what is wrong and where, never what a string holds.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        Self::read(bytes).map_err(|error| error.to_string())
    }

    fn read(bytes: &[u8]) -> Result<Self, SyntaxError> {
        serde_json::from_slice(without_bom(bytes)).map(Json).map_err(|error| SyntaxError::from(&error))
    }

    /// The top value, called `name` in errors.
    pub fn root(&self, name: &str) -> Field<'_> {
        Field { path: name.to_owned(), value: &self.0, secret: false }
    }
}

/// A text without the mark that some editors put in front of it.
fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// What is wrong with a text that is no JSON, and where.
#[derive(Clone, Debug)]
struct SyntaxError {
    message: String,
    line: usize,
    column: usize,
    /// Whether it is that the text ends too soon.
    is_end: bool,
}

impl From<&serde_json::Error> for SyntaxError {
    fn from(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(message, _)| message).to_owned();
        Self { message, line: error.line(), column: error.column(), is_end: error.is_eof() }
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, line, column, .. } = self;
        write!(formatter, "not valid JSON: {message} at line {line} column {column}")
    }
}

/// A value and the path that leads to it.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    path: String,
    value: &'a Value,
    /// Its value, and those within it, are not shown in errors.
    secret: bool,
}

impl<'a> Field<'a> {
    /// Where this value stands: `tiers.free.base.capacity`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// An error about this field: what was found, what was wanted.
    pub fn wanted(&self, wanted: impl fmt::Display) -> String {
        self.error(self.found(), wanted)
    }

    /// The same field, whose value may be a secret and is not shown in errors.
    pub fn secret(mut self) -> Self {
        self.secret = true;
        self
    }

    /// An error about this field, for what [`Field::wanted`] has no words for.
    pub fn error(&self, found: impl fmt::Display, wanted: impl fmt::Display) -> String {
        let path = if self.path.is_empty() { "configuration" } else { &self.path };
        format!("{path}: found {found}, wanted {wanted}")
    }

    pub fn is_null(&self) -> bool {
        *self.value == Value::Null
    }

    /// The members of an object, in order, each named by its own name.
    pub fn members(&self) -> Result<Vec<(&'a str, Field<'a>)>, String> {
        self.members_called(|_, name| join(&self.path, name))
    }

    /// Whether this is an object with a member that `is_so`. Says nothing of its name, which may be a secret.
    pub fn any_member(&self, is_so: impl Fn(&Field) -> bool) -> bool {
        let Value::Object(members) = self.value else {
            return false;
        };
        let field = |value| Field { path: self.path.clone(), value, secret: true };
        members.iter().any(|(_, value)| is_so(&field(value)))
    }

    /// Whether this is an object with a member of that name.
    pub fn has(&self, name: &str) -> bool {
        matches!(self.value, Value::Object(members) if members.iter().any(|(known, _)| known == name))
    }

    pub fn is_text(&self) -> bool {
        matches!(self.value, Value::Text(_))
    }

    /// The members of an object whose names may be secrets: errors call them by their number, beginning with `first`.
    pub fn secret_members(&self, first: u32) -> Result<Vec<(&'a str, Field<'a>)>, String> {
        self.members_called(|number, _| format!("{}[{}]", self.path, first as usize + number - 1))
    }

    /// An object that has no members but `known`. Another name may be a misplaced secret: it is not shown within a
    /// secret, nor in the root if its value is a text or an entry of the key document.
    pub fn fields(&self, known: &[&str]) -> Result<Fields<'a>, String> {
        let is_root = self.path.is_empty();
        let members = self.members_called(|number, name| {
            let is_shown = known.contains(&name) || !self.secret && !is_root;
            if is_shown { join(&self.path, name) } else { format!("{}[{number}]", self.path) }
        })?;
        let Some((name, field)) = members.iter().find(|(name, _)| !known.contains(name)) else {
            return Ok(Fields { path: self.path.clone(), members });
        };
        let is_entry = field.is_text() || field.has("tier") || field.has("id");
        let found = match self.secret || is_root && is_entry {
            true => format!("an unknown field whose name has {} bytes", name.len()),
            false => format!("an unknown field {}", quoted(name)),
        };
        Err(self.error(found, format_args!("one of {}", known.join(", "))))
    }

    pub fn elements(&self) -> Result<Vec<Field<'a>>, String> {
        let Value::List(values) = self.value else {
            return Err(self.wanted("a list"));
        };
        let element =
            |(index, value)| Field { path: format!("{}[{index}]", self.path), value, secret: self.secret };
        Ok(values.iter().enumerate().map(element).collect())
    }

    pub fn bool(&self) -> Result<bool, String> {
        match self.value {
            Value::Bool(value) => Ok(*value),
            _ => Err(self.wanted("true or false")),
        }
    }

    pub fn text(&self) -> Result<&'a str, String> {
        self.as_text().ok_or_else(|| self.wanted("a string"))
    }

    /// A string, where there is one.
    pub fn as_text(&self) -> Option<&'a str> {
        match self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number from `least` to `most`.
    pub fn whole(&self, least: u32, most: u32) -> Result<u32, String> {
        match self.value {
            Value::Whole(value) => u32::try_from(*value).ok(),
            // A protobuf `Struct` knows no whole numbers, so 5 may arrive as 5.0.
            Value::Real(value) if value.fract() == 0.0 && *value <= f64::from(u32::MAX) && *value >= 0.0 => {
                Some(*value as u32)
            }
            _ => None,
        }
        .filter(|value| (least..=most).contains(value))
        .ok_or_else(|| self.wanted(format_args!("a whole number from {least} to {most}")))
    }

    /// A number from 0 to `most`, in millionths, rounded to the nearest.
    pub fn millionths(&self, most: u32) -> Result<u64, String> {
        let value = match self.value {
            Value::Whole(value) => *value as f64,
            Value::Real(value) => *value,
            _ => f64::NAN,
        };
        // Written so that NaN fails; within the range the cast is exact to the millionth.
        if !(0.0..=f64::from(most)).contains(&value) {
            return Err(self.wanted(format_args!("a number from 0 to {most}")));
        }
        let millionths = (value * 1e6).round() as u64;
        if millionths == 0 && value > 0.0 {
            return Err(self.wanted("0.000001 or more (or 0 where capacity is 0)"));
        }
        Ok(millionths)
    }

    fn members_called(
        &self,
        path_of: impl Fn(usize, &str) -> String,
    ) -> Result<Vec<(&'a str, Field<'a>)>, String> {
        let Value::Object(members) = self.value else {
            return Err(self.wanted("an object"));
        };
        let mut names = HashSet::new();
        let member = |(index, (name, value)): (usize, &'a (String, Value))| {
            let field = Field { path: path_of(index + 1, name), value, secret: self.secret };
            match names.insert(name) {
                true => Ok((name.as_str(), field)),
                false => Err(field.error("the same name a second time", "each name once")),
            }
        };
        members.iter().enumerate().map(member).collect()
    }

    fn found(&self) -> String {
        match self.value {
            Value::Text(text) if self.secret => format!("a string of {} bytes", text.len()),
            Value::Whole(_) | Value::Real(_) if self.secret => "a number".to_owned(),
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Whole(value) => value.to_string(),
            Value::Real(value) if value.fract() == 0.0 && value.abs() < 1e15 => (*value as i64).to_string(),
            // serde_json writes `1e308` rather than three hundred digits, and is here already.
            Value::Real(value) => {
                serde_json::Number::from_f64(*value).map_or_else(String::new, |n| n.to_string())
            }
            Value::Text(text) => quoted(text),
            Value::List(_) => "a list".to_owned(),
            Value::Object(_) => "an object".to_owned(),
        }
    }
}

/// The members of an object whose names have been checked.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    path: String,
    members: Vec<(&'a str, Field<'a>)>,
}

impl<'a> Fields<'a> {
    /// The member of that name, where there is one.
    pub fn get(&self, name: &str) -> Option<Field<'a>> {
        let (_, field) = self.members.iter().find(|(member, _)| *member == name)?;
        Some(field.clone())
    }

    /// The member of that name; its absence is an error.
    pub fn need(&self, name: &str, wanted: &str) -> Result<Field<'a>, String> {
        self.get(name).ok_or_else(|| format!("{}: found nothing, wanted {wanted}", join(&self.path, name)))
    }
}

fn join(path: &str, name: &str) -> String {
    match path {
        "" => Shown(name).to_string(),
        _ => format!("{path}.{}", Shown(name)),
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(Value::Whole(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Real(value as f64))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Real(value))
            }

            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(Value::Text(value.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = list.next_element()? {
                    values.push(value);
                }
                Ok(Value::List(values))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Value::Object(members))
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}
