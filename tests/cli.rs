//! The command line: what it prints for people and for programs, and how it ends.

use std::ffi::OsStr;
use std::path::Path;

use serde_json::Value;
use starling_tests::workload::Http;
use starling_tests::{Directory, Finished, Mesh, starling, starling_in};

async fn check(directory: &Directory, environment: &[(&str, &str)], more: &[&str]) -> Finished {
    let arguments = ["check", "--config", "starling.toml"].iter().chain(more);
    starling_in(directory.path(), environment, arguments.copied().map(OsStr::new)).await
}

/// A directory with an identity for `web`, made by the command line itself.
async fn with_identity() -> Directory {
    let directory = Directory::new();
    let run = async |arguments: &[&str]| {
        let finished = starling_in(directory.path(), &[], arguments.iter().map(OsStr::new)).await;
        assert_eq!(finished.code, 0, "{finished:?}");
        finished.json()
    };
    let root = run(&["ca", "init", "--trust-domain", "acme", "--out", ".", "-o", "json"]).await;
    assert_eq!((&root["trust_domain"], &root["certificate"]), (&"acme".into(), &"./ca.crt".into()));
    let id = "spiffe://acme/svc/web";
    let leaf = run(&["ca", "issue", "--ca", ".", "--id", id, "--out", "tls", "-o", "json"]).await;
    assert_eq!((&leaf["id"], &leaf["key"]), (&id.into(), &"tls.key".into()));
    assert!(leaf["not_after_unix_millis"].is_u64());
    directory
}

const SMALLEST: &str =
    "[mesh]\nseeds = [\"seed.example:7400\"]\n[[service]]\nname = \"web\"\naddress = \"127.0.0.1:8080\"\n";

#[tokio::test]
async fn an_identity_goes_into_a_directory_that_is_not_there_yet() {
    let directory = with_identity().await;
    let issue = async |out: &str| {
        let arguments = ["ca", "issue", "--ca", ".", "--id", "spiffe://acme/svc/web", "--out", out];
        starling_in(directory.path(), &[], arguments.iter().map(OsStr::new)).await
    };
    let made = issue("web/new/tls").await;
    assert_eq!(made.code, 0, "{made:?}");
    assert!(directory.path().join("web/new/tls.key").exists());
    let in_the_way = issue("ca.crt/tls").await;
    assert_eq!(in_the_way.code, 1, "{in_the_way:?}");
    assert!(in_the_way.err.contains("ca.crt cannot be made; name another --out"), "{}", in_the_way.err);
}

#[tokio::test]
async fn a_right_configuration_is_exit_code_0_and_a_summary() {
    let directory = with_identity().await;
    directory.write("starling.toml", SMALLEST);
    let text = check(&directory, &[("STARLING_NODE__NAME", "web-1")], &[]).await;
    assert_eq!((text.code, text.err.as_str()), (0, ""));
    assert!(text.out.starts_with("config ok: node web-1 (spiffe://acme/svc/web), 1 service"), "{}", text.out);
    let json = check(&directory, &[("STARLING_NODE__NAME", "web-1")], &["-o", "json"]).await;
    assert_eq!(json.code, 0);
    let json = json.json();
    assert_eq!((&json["ok"], &json["node"], &json["seeds"]), (&true.into(), &"web-1".into(), &1.into()));
    assert_eq!(json["services"][0]["address"], "127.0.0.1:8080");
}

#[tokio::test]
async fn a_summary_says_who_may_call() {
    let directory = with_identity().await;
    let service = "[[service]]\nname = \"web\"\naddress = \"127.0.0.1:8080\"\n";
    let several = "allow = [\"spiffe://acme/ns/shop/sa/cart\", \"spiffe://acme/ns/shop/*\"]\n";
    directory.write("starling.toml", format!("{service}{service}{several}{service}allow = []\n"));
    let text = check(&directory, &[], &[]).await;
    assert_eq!(text.code, 0, "{text:?}");
    for told in [
        "accepts any identity of acme\n",
        "accepts spiffe://acme/ns/shop/sa/cart, spiffe://acme/ns/shop/*\n",
        "accepts nobody (allow is empty)\n",
        "note: service web: spiffe://acme/ns/shop/sa/cart in allow changes nothing",
    ] {
        assert!(text.out.contains(told), "{told}\nis not in\n{}", text.out);
    }
    let json = check(&directory, &[], &["-o", "json"]).await.json();
    let accepts: Vec<_> = (0..3).map(|index| json["services"][index]["accepts"].as_str()).collect();
    assert_eq!(accepts, [Some("any"), Some("listed"), Some("nobody")]);
    assert_eq!(json["services"][1]["allow"][1], "spiffe://acme/ns/shop/*");
    assert_eq!(json["notes"].as_array().map(Vec::len), Some(1), "{json}");
}

