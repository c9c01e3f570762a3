//! Registering instances at run time: `PUT` and `DELETE` of `/v1/instances/{id}`, and heartbeats.
//!
//! What a registration says is judged by the configuration's own readers; what becomes of it is
//! `local`'s.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::json;
use starling_gossip::record::Label;

use super::{State, answer, not_found};
use crate::config::files::wrong_name;
use crate::config::{Mistakes, RegistrationReader, Wrong};
use crate::local::{ApplyError, RegisterError};

/// A registration with all its tags and a probe takes about 2 KiB.
const BODY_BYTES_MAX: usize = 16 * 1024;

/// A client that is slower with its body is cut off.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A heartbeat's body; empty means healthy.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Beat {
    #[serde(default)]
    health: BeatHealth,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BeatHealth {
    #[default]
    Healthy,
    Unhealthy,
}

/// An action on `/v1/instances/{rest}`.
pub(super) async fn act(state: &State, request: Request<Incoming>, rest: &str) -> Response<Full<Bytes>> {
    let (id, action) = rest.split_once('/').map_or((rest, None), |(id, action)| (id, Some(action)));
    let Some(id) = parse_id(id) else {
        let rule = "an id is 1 to 63 letters, digits and signs such as - _ . and stands in the path as it is";
        return told(StatusCode::UNPROCESSABLE_ENTITY, rule);
    };
    let method = request.method().clone();
    match (&method, action) {
        (&Method::PUT, None) => match read_body(request).await {
            Ok(body) => register(state, id, body).await,
            Err(refused) => refused,
        },
        (&Method::PUT, Some("heartbeat")) => match read_body(request).await {
            Ok(body) => heartbeat(state, &id, &body),
            Err(refused) => refused,
        },
        (&Method::DELETE, None) => match state.shown.local.deregister(&id) {
            Ok(()) => empty(StatusCode::NO_CONTENT),
            Err(error) => refuse(&error),
        },
        _ => not_found(&format!("{method} /v1/instances/{rest}")),
    }
}

/// Percent signs are refused: whether one is meant or decoded would be a matter of opinion.
fn parse_id(text: &str) -> Option<Label> {
    text.parse().ok().filter(|_| !text.contains('%'))
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, Response<Full<Bytes>>> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(_)) => {
            let most = format!("the body broke off, or has more than {BODY_BYTES_MAX} bytes");
            Err(told(StatusCode::PAYLOAD_TOO_LARGE, &most))
        }
        Err(_elapsed) => Err(told(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

async fn register(state: &State, id: Label, body: Bytes) -> Response<Full<Bytes>> {
    let identity = state.shown.gossip.owner().identity.clone();
    // What the node listens on now: a reload may have moved it since the start.
    let reader = RegistrationReader::new(&state.shown.running.borrow());
    let own = identity.clone();
    let registration = match tokio::task::spawn_blocking(move || reader.read(id, &body, &own)).await {
        Ok(Ok(registration)) => registration,
        Ok(Err(mistakes)) => return refuse_mistakes(&mistakes),
        Err(error) => return told(StatusCode::INTERNAL_SERVER_ERROR, &format!("not read: {error}")),
    };
    let service = &registration.service;
    if let Some(Wrong { problem, suggestion }) = wrong_name(&service.name, &identity) {
        let mistake = json!({ "key": "service", "problem": problem, "suggestion": suggestion });
        return with_status(StatusCode::FORBIDDEN, json!({ "error": problem, "mistakes": [mistake] }));
    }
    match state.shown.local.register(service, registration.ttl) {
        Ok(is_new) => {
            let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
            let ttl = registration.ttl.map(|ttl| ttl.as_millis() as u64);
            with_status(status, json!({ "id": service.id, "service": service.name, "ttl_remaining_ms": ttl }))
        }
        Err(error) => refuse(&error),
    }
}

fn heartbeat(state: &State, id: &Label, body: &[u8]) -> Response<Full<Bytes>> {
    let beat = match body {
        [] => Ok(Beat { health: BeatHealth::Healthy }),
        body => serde_json::from_slice::<Beat>(body),
    };
    let Ok(beat) = beat else {
        let how = "send nothing, {\"health\": \"healthy\"} or {\"health\": \"unhealthy\"}";
        return told(StatusCode::UNPROCESSABLE_ENTITY, how);
    };
    match state.shown.local.heartbeat(id, beat.health == BeatHealth::Healthy) {
        Ok(remaining) => answer(&json!({ "id": id, "ttl_remaining_ms": remaining.as_millis() as u64 })),
        Err(error) => refuse(&error),
    }
}

fn refuse(error: &RegisterError) -> Response<Full<Bytes>> {
    let status = match error {
        RegisterError::Unknown(_) => StatusCode::NOT_FOUND,
        RegisterError::Configured(_) | RegisterError::NoTtl(_) => StatusCode::CONFLICT,
        RegisterError::NotNow(ApplyError::Leaving) => StatusCode::SERVICE_UNAVAILABLE,
        RegisterError::NotNow(ApplyError::Registered(_)) => StatusCode::CONFLICT,
        // No more will ever fit into this life of the node.
        RegisterError::NotNow(ApplyError::TooManyIds(_)) => StatusCode::INSUFFICIENT_STORAGE,
    };
    told(status, &error.to_string())
}

fn refuse_mistakes(mistakes: &Mistakes) -> Response<Full<Bytes>> {
    let each = mistakes.iter().map(
        |mistake| json!({ "key": mistake.key, "problem": mistake.problem, "suggestion": mistake.suggestion }),
    );
    let each: Vec<_> = each.collect();
    let plural = if each.len() == 1 { "" } else { "s" };
    let error = format!("{} mistake{plural} in the registration", each.len());
    with_status(StatusCode::UNPROCESSABLE_ENTITY, json!({ "error": error, "mistakes": each }))
}

fn told(status: StatusCode, error: &str) -> Response<Full<Bytes>> {
    with_status(status, json!({ "error": error }))
}

fn with_status(status: StatusCode, body: serde_json::Value) -> Response<Full<Bytes>> {
    let mut response = answer(&body);
    *response.status_mut() = status;
    response
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
