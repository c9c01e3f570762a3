//! Programs that know nothing of the mesh, through it: nginx and curl, Redis, MariaDB; and systemd's own
//! tool in front of a node.
//!
//! `cargo test -p starling-tests --features programs --test programs`, with the programs installed.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use starling_tests::workload::{AppAuthority, Http, sized_bytes};
use starling_tests::{Mesh, Node, Program, eventually, find_program, get, program, run_program, within};

/// As many bytes as an ordinary picture has.
const FILE_BYTES: usize = 1024 * 1024;

/// A directory for one program's data.
fn data_directory(mesh: &Mesh, name: &str) -> PathBuf {
    let directory = mesh.directory().join(name);
    fs::create_dir_all(&directory).expect("a directory");
    directory
}

#[track_caller]
fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

mod nginx {
    use super::*;

    struct World {
        caller: Node,
        others: Vec<Node>,
        _programs: Vec<Program>,
        mesh: Mesh,
    }

    /// Two nodes with an nginx each, and one that calls them.
    async fn world() -> World {
        let mesh = Mesh::new();
        let (mut programs, mut others) = (Vec::new(), Vec::new());
        for name in ["nginx-1", "nginx-2"] {
            let directory = data_directory(&mesh, name);
            let address = mesh.free_address();
            fs::write(directory.join("index.html"), "hello from nginx\n").expect("a page");
            fs::write(directory.join("file"), sized_bytes(FILE_BYTES)).expect("a file");
            let root = text(&directory);
            // One process, so that nothing outlives it.
            let config = format!(
                "daemon off; master_process off; pid {root}/pid; error_log stderr;\n\
                 events {{}}\n\
                 http {{\n\
                   access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p;\n\
                   fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
                   server {{ listen {address}; root {root}; add_header x-connection $connection; }}\n\
                 }}\n"
            );
            fs::write(directory.join("nginx.conf"), config).expect("a configuration");
            let config = directory.join("nginx.conf");
            programs
                .push(Program::start("nginx", &directory, address, ["-p", root, "-c", text(&config)]).await);
            others.push(mesh.node(name).serves("site", address).start().await);
        }
        let caller = mesh.node("caller").calls("site").start().await;
        caller.finds("site", 2).await;
        World { caller, others, _programs: programs, mesh }
    }

    #[tokio::test]
    async fn curl_finds_it_by_a_unix_socket() {
        let world = world().await;
        let path = world.mesh.directory().join("http.sock");
        let section = format!("[[outbound]]\nservice = \"site\"\nlisten = \"unix:{}\"", text(&path));
        let local = world.mesh.node("local").sections(&section).start().await;
        local.finds("site", 2).await;
        let arguments = ["-sS", "--unix-socket", text(&path), "http://site.mesh/"];
        let finished = run_program("curl", arguments, &[]).await;
        assert_eq!((finished.code, finished.out.as_str()), (0, "hello from nginx\n"), "{finished:?}");
    }

    /// nginx as a TCP workload that takes the PROXY protocol, as behind a load balancer.
    #[tokio::test]
    async fn it_hears_the_callers_address_by_the_proxy_protocol() {
        let mesh = Mesh::new();
        let (directory, address) = (data_directory(&mesh, "nginx"), mesh.free_address());
        let root = text(&directory);
        let config = format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr;\n\
             events {{}}\n\
             http {{\n\
               access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p;\n\
               fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
               server {{ listen {address} proxy_protocol;\n\
                 return 200 \"$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_port\"; }}\n\
             }}\n"
        );
        fs::write(directory.join("nginx.conf"), config).expect("a configuration");
        let config = directory.join("nginx.conf");
        let _program = Program::start("nginx", &directory, address, ["-p", root, "-c", text(&config)]).await;
        let keys = "protocol = \"tcp\"\nproxy_protocol = true";
        let _server = mesh.node("server").serves_as("site", address, keys).start().await;
        let caller = mesh.node("caller").calls("site").start().await;
        caller.finds("site", 1).await;
        let finished =
            run_program("curl", ["-sS", &format!("http://{}/", caller.outbound("site"))], &[]).await;
        let expected = format!("{} {}", caller.listen(), address.port());
        assert_eq!((finished.code, finished.out), (0, expected));
    }

    #[tokio::test]
    async fn curl_finds_it_by_the_http_proxy_variable_by_host_and_by_port() {
        let world = world().await;
        let proxy = format!("http://{}", world.caller.http_proxy());
        let by_variable = run_program("curl", ["-sS", "http://site.mesh/"], &[("http_proxy", &proxy)]).await;
        let by_host = run_program("curl", ["-sS", "-H", "Host: site.mesh", &proxy], &[]).await;
        let fixed = format!("http://{}/", world.caller.outbound("site"));
        let by_port = run_program("curl", ["-sS", &fixed], &[]).await;
        for finished in [by_variable, by_host, by_port] {
            assert_eq!((finished.code, finished.out.as_str()), (0, "hello from nginx\n"), "{finished:?}");
        }
        let missing = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://site.mesh/none"];
        let missing = run_program("curl", missing, &[("http_proxy", &proxy)]).await;
        assert_eq!(missing.out, "404", "nginx's own answer");
        let ghost = ["-sS", "-D", "-", "http://ghost.mesh/"];
        let ghost = run_program("curl", ghost, &[("http_proxy", &proxy)]).await;
        assert!(ghost.out.contains("x-starling-flags: NR"), "{ghost:?}");
    }

    #[tokio::test]
    async fn a_file_of_a_megabyte_arrives_whole_on_one_kept_connection() {
        let world = world().await;
        let proxy = format!("http://{}", world.caller.http_proxy());
        let target = world.mesh.directory().join("fetched");
        let count = 5;
        let mut arguments = vec!["-sS", "-w", "%{num_connects}\n"];
        for _ in 0..count {
            arguments.extend(["http://site.mesh/file", "-o", text(&target)]);
        }
        let finished = run_program("curl", arguments, &[("http_proxy", &proxy)]).await;
        assert_eq!(finished.code, 0, "{finished:?}");
        assert_eq!(finished.out, "1\n0\n0\n0\n0\n", "curl's connection to its node is kept");
        assert!(fs::read(&target).expect("a file") == sized_bytes(FILE_BYTES), "other bytes");
        let range = ["-sS", "-r", "1000-1999", "-o", text(&target), "http://site.mesh/file"];
        let finished = run_program("curl", range, &[("http_proxy", &proxy)]).await;
        assert_eq!(finished.code, 0, "{finished:?}");
        assert!(fs::read(&target).expect("a file") == sized_bytes(FILE_BYTES)[1000..2000], "another range");
    }

    #[tokio::test]
    async fn pages_keep_coming_when_one_of_two_sidecars_is_killed() {
        let mut world = world().await;
        world.others[0].kill().await;
        let proxy = format!("http://{}", world.caller.http_proxy());
        for _ in 0..20 {
            let finished =
                run_program("curl", ["-sSf", "http://site.mesh/"], &[("http_proxy", &proxy)]).await;
            assert_eq!(finished.out, "hello from nginx\n", "{finished:?}");
        }
    }
}

/// Programs that speak TLS of their own.
mod tls {
    use std::net::SocketAddr;

    use super::*;

    const NAME: &str = "app.internal";

    struct World {
        caller: Node,
        _server: Node,
        _program: Program,
        _mesh: Mesh,
    }

    /// Files of one program in its directory: a server's certificate and the roots on both sides.
    fn write_files(directory: &std::path::Path, authority: &AppAuthority, clients: &AppAuthority) {
        let (server, client) = (authority.issue(NAME), clients.issue("sidecar"));
        for (name, contents) in [
            ("server.crt", server.certificate.as_str()),
            ("server.key", &server.key),
            ("client.crt", &client.certificate),
            ("client.key", &client.key),
            ("app-ca.crt", authority.certificate_pem()),
            ("clients-ca.crt", clients.certificate_pem()),
        ] {
            fs::write(directory.join(name), contents).expect("a file");
        }
    }

    /// The keys of a service whose program's files are in `directory`.
    fn section(scheme: &str, address: SocketAddr, directory: &std::path::Path, shows: bool) -> String {
        let root = text(directory);
        let protocol = if scheme == "tls" { "tcp" } else { "http" };
        let shown = format!("certificate = \"{root}/client.crt\"\nkey = \"{root}/client.key\"\n");
        format!(
            "address = \"{scheme}://{address}\"\nprotocol = {protocol:?}\n[service.tls]\n\
             trust_bundle = \"{root}/app-ca.crt\"\nserver_name = {NAME:?}\n{}",
            if shows { shown } else { String::new() }
        )
    }

    /// nginx that listens so, with further directives.
    async fn nginx(listen: &str, directives: &str, shows: bool) -> World {
        let mesh = Mesh::new();
        let directory = data_directory(&mesh, "nginx");
        let address = mesh.free_address();
        write_files(&directory, &AppAuthority::new(), &AppAuthority::new());
        fs::write(directory.join("index.html"), "hello over TLS\n").expect("a page");
        let root = text(&directory);
        let config = format!(
            "daemon off; master_process off; pid {root}/pid; error_log stderr;\n\
             events {{}}\n\
             http {{\n\
               access_log off; client_body_temp_path {root}/b; proxy_temp_path {root}/p;\n\
               fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;\n\
               server {{\n\
                 listen {address} {listen}; root {root};\n\
                 ssl_certificate {root}/server.crt; ssl_certificate_key {root}/server.key;\n\
                 add_header x-seen \"$ssl_protocol $ssl_server_name $server_protocol $ssl_client_verify\";\n\
                 {directives}\n\
               }}\n\
             }}\n"
        );
        let config = config.replace("ROOT", root);
        fs::write(directory.join("nginx.conf"), config).expect("a configuration");
        let config = directory.join("nginx.conf");
        let program = Program::start("nginx", &directory, address, ["-p", root, "-c", text(&config)]).await;
        let keys = section("https", address, &directory, shows);
        let _server = mesh.node("server").serves_section("site", &keys).start().await;
        let caller = mesh.node("caller").calls("site").start().await;
        caller.finds("site", 1).await;
        World { caller, _server, _program: program, _mesh: mesh }
    }

    impl World {
        /// What curl gets, head and body.
        async fn curl(&self, more: &[&str]) -> String {
            let url = format!("http://{}/", self.caller.outbound("site"));
            let arguments = ["-sS", "-D", "-", &url].into_iter().chain(more.iter().copied());
            let finished = run_program("curl", arguments, &[]).await;
            assert_eq!(finished.code, 0, "{finished:?}");
            finished.out
        }
    }

    #[tokio::test]
    async fn nginx_is_spoken_to_in_the_version_of_the_caller() {
        let world = nginx("ssl http2", "ssl_protocols TLSv1.3;", false).await;
        let answer = world.curl(&[]).await;
        assert!(answer.contains("hello over TLS"), "{answer}");
        assert!(answer.contains("x-seen: TLSv1.3 app.internal HTTP/1.1 NONE"), "{answer}");
        let answer = world.curl(&["--http2-prior-knowledge"]).await;
        assert!(answer.contains("x-seen: TLSv1.3 app.internal HTTP/2.0 NONE"), "{answer}");
    }

    #[tokio::test]
    async fn an_nginx_of_tls_1_2_is_spoken_to_as_well() {
        let world = nginx("ssl http2", "ssl_protocols TLSv1.2;", false).await;
        let answer = world.curl(&[]).await;
        assert!(answer.contains("x-seen: TLSv1.2 app.internal HTTP/1.1 NONE"), "{answer}");
    }

    #[tokio::test]
    async fn an_nginx_without_http_2_serves_callers_who_speak_it_all_the_same() {
        let world = nginx("ssl", "", false).await;
        for _ in 0..3 {
            let answer = world.curl(&["--http2-prior-knowledge"]).await;
            assert!(answer.starts_with("HTTP/2 200") && answer.contains("hello over TLS"), "{answer}");
            assert!(answer.contains("app.internal HTTP/1.1 NONE"), "{answer}");
            let answer = world.curl(&[]).await;
            assert!(answer.contains("hello over TLS"), "{answer}");
        }
    }

    #[tokio::test]
    async fn an_nginx_that_asks_for_a_certificate_gets_the_one_that_is_configured() {
        let asks = "ssl_protocols TLSv1.3; ssl_client_certificate ROOT/clients-ca.crt; ssl_verify_client on;";
        let answer = nginx("ssl http2", asks, true).await.curl(&[]).await;
        assert!(answer.contains("x-seen: TLSv1.3 app.internal HTTP/1.1 SUCCESS"), "{answer}");
        let answer = nginx("ssl http2", asks, false).await.curl(&[]).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "nginx's own answer: {answer}");
    }

    #[tokio::test]
    async fn redis_over_tls_is_opaque_tcp() {
        let mesh = Mesh::new();
        let directory = data_directory(&mesh, "redis");
        let address = mesh.free_address();
        write_files(&directory, &AppAuthority::new(), &AppAuthority::new());
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let arguments = [
            "--bind",
            &ip,
            "--port",
            "0",
            "--tls-port",
            &port,
            "--save",
            "",
            "--dir",
            text(&directory),
            "--tls-cert-file",
            "server.crt",
            "--tls-key-file",
            "server.key",
            "--tls-ca-cert-file",
            "clients-ca.crt",
            "--tls-auth-clients",
            "yes",
        ];
        let _program = Program::start("redis-server", &directory, address, arguments).await;
        let keys = section("tls", address, &directory, true);
        let _server = mesh.node("server").serves_section("cache", &keys).start().await;
        let caller = mesh.node("caller").calls("cache").start().await;
        caller.finds("cache", 1).await;
        let local = caller.outbound("cache");
        let (ip, port) = (local.ip().to_string(), local.port().to_string());
        let said = run_program("redis-cli", ["-h", &ip, "-p", &port, "PING"], &[]).await;
        assert_eq!(said.out.trim(), "PONG", "{said:?}");
    }
}

mod redis {
    use super::*;

    struct World {
        caller: Node,
        _server: Node,
        _program: Program,
        _mesh: Mesh,
    }

    async fn world() -> World {
        let mesh = Mesh::new();
        let directory = data_directory(&mesh, "redis");
        let address = mesh.free_address();
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let arguments = ["--bind", &ip, "--port", &port, "--save", "", "--dir", text(&directory)];
        let program = Program::start("redis-server", &directory, address, arguments).await;
        let server = mesh.node("server").serves_tcp("cache", address).start().await;
        let caller = mesh.node("caller").calls("cache").start().await;
        caller.finds("cache", 1).await;
        World { caller, _server: server, _program: program, _mesh: mesh }
    }

    impl World {
        async fn cli(&self, arguments: &[&str]) -> String {
            let address = self.caller.outbound("cache");
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let all = ["-h", &ip, "-p", &port].into_iter().chain(arguments.iter().copied());
            let finished = run_program("redis-cli", all, &[]).await;
            assert_eq!(finished.code, 0, "{finished:?}");
            finished.out
        }
    }

    #[tokio::test]
    async fn values_are_set_and_got_alone_and_in_a_pipeline() {
        let world = world().await;
        assert_eq!(world.cli(&["SET", "bird", "starling"]).await, "OK\n");
        assert_eq!(world.cli(&["GET", "bird"]).await, "starling\n");
        let large = "x".repeat(100_000);
        assert_eq!(world.cli(&["SET", "large", &large]).await, "OK\n");
        assert_eq!(world.cli(&["GET", "large"]).await.trim_end(), large);

        // A thousand commands written before any answer is read.
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream =
            tokio::net::TcpStream::connect(world.caller.outbound("cache")).await.expect("accepted");
        let commands: String = (0..1000).map(|n| format!("SET key:{n} {n}\r\nGET key:{n}\r\n")).collect();
        let expected: String =
            (0..1000).map(|n| format!("+OK\r\n${}\r\n{n}\r\n", n.to_string().len())).collect();
        stream.write_all(commands.as_bytes()).await.expect("written");
        let mut answers = vec![0; expected.len()];
        starling_tests::within("all answers", stream.read_exact(&mut answers)).await.expect("answers");
        assert_eq!(String::from_utf8_lossy(&answers), expected);
        assert_eq!(world.cli(&["DBSIZE"]).await, "1002\n");
    }

    #[tokio::test]
    async fn redis_benchmark_gets_every_answer_of_its_pipelines() {
        let world = world().await;
        let address = world.caller.outbound("cache");
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let tests = "set,get,incr,lpush,lpop,mset,lrange_100";
        for (clients, pipeline) in [("50", "16"), ("1", "1")] {
            let arguments = ["-h", &ip, "-p", &port, "-n", "2000", "-c", clients, "-P", pipeline];
            let arguments = arguments.into_iter().chain(["-d", "100", "-t", tests, "--csv"]);
            let finished = run_program("redis-benchmark", arguments, &[]).await;
            assert_eq!(finished.code, 0, "{finished:?}");
            let rows = finished.out.lines().filter(|line| line.starts_with('"')).count();
            assert!(rows >= tests.split(',').count(), "{finished:?}");
        }
        assert_eq!(world.cli(&["PING"]).await, "PONG\n");
    }

    #[tokio::test]
    async fn a_subscriber_hears_what_is_published() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let world = world().await;
        let mut stream =
            tokio::net::TcpStream::connect(world.caller.outbound("cache")).await.expect("accepted");
        stream.write_all(b"SUBSCRIBE flock\r\n").await.expect("written");
        let mut subscribed = [0; b"*3\r\n$9\r\nsubscribe\r\n$5\r\nflock\r\n:1\r\n".len()];
        starling_tests::within("the subscription", stream.read_exact(&mut subscribed))
            .await
            .expect("subscribed");
        for word in ["turn", "rise"] {
            assert_eq!(world.cli(&["PUBLISH", "flock", word]).await, "1\n");
            let expected = format!("*3\r\n$7\r\nmessage\r\n$5\r\nflock\r\n$4\r\n{word}\r\n");
            let mut heard = vec![0; expected.len()];
            starling_tests::within("a message", stream.read_exact(&mut heard)).await.expect("heard");
            assert_eq!(String::from_utf8_lossy(&heard), expected);
        }
    }
}

