//! The routes about services of this host.

use axum::Json;
use axum::extract::State;

use super::error::Body;
use super::handlers::{Answer, full_name, mesh_name, to_the_end};
use super::types::{ExportRequest, HostService, ImportRequest, ServiceList, ServiceRemoveRequest};
use super::{Api, ApiError};
use crate::control::services::Record;

pub(super) async fn list(State(api): State<Api>) -> Json<ServiceList> {
    Json(shown(&api, &api.services.list()))
}

pub(super) async fn export(State(api): State<Api>, Body(request): Body<ExportRequest>) -> Answer<HostService> {
    let services = api.services.clone();
    let record = to_the_end(async move { services.export(&request.to, &request.at).await }).await?;
    Ok(Json(one(&api, &record)))
}

pub(super) async fn import(State(api): State<Api>, Body(request): Body<ImportRequest>) -> Answer<HostService> {
    let name = mesh_name(&api, &request.name)?;
    let services = api.services.clone();
    let record = to_the_end(async move { services.import(&name, &request.to, &request.at).await }).await?;
    Ok(Json(one(&api, &record)))
}

pub(super) async fn remove(State(api): State<Api>, Body(request): Body<ServiceRemoveRequest>) -> Answer<ServiceList> {
    let services = api.services.clone();
    let removed = to_the_end(async move { services.remove(&request.at).await }).await?;
    Ok::<_, ApiError>(Json(shown(&api, &removed)))
}

fn shown(api: &Api, records: &[Record]) -> ServiceList {
    ServiceList { services: records.iter().map(|record| one(api, record)).collect() }
}

fn one(api: &Api, record: &Record) -> HostService {
    let name = record.name.as_ref().and_then(|name| name.parse().ok());
    HostService {
        kind: record.kind.to_string(),
        at: record.place().to_string(),
        to: record.to.to_string(),
        name: name.map(|name| full_name(api, &name)),
    }
}
