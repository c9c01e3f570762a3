//! TCP transfers that are cut short, whoever cuts them: no end of a program's connection ever looks like
//! the other program's own. And those that are not, though the way under them changes.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::SockRef;
use starling_tests::workload::{Tcp, read_to_end, sized_bytes};
use starling_tests::{Mesh, Node, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

/// Every connection that the workload sees is a client's: nobody probes it.
const TCP: &str = "protocol = \"tcp\"\n[service.probe]\noff = true";

/// More than all that lies between client and workload can hold.
const BEGUN_BYTES: usize = 8 * 1024 * 1024;

/// How a connection ended for one program.
type Ended = std::io::Result<()>;

/// Who talks for as long as it can; the other one only listens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Talks {
    Both,
    Client,
    Workload,
}

struct World {
    talks: Talks,
    /// Whoever has heard enough.
    begun: mpsc::UnboundedSender<()>,
    begins: mpsc::UnboundedReceiver<()>,
    /// How the workload's connections ended.
    ended: mpsc::UnboundedReceiver<Ended>,
    _workload: Tcp,
    server: Node,
    caller: Node,
    _mesh: Mesh,
}

impl World {
    /// `db` behind one node, called by another; both may take so long to stop.
    async fn new(talks: Talks, drain_timeout: &str) -> Self {
        let mesh = Mesh::new();
        let (begun, begins) = mpsc::unbounded_channel();
        let (told, ended) = mpsc::unbounded_channel();
        let hears = begun.clone();
        let workload = Tcp::start(mesh.ip(), move |stream| {
            let (told, begun) = (told.clone(), hears.clone());
            async move {
                let _ = told.send(talk(stream, talks != Talks::Client, begun).await);
            }
        })
        .await;
        let server = mesh.node("server").serves_as("db", workload.address(), TCP);
        let server = server.drain_timeout(drain_timeout).start().await;
        let caller = mesh.node("caller").calls("db").drain_timeout(drain_timeout).start().await;
        caller.finds("db", 1).await;
        Self { talks, begun, begins, ended, _workload: workload, server, caller, _mesh: mesh }
    }

    /// A client in the midst of a transfer.
    async fn client(&mut self) -> JoinHandle<Ended> {
        let stream = TcpStream::connect(self.caller.outbound("db")).await.expect("the fixed port accepts");
        let client = tokio::spawn(talk(stream, self.talks != Talks::Workload, self.begun.clone()));
        within("bytes to flow", self.begins.recv()).await.expect("told");
        client
    }

    async fn workloads_end(&mut self) -> Ended {
        within("the workload's connection to end", self.ended.recv()).await.expect("told")
    }
}

/// Listens to the end, as a program does that waits for an answer, and if it `says` anything talks until
/// nobody listens. Tells when enough has been heard.
async fn talk(stream: TcpStream, says: bool, begun: mpsc::UnboundedSender<()>) -> Ended {
    let (mut from, mut to) = stream.into_split();
    let (fails, mut failure) = oneshot::channel();
    let saying = tokio::spawn(async move {
        let bytes = vec![7; 64 * 1024];
        if says {
            let error = loop {
                if let Err(error) = to.write_all(&bytes).await {
                    break error;
                }
            };
            let _ = fails.send(error);
        }
        // No end of its own.
        std::future::pending::<()>().await;
    });
    let (mut buffer, mut heard, mut begun) = (vec![0; 64 * 1024], 0, Some(begun));
    let ended = loop {
        match from.read(&mut buffer).await {
            // The kernel tells of a reset once, to whoever asks first; the other then finds an end. One that comes
            // after a proper end has another name (EPIPE).
            Ok(0) => match failure.try_recv() {
                Ok(error) if error.kind() == ErrorKind::ConnectionReset => break Err(error),
                _ => break Ok(()),
            },
            Ok(count) => heard += count,
            Err(error) => break Err(error),
        }
        if heard > BEGUN_BYTES
            && let Some(begun) = begun.take()
        {
            let _ = begun.send(());
        }
    };
    saying.abort();
    ended
}

#[track_caller]
fn assert_reset(what: &str, ended: &Ended) {
    let is_reset =
        |error: &std::io::Error| matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
    assert!(ended.as_ref().is_err_and(is_reset), "{what}: {ended:?}");
}

async fn heard(client: JoinHandle<Ended>) -> Ended {
    within("the client's connection to end", client).await.expect("no panic")
}

#[tokio::test]
async fn a_killed_sidecar_of_the_caller_resets_its_client() {
    let mut world = World::new(Talks::Workload, "30s").await;
    let client = world.client().await;
    world.caller.kill().await;
    assert_reset("the client", &heard(client).await);
}

