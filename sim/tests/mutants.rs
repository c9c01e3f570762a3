//! The checks find a broken product: each mutant is the product with one line made wrong, and some
//! scenario must fail because of it, for the right reason. And a constant of gossip that is changed
//! changes the run: the simulator has no protocol of its own.
//!
//! The whole workspace is copied beside its build directory, mutated, built and run, so what is
//! tested is what would have been shipped. It takes minutes: `--features mutants`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// One line of the product made wrong.
struct Mutant {
    /// What is wrong then.
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    /// The scenario that must notice.
    scenario: &'static str,
    /// What it must say.
    caught: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        what: "leases never end",
        file: "gossip/src/known.rs",
        right: "Duration::from_millis(self.node.lease.length_millis.into())",
        wrong: "Duration::from_millis(self.node.lease.length_millis.into()) * 1000",
        scenario: "converge",
        caught: "still believes in",
    },
    Mutant {
        what: "leases end at half their length",
        file: "gossip/src/known.rs",
        right: "Duration::from_millis(self.node.lease.length_millis.into())",
        wrong: "Duration::from_millis(self.node.lease.length_millis.into()) / 2",
        scenario: "converge",
        caught: "gave up before its lease ended",
    },
    Mutant {
        what: "a doubt is as good as the end of a lease",
        file: "gossip/src/known.rs",
        right: "if is_suspect { Presence::Suspect } else { Presence::Alive }",
        wrong: "if is_suspect { Presence::Expired } else { Presence::Alive }",
        scenario: "converge",
        caught: "gave up without a doubt",
    },
    Mutant {
        what: "only equal versions are old",
        file: "gossip/src/catalogue.rs",
        right: "is_some_and(|held| held.version >= record.version)",
        wrong: "is_some_and(|held| held.version == record.version)",
        scenario: "hostile-replay",
        caught: "went back in time about the instance of",
    },
    Mutant {
        what: "instances are believed without a signature",
        file: "gossip/src/catalogue.rs",
        right: "if !sealed.is_signed_by(&known.key, &self.bundle) {",
        wrong: "if false {",
        scenario: "hostile-forge",
        caught: "safety",
    },
    Mutant {
        what: "an accusation is obeyed: nobody asks who signed that a node has left",
        file: "gossip/src/catalogue.rs",
        right: "if !sealed.is_signed_by(&key, &self.bundle) {",
        wrong: "if false {",
        scenario: "hostile-accuse",
        caught: "safety",
    },
    Mutant {
        what: "renewals prove nothing",
        file: "gossip/src/lease.rs",
        right: "(hash_times(renewal.link, ahead) == self.link)",
        wrong: "(ahead > 0)",
        scenario: "hostile-forge",
        // Forged renewals are believed, and the living's true ones are behind them: all leases run out, and nobody
        // is known again.
        caught: "progress: equal catalogues and routes",
    },
];

/// A copy of the workspace, to be mutated.
struct Copy(PathBuf);

impl Copy {
    fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned();
        let target = std::env::current_exe().expect("this test");
        // target/debug/deps/mutants-…
        let target = target.ancestors().nth(3).expect("the build directory").to_owned();
        let copy = target.join("mutants");
        let _ = std::fs::remove_dir_all(&copy);
        std::fs::create_dir_all(&copy).expect("a directory");
        for part in [
            "Cargo.toml",
            "Cargo.lock",
            "rust-toolchain.toml",
            "gossip",
            "transport",
            "node",
            "sim",
            "tests",
            "deploy",
        ] {
            let status = Command::new("cp").arg("-a").arg(root.join(part)).arg(&copy).status();
            assert!(status.expect("cp").success(), "{part}");
        }
        Self::borrow_dependencies(&target.join("debug"), &copy.join("target/debug"));
        Self(copy)
    }

    /// What the tests' build made of the dependencies, copied: built in the same directory, a mutant would take
    /// the product's place there, for cargo tells packages apart by their path within the workspace.
    fn borrow_dependencies(from: &Path, to: &Path) {
        std::fs::create_dir_all(to.join("deps")).expect("a directory");
        for part in [".fingerprint", "build"] {
            let status = Command::new("cp").arg("-a").arg(from.join(part)).arg(to).status();
            assert!(status.expect("cp").success(), "{part}");
        }
        let is_library = |path: &Path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            matches!(extension, Some("rlib" | "rmeta" | "so" | "d"))
        };
        let files = std::fs::read_dir(from.join("deps")).expect("libraries");
        let files: Vec<PathBuf> =
            files.flatten().map(|file| file.path()).filter(|it| is_library(it)).collect();
        for some in files.chunks(500) {
            let status = Command::new("cp").arg("-a").args(some).arg(to.join("deps")).status();
            assert!(status.expect("cp").success());
        }
    }

    fn file(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }

    /// Builds the copy with one line replaced, lets `run` use its program, and restores the line.
    fn with<T>(&self, file: &str, right: &str, wrong: &str, run: impl FnOnce(&Path) -> T) -> T {
        let text = std::fs::read_to_string(self.file(file)).expect(file);
        assert_eq!(text.matches(right).count(), 1, "{file}: {right}");
        std::fs::write(self.file(file), text.replace(right, wrong)).expect("written");
        let program = self.build();
        let result = run(&program);
        std::fs::write(self.file(file), text).expect("written");
        result
    }

    /// The same packages and features as the tests', so that no dependency is built anew.
    fn build(&self) -> PathBuf {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(&self.0).args(["test", "--workspace", "--no-run", "-q", "--test", "replay"]);
        let target = self.0.join("target");
        let built = cargo.env("CARGO_TARGET_DIR", &target).stdin(Stdio::null()).output().expect("cargo");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        target.join("debug/starling-sim")
    }
}

fn run(program: &Path, scenario: &str, seed: u64) -> Output {
    let mut program = Command::new(program);
    program.args(["run", scenario, "--nodes", "12", "--seed", &seed.to_string(), "-o", "json"]);
    program.output().expect("it runs")
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    })
}

#[test]
fn every_mutant_is_caught_and_a_changed_constant_changes_the_run() {
    let copy = Copy::new();
    let own = PathBuf::from(env!("CARGO_BIN_EXE_starling-sim"));
    let hash = report(&run(&own, "converge", 1))["trace_hash"].clone();
    let (file, right, wrong) = ("gossip/src/handle.rs", "Self { told: 3,", "Self { told: 2,");
    let changed =
        copy.with(file, right, wrong, |program| report(&run(program, "converge", 1))["trace_hash"].clone());
    assert_ne!(hash, changed, "{wrong}");
    for mutant in MUTANTS {
        copy.with(mutant.file, mutant.right, mutant.wrong, |program| {
            let output = run(program, mutant.scenario, 1);
            let report = report(&output);
            let said = report.pointer("/runs/0/violation/what").and_then(Value::as_str).unwrap_or_default();
            println!("{}: {} says: {said}", mutant.what, mutant.scenario);
            assert_eq!(output.status.code(), Some(1), "{} is not noticed", mutant.what);
            assert!(said.contains(mutant.caught), "{}: {said}", mutant.what);
        });
    }
}
