//! How commands answer: words on standard output for people, one JSON document for programs;
//! failures on standard error, or as JSON on standard output.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::ask::Refusal;
use crate::config::Mistakes;

/// How a node refuses what it cannot make sense of.
const UNPROCESSABLE: u16 = 422;

/// How to answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// Words.
    #[default]
    Text,
    /// One JSON document.
    Json,
}

/// Why a command did not do its work; decides the exit code.
#[derive(Debug)]
pub(super) enum Failure {
    /// Exit code 1; 2 if a node says so of its configuration.
    Failed(anyhow::Error),
    /// Exit code 2.
    Configuration(Mistakes),
}

impl Output {
    /// Prints whichever form was asked for.
    pub(super) fn print(self, text: &str, json: &Value) {
        // A reader that stops reading (`| head`) is no failure.
        let _ = match self {
            Self::Text => writeln!(io::stdout(), "{text}"),
            Self::Json => writeln!(io::stdout(), "{json:#}"),
        };
    }
}

impl Failure {
    /// Says what failed and what to do, and gives the exit code.
    pub(super) fn report(&self, output: Output) -> ExitCode {
        let (text, json, code) = match self {
            Self::Failed(error) => {
                let text = format!("{error:#}");
                let refusal = error.downcast_ref::<Refusal>();
                let is_mistaken = refusal.is_some_and(|refusal| refusal.status == UNPROCESSABLE);
                let json = match refusal.and_then(|refusal| refusal.answer.clone()) {
                    Some(Value::Object(mut answer)) => {
                        answer.entry("ok").or_insert(false.into());
                        Value::Object(answer)
                    }
                    _ => json!({ "ok": false, "error": text }),
                };
                (format!("starling: {text}"), json, if is_mistaken { 2 } else { 1 })
            }
            Self::Configuration(mistakes) => (mistakes.to_string(), mistakes.to_json(), 2),
        };
        match output {
            Output::Text => {
                let _ = writeln!(io::stderr(), "{text}");
            }
            Output::Json => output.print("", &json),
        }
        ExitCode::from(code)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Mistakes> for Failure {
    fn from(mistakes: Mistakes) -> Self {
        Self::Configuration(mistakes)
    }
}
