//! WebSockets, by a fixed port and by name.

use std::net::SocketAddr;

use starling_tests::{Mesh, Node, Program};

use crate::{PYTHON, must_hold, script};

const SCRIPT: &str = "websocket_peer.py";

struct World {
    caller: Node,
    _server: Node,
    _program: Program,
    _mesh: Mesh,
}

impl World {
    async fn new() -> Self {
        let (mesh, script) = (Mesh::new(), script(SCRIPT));
        let address = mesh.free_address();
        let directory = mesh.directory().join("program");
        std::fs::create_dir_all(&directory).expect("a directory");
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let program = Program::start(PYTHON, &directory, address, [&script, "serve", &host, &port]).await;
        let server = mesh.node("server").serves("chat", address).start().await;
        let caller = mesh.node("caller").calls("chat").start().await;
        caller.finds("chat", 1).await;
        Self { caller, _server: server, _program: program, _mesh: mesh }
    }

    /// Plays these cases by a fixed port and by name.
    async fn play(&self, cases: &[&str]) {
        call(self.caller.outbound("chat"), "", cases).await;
        call(self.caller.http_proxy(), "chat.mesh", cases).await;
    }
}

/// Plays these cases, and gives what they printed.
async fn call(proxy: SocketAddr, authority: &str, cases: &[&str]) -> String {
    let (host, port) = (proxy.ip().to_string(), proxy.port().to_string());
    let arguments = ["call", &host, &port, authority].into_iter().chain(cases.iter().copied());
    must_hold(SCRIPT, arguments, &[]).await.out
}

#[tokio::test]
async fn messages_of_any_size_come_back_as_they_were() {
    World::new().await.play(&["text_and_binary", "large_messages", "many_messages", "many_sockets"]).await;
}

#[tokio::test]
async fn fragments_pings_and_a_server_that_speaks_first() {
    World::new().await.play(&["fragments", "pings", "server_first"]).await;
}

#[tokio::test]
async fn a_close_carries_its_code_and_its_reason_both_ways_and_an_abort_is_none() {
    World::new().await.play(&["close_of_the_client", "close_of_the_server", "an_abort_is_no_close"]).await;
}

#[tokio::test]
async fn what_is_negotiated_is_between_the_two() {
    World::new().await.play(&["negotiation", "deflate", "refused_by_the_server"]).await;
}

#[tokio::test]
async fn a_socket_that_the_mesh_refuses_says_so() {
    let world = World::new().await;
    let said = call(world.caller.http_proxy(), "ghost.mesh", &["refused_by_the_mesh"]).await;
    assert_eq!(said, "404 NR\n");
}
