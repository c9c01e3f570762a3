//! Who somebody is: SPIFFE IDs, and the names that an identity may announce.
//!
//! Pure names and rules. How an identity is proved is [`crate::svid`]'s business; what a peer may
//! do with it is the access policy's. Their texts are shared: whoever holds many copies of a name, as
//! every snapshot does, holds one text.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::limits::{NODE_NAME_BYTES_MAX, SERVICE_NAME_BYTES_MAX, SPIFFE_ID_BYTES_MAX};

/// A trust domain: the mesh's name, and the root of every identity in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

/// A workload identity, `spiffe://<trust domain>/<path>` (SPIFFE-ID, section 2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    /// The whole URI; `domain_end` is where its trust domain stops.
    uri: Arc<str>,
    domain_end: usize,
}

/// A service's name: a DNS label, or `name.namespace`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(Arc<str>);

/// A node's name, unique in its mesh: letters, digits, `.`, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(Arc<str>);

/// Why a text is not the name it should be. The message says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

const SCHEME: &str = "spiffe://";
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

impl TrustDomain {
    /// The name without a scheme, for instance `acme`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The trust domain this identity belongs to.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.domain().to_owned())
    }

    /// Whether this identity belongs to `domain`.
    pub fn is_in(&self, domain: &TrustDomain) -> bool {
        self.domain() == domain.0
    }

    /// The path with its leading slash, for instance `/svc/web`.
    pub fn path(&self) -> &str {
        &self.uri[self.domain_end..]
    }

    /// The one service this identity may announce by its own name, if any: `…/svc/<service>`
    /// announces `<service>`, `…/ns/<namespace>/sa/<account>` announces `<account>.<namespace>`.
    pub fn announces(&self) -> Option<ServiceName> {
        let mut from_end = self.path().rsplit('/');
        let last = from_end.next()?;
        match from_end.next()? {
            "svc" => last.parse().ok(),
            "sa" => {
                let namespace = from_end.next()?;
                (from_end.next()? == "ns").then(|| format!("{last}.{namespace}").parse().ok())?
            }
            _ => None,
        }
    }

    /// Whether this identity may announce `service`.
    pub fn may_announce(&self, service: &ServiceName) -> bool {
        self.announces().as_ref() == Some(service)
    }

    fn domain(&self) -> &str {
        &self.uri[SCHEME.len()..self.domain_end]
    }
}

impl ServiceName {
    /// The name as users type it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Lets a map keyed by service name be asked with text, on the request path, without a copy.
impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl NodeName {
    /// The name as users type it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        if text.is_empty() || text.len() > TRUST_DOMAIN_BYTES_MAX || !text.chars().all(good) {
            return Err(NameError(format!(
                "{text:?} is not a trust domain: 1 to {TRUST_DOMAIN_BYTES_MAX} of a-z 0-9 . _ -, such as \"acme\""
            )));
        }
        Ok(Self(text.to_owned()))
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let wrong = |why: &str| {
            let shown: String = text.chars().take(80).collect();
            NameError(format!("{shown:?} is not a SPIFFE ID ({why}); one looks like spiffe://acme/svc/web"))
        };
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(wrong("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not start with spiffe://"))?;
        let domain = rest.split('/').next().unwrap_or_default();
        domain
            .parse::<TrustDomain>()
            .map_err(|_| wrong("its trust domain has other characters than a-z 0-9 . _ -"))?;
        let path = &rest[domain.len()..];
        if !path.is_empty() {
            let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            for segment in path[1..].split('/') {
                if segment.is_empty() {
                    return Err(wrong("its path has an empty segment"));
                }
                if segment == "." || segment == ".." {
                    return Err(wrong("its path has a relative segment"));
                }
                if !segment.chars().all(good) {
                    return Err(wrong("its path has other characters than a-z A-Z 0-9 . _ -"));
                }
            }
        }
        Ok(Self { uri: text.into(), domain_end: SCHEME.len() + domain.len() })
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let mut labels = text.split('.');
        let good = labels.by_ref().take(2).all(is_dns_label) && labels.next().is_none();
        if text.len() > SERVICE_NAME_BYTES_MAX || !good {
            return Err(NameError(format!(
                "{text:?} is not a service name: a DNS label (a-z 0-9 -, at most 63), or name.namespace"
            )));
        }
        Ok(Self(text.into()))
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if text.is_empty() || text.len() > NODE_NAME_BYTES_MAX || !text.chars().all(good) {
            return Err(NameError(format!(
                "{text:?} is not a node name: 1 to {NODE_NAME_BYTES_MAX} of a-z A-Z 0-9 . _ -"
            )));
        }
        Ok(Self(text.into()))
    }
}

/// RFC 1123, section 2.1, lower case only: names are compared byte by byte.
fn is_dns_label(label: &str) -> bool {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !label.is_empty()
        && label.len() <= 63
        && label.bytes().all(good)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// A name is its text everywhere: shown, parsed, and in JSON.
macro_rules! text_form {
    ($name:ident, $field:tt) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.$field)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }
    };
}
text_form!(SpiffeId, uri);
text_form!(TrustDomain, 0);
text_form!(ServiceName, 0);
text_form!(NodeName, 0);

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SpiffeId {
        text.parse().expect(text)
    }

    #[test]
    fn an_identity_announces_the_service_it_names() {
        let name = |text: &str| id(text).announces().map(String::from);
        assert_eq!(name("spiffe://acme/svc/web").as_deref(), Some("web"));
        assert_eq!(name("spiffe://acme/eu/prod/svc/web").as_deref(), Some("web"));
        assert_eq!(name("spiffe://acme/ns/shop/sa/cart").as_deref(), Some("cart.shop"));
        assert_eq!(name("spiffe://acme/svc/Web"), None);
        assert_eq!(name("spiffe://acme/web"), None);
        assert_eq!(name("spiffe://acme"), None);
        assert_eq!(name("spiffe://acme/sa/cart"), None);
    }

    #[test]
    fn texts_that_are_no_identity_are_refused_with_a_reason() {
        for (text, why) in [
            ("http://acme/svc/web", "does not start"),
            ("spiffe:///svc/web", "trust domain"),
            ("spiffe://Acme/svc/web", "trust domain"),
            ("spiffe://acme:80/svc/web", "trust domain"),
            ("spiffe://acme//web", "empty segment"),
            ("spiffe://acme/svc/", "empty segment"),
            ("spiffe://acme/svc/../web", "relative"),
            ("spiffe://acme/svc/w*b", "other characters"),
            ("spiffe://acme/svc/web?x=1", "other characters"),
        ] {
            let error = text.parse::<SpiffeId>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn service_names_are_one_or_two_dns_labels() {
        for good in ["web", "a-1", "web.shop"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "Web", "web shop", "-web", "a.b.c", "web.", "w_b"] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }
}