#[tokio::test]
async fn every_mistake_is_told_at_once_with_its_line_and_what_is_right() {
    let directory = with_identity().await;
    directory.write(
        "starling.toml",
        "[node]\nnaem = \"web-1\"\n[[service]]\nname = \"web\"\naddress = \"127.0.0.1\"\nweight = 5000\n\
         [gossip]\nrenew = \"fast\"\n",
    );
    let text = check(&directory, &[], &[]).await;
    assert_eq!((text.code, text.out.as_str()), (2, ""));
    for told in [
        "starling.toml:2:1: node.naem\n    unknown key \"naem\"\n    help: did you mean \"name\"?",
        "starling.toml:5:",
        "service[0].address",
        "starling.toml:6:",
        "service[0].weight",
        "starling.toml:8:",
        "gossip.renew",
        "4 mistakes in the configuration",
    ] {
        assert!(text.err.contains(told), "{told}\nis not in\n{}", text.err);
    }
    assert_eq!(text.err.matches("\n    help: ").count(), 4, "each says what would be right:\n{}", text.err);

    let json = check(&directory, &[], &["-o", "json"]).await;
    assert_eq!((json.code, json.err.as_str()), (2, ""));
    let json = json.json();
    let mistakes = json["mistakes"].as_array().or(json["errors"].as_array()).expect("a list of mistakes");
    let lines: Vec<_> = mistakes.iter().map(|mistake| mistake["line"].as_u64()).collect();
    assert_eq!(lines, [Some(2), Some(5), Some(6), Some(8)]);
    for mistake in mistakes {
        for field in ["file", "key", "problem", "suggestion"] {
            assert!(mistake[field].is_string(), "{field} of {mistake}");
        }
    }
}

#[tokio::test]
async fn a_configuration_is_printed_as_it_counts_and_reads_back_the_same() {
    let directory = with_identity().await;
    directory.write("starling.toml", SMALLEST);
    let variables = [("STARLING_NODE__NAME", "web-1"), ("STARLING_LIMITS__ATTEMPTS_MAX", "2")];
    let print = async |file: &str, environment: &[(&str, &str)], more: &[&str]| {
        let arguments = ["config", "print", "--effective", "--config", file];
        let arguments = arguments.iter().chain(more).copied().map(OsStr::new);
        starling_in(directory.path(), environment, arguments).await
    };
    let first = print("starling.toml", &variables, &[]).await;
    assert_eq!((first.code, first.err.as_str()), (0, ""));
    assert!(first.out.contains("attempts_max = 2  # STARLING_LIMITS__ATTEMPTS_MAX"), "{}", first.out);
    let certificate = directory.path().join("tls.crt");
    assert!(first.out.contains(&format!("certificate = {certificate:?}")), "{}", first.out);
    let json = print("starling.toml", &variables, &["-o", "json"]).await.json();

    // Elsewhere, without the variables: the text alone says everything.
    std::fs::create_dir(directory.path().join("elsewhere")).expect("a directory");
    directory.write("elsewhere/printed.toml", &first.out);
    let again = print("elsewhere/printed.toml", &[], &["-o", "json"]).await.json();
    assert_eq!(again["config"], json["config"]);
    let checked = starling_in(directory.path(), &[], ["check", "--config", "elsewhere/printed.toml"]).await;
    assert_eq!(checked.code, 0, "{checked:?}");

    let schema = starling(["config", "schema"]).await.json();
    assert_eq!(schema["properties"]["limits"]["properties"]["attempts_max"]["maximum"], 10);
    directory.write("starling.toml", "[nod]");
    assert_eq!(print("starling.toml", &[], &[]).await.code, 2);
}

#[tokio::test]
async fn run_refuses_what_check_refuses() {
    let directory = with_identity().await;
    directory.write("starling.toml", "[node]\nlisten = 7\n");
    let arguments = ["run", "--config", "starling.toml"];
    let finished = starling_in(directory.path(), &[], arguments).await;
    assert_eq!(finished.code, 2, "{finished:?}");
    let missing = starling(["run", "--config", "/nowhere/starling.toml"]).await;
    assert_eq!(missing.code, 2);
    assert!(
        missing.err.contains("/nowhere/starling.toml") && missing.err.contains("help: "),
        "{}",
        missing.err
    );
}

