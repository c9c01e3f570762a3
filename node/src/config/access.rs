//! `allow` of a `[[service]]`: who may call it.
//!
//! What a pattern means is `authz`'s; that its trust domain is this node's own is judged with the
//! files, which say what the own one is.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::mistake::{Wrong, wrong};
use super::reader::Reader;
use super::section::{Given, Section};
use super::value::text;
use crate::authz::{Allow, IdentityPattern, PATTERNS_MAX, PatternError};

/// An identity, or all below a path; the reader says more.
const PATTERN: &str = r"^spiffe://[^/]+/.+$";

pub(super) fn read_allow(section: &mut Section<'_>) -> Allow {
    let seen = RefCell::default();
    let reader = Reader::text(PATTERN, move |given| new_pattern(given, &seen));
    let Some(patterns) = section.optional_list("allow", reader) else { return Allow::Anybody };
    if patterns.len() > PATTERNS_MAX {
        let most = format!(
            "write at most {PATTERNS_MAX}; callers below one path are one: \"spiffe://acme/ns/shop/*\""
        );
        section.report().add(&section.path_of("allow"), format!("{} patterns", patterns.len()), most);
    }
    Allow::Listed(patterns)
}

fn new_pattern(
    given: Given<'_>,
    seen: &RefCell<BTreeSet<IdentityPattern>>,
) -> Result<IdentityPattern, Wrong> {
    let pattern = pattern(text(given)?)?;
    if !seen.borrow_mut().insert(pattern.clone()) {
        return wrong(format!("{pattern} is in the list already"), "remove one of them");
    }
    Ok(pattern)
}

fn pattern(text: &str) -> Result<IdentityPattern, Wrong> {
    text.parse().or_else(|error: PatternError| {
        let problem = format!("{text:?} is no pattern of identities: {error}");
        match error {
            PatternError::MisplacedStar { nearest: Some(nearest) } => {
                wrong(problem, format!("write each identity, or {nearest:?}, which lets in all below"))
            }
            PatternError::MisplacedStar { nearest: None } => {
                wrong(problem, "write \"spiffe://TRUST-DOMAIN/*\", or leave allow out to let everybody in")
            }
            PatternError::NoPath { whole } => {
                wrong(problem, format!("write {whole:?} for everybody in it, or one identity"))
            }
            PatternError::NotAnId(error) => wrong(
                error.to_string(),
                "write for instance \"spiffe://acme/svc/web\" or \"spiffe://acme/ns/shop/*\"",
            ),
        }
    })
}
