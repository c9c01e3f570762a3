//! The admin API of a running node: what it shows, to whom, and who may act.

use serde_json::Value;
use starling_tests::workload::Http;
use starling_tests::{Admin, Mesh, Node, eventually, get};

struct World {
    _workload: Http,
    server: Node,
    caller: Node,
    _mesh: Mesh,
}

impl World {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let workload = Http::start(mesh.ip(), "web").await;
        let keys = "version = \"v2\"\nweight = 70\ntags = { track = \"canary\" }";
        let server = mesh.node("server").serves_as("web", workload.address(), keys).start().await;
        let caller = mesh.node("caller").start().await;
        caller.finds("web", 1).await;
        Self { _workload: workload, server, caller, _mesh: mesh }
    }
}

/// Judges the value of a field.
type Judge = fn(&Value) -> bool;

/// Whether `value` has exactly these fields, each of this type.
#[track_caller]
fn has_fields(value: &Value, fields: &[(&str, Judge)]) {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    for (name, is_right) in fields {
        assert!(is_right(&value[name]), "{name} of {value:#}");
    }
    let unknown: Vec<_> = object.keys().filter(|key| !names.contains(&key.as_str())).collect();
    assert!(unknown.is_empty(), "not documented: {unknown:?} in {value:#}");
}

fn is_number_or_null(value: &Value) -> bool {
    value.is_u64() || value.is_null()
}

#[tokio::test]
async fn members_services_and_routes_have_their_documented_fields() {
    let world = World::new().await;
    let admin = world.caller.admin();
    let node = admin.get("/v1/node").await.json;
    assert_eq!((&node["name"], &node["state"]), (&"caller".into(), &"running".into()));
    assert_eq!(node["identity"], "spiffe://acme/svc/caller");

    let members = admin.get("/v1/members").await.json;
    let members = members.as_array().expect("a list");
    assert_eq!(members.iter().map(|one| &one["node"]).collect::<Vec<_>>(), ["caller", "server"]);
    for member in members {
        has_fields(
            member,
            &[
                ("node", Value::is_string),
                ("identity", Value::is_string),
                ("address", Value::is_string),
                ("state", |state| state == "alive"),
                ("reason", Value::is_null),
                ("doubt", Value::is_null),
                ("incarnation", Value::is_u64),
                ("lease_age_ms", Value::is_u64),
                ("lease_ms", |lease| *lease == 120_000),
                ("locality", Value::is_object),
                ("version", Value::is_string),
                ("rtt_us", is_number_or_null),
                ("traffic", |kinds| {
                    let kinds = kinds.as_object();
                    kinds.is_some_and(|kinds| {
                        kinds.values().all(|kind| kind["sent"].is_u64() && kind["received"].is_u64())
                    })
                }),
            ],
        );
    }
    has_fields(
        &admin.get("/v1/convergence").await.json,
        &[
            ("members", Value::is_u64),
            ("heard", Value::is_u64),
            ("equal", Value::is_u64),
            ("share", |share| share.as_f64().is_some_and(|share| (0.0..=100.0).contains(&share))),
            ("oldest_difference_ms", is_number_or_null),
        ],
    );

    let service = admin.get("/v1/services/web").await.json;
    assert_eq!(admin.get("/v1/services").await.json[0]["name"], service["name"]);
    assert!(service["panic"].is_null(), "{service:#}");
    has_fields(
        &service["instances"][0],
        &[
            ("id", |id| id == "web"),
            ("node", |node| node == "server"),
            ("identity", |id| id == "spiffe://acme/svc/web"),
            ("health", |health| health == "healthy"),
            ("protocol", |protocol| protocol == "http"),
            ("version", |version| version == "v2"),
            ("tags", |tags| tags["track"] == "canary"),
            ("weight", |weight| *weight == 70),
            ("locality", Value::is_object),
            ("age_ms", Value::is_u64),
            ("retained", |retained| retained == false),
        ],
    );

    let route = admin.get("/v1/routes/web").await.json;
    assert_eq!(admin.get("/v1/routes").await.json[0]["service"], route["service"]);
    assert_eq!(route["excluded"], Value::Array(Vec::new()));
    assert_eq!(
        (&route["name"], &route["policy"], &route["hash_on"]),
        (&"web".into(), &"peak_ewma".into(), &Value::Null)
    );
    let limit = |kind: &str| route["under_way"][kind]["max"].as_u64();
    assert_eq!((limit("connections"), limit("retries")), (Some(10_000), Some(1_000)));
    has_fields(
        &route["candidates"][0],
        &[
            ("id", |id| id == "web"),
            ("node", |node| node == "server"),
            ("identity", |id| id == "spiffe://acme/svc/web"),
            ("address", Value::is_string),
            ("share", |share| *share == 100.0),
            ("distance", Value::is_u64),
            ("retained", |retained| retained == false),
            ("trouble", Value::is_null),
            ("ejected", Value::is_null),
            ("readiness", |readiness| *readiness == 100.0),
            ("estimate_ms", is_number_or_null),
            ("in_flight", |count| *count == 0),
            ("requests", |count| *count == 0),
            ("last_attempt_age_ms", is_number_or_null),
            ("age_ms", Value::is_u64),
        ],
    );
}