#[tokio::test]
async fn a_killed_sidecar_of_the_callee_resets_its_workload() {
    let mut world = World::new(Talks::Client, "30s").await;
    let _client = world.client().await;
    world.server.kill().await;
    assert_reset("the workload", &world.workloads_end().await);
}

#[tokio::test]
async fn a_caller_that_stops_before_a_transfer_has_ended_resets_both_ends() {
    let mut world = World::new(Talks::Workload, "1s").await;
    let client = world.client().await;
    world.caller.terminate();
    assert_reset("the client", &heard(client).await);
    assert_reset("the workload", &world.workloads_end().await);
}

#[tokio::test]
async fn a_callee_that_stops_before_a_transfer_has_ended_resets_both_ends() {
    let mut world = World::new(Talks::Client, "1s").await;
    let client = world.client().await;
    world.server.terminate();
    assert_reset("the workload", &world.workloads_end().await);
    assert_reset("the client", &heard(client).await);
}

#[tokio::test]
async fn a_restarted_callee_resets_the_clients_of_its_former_life() {
    let mut world = World::new(Talks::Both, "30s").await;
    let client = world.client().await;
    world.server.kill().await;
    world.server.restart().await;
    // Long before the mesh connection is given up for want of packets: the next life says that it knows nothing.
    let ended = tokio::time::timeout(Duration::from_secs(20), client).await.expect("in time");
    assert_reset("the client", &ended.expect("no panic"));
}

#[tokio::test]
async fn a_client_that_is_let_in_no_longer_is_reset_in_mid_transfer() {
    let mut world = World::new(Talks::Both, "30s").await;
    let client = world.client().await;
    let toml = fs::read_to_string(world.server.config()).expect("a configuration");
    let shut = toml.replace("protocol = \"tcp\"", "protocol = \"tcp\"\nallow = []");
    assert_ne!(toml, shut);
    world.server.configure(&shut);
    world.server.hang_up();
    assert_reset("the client", &heard(client).await);
    assert_reset("the workload", &world.workloads_end().await);
}

#[tokio::test]
async fn a_clients_reset_in_mid_transfer_reaches_the_workload_as_one() {
    let mut world = World::new(Talks::Both, "30s").await;
    let mut stream = TcpStream::connect(world.caller.outbound("db")).await.expect("accepted");
    stream.write_all(&vec![7; 256 * 1024]).await.expect("written");
    within("bytes", stream.read_exact(&mut vec![0; 256 * 1024])).await.expect("read");
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a reset at close");
    drop(stream);
    assert_reset("the workload", &world.workloads_end().await);
}

#[tokio::test]
async fn a_servers_reset_in_mid_transfer_reaches_the_client_as_one() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        stream.write_all(&vec![7; 256 * 1024]).await.expect("written");
        stream.read_exact(&mut vec![0; 256 * 1024]).await.expect("read");
        SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a reset at close");
    })
    .await;
    let _server = mesh.node("server").serves_as("db", workload.address(), TCP).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    let stream = TcpStream::connect(caller.outbound("db")).await.expect("accepted");
    assert_reset("the client", &within("the end", talk(stream, true, mpsc::unbounded_channel().0)).await);
}

/// A client that ended its half and whose server is not ready yet waits on, without taking the end
/// of the one half for that of the other.
#[tokio::test]
async fn an_answer_that_is_long_in_coming_follows_a_clients_end() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |mut stream| {
        let heard = read_to_end(&mut stream).await.expect("the client's end");
        tokio::time::sleep(Duration::from_secs(3)).await;
        stream.write_all(&heard).await.expect("answered");
    })
    .await;
    let _server = mesh.node("server").serves_as("db", workload.address(), TCP).start().await;
    let caller = mesh.node("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    let mut client = TcpStream::connect(caller.outbound("db")).await.expect("accepted");
    let said = sized_bytes(BEGUN_BYTES);
    client.write_all(&said).await.expect("written");
    client.shutdown().await.expect("half closed");
    assert!(read_to_end(&mut client).await.expect("a clean end") == said, "other bytes");
}

/// A way in front of a node whose far end may get another port at any time, as behind a NAT that forgets.
struct Relay {
    found: SocketAddr,
    generation: Arc<AtomicUsize>,
    relaying: JoinHandle<()>,
}

