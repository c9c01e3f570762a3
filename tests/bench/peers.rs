//! How other makers' pairs are configured: mutual TLS 1.3 between them, one thread each, connections kept.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use starling_tests::look_for_program;

use crate::ground::{Ground, H2_PORT, HTTP_PORT};
use crate::pair::Pair;

/// Every pair that is installed here, and the application itself.
pub fn installed(ground: &Ground, envoy: Option<&Path>) -> Vec<Pair> {
    let mut pairs = vec![Pair {
        name: "direct".to_owned(),
        http: Some(HTTP_PORT),
        tcp: Some(HTTP_PORT),
        h2: Some(H2_PORT),
        ..Pair::default()
    }];
    if let Some(program) = look_for_program("haproxy") {
        pairs.push(haproxy(ground, &program, "haproxy", "http/1.1"));
        pairs.push(haproxy(ground, &program, "haproxy-h2", "h2"));
    }
    if let Some(program) = look_for_program("nginx") {
        pairs.push(nginx(ground, &program));
    }
    if let Some(program) = envoy.map(PathBuf::from).or_else(|| look_for_program("envoy")) {
        pairs.push(self::envoy(ground, &program));
    }
    pairs
}

fn words<const N: usize>(program: &Path, arguments: [&str; N]) -> Vec<String> {
    let arguments = arguments.into_iter().map(str::to_owned);
    std::iter::once(program.display().to_string()).chain(arguments).collect()
}

/// HTTP by `between`; TCP and HTTP/2 are the same in both pairs.
fn haproxy(ground: &Ground, program: &Path, name: &str, between: &str) -> Pair {
    let directory = ground.path().display();
    let global = "global
    nbthread 1
    maxconn 8000
    ssl-default-bind-options ssl-min-ver TLSv1.3
    ssl-default-server-options ssl-min-ver TLSv1.3
defaults
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    http-reuse always
";
    let server = format!(
        "ssl crt {directory}/a.pem ca-file {directory}/ca.crt verify required verifyhost b.bench sni str(b.bench)"
    );
    let bind = format!("ssl crt {directory}/b.pem ca-file {directory}/ca.crt verify required");
    let listen = |name: &str, mode: &str, bind: &str, server: &str| {
        format!("listen {name}\n    mode {mode}\n    bind {bind}\n    server next {server}\n")
    };
    let caller = [
        global.to_owned(),
        listen("http", "http", "127.0.0.1:11080", &format!("127.0.0.1:11443 {server} alpn {between}")),
        listen("tcp", "tcp", "127.0.0.1:11081", &format!("127.0.0.1:11444 {server}")),
        listen("h2", "http", "127.0.0.1:11082", &format!("127.0.0.1:11445 {server} alpn h2")),
    ];
    let callee = [
        global.to_owned(),
        listen(
            "http",
            "http",
            &format!("127.0.0.1:11443 {bind} alpn {between}"),
            &format!("127.0.0.1:{HTTP_PORT}"),
        ),
        listen("tcp", "tcp", &format!("127.0.0.1:11444 {bind}"), &format!("127.0.0.1:{HTTP_PORT}")),
        listen(
            "h2",
            "http",
            &format!("127.0.0.1:11445 {bind} alpn h2"),
            &format!("127.0.0.1:{H2_PORT} proto h2"),
        ),
    ];
    let command = |letter: &str, text: String| {
        let file = ground.write(&format!("{name}-{letter}.cfg"), &text);
        words(program, ["-db", "-q", "-f", &file.display().to_string()])
    };
    Pair {
        name: name.to_owned(),
        commands: vec![command("a", caller.concat()), command("b", callee.concat())],
        http: Some(11080),
        tcp: Some(11081),
        h2: Some(11082),
    }
}

