//! Any text is a configuration or a list of mistakes, each of which says where it is.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use starling::config::Config;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (text, variable) = text.split_once('\0').unwrap_or((text, ""));
    let environment =
        variable.split_once('=').map(|(key, value)| (format!("STARLING_{key}"), value.to_owned()));
    if let Err(mistakes) = Config::parse(text, Path::new("starling.toml"), environment) {
        assert!(mistakes.iter().count() > 0);
        assert!(!mistakes.to_string().is_empty());
    }
});