/// MariaDB speaks first: its greeting must come before the client says a word.
#[tokio::test]
async fn mariadb_keeps_a_table_for_a_client_at_another_node() {
    let mesh = Mesh::new();
    let directory = data_directory(&mesh, "mariadb");
    let data = directory.join("data");
    // As root it insists on being told that root is meant.
    let user = if rustix::process::geteuid().is_root() { "--user=root" } else { "--skip-name-resolve" };
    let datadir = format!("--datadir={}", text(&data));
    let install =
        ["--no-defaults", &datadir, user, "--auth-root-authentication-method=normal", "--skip-test-db"];
    let installed = run_program("mariadb-install-db", install, &[]).await;
    assert_eq!(installed.code, 0, "{installed:?}");
    let address = mesh.free_address();
    let socket = format!("--socket={}/s", text(&directory));
    let (bind, port) = (format!("--bind-address={}", address.ip()), format!("--port={}", address.port()));
    let arguments = [
        "--no-defaults",
        &datadir,
        user,
        &socket,
        &bind,
        &port,
        "--skip-name-resolve",
        "--skip-grant-tables",
        "--skip-networking=0",
    ];
    let _program = Program::start("mariadbd", &directory, address, arguments).await;
    let _server = mesh.node("server").serves_tcp("db", address).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    let _bystander = mesh.node("bystander").start().await;
    caller.finds("db", 1).await;

    let outbound = caller.outbound("db");
    let (host, port) = (outbound.ip().to_string(), outbound.port().to_string());
    let sql = async |statements: &str| {
        let arguments =
            ["--no-defaults", "--protocol=tcp", "-h", &host, "-P", &port, "-N", "-B", "-e", statements];
        let finished = run_program("mariadb", arguments, &[]).await;
        assert_eq!(finished.code, 0, "{finished:?}");
        finished.out
    };
    sql("CREATE DATABASE flock; CREATE TABLE flock.birds (id INT PRIMARY KEY, name VARCHAR(40))").await;
    let rows: Vec<String> = (0..500).map(|id| format!("({id}, 'bird {id}')")).collect();
    sql(&format!("INSERT INTO flock.birds VALUES {}", rows.join(","))).await;
    assert_eq!(sql("SELECT COUNT(*), MAX(name) FROM flock.birds").await, "500\tbird 99\n");
    assert_eq!(sql("SELECT name FROM flock.birds WHERE id = 7").await, "bird 7\n");
    let everything = sql("SELECT REPEAT('x', 200), id FROM flock.birds ORDER BY id").await;
    assert_eq!(everything.lines().count(), 500);
}