impl Relay {
    async fn start(found: SocketAddr, node: SocketAddr) -> Self {
        let socket = Arc::new(UdpSocket::bind(found).await.expect("an address of the test's own"));
        let generation = Arc::new(AtomicUsize::new(0));
        let relaying = tokio::spawn(relay(socket, node, generation.clone()));
        Self { found, generation, relaying }
    }

    fn rebind(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.relaying.abort();
    }
}

async fn relay(socket: Arc<UdpSocket>, node: SocketAddr, generation: Arc<AtomicUsize>) {
    let (mut towards, mut since) = (BTreeMap::new(), 0);
    let mut answers = tokio::task::JoinSet::new();
    let mut buffer = vec![0; 65_535];
    loop {
        // An error is of an earlier datagram, to a node that has ended.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let now = generation.load(Ordering::Relaxed);
        if now != since {
            // What comes to the ports of before is lost.
            answers.abort_all();
            (towards, since) = (BTreeMap::new(), now);
        }
        let far = match towards.get(&peer) {
            Some(far) => Arc::clone(far),
            None => {
                let far = Arc::new(UdpSocket::bind((node.ip(), 0)).await.expect("a port"));
                answers.spawn(answer(far.clone(), socket.clone(), peer));
                towards.insert(peer, far.clone());
                far
            }
        };
        let _ = far.send_to(&buffer[..length], node).await;
    }
}

async fn answer(far: Arc<UdpSocket>, near: Arc<UdpSocket>, peer: SocketAddr) {
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok((length, _)) = far.recv_from(&mut buffer).await else { continue };
        let _ = near.send_to(&buffer[..length], peer).await;
    }
}

#[tokio::test]
async fn a_transfer_goes_on_when_the_address_of_the_other_node_changes() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |stream| {
        let (mut from, mut to) = stream.into_split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    // Whichever of them dialled, it did through a relay.
    let mut relays = Vec::new();
    let mut places = Vec::new();
    for _ in 0..2 {
        let (found, listens) = (mesh.free_address(), mesh.free_address());
        relays.push(Relay::start(found, listens).await);
        places.push(listens);
    }
    let describe = |name: &str, relay: &Relay| {
        let node = mesh.node(name).environment("STARLING_NODE__ADVERTISE", &relay.found.to_string());
        node.seeds(&[relays[0].found])
    };
    let server = describe("server", &relays[0]).serves_as("db", workload.address(), TCP);
    let _server = server.start_at(places[0]).await;
    let caller = describe("caller", &relays[1]).calls("db").start_at(places[1]).await;
    caller.finds("db", 1).await;

    let client = TcpStream::connect(caller.outbound("db")).await.expect("accepted");
    let (mut from, mut to) = client.into_split();
    let (round, rounds) = (sized_bytes(1024 * 1024), 6);
    for number in 0..rounds {
        let sending = async {
            to.write_all(&round).await.expect("written");
        };
        let hearing = async {
            let mut heard = vec![0; round.len()];
            from.read_exact(&mut heard).await.expect("heard");
            heard
        };
        let ((), heard) = within("a round", async { tokio::join!(sending, hearing) }).await;
        assert!(heard == round, "other bytes in round {number}");
        relays.iter().for_each(Relay::rebind);
    }
    to.shutdown().await.expect("half closed");
    assert_eq!(read_to_end(&mut from).await.expect("a clean end"), b"");
}

#[tokio::test]
async fn nodes_of_several_workers_carry_every_byte_too() {
    let mesh = Mesh::new();
    let workload = Tcp::start(mesh.ip(), async |stream| {
        let (mut from, mut to) = stream.into_split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    let workers = |name: &str| mesh.node(name).environment("STARLING_NODE__WORKERS", "3");
    let server = workers("server").serves_as("db", workload.address(), TCP).start().await;
    let caller = workers("caller").calls("db").start().await;
    caller.finds("db", 1).await;
    for node in [&server, &caller] {
        let threads = fs::read_dir(format!("/proc/{}/task", node.pid().as_raw_nonzero())).expect("threads");
        assert!(threads.count() > 3, "{} has fewer threads than workers", node.name());
    }
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let address = caller.outbound("db");
        clients.spawn(async move {
            let (mut from, mut to) = TcpStream::connect(address).await.expect("accepted").into_split();
            let said = sized_bytes(4 * 1024 * 1024);
            let sending = tokio::spawn(async move {
                to.write_all(&sized_bytes(4 * 1024 * 1024)).await.expect("written");
                to.shutdown().await.expect("half closed");
            });
            assert!(read_to_end(&mut from).await.expect("a clean end") == said, "other bytes");
            sending.await.expect("sent");
        });
    }
    within("every client", clients.join_all()).await;
}
