//! The table of facts about the host, `tests/probe-filter/facts.json`, which documents its own format.

use std::path::Path;

use serde_json::Value;

use crate::{Body, Request, Response};

pub fn table() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../probe-filter/facts.json");
    let text = std::fs::read_to_string(path).expect("the table of facts");
    serde_json::from_str(&text).expect("the table of facts is JSON")
}

/// `group/name`.
pub fn name(fact: &Value) -> String {
    let part = |name: &str| fact[name].as_str().expect("a group and a name").to_owned();
    format!("{}/{}", part("group"), part("name"))
}

/// The fields of an object in the table as text.
pub fn texts(object: &Value) -> Vec<(String, String)> {
    let fields = object.as_object().into_iter().flatten();
    fields.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// The request of a step, by default to `path`.
pub fn request(path: &str, step: &Value) -> Request {
    let path = step["path"].as_str().unwrap_or(path);
    let mut request = Request::new(step["method"].as_str().unwrap_or("GET"), path);
    for (name, values) in step["headers"].as_object().into_iter().flatten() {
        for value in values.as_array().into_iter().flatten() {
            // A character is a byte, so that values need not be UTF-8.
            let value: Vec<u8> = value.as_str().unwrap_or_default().chars().map(|c| c as u8).collect();
            request = request.header(name, value);
        }
    }
    request.body = match (step["body"].as_str(), step["chunks"].as_array()) {
        (Some(body), _) => Body::Sized(body.into()),
        (None, Some(chunks)) => {
            Body::Chunked(chunks.iter().map(|chunk| chunk.as_str().unwrap_or_default().into()).collect())
        }
        (None, None) => Body::None,
    };
    request
}

/// The differences between a response and a step of the table.
pub fn differences(step: &Value, reply: &Response) -> Vec<String> {
    let mut found = Vec::new();
    let status = step["status"].as_u64().unwrap_or(200);
    if u64::from(reply.status) != status {
        found.push(format!("status {}, wanted {status}", reply.status));
    }
    let text = reply.text();
    if let Some(answer) = step["answer"].as_str()
        && text != answer
    {
        found.push(format!("answer {text:?}, wanted {answer:?}"));
    }
    for (name, values) in step["answer_headers"].as_object().into_iter().flatten() {
        let values: Vec<_> = values.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let got = reply.all(name);
        if got != values {
            found.push(format!("header {name} {got:?}, wanted {values:?}"));
        }
    }
    found
}
