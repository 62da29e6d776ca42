//! What a target is called, and what it serves: as it was, as a request says, and as its runtime says.

use mesh_proto::wire::names::Name;
use mesh_proto::wire::services::{SERVICES_MAX, Service};

use super::{AttachError, Record};

/// Most names of one target.
const NAMES_MAX: usize = 16;

/// Reads names that a request gives to a target.
pub(super) fn check_names(names: &[String]) -> Result<Vec<String>, AttachError> {
    let read = |text: &String| match text.parse::<Name>() {
        Ok(name) => Ok(name.to_string()),
        Err(error) => Err(AttachError::Invalid(error.to_string())),
    };
    names.iter().map(read).collect()
}

/// The names that a target had, those that it is given, and those that it has by itself (of which
/// some may not do for a name in the mesh: it is attached all the same).
pub(super) fn all_names(before: Option<&Record>, given: &[String], own: &[String]) -> Result<Vec<String>, AttachError> {
    let own = own.iter().filter_map(|name| name.parse::<Name>().ok()).map(|name| name.to_string());
    let had = before.into_iter().flat_map(|record| record.names.iter().cloned());
    let mut names: Vec<String> = Vec::new();
    for name in had.chain(given.iter().cloned()).chain(own) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.len() > NAMES_MAX {
        return Err(AttachError::Invalid(format!(
            "at most {NAMES_MAX} names for one target; `weft ps` lists those it has"
        )));
    }
    Ok(names)
}

/// Reads services that a request gives to a target.
pub(super) fn check_services(services: &[String]) -> Result<Vec<Service>, AttachError> {
    let read = |text: &String| text.parse::<Service>().map_err(|error| AttachError::Invalid(error.to_string()));
    services.iter().map(read).collect()
}

/// The services that a target had, those that it is given, and those that it has by itself.
pub(super) fn all_services(
    before: Option<&Record>,
    given: &[Service],
    own: &[Service],
) -> Result<Vec<String>, AttachError> {
    let mut services = before.map(|record| record.services.clone()).unwrap_or_default();
    for text in given.iter().chain(own).map(ToString::to_string) {
        if !services.contains(&text) {
            services.push(text);
        }
    }
    if services.len() > SERVICES_MAX {
        return Err(AttachError::Invalid(format!(
            "at most {SERVICES_MAX} services for one target; `weft dns list` shows those it has"
        )));
    }
    Ok(services)
}
