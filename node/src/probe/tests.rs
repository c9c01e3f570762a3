//! Every kind of question against real sockets and processes, the rude ones included.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::capacity::Capacity;
use crate::config::{Config, Limits};
use crate::proxy::workload::CalledBy;

/// Long enough for a busy machine; nothing waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

fn service(address: &str, probe: &str) -> Service {
    let text = format!("[[service]]\nname = \"web\"\naddress = {address:?}\n[service.probe]\n{probe}\n");
    let none: [(String, String); 0] = [];
    let config = Config::parse(&text, std::path::Path::new("/etc/starling.toml"), none);
    config.expect("a service").services.remove(0)
}

fn workload(service: &Service) -> Arc<Workload> {
    Arc::new(Workload::new(service, &Capacity::new(&Limits::default(), 0).workloads))
}

fn prober(address: &str, probe: &str) -> Prober {
    let workload = workload(&service(address, probe));
    Prober::new(workload, Duration::ZERO, Clock::System, Chance::new(7))
}

async fn ask(address: &str, probe: &str) -> Answer {
    let mut prober = prober(address, probe);
    tokio::time::timeout(PATIENCE, prober.next()).await.expect("an answer")
}

/// A server that says `answer` to whoever connects and waits for the other end to close; tells
/// what it was asked.
async fn server(answer: &'static str) -> (String, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let (told, asked) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = vec![0; 4096];
            let count = stream.read(&mut question).await.unwrap_or(0);
            let _ = stream.write_all(answer.as_bytes()).await;
            // The end of the question is the end of its connection.
            while let Ok(1..) = stream.read(&mut [0; 64]).await {}
            let _ = told.send(String::from_utf8_lossy(&question[..count]).into_owned()).await;
        }
    });
    (address, asked)
}

fn says(answer: Answer, what: &str) {
    let reason = answer.expect_err(what);
    assert!(reason.contains(what), "{reason:?} should say {what:?}");
}

#[tokio::test]
async fn http_asks_once_says_that_it_closes_and_leaves_no_socket() {
    let (address, mut asked) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(ask(&address, "http = \"/healthz\"").await, Ok(()));
    let question = asked.recv().await.expect("closed");
    assert!(question.starts_with("GET /healthz HTTP/1.1\r\n"), "{question}");
    for header in
        [format!("host: {address}"), "connection: close".into(), "user-agent: starling-probe".into()]
    {
        assert!(question.contains(&header), "{question}");
    }
}

#[tokio::test]
async fn http_judges_the_status_and_bounds_what_it_reads() {
    for (answer, what) in [
        ("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "answered 503"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "did not answer in HTTP"),
        ("HTTP/1.1 200 OK\r\n", "no answer within 500ms"),
    ] {
        let (address, _asked) = server(answer).await;
        says(ask(&address, "http = \"/\"").await, what);
    }
    let endless: &str = Box::leak(format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(64 * 1024)).into());
    let (address, _asked) = server(endless).await;
    assert_eq!(ask(&address, "http = \"/\"").await, Ok(()), "a page that does not end has a status");
    let head: &str = Box::leak(format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "x".repeat(64 * 1024)).into());
    let (address, _asked) = server(head).await;
    says(ask(&address, "http = \"/\"").await, "did not answer in HTTP");
}

#[tokio::test]
async fn http_waits_for_the_head_and_not_for_a_body_that_trickles() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n",
        "HTTP/1.0 302 Found\r\nlocation: /login\r\n\r\n",
    ] {
        let (address, _asked) = server(answer).await;
        assert_eq!(ask(&address, "http = \"/\"").await, Ok(()), "{answer}");
        let hasty = "http = \"/\"\ninterval = \"100ms\"\ntimeout = \"80ms\"";
        assert_eq!(ask(&address, hasty).await, Ok(()), "the timeout is about the status");
    }
}

/// Whoever waits for the answer may have something else to do meanwhile.
#[tokio::test]
async fn a_question_goes_on_while_nobody_waits_for_its_answer() {
    let (address, mut asked) = server("").await;
    let mut prober = prober(&address, "http = \"/\"\ntimeout = \"400ms\"");
    let clock = Clock::System;
    let began = clock.now();
    let answer = loop {
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(50), prober.next()).await {
            break answer;
        }
        assert!(clock.now() - began < PATIENCE, "it is asked anew and anew");
    };
    says(answer, "no answer within 400ms");
    assert!(asked.recv().await.is_some(), "and closed");
    assert!(asked.try_recv().is_err(), "one question");
    let _ = tokio::time::timeout(Duration::from_millis(50), prober.next()).await;
    prober.abandon();
}

#[tokio::test]
async fn tcp_is_content_with_an_accepted_connection() {
    let (address, _asked) = server("").await;
    assert_eq!(ask(&address, "tcp = true").await, Ok(()));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("app.sock");
    let unix = format!("unix:{}", path.display());
    says(ask(&unix, "tcp = true").await, "does not accept");
    let _listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    assert_eq!(ask(&unix, "tcp = true").await, Ok(()));
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address");
    says(ask(&free.to_string(), "tcp = true").await, "does not accept");
}

