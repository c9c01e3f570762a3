//! PURE: who may call a service.
//!
//! A list of patterns, and one question to it. That a caller is who it says it is, the handshake
//! has proved before; how a refusal is told, counted and logged is the proxy's.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use starling_gossip::identity::{NameError, SpiffeId, TrustDomain};

/// Patterns of one list. More callers than this are a group: give it a path of its own. A decision
/// compares the caller with each, some microseconds at most.
pub const PATTERNS_MAX: usize = 256;

/// Who may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allow {
    /// Any identity of the trust domain.
    #[default]
    Anybody,
    /// Whoever one of these matches; nobody if there is none.
    Listed(Vec<IdentityPattern>),
}

/// One identity, or all below a path: `spiffe://acme/svc/web`, `spiffe://acme/ns/shop/*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdentityPattern {
    text: Arc<str>,
    domain: TrustDomain,
    reach: Reach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    /// This identity.
    Itself,
    /// All whose path begins with this one's and has at least one segment more.
    Below,
}

/// Whether a caller may call, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It may.
    Allow(Rule),
    /// It may not.
    Deny(Reason),
}

/// What let a caller in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// There is no list.
    Anybody,
    /// This entry of the list, the first that matches.
    Pattern(IdentityPattern),
}

/// What kept a caller out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The list is empty.
    NobodyAllowed,
    /// No entry of the list matches.
    NotListed,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// A star anywhere else than alone behind the last slash.
    #[error("a star stands alone behind the last slash, and means everything below")]
    MisplacedStar {
        /// What the text may have been meant to be.
        nearest: Option<String>,
    },
    /// The trust domain itself, which is no workload's identity.
    #[error("it names the trust domain itself, which no caller has for its identity")]
    NoPath {
        /// All of the trust domain.
        whole: String,
    },
    /// No SPIFFE ID.
    #[error(transparent)]
    NotAnId(#[from] NameError),
}

/// Whether `peer`, whose identity is proved, may call what `allow` guards.
pub fn decide(allow: &Allow, peer: &SpiffeId) -> Decision {
    let Allow::Listed(patterns) = allow else { return Decision::Allow(Rule::Anybody) };
    match patterns.iter().find(|pattern| pattern.matches(peer)) {
        Some(pattern) => Decision::Allow(Rule::Pattern(pattern.clone())),
        None if patterns.is_empty() => Decision::Deny(Reason::NobodyAllowed),
        None => Decision::Deny(Reason::NotListed),
    }
}

impl Allow {
    /// The list; empty where there is none, too.
    pub(crate) fn patterns(&self) -> &[IdentityPattern] {
        match self {
            Self::Anybody => &[],
            Self::Listed(patterns) => patterns,
        }
    }

    /// Entries that change nothing because another covers them: the entry, and the other.
    pub(crate) fn covered(&self) -> impl Iterator<Item = (&IdentityPattern, &IdentityPattern)> {
        let patterns = self.patterns();
        patterns.iter().filter_map(move |narrow| {
            let wide = patterns.iter().find(|wide| *wide != narrow && wide.covers(narrow))?;
            Some((narrow, wide))
        })
    }
}

impl IdentityPattern {
    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain of all that it matches.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// Whether it matches `peer`.
    pub fn matches(&self, peer: &SpiffeId) -> bool {
        match self.reach {
            Reach::Itself => *self.text == *peer.as_str(),
            // No identity ends in a slash, so whatever begins like this has a segment more.
            Reach::Below => peer.as_str().starts_with(self.stem()),
        }
    }

    /// Whether it matches everything that `other` does.
    pub fn covers(&self, other: &Self) -> bool {
        match self.reach {
            Reach::Itself => self == other,
            Reach::Below => other.stem().starts_with(self.stem()),
        }
    }

    /// What comes before the star, its slash included.
    fn stem(&self) -> &str {
        self.text.trim_end_matches('*')
    }
}

impl FromStr for IdentityPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (named, reach) = match text.strip_suffix("/*") {
            Some(parent) => (parent, Reach::Below),
            None => (text, Reach::Itself),
        };
        if let Some(star) = named.find('*') {
            let parent = named[..star].rsplit_once('/').map_or("", |(parent, _)| parent);
            let nearest = parent.parse::<SpiffeId>().ok().map(|_| format!("{parent}/*"));
            return Err(PatternError::MisplacedStar { nearest });
        }
        let id: SpiffeId = named.parse()?;
        if id.path().is_empty() && reach == Reach::Itself {
            return Err(PatternError::NoPath { whole: format!("{id}/*") });
        }
        Ok(Self { text: text.into(), domain: id.trust_domain(), reach })
    }
}

impl Rule {
    /// For logs and metrics: the pattern, or `any`.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Anybody => "any",
            Self::Pattern(pattern) => pattern.as_str(),
        }
    }
}

impl Reason {
    /// For logs and for the caller, who learns no more of the list than that.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NobodyAllowed => "nobody may call this service",
            Self::NotListed => "this caller is not on the service's list",
        }
    }
}