#[tokio::test]
async fn a_passed_socket_that_nothing_is_configured_for_is_refused() {
    let mesh = Mesh::new();
    // The files of a node that once ran. It bound its own ports, so that they are free when it is gone: what
    // this process held for it, a child that another test is starting would hold for a moment longer.
    let mut node = mesh.node("node").calls("web").start().await;
    let toml = node.config();
    node.kill().await;
    let other = mesh.free_address();
    // systemd's own tool passes the socket, and says to whom (LISTEN_PID).
    let tool = find_program("systemd-socket-activate");
    let mut command = tokio::process::Command::new(tool);
    command.arg(format!("--listen={other}")).arg(program()).args(["run", "--config"]).arg(&toml);
    let started = command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let process = started.expect("systemd's tool");
    // It starts the node with the first connection.
    let _client =
        eventually("the tool to listen", async || tokio::net::TcpStream::connect(other).await.ok()).await;
    let output = within("the node's end", process.wait_with_output()).await.expect("its output");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("nothing is configured for the passed socket")
            && said.contains(&format!("TCP {other}")),
        "{said}"
    );
}

#[tokio::test]
async fn systemds_own_tool_starts_a_node_with_the_first_request() {
    let tool = find_program("systemd-socket-activate");
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let _server = mesh.node("server").serves("web", workload.address()).start().await;
    // The files of a node that once ran; the tool runs it from now on.
    let mut node = mesh.node("caller").start().await;
    let (proxy, directory) = (node.http_proxy(), node.directory().to_owned());
    // Until it is gone: its ports are needed.
    node.kill().await;
    let mut command = tokio::process::Command::new(tool);
    command.arg(format!("--listen={proxy}")).arg(program()).args(["run", "--config"]);
    command
        .arg(directory.join("starling.toml"))
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let _process = command.spawn().expect("systemd's tool");
    eventually("the tool to listen", async || tokio::net::TcpStream::connect(proxy).await.ok()).await;
    let reply = get(proxy, "web.mesh", "/").await;
    assert_eq!((reply.status().as_u16(), reply.text()), (200, "web".to_owned()));
}
