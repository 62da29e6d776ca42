//! As much of JSON Schema as the description uses.

use serde_json::Value;

/// The part that a reference `#/a/b` names.
pub(super) fn resolve<'a>(description: &'a Value, reference: &str) -> &'a Value {
    let pointer = reference.strip_prefix('#').expect("a reference into the same file");
    description.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

/// Calls for every reference.
pub(super) fn each_reference(value: &Value, call: &mut impl FnMut(&str)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_str() {
                    Some(reference) if key == "$ref" => call(reference),
                    _ => each_reference(value, call),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| each_reference(value, call)),
        _ => {}
    }
}

/// Holds an answer against the description of its route: every required field is there, of the
/// right type, and there is none that is not described.
pub(super) fn check_answer(description: &Value, method: &str, path: &str, answer: &Value) {
    let pointer = format!(
        "/paths/{}/{method}/responses/200/content/application~1json/schema",
        path.replace('~', "~0").replace('/', "~1")
    );
    let schema = description.pointer(&pointer).unwrap_or_else(|| panic!("{method} {path} is not described"));
    check(description, schema, answer, path);
}

fn check(description: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        return check(description, resolve(description, reference), value, at);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        other => panic!("{at}: no type: {other}"),
    };
    let fits = |name: &&str| match *name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("{at}: unknown type {other}"),
    };
    assert!(types.iter().any(fits), "{at}: {value} is not of type {types:?}");
    if let (Some(words), false) = (schema["enum"].as_array(), value.is_null()) {
        assert!(words.contains(value), "{at}: {value} is none of {words:?}");
    }
    if let Some(list) = value.as_array() {
        for (index, item) in list.iter().enumerate() {
            check(description, &schema["items"], item, &format!("{at}[{index}]"));
        }
    }
    if let Some(map) = value.as_object() {
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(map.contains_key(required), "{at}: `{required}` is missing");
        }
        for (key, item) in map {
            let known = match &schema["properties"][key] {
                Value::Null => &schema["additionalProperties"],
                known => known,
            };
            assert!(known.is_object(), "{at}: `{key}` is not described");
            check(description, known, item, &format!("{at}.{key}"));
        }
    }
}