fn nginx(ground: &Ground, program: &Path) -> Pair {
    let directory = ground.path().display().to_string();
    let upstream = |name: &str, port: u16| {
        format!(
            "upstream {name} {{ server 127.0.0.1:{port}; keepalive 256; keepalive_requests 999999999; keepalive_timeout 300; }}\n"
        )
    };
    let shows = |prefix: &str| {
        format!(
            "{prefix}_ssl_certificate {directory}/a.crt; {prefix}_ssl_certificate_key {directory}/a.key; \
             {prefix}_ssl_trusted_certificate {directory}/ca.crt; {prefix}_ssl_verify on; \
             {prefix}_ssl_name b.bench; {prefix}_ssl_server_name on; {prefix}_ssl_protocols TLSv1.3;"
        )
    };
    let asks = format!(
        "ssl_certificate {directory}/b.crt; ssl_certificate_key {directory}/b.key; \
         ssl_client_certificate {directory}/ca.crt; ssl_verify_client on; ssl_protocols TLSv1.3;"
    );
    let caller = (
        upstream("callee", 12443)
            + &upstream("callee_h2", 12445)
            + &format!(
                "server {{ listen 127.0.0.1:12080 backlog=4096; location / {{ proxy_pass https://callee; {} }} }}
server {{ listen 127.0.0.1:12082 http2 backlog=4096; location / {{ grpc_pass grpcs://callee_h2; {} }} }}\n",
                shows("proxy"),
                shows("grpc")
            ),
        format!(
            "server {{ listen 127.0.0.1:12081 backlog=4096; proxy_pass 127.0.0.1:12444; proxy_ssl on; {} }}",
            shows("proxy")
        ),
    );
    let callee = (
        upstream("application", HTTP_PORT)
            + &upstream("application_h2", H2_PORT)
            + &format!(
                "server {{ listen 127.0.0.1:12443 ssl backlog=4096; {asks} location / {{ proxy_pass http://application; }} }}
server {{ listen 127.0.0.1:12445 ssl http2 backlog=4096; {asks} location / {{ grpc_pass grpc://application_h2; }} }}\n"
            ),
        format!(
            "server {{ listen 127.0.0.1:12444 ssl backlog=4096; {asks} proxy_pass 127.0.0.1:{HTTP_PORT}; }}"
        ),
    );
    let command = |letter: &str, (http, stream): (String, String)| {
        // Debian builds the stream module apart from the program.
        let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
        let load = if Path::new(module).exists() { format!("load_module {module};") } else { String::new() };
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {directory}/nginx-{letter}-{kind}; "))
            .collect();
        let text = format!(
            "{load} worker_processes 1; daemon off; pid {directory}/nginx-{letter}.pid; error_log stderr error;
events {{ worker_connections 16384; }}
http {{ access_log off; keepalive_requests 999999999; keepalive_timeout 300; tcp_nodelay on;
proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; {paths}
{http} }}
stream {{ {stream} }}\n"
        );
        let file = ground.write(&format!("nginx-{letter}.conf"), &text);
        words(program, ["-p", &directory, "-e", "stderr", "-c", &file.display().to_string()])
    };
    Pair {
        name: "nginx".to_owned(),
        commands: vec![command("a", caller), command("b", callee)],
        http: Some(12080),
        tcp: Some(12081),
        h2: Some(12082),
    }
}

/// HTTP/2 between, as Istio has it.
fn envoy(ground: &Ground, program: &Path) -> Pair {
    let tls = Tls { directory: ground.path().display().to_string() };
    let caller = json!({
        "listeners": [
            listener("http", 10080, http("callee"), None),
            listener("tcp", 10081, tcp("callee_tcp"), None),
            listener("h2", 10082, http("callee_h2"), None),
        ],
        "clusters": [
            cluster("callee", 10443, Some(2), Some(tls.facing_callee(true))),
            cluster("callee_tcp", 10444, None, Some(tls.facing_callee(false))),
            cluster("callee_h2", 10445, Some(2), Some(tls.facing_callee(true))),
        ],
    });
    let callee = json!({
        "listeners": [
            listener("http", 10443, http("application"), Some(tls.facing_caller(true))),
            listener("tcp", 10444, tcp("application"), Some(tls.facing_caller(false))),
            listener("h2", 10445, http("application_h2"), Some(tls.facing_caller(true))),
        ],
        "clusters": [
            cluster("application", HTTP_PORT, Some(1), None),
            cluster("application_h2", H2_PORT, Some(2), None),
        ],
    });
    let command = |letter: &str, resources: Value| {
        let text = json!({ "static_resources": resources }).to_string();
        let file = ground.write(&format!("envoy-{letter}.json"), &text).display().to_string();
        words(program, ["-c", &file, "--concurrency", "1", "--disable-hot-restart", "-l", "error"])
    };
    Pair {
        name: "envoy".to_owned(),
        commands: vec![command("a", caller), command("b", callee)],
        http: Some(10080),
        tcp: Some(10081),
        h2: Some(10082),
    }
}

/// Envoy's sockets of TLS.
struct Tls {
    directory: String,
}

const API: &str = "type.googleapis.com/envoy.extensions";

impl Tls {
    fn facing_callee(&self, is_h2: bool) -> Value {
        let common = self.common("a", "b", is_h2);
        let context = format!("{API}.transport_sockets.tls.v3.UpstreamTlsContext");
        socket(json!({ "@type": context, "common_tls_context": common, "sni": "b.bench" }))
    }

    fn facing_caller(&self, is_h2: bool) -> Value {
        let common = self.common("b", "a", is_h2);
        let context = format!("{API}.transport_sockets.tls.v3.DownstreamTlsContext");
        socket(json!({ "@type": context, "common_tls_context": common, "require_client_certificate": true }))
    }

    fn common(&self, own: &str, peer: &str, is_h2: bool) -> Value {
        let file = |name: &str| json!({ "filename": format!("{}/{name}", self.directory) });
        let mut common = json!({
            "tls_certificates": [{
                "certificate_chain": file(&format!("{own}.crt")), "private_key": file(&format!("{own}.key")),
            }],
            "validation_context": {
                "trusted_ca": file("ca.crt"),
                "match_typed_subject_alt_names": [
                    { "san_type": "URI", "matcher": { "exact": format!("spiffe://bench/svc/{peer}") } },
                ],
            },
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        });
        if is_h2 {
            common["alpn_protocols"] = json!(["h2"]);
        }
        common
    }
}

fn socket(context: Value) -> Value {
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

fn address(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

fn http(cluster: &str) -> Value {
    let manager = format!("{API}.filters.network.http_connection_manager.v3.HttpConnectionManager");
    let router = format!("{API}.filters.http.router.v3.Router");
    json!({ "name": "http", "typed_config": {
        "@type": manager,
        "stat_prefix": cluster,
        "codec_type": "AUTO",
        "route_config": { "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster, "timeout": "0s" } }],
        }] },
        "http_filters": [{ "name": "router", "typed_config": { "@type": router } }],
    } })
}

fn tcp(cluster: &str) -> Value {
    let proxy = format!("{API}.filters.network.tcp_proxy.v3.TcpProxy");
    json!({ "name": "tcp", "typed_config": { "@type": proxy, "stat_prefix": cluster, "cluster": cluster } })
}

fn listener(name: &str, port: u16, filter: Value, tls: Option<Value>) -> Value {
    let mut chain = json!({ "filters": [filter] });
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({ "name": name, "address": address(port), "filter_chains": [chain] })
}

fn cluster(name: &str, port: u16, version: Option<u8>, tls: Option<Value>) -> Value {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": { "cluster_name": name, "endpoints": [
            { "lb_endpoints": [{ "endpoint": { "address": address(port) } }] },
        ] },
        "circuit_breakers": { "thresholds": [
            { "max_connections": 65_536, "max_pending_requests": 65_536, "max_requests": 65_536 },
        ] },
    });
    if let Some(version) = version {
        let options = if version == 2 { "http2_protocol_options" } else { "http_protocol_options" };
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{API}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": { options: {} },
            },
        });
    }
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}