#[tokio::test]
async fn a_route_counts_the_requests_it_carried() {
    let world = World::new().await;
    for _ in 0..3 {
        get(world.caller.http_proxy(), "web.mesh", "/").await;
    }
    let route = world.caller.admin().get("/v1/routes/web").await.json;
    assert_eq!(route["candidates"][0]["requests"], 3);
    assert!(route["candidates"][0]["last_attempt_age_ms"].is_u64(), "{route}");
}

#[tokio::test]
async fn probes_and_metrics_answer_in_their_formats() {
    let world = World::new().await;
    let admin = world.caller.admin();
    for (path, text) in [("/live", "live\n"), ("/ready", "ready\n")] {
        let answer = admin.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, text));
    }
    get(world.caller.http_proxy(), "web.mesh", "/status/404").await;
    get(world.caller.http_proxy(), "ghost.mesh", "/").await;
    // An exchange is counted when its answer has gone out, a moment after it has come in.
    let metrics = eventually("both requests to be counted", async || {
        let metrics = admin.get("/metrics").await;
        let counted = |parts: &[&str]| {
            let lines = metrics.text.lines().filter(|line| line.starts_with("starling_requests_total{"));
            lines.filter(|line| parts.iter().all(|part| line.contains(part))).count() == 1
        };
        let answered = counted(&[
            "direction=\"outbound\"",
            "service=\"web\"",
            "status=\"404\"",
            "peer=\"spiffe://acme/svc/web\"",
        ]);
        let unknown = counted(&["service=\"unknown\"", "flags=\"NR\""]);
        (answered && unknown).then_some(metrics)
    })
    .await;
    assert!(metrics.headers["content-type"].as_bytes().starts_with(b"text/plain"));
    for name in
        ["starling_build_info", "starling_catalogue_members", "starling_request_duration_seconds_bucket"]
    {
        assert!(metrics.text.contains(name), "{name} in\n{}", metrics.text);
    }
}

#[tokio::test]
async fn what_is_unknown_is_404_with_a_reason() {
    let world = World::new().await;
    for path in ["/v1/services/ghost", "/v1/routes/ghost", "/v1/nothing", "/", "/v1/members/../node"] {
        let answer = world.caller.admin().get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert!(answer.json["error"].is_string(), "{path}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_web_page_can_neither_read_nor_act() {
    let world = World::new().await;
    let admin = world.caller.admin();
    for (method, path) in [("GET", "/v1/members"), ("GET", "/metrics"), ("POST", "/v1/leave")] {
        for headers in [
            [("host", "evil.example")].as_slice(),
            &[("host", "127.0.0.1.evil.example:7402")],
            &[("origin", "http://evil.example")],
            &[("origin", "null")],
        ] {
            let answer = admin.ask(method, path, headers).await;
            assert_eq!(answer.status, 403, "{method} {path} {headers:?}");
            assert!(!answer.text.contains("spiffe"), "{}", answer.text);
        }
    }
    for host in ["localhost", "localhost:7402", "[::1]:7402"] {
        assert_eq!(admin.ask("GET", "/v1/node", &[("host", host)]).await.status, 200, "{host}");
    }
    assert_eq!(admin.get("/v1/node").await.json["state"], "running");
}

#[tokio::test]
async fn actions_need_the_socket() {
    let mut world = World::new().await;
    let admin: Admin = world.server.admin();
    for path in ["/v1/drain", "/v1/leave"] {
        let answer = admin.ask("POST", path, &[]).await;
        assert_eq!(answer.status, 403);
        assert!(answer.text.contains("admin socket"), "what to do: {}", answer.text);
    }
    assert_eq!(admin.get("/v1/node").await.json["state"], "running");
    let socket = world.server.socket();
    assert_eq!(admin.ask_by_socket(&socket, "POST", "/v1/unknown").await.status, 404);
    assert_eq!(admin.ask_by_socket(&socket, "GET", "/v1/node").await.json["name"], "server");
    assert_eq!(admin.ask_by_socket(&socket, "POST", "/v1/drain").await.status, 202);
    assert_eq!(world.server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn actions_take_the_token_on_the_port() {
    let mesh = Mesh::new();
    let token = "0123456789abcdef0123456789abcdef";
    let file = mesh.directory().join("token");
    std::fs::write(&file, format!("{token}\n")).expect("a token");
    let node = mesh.node("node").admin(&format!("token_file = {file:?}"));
    let mut node = node.start().await;
    let admin = node.admin();
    for wrong in ["Bearer 0123456789abcdef0123456789abcdee", "Bearer ", "Basic dTpw", token] {
        let answer = admin.ask("POST", "/v1/drain", &[("authorization", wrong)]).await;
        assert_eq!(answer.status, 403, "{wrong}");
    }
    let rotated = "fedcba9876543210fedcba9876543210";
    std::fs::write(&file, rotated).expect("another token");
    let act = async |action: &str, token: &str| {
        admin.ask("POST", action, &[("authorization", &format!("Bearer {token}"))]).await
    };
    let reloaded = act("/v1/reload", token).await;
    assert_eq!(reloaded.json["changes"], serde_json::json!(["admin.token_file: another token"]));
    assert_eq!(act("/v1/drain", token).await.status, 403, "the old one is nobody's");
    assert_eq!(act("/v1/drain", rotated).await.status, 202);
    assert_eq!(node.ended().await.code(), Some(0));
}
