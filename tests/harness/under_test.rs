//! The product's command line, on a leash: it ends with the test that started it.

use std::io::Read as _;
use std::process::ExitCode;

use starling_tests::LEASH;

fn main() -> ExitCode {
    if std::env::var_os(LEASH).is_some() {
        // The test holds the other end of standard input for as long as it lives, however it ends.
        std::thread::spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            std::process::exit(86);
        });
    }
    starling::run_cli()
}
