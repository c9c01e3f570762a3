//! PostgreSQL and its own programs, through the mesh as ordinary TCP: sessions, streams, load, TLS of
//! their own, and a query that is cancelled by another connection.
//!
//! `cargo test -p starling-tests --features programs --test databases`, with the programs installed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use starling_tests::workload::AppAuthority;
use starling_tests::{
    Finished, Mesh, Node, Program, eventually, find_program, look_for_program, run_program, within,
};

/// PostgreSQL will not run as root: `nobody` owns its files then.
const NOBODY: u32 = 65_534;

/// What the server's certificate says, and clients demand.
const NAME: &str = "db.internal";

/// Debian has one directory for each version.
const VERSIONS: &str = "/usr/lib/postgresql";

struct World {
    caller: Node,
    _server: Node,
    _postgres: Program,
    mesh: Mesh,
}

/// A program of PostgreSQL's, of the newest version there is.
fn postgres_program(name: &str) -> PathBuf {
    let versions = fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|file| file.is_file());
    found.sort();
    found.pop().or_else(|| look_for_program(name)).unwrap_or_else(|| find_program(name))
}

#[track_caller]
fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// What to write before a command that must not run as root.
fn as_somebody() -> Vec<String> {
    if !rustix::process::geteuid().is_root() {
        return Vec::new();
    }
    let nobody = NOBODY.to_string();
    ["setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"].map(str::to_owned).into()
}

fn own(path: &Path) {
    if rustix::process::geteuid().is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("another owner");
    }
}

async fn start_postgres(mesh: &Mesh, address: std::net::SocketAddr) -> Program {
    // Whoever it runs as must reach it.
    fs::set_permissions(mesh.directory(), fs::Permissions::from_mode(0o711)).expect("permissions");
    let directory = mesh.directory().join("postgres");
    let data = directory.join("data");
    fs::create_dir_all(&directory).expect("a directory");
    own(&directory);
    let initdb = postgres_program("initdb");
    let mut command = as_somebody();
    let init = ["-D", text(&data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"];
    command.extend([text(&initdb)].into_iter().chain(init).map(str::to_owned));
    let made = run_program(&command[0], &command[1..], &[]).await;
    assert_eq!(made.code, 0, "{made:?}");
    write_certificate(mesh, &data);
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let postgres = postgres_program("postgres");
    let mut command = as_somebody();
    let arguments = ["-D", text(&data), "-h", &ip, "-p", &port, "-k", "", "-F", "-c", "ssl=on"];
    command.extend([text(&postgres)].into_iter().chain(arguments).map(str::to_owned));
    fs::write(data.join("pg_hba.conf"), "host all all all trust\n").expect("a file");
    Program::start(&command[0], &directory, address, &command[1..]).await
}

/// The server's own certificate, and the root that clients believe.
fn write_certificate(mesh: &Mesh, data: &Path) {
    let authority = AppAuthority::new();
    let issued = authority.issue(NAME);
    fs::write(mesh.directory().join("db-ca.crt"), authority.certificate_pem()).expect("a root");
    for (name, contents) in [("server.crt", &issued.certificate), ("server.key", &issued.key)] {
        let file = data.join(name);
        fs::write(&file, contents).expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("permissions");
        own(&file);
    }
}

impl World {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let address = mesh.free_address();
        let _postgres = start_postgres(&mesh, address).await;
        let _server = mesh.node("server").serves_tcp("db", address).start().await;
        let caller = mesh.node("caller").calls("db").start().await;
        caller.finds("db", 1).await;
        Self { caller, _server, _postgres, mesh }
    }

    /// What libpq is told: the caller's sidecar, and whether TLS is spoken through it.
    fn place(&self, tls: bool) -> String {
        let local = self.caller.outbound("db");
        let root = self.mesh.directory().join("db-ca.crt");
        let tls = match tls {
            true => format!("sslmode=verify-full sslrootcert={}", text(&root)),
            false => "sslmode=disable".to_owned(),
        };
        format!(
            "host={NAME} hostaddr={} port={} user=postgres dbname=postgres {tls}",
            local.ip(),
            local.port()
        )
    }

    async fn psql(&self, tls: bool, statements: &str) -> String {
        let place = self.place(tls);
        succeeded(run_program("psql", ["-X", "-q", "-At", "-d", &place, "-c", statements], &[]).await)
    }
}

#[track_caller]
fn succeeded(finished: Finished) -> String {
    assert_eq!(finished.code, 0, "{finished:?}");
    finished.out
}

#[tokio::test]
async fn postgresql_serves_psql_and_pgbench_at_another_node() {
    let world = World::new().await;
    for tls in [false, true] {
        let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert_eq!(world.psql(tls, encrypted).await, if tls { "t\n" } else { "f\n" });
    }
    // Streams of some megabytes, either way.
    world.psql(true, "CREATE TABLE birds AS SELECT id, repeat(md5(id::text), 20) AS song FROM generate_series(1, 20000) AS id").await;
    let file = world.mesh.directory().join("birds");
    let out = format!("\\copy (SELECT id, song FROM birds ORDER BY id) TO '{}'", text(&file));
    world.psql(false, &out).await;
    world.psql(true, "CREATE TABLE flock (id INT, song TEXT)").await;
    world.psql(true, &format!("\\copy flock FROM '{}'", text(&file))).await;
    let digest = |table: &str| format!("SELECT md5(string_agg(id || song, ',' ORDER BY id)) FROM {table}");
    assert_eq!(world.psql(false, &digest("flock")).await, world.psql(false, &digest("birds")).await);

    let pgbench = postgres_program("pgbench");
    let init = ["-i", "-q", "-s", "1", &world.place(false)];
    succeeded(run_program(text(&pgbench), init, &[]).await);
    for (tls, protocol) in [(false, "prepared"), (true, "extended")] {
        let place = world.place(tls);
        let arguments = ["-n", "-c", "8", "-j", "2", "-t", "100", "-M", protocol, &place];
        let report = succeeded(run_program(text(&pgbench), arguments, &[]).await);
        assert!(report.contains("number of transactions actually processed: 800/800"), "{report}");
        assert!(report.contains("number of failed transactions: 0 "), "{report}");
    }
    // A connection for each transaction.
    let place = world.place(false);
    let arguments = ["-n", "-S", "-C", "-c", "4", "-j", "2", "-t", "50", &place];
    let report = succeeded(run_program(text(&pgbench), arguments, &[]).await);
    assert!(report.contains("number of failed transactions: 0 "), "{report}");
}

/// Cancelling is a second connection that says which query is meant: it must reach the same server.
#[tokio::test]
async fn a_query_is_cancelled_by_another_connection() {
    let world = World::new().await;
    let mut command = tokio::process::Command::new(find_program("psql"));
    command.args(["-X", "-d", &world.place(false), "-c", "SELECT pg_sleep(600)"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let psql = command.spawn().expect("psql");
    let sleeping =
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT pg_sleep%'";
    eventually("the query to run", async || (world.psql(false, sleeping).await == "1\n").then_some(())).await;
    let pid = psql.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("a process");
    // What a terminal's ctrl-C sends.
    kill_process(pid, Signal::INT).expect("a signal");
    let output = within("psql's end", psql.wait_with_output()).await.expect("its output");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("canceling statement due to user request"), "{said}");
    assert_eq!(world.psql(false, sleeping).await, "0\n");
}