impl fmt::Display for IdentityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> IdentityPattern {
        text.parse().expect(text)
    }

    fn id(text: &str) -> SpiffeId {
        text.parse().expect(text)
    }

    fn listed(patterns: &[&str]) -> Allow {
        Allow::Listed(patterns.iter().map(|text| pattern(text)).collect())
    }

    #[test]
    fn an_identity_matches_itself_and_a_star_whatever_is_below() {
        for (text, peer, matches) in [
            ("spiffe://acme/svc/web", "spiffe://acme/svc/web", true),
            ("spiffe://acme/svc/web", "spiffe://acme/svc/web-2", false),
            ("spiffe://acme/svc/web", "spiffe://acme/svc/web/x", false),
            ("spiffe://acme/svc/web", "spiffe://acme/svc/Web", false),
            ("spiffe://acme/ns/shop/*", "spiffe://acme/ns/shop/sa/web", true),
            ("spiffe://acme/ns/shop/*", "spiffe://acme/ns/shop/x", true),
            ("spiffe://acme/ns/shop/*", "spiffe://acme/ns/shop", false),
            ("spiffe://acme/ns/shop/*", "spiffe://acme/ns/shopping/sa/web", false),
            ("spiffe://acme/ns/shop/*", "spiffe://acme/eu/ns/shop/sa/web", false),
            ("spiffe://acme/*", "spiffe://acme/svc/web", true),
            ("spiffe://acme/*", "spiffe://acme", false),
            ("spiffe://acme/*", "spiffe://acme.example/svc/web", false),
            ("spiffe://acme/*", "spiffe://other/svc/web", false),
        ] {
            assert_eq!(pattern(text).matches(&id(peer)), matches, "{text} and {peer}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_is_named() {
        let peer = id("spiffe://acme/ns/shop/sa/web");
        assert_eq!(decide(&Allow::Anybody, &peer), Decision::Allow(Rule::Anybody));
        let allow = listed(&["spiffe://acme/svc/web", "spiffe://acme/ns/shop/*", "spiffe://acme/*"]);
        let rule = Rule::Pattern(pattern("spiffe://acme/ns/shop/*"));
        assert_eq!(decide(&allow, &peer), Decision::Allow(rule));
    }

    #[test]
    fn who_is_not_listed_is_denied() {
        let peer = id("spiffe://acme/svc/web");
        assert_eq!(decide(&listed(&[]), &peer), Decision::Deny(Reason::NobodyAllowed));
        let allow = listed(&["spiffe://acme/svc/db", "spiffe://acme/svc/web/*"]);
        assert_eq!(decide(&allow, &peer), Decision::Deny(Reason::NotListed));
    }

    #[test]
    fn a_wider_pattern_covers_a_narrower_one() {
        for (wide, narrow, covers) in [
            ("spiffe://acme/*", "spiffe://acme/svc/web", true),
            ("spiffe://acme/*", "spiffe://acme/ns/shop/*", true),
            ("spiffe://acme/ns/shop/*", "spiffe://acme/ns/shop/*", true),
            ("spiffe://acme/ns/shop/*", "spiffe://acme/ns/shop", false),
            ("spiffe://acme/ns/shop/*", "spiffe://acme/*", false),
            ("spiffe://acme/svc/web", "spiffe://acme/svc/web", true),
            ("spiffe://acme/svc/web", "spiffe://acme/svc/web/*", false),
            ("spiffe://acme/*", "spiffe://acme.example/*", false),
        ] {
            assert_eq!(pattern(wide).covers(&pattern(narrow)), covers, "{wide} and {narrow}");
        }
        let allow = listed(&["spiffe://acme/svc/web", "spiffe://acme/ns/shop/*", "spiffe://acme/svc/*"]);
        let covered: Vec<_> =
            allow.covered().map(|(narrow, wide)| (narrow.as_str(), wide.as_str())).collect();
        assert_eq!(covered, [("spiffe://acme/svc/web", "spiffe://acme/svc/*")]);
    }

    #[test]
    fn texts_that_are_no_pattern_are_refused() {
        let nearest = |text: &str| match text.parse::<IdentityPattern>() {
            Err(PatternError::MisplacedStar { nearest }) => nearest,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(nearest("spiffe://acme/svc/web*").as_deref(), Some("spiffe://acme/svc/*"));
        assert_eq!(nearest("spiffe://acme/*/svc/web").as_deref(), Some("spiffe://acme/*"));
        assert_eq!(nearest("spiffe://acme/**").as_deref(), Some("spiffe://acme/*"));
        assert_eq!(nearest("spiffe://*/svc/web"), None);
        assert_eq!(nearest("*"), None);
        let error = "spiffe://acme".parse::<IdentityPattern>().expect_err("no path");
        assert_eq!(error, PatternError::NoPath { whole: "spiffe://acme/*".into() });
        for text in ["", "web", "spiffe://acme/", "spiffe://acme//*", "spiffe://acme/a/../*", "/*"] {
            let error = text.parse::<IdentityPattern>().expect_err(text);
            assert!(matches!(error, PatternError::NotAnId(_)), "{text}: {error:?}");
        }
    }
}