#[tokio::test]
async fn grpc_says_what_it_was_told_by_one_that_speaks_something_else() {
    let (address, _asked) = server("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
    says(ask(&address, "grpc = true").await, "did not answer in HTTP/2");
    let (address, mut asked) = server("").await;
    says(ask(&address, "grpc = \"shop.Cart\"").await, "no answer within");
    assert!(asked.recv().await.expect("closed").starts_with("PRI * HTTP/2.0"), "and nothing is left open");
}

/// However long a server takes, one connection waits for it at a time.
#[tokio::test]
async fn a_server_that_never_answers_costs_one_connection() {
    for probe in ["http = \"/\"", "grpc = true"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (opened, peak) = (open.clone(), most.clone());
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                peak.fetch_max(opened.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let opened = opened.clone();
                tokio::spawn(async move {
                    while let Ok(1..) = stream.read(&mut [0; 1024]).await {}
                    opened.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        let mut prober = prober(&address, &format!("{probe}\ninterval = \"100ms\"\ntimeout = \"50ms\""));
        for _ in 0..5 {
            says(prober.next().await, "no answer within 50ms");
        }
        assert_eq!(most.load(Ordering::SeqCst), 1, "{probe}");
        serving.abort();
    }
}

/// A program in a file of its own.
fn script(directory: &tempfile::TempDir, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.path().join("check");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

async fn run(text: &str) -> Answer {
    let directory = tempfile::tempdir().expect("a directory");
    let path = script(&directory, text);
    ask("127.0.0.1:9", &format!("exec = [{path:?}, \"one\"]\ntimeout = \"1s\"")).await
}

#[tokio::test]
async fn exec_judges_the_exit_code_and_tells_the_program_whom_to_ask() {
    assert_eq!(run("exit 0").await, Ok(()));
    says(run("exit 3").await, "exit status: 3");
    says(run("echo first >&2; echo 'no disk' >&2; exit 1").await, "ended with exit status: 1: no disk");
    let asks = "[ \"$STARLING_SERVICE $STARLING_ADDRESS $1\" = 'web 127.0.0.1:9 one' ] && ! read line";
    assert_eq!(run(asks).await, Ok(()), "and standard input is empty");
    says(ask("127.0.0.1:9", "exec = [\"/nowhere/check\"]").await, "/nowhere/check cannot be started");
    assert_eq!(ask("127.0.0.1:9", "exec = [\"true\"]").await, Ok(()), "a bare name is found on PATH");
}

#[tokio::test]
async fn exec_is_not_stopped_by_its_own_output() {
    assert_eq!(run("head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2").await, Ok(()));
}

fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // A killed process stays as a zombie until its parent looks.
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Runs a script that leaves its grandchild's number in a file; says whether that still runs.
async fn grandchild_outlives(text: &str, expected: &str) -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pid");
    let path = script(&directory, &format!("sleep 1000 &\necho $! > {}\n{text}", file.display()));
    let answer = ask("127.0.0.1:9", &format!("exec = [{path:?}]\ntimeout = \"500ms\"")).await;
    match expected {
        "" => assert_eq!(answer, Ok(())),
        what => says(answer, what),
    }
    let pid = std::fs::read_to_string(&file).expect("it has begun");
    for _ in 0..100 {
        if !is_running(&pid) {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

#[tokio::test]
async fn exec_leaves_no_process_behind() {
    assert!(!grandchild_outlives("sleep 1000", "no answer within 500ms").await, "after its timeout");
    assert!(!grandchild_outlives("exit 0", "").await, "after its exit, although a child holds its output");
}

#[tokio::test]
async fn a_probe_that_is_off_passes_once() {
    let mut prober = prober("127.0.0.1:9", "off = true");
    assert_eq!(prober.next().await, Ok(()));
    let again = tokio::time::timeout(Duration::from_millis(50), prober.next()).await;
    assert!(again.is_err(), "and is not asked again");
}

#[tokio::test]
async fn a_call_that_cannot_connect_is_an_answer_and_brings_the_next_question_forward() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let workload = workload(&service(&address, "tcp = true\ninterval = \"10m\""));
    let mut prober = Prober::new(workload.clone(), Duration::ZERO, Clock::System, Chance::new(7));
    assert_eq!(prober.next().await, Ok(()));
    drop(listener);
    let call = async {
        tokio::task::yield_now().await;
        let peer = "spiffe://acme/svc/web".parse().expect("an identity");
        let caller = CalledBy { peer: &peer, from: ([127, 0, 0, 1], 7400).into() };
        workload.upstream.connector().open(caller).await.is_err()
    };
    let (answer, refused) = tokio::time::timeout(PATIENCE, async { tokio::join!(prober.next(), call) })
        .await
        .expect("long before ten minutes");
    assert!(refused);
    says(answer, "does not accept");
    let own = tokio::time::timeout(PATIENCE, prober.next()).await.expect("at once");
    says(own, "does not accept");
}

/// A connection is not taken for one more than it is: the workload sees its end.
#[tokio::test]
async fn a_connection_ends_with_its_question() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let accepted = async {
        let (mut stream, _): (TcpStream, _) = listener.accept().await.expect("accepted");
        stream.read(&mut [0; 8]).await
    };
    let (answer, end) = tokio::join!(ask(&address, "tcp = true"), accepted);
    assert_eq!((answer, end.expect("a clean end")), (Ok(()), 0));
}
