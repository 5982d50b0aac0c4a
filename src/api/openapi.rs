//! The OpenAPI 3.1 document, made from the handlers' own descriptions.

use super::error::Problem;
use super::{apikeys, datakeys, events, health, keys, metrics, objects, organizations, tombstones, values};
use axum::Json;
use serde::Serialize;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi, ToSchema};

/// The order of a list.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code)]
pub enum Order {
    Asc,
    Desc,
}

/// Whether a check opens what it checks.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code)]
pub enum Keys {
    Yes,
    No,
}

/// What any route may be refused with; the body is always a [`Problem`].
#[derive(IntoResponses)]
#[allow(dead_code)]
pub enum Refusals {
    /// Not understood: the body, a parameter, or a name that nothing can have
    #[response(status = 400)]
    Invalid(Problem),
    /// No API key, or one that is not valid
    #[response(status = 401)]
    Unauthorized(Problem),
    /// Not with this API key
    #[response(status = 403)]
    Denied(Problem),
    #[response(status = 404)]
    NotFound(Problem),
    #[response(status = 405)]
    Method(Problem),
    /// The body did not come in time
    #[response(status = 408)]
    Timeout(Problem),
    /// A name that is taken, a version check that is lost, or an organization that is not empty
    #[response(status = 409)]
    Conflict(Problem),
    #[response(status = 413)]
    TooLarge(Problem),
    /// Understood, and a rule stands against it: an unknown organization, a long name, a quota
    #[response(status = 422)]
    Unprocessable(Problem),
    #[response(status = 429)]
    TooMany(Problem),
    /// What is stored is not authentic, or the disk failed
    #[response(status = 500)]
    Failure(Problem),
    /// The token does not serve, or too much is under way
    #[response(status = 503)]
    Unavailable(Problem),
    /// The disk is full
    #[response(status = 507)]
    NoSpace(Problem),
}

#[derive(OpenApi)]
#[openapi(
    info(title = "vaultfs", description = "Organizations, encrypted objects and data keys of one vault."),
    modifiers(&ApiKeys),
    components(schemas(Problem, Order, Keys)),
    security(("api_key" = [])),
    paths(
        objects::list, objects::describe, objects::versions, objects::revert, objects::delete,
        values::create, values::read, values::read_version, values::read_by_name, values::put,
        datakeys::create, datakeys::decrypt, datakeys::rekey,
        organizations::list, organizations::create, organizations::show, organizations::by_external_id,
        organizations::change, organizations::delete, organizations::lock, organizations::unlock,
        keys::list, keys::check, keys::migrate, keys::set_pin, keys::rotations, keys::rotate_all, keys::rotate_root, keys::rotate,
        keys::relocate, keys::revoke,
        tombstones::list, tombstones::restore, tombstones::purge,
        apikeys::list, apikeys::create, apikeys::revoke,
        events::list, health::healthz, health::status, health::fsck, metrics::metrics,
    )
)]
struct Document;

struct ApiKeys;

impl Modify for ApiKeys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("api_key", scheme);
    }
}

pub async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_of_version_3_1_and_names_the_hosted_routes() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        for route in ["/vault/v1/kv", "/vault/v1/kv/{object}", "/vault/v1/keys/rekey", "/organizations/{organization}"]
        {
            assert!(document["paths"][route].is_object(), "{route}");
        }
        let create = &document["paths"]["/vault/v1/kv"]["post"]["responses"];
        let schemas = &document["components"]["schemas"];
        assert!(schemas["Problem"].is_object() && schemas["VaultObject"].is_object());
        assert!(create["201"].is_object() && create["409"].is_object() && create["422"].is_object());
    }
    /// The routes as `api.rs` names them: what is served and not described would be neither found nor fuzzed.
    #[test]
    fn every_route_that_is_served_is_described() {
        let document = serde_json::to_value(Document::openapi()).unwrap();
        let source: String = include_str!("../api.rs").split_whitespace().collect();
        let mut described = 0;
        for route in source.split(".route(\"").skip(1) {
            let (path, handlers) = route.split_once('"').unwrap();
            let handlers = handlers.split(".fallback(").next().unwrap();
            // The document itself, and what OpenAPI has no word for: a name that holds slashes.
            let path = path.replace("{*name}", "{name}");
            for method in ["get", "put", "post", "delete"] {
                let served = handlers.contains(&format!("{method}("));
                let there = document["paths"][&path][method].is_object();
                assert_eq!(served && path != "/openapi.json", there, "{method} {path}");
                described += usize::from(there);
            }
        }
        let all = document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len());
        assert_eq!(described, all.sum::<usize>(), "what is described is served");
        assert!(described > 30);
    }
}