#[tokio::test]
async fn a_port_that_is_taken_is_exit_code_1_and_named() {
    let mesh = Mesh::new();
    let node = mesh.node("first").start().await;
    let config = node.directory().join("starling.toml");
    let finished = starling(["run".as_ref(), "--config".as_ref(), config.as_os_str()]).await;
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.err.contains(&node.listen().to_string()), "{}", finished.err);
    assert_eq!(node.admin().get("/ready").await.status, 200, "the first one runs on");
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2() {
    for arguments in [&["members", "--nope"][..], &["flock"], &["run"], &["ca", "issue", "--id", "web"], &[]]
    {
        let finished = starling(arguments).await;
        assert_eq!((finished.code, finished.out.as_str()), (2, ""), "{arguments:?}");
        assert!(finished.err.contains("--help") || finished.err.contains("Usage: "), "{}", finished.err);
    }
    let version = starling(["version", "-o", "json"]).await;
    assert_eq!((version.code, version.json()["version"].is_string()), (0, true));
    let completions = starling(["completions", "bash"]).await;
    assert!(completions.code == 0 && completions.out.contains("_starling"));
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_exit_code_1_and_says_where_it_was_asked() {
    let mesh = Mesh::new();
    let nobody = mesh.free_address().to_string();
    let text = starling(["members", "--admin", &nobody]).await;
    assert_eq!((text.code, text.out.as_str()), (1, ""));
    assert!(text.err.contains(&nobody) && text.err.contains("--admin"), "{}", text.err);
    let json = starling(["members", "--admin", &nobody, "-o", "json"]).await;
    assert_eq!((json.code, &json.json()["ok"]), (1, &false.into()));
    assert!(json.json()["error"].is_string());
}

#[tokio::test]
async fn what_a_node_refuses_is_told_in_its_words() {
    let mesh = Mesh::new();
    let node = mesh.node("node").start().await;
    let port = node.admin().address().to_string();
    let nowhere = starling(["routes", "nobody", "--admin", &port, "-o", "json"]).await;
    assert_eq!((nowhere.code, &nowhere.json()["ok"]), (1, &false.into()));

    let socket = format!("unix:{}", node.socket().display());
    let good = std::fs::read_to_string(node.config()).expect("a configuration");
    node.configure(&format!("{good}\n[nonsense]\n"));
    let text = starling(["reload", "--admin", &socket]).await;
    assert_eq!(text.code, 2, "{}", text.err);
    assert!(text.err.contains("nonsense"), "{}", text.err);
    let json = starling(["reload", "--admin", &socket, "-o", "json"]).await;
    assert_eq!((json.code, &json.json()["ok"]), (2, &false.into()));
    assert!(json.out.contains("nonsense") && json.json()["error"].is_string(), "{}", json.out);
}

#[tokio::test]
async fn members_services_and_routes_are_tables_or_json() {
    let mesh = Mesh::new();
    let workload = Http::start(mesh.ip(), "web").await;
    let server = mesh.node("server").serves("web", workload.address()).start().await;
    let caller = mesh.node("caller").start().await;
    caller.finds("web", 1).await;
    let admin = caller.admin().address().to_string();
    let ask = async |arguments: &[&str]| {
        let all = arguments.iter().copied().chain(["--admin", &admin]);
        let finished = starling(all).await;
        assert_eq!((finished.code, finished.err.as_str()), (0, ""), "{arguments:?}");
        finished
    };
    let members = ask(&["members"]).await.out;
    let columns: Vec<_> = members.lines().next().expect("titles").split_whitespace().collect();
    assert_eq!(columns, ["NODE", "STATE", "ADDRESS", "LOCALITY", "RENEWED", "RTT", "GOSSIP", "IDENTITY"]);
    let nodes: Vec<_> = members.lines().skip(1).filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(nodes, ["caller", "server"]);
    assert!(members.contains(&server.listen().to_string()), "{members}");

    let wide = ask(&["members", "--wide"]).await.out;
    assert!(wide.starts_with("NODE") && wide.contains("INCARNATION"), "{wide}");
    let converged = ask(&["members", "--converged"]).await.out;
    assert!(converged.contains("know what this node knows") && converged.lines().count() <= 2, "{converged}");
    let json = ask(&["members", "--converged", "-o", "json"]).await.json();
    let told = caller.admin().get("/v1/convergence").await.json;
    assert_eq!(keys(&json), keys(&told), "the same as the admin API");

    let services = ask(&["services"]).await.out;
    assert!(services.starts_with("SERVICE") && services.contains("healthy"), "{services}");
    let routes = ask(&["routes", "web"]).await.out;
    assert!(routes.starts_with("SERVICE") && routes.contains("100%"), "{routes}");

    for (command, field) in [("members", "node"), ("services", "instances"), ("routes", "candidates")] {
        let json = ask(&[command, "-o", "json"]).await.json();
        let told = caller.admin().get(&format!("/v1/{command}")).await.json;
        assert!(json[0].get(field).is_some(), "{json}");
        assert_eq!(keys(&json[0]), keys(&told[0]), "the same as the admin API");
    }
    let ghost = starling(["routes", "ghost", "--admin", &admin]).await;
    assert_eq!(ghost.code, 1);
    assert!(ghost.err.contains("404"), "{}", ghost.err);
}

#[tokio::test]
async fn drain_needs_the_socket_and_ends_the_node() {
    let mesh = Mesh::new();
    let mut node = mesh.node("node").start().await;
    let refused = starling(["drain", "--admin", &node.admin().address().to_string()]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("403") && refused.err.contains("admin socket"), "{}", refused.err);
    let socket = format!("unix:{}", node.socket().display());
    let done = starling(["drain", "--admin", &socket]).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(node.ended().await.code(), Some(0));
    assert!(!Path::new(&node.socket()).exists());
}

fn keys(value: &Value) -> Vec<&String> {
    value.as_object().expect("an object").keys().collect()
}
