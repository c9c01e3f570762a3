//! gRPC: the cases of its makers' interoperability tests, by a fixed port and by name, and what a mesh adds.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use starling_gossip::clock::Clock;
use starling_tests::{Mesh, Node, Program, UNPROBED, eventually, find_program, within};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::{PYTHON, must_hold, script};

const SCRIPT: &str = "grpc_peer.py";

struct World {
    caller: Node,
    servers: Vec<(Node, Program)>,
    _mesh: Mesh,
}

impl World {
    /// A caller's node, and this many servers with a node each.
    async fn of(count: usize) -> Self {
        Self::with(count, "").await
    }

    /// With these sections for the caller's node.
    async fn with(count: usize, sections: &str) -> Self {
        Self::before(count, &[], sections).await
    }

    /// With these options of the servers.
    async fn before(count: usize, options: &[&str], sections: &str) -> Self {
        let mesh = Mesh::new();
        let mut servers = Vec::new();
        for number in 1..=count {
            let (name, address) = (format!("server-{number}"), mesh.free_address());
            let program = serve(&mesh, &name, address, options).await;
            servers.push((mesh.node(&name).serves("interop", address).start().await, program));
        }
        let caller = mesh.node("caller").calls("interop").sections(sections).start().await;
        caller.finds("interop", count).await;
        Self { caller, servers, _mesh: mesh }
    }

    /// Plays these cases in one channel by a fixed port, and in one by name.
    async fn play(&self, cases: &[&str]) {
        for (target, authority) in
            [(self.caller.outbound("interop"), ""), (self.caller.http_proxy(), "interop.mesh")]
        {
            call(target, authority, cases).await;
        }
    }
}

/// Starts a server, whose files are in a directory of its name.
async fn serve(mesh: &Mesh, name: &str, address: SocketAddr, options: &[&str]) -> Program {
    let directory = mesh.directory().join(format!("{name}-program"));
    std::fs::create_dir_all(&directory).expect("a directory");
    let (script, address_text) = (script(SCRIPT), address.to_string());
    let arguments = [&script, "serve", &address_text, name].into_iter().chain(options.iter().copied());
    Program::start(PYTHON, &directory, address, arguments).await
}

/// Plays these cases, and gives what they printed.
async fn call(target: SocketAddr, authority: &str, cases: &[&str]) -> String {
    let target = target.to_string();
    let arguments = ["call", &target, authority].into_iter().chain(cases.iter().copied());
    must_hold(SCRIPT, arguments, &[]).await.out
}

#[tokio::test]
async fn unary_calls_arrive_whole_small_large_compressed_and_many() {
    let world = World::of(1).await;
    world.play(&["empty_unary", "large_unary", "compressed_unary", "many_at_once"]).await;
}

#[tokio::test]
async fn streams_go_either_way_and_both_ways_at_once() {
    let world = World::of(1).await;
    world.play(&["client_streaming", "server_streaming", "ping_pong", "empty_stream"]).await;
    world.play(&["server_first", "bulk_both_ways"]).await;
}

#[tokio::test]
async fn a_client_that_pings_all_the_time_keeps_its_slow_stream() {
    World::of(1).await.play(&["kept_alive"]).await;
}

#[tokio::test]
async fn metadata_goes_both_ways_binary_trailers_included() {
    let world = World::of(1).await;
    world.play(&["custom_metadata", "large_metadata", "server_hears_who_calls"]).await;
}

#[tokio::test]
async fn every_status_arrives_with_its_message() {
    let world = World::of(1).await;
    world.play(&["status_code_and_message", "status_with_metadata", "status_after_messages"]).await;
    world.play(&["unimplemented_method", "unimplemented_service"]).await;
}

#[tokio::test]
async fn a_deadline_ends_the_call_at_both_ends() {
    World::of(1).await.play(&["deadline_exceeded", "deadline_of_a_stream", "deadline_is_told"]).await;
}

#[tokio::test]
async fn a_cancelled_call_ends_at_its_server_too() {
    World::of(1).await.play(&["cancel_after_begin", "cancel_after_first_response"]).await;
}

#[tokio::test]
async fn each_call_of_one_channel_is_balanced_by_itself() {
    World::of(2).await.play(&["both_are_called"]).await;
    let in_turn = "[[upstream]]\nservice = \"interop\"\npolicy = \"round_robin\"";
    World::with(2, in_turn).await.play(&["both_get_half", "both_are_called"]).await;
}

/// gRPC has a variable of its own for a proxy, and tunnels through it.
#[tokio::test]
async fn a_tunnel_by_grpcs_own_proxy_variable_carries_all_of_it() {
    let world = World::of(1).await;
    let proxy = format!("http://{}", world.caller.http_proxy());
    let cases = ["large_unary", "ping_pong", "custom_metadata", "status_code_and_message"];
    let arguments = ["call", "interop.mesh:80", ""].into_iter().chain(cases);
    must_hold(SCRIPT, arguments, &[("grpc_proxy", &proxy)]).await;
}

#[tokio::test]
async fn a_mesh_that_has_nobody_says_so_in_grpcs_own_words() {
    let mesh = Mesh::new();
    // Nothing listens there: its node's probes know, or nobody does before a call.
    let _unhealthy = mesh.node("unhealthy").serves("probed", mesh.free_address()).start().await;
    let _gone = mesh.node("gone").serves_as("unprobed", mesh.free_address(), UNPROBED).start().await;
    let caller = mesh.node("caller").calls("probed").calls("unprobed").calls("ghost").start().await;
    caller.finds("unprobed", 1).await;
    eventually("an unhealthy instance", async || {
        let route = caller.admin().get("/v1/routes/probed").await.json;
        (route["excluded"][0]["reason"] == "its node's probes fail").then_some(())
    })
    .await;
    for (service, flag) in [("probed", "UH"), ("unprobed", "UF")] {
        let name = format!("{service}.mesh");
        for (target, authority) in [(caller.outbound(service), ""), (caller.http_proxy(), &name)] {
            let said = call(target, authority, &["fails_in_the_mesh"]).await;
            assert!(said.starts_with(&format!("UNAVAILABLE {flag} ")), "{said}");
        }
    }
    for (target, authority) in [(caller.outbound("ghost"), ""), (caller.http_proxy(), "ghost.mesh")] {
        let said = call(target, authority, &["fails_in_the_mesh"]).await;
        assert!(said.starts_with("UNIMPLEMENTED NR ") && said.contains("ghost"), "{said}");
    }
}

/// What gRPC calls the most that a client may have open on one connection.
#[tokio::test]
async fn calls_beyond_the_streams_that_a_server_takes_wait() {
    for most in [1, 10] {
        let option = format!("grpc.max_concurrent_streams={most}");
        World::before(1, &[&option], "").await.play(&["one_after_the_other"]).await;
    }
}

/// A client that is told, a line each, what it is to find.
struct Conversation {
    process: Child,
    ours: ChildStdin,
    theirs: Lines<BufReader<ChildStdout>>,
}

impl Conversation {
    fn start(case: &str, target: SocketAddr) -> Self {
        let mut command = tokio::process::Command::new(find_program(PYTHON));
        command.arg(script(SCRIPT)).arg("call").arg(target.to_string()).args(["", case]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().expect("a client");
        let ours = process.stdin.take().expect("a pipe");
        let theirs = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        Self { process, ours, theirs }
    }

    async fn finds(&mut self, what: &str) {
        self.ours.write_all(format!("{what}\n").as_bytes()).await.expect("told");
        let answer = within(what, self.theirs.next_line()).await.expect("an answer");
        assert_eq!(answer.as_deref(), Some("so it is"), "{what}");
    }

    async fn end(mut self) {
        drop(self.ours);
        let status = within("the client's end", self.process.wait()).await.expect("a status");
        assert!(status.success(), "{status}");
    }
}

#[tokio::test]
async fn a_channel_outlives_its_servers_program_and_its_servers_node() {
    let mesh = Mesh::new();
    let address = mesh.free_address();
    let program = serve(&mesh, "server", address, &[]).await;
    let mut server = mesh.node("server").serves("interop", address).start().await;
    let caller = mesh.node("caller").calls("interop").start().await;
    caller.finds("interop", 1).await;
    let mut client = Conversation::start("outlives_its_server", caller.outbound("interop"));
    client.finds("works").await;
    drop(program);
    eventually("a closed port", async || {
        tokio::net::TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    client.finds("unavailable").await;
    let _program = serve(&mesh, "server", address, &[]).await;
    client.finds("works").await;
    server.kill().await;
    client.finds("unavailable").await;
    server.restart().await;
    client.finds("works").await;
    client.end().await;
}

#[tokio::test]
async fn no_call_fails_while_a_server_leaves_its_connections_again_and_again() {
    let options = ["grpc.max_connection_age_ms=400", "grpc.max_connection_age_grace_ms=60000"];
    let world = World::before(1, &options, "").await;
    let mut client = Conversation::start("steady", world.caller.outbound("interop"));
    let start = Clock::System.now();
    while Clock::System.now() - start < Duration::from_secs(6) {
        client.finds("a while of calls").await;
    }
    client.end().await;
}

/// A GOAWAY and a call may cross, so there are many of both.
#[tokio::test]
async fn no_call_fails_while_a_node_comes_and_goes() {
    let mut world = World::of(2).await;
    let mut client = Conversation::start("steady", world.caller.outbound("interop"));
    for _ in 0..3 {
        client.finds("a while of calls").await;
        let (goes, _) = &mut world.servers[0];
        goes.terminate();
        client.finds("a while of calls").await;
        assert!(goes.ended().await.success());
        client.finds("a while of calls").await;
        goes.restart().await;
        world.caller.finds("interop", 2).await;
    }
    client.end().await;
}

#[tokio::test]
async fn no_call_fails_while_an_instance_moves() {
    let mesh = Mesh::new();
    let addresses = [mesh.free_address(), mesh.free_address()];
    let _programs =
        [serve(&mesh, "one", addresses[0], &[]).await, serve(&mesh, "two", addresses[1], &[]).await];
    let server = mesh.node("server").serves("interop", addresses[0]).start().await;
    let caller = mesh.node("caller").calls("interop").start().await;
    caller.finds("interop", 1).await;
    let mut client = Conversation::start("steady", caller.outbound("interop"));
    let toml = std::fs::read_to_string(server.config()).expect("a configuration");
    for turn in 1..=8 {
        client.finds("a while of calls").await;
        let (from, to) = (addresses[0].to_string(), addresses[turn % 2].to_string());
        server.configure(&toml.replace(&from, &to));
        server.hang_up();
        eventually("the move", async || {
            (server.log().matches("instance moved").count() == turn).then_some(())
        })
        .await;
    }
    client.finds("a while of calls").await;
    client.end().await;
}
