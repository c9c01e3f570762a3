//! The files that a configuration names, judged together: the identity, the bundle, the token.
//!
//! Pure but for reading them; watching them is the transport's work.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use starling_gossip::clock::WallTime;
use starling_gossip::identity::{ServiceName, SpiffeId, TrustDomain};
use starling_gossip::revocation::Revocations;
use starling_gossip::svid::{ChainError, Svid, SvidError, TrustBundle, Usage};

use super::limits::IDENTITY_FILE_BYTES_MAX;
use super::mistake::{Wrong, wrong};
use super::{Config, Mistake, Mistakes, Service, WrongFile};

/// What the files held: an identity that the bundle believes and the services agree with.
#[derive(Debug)]
pub struct Files {
    /// Who this node is.
    pub svid: Svid,
    /// Whom it believes.
    pub trust_bundle: TrustBundle,
    /// The admin token, if one is configured; without surrounding white space.
    pub token: Option<String>,
}

/// Tokens shorter than this can be guessed.
const TOKEN_BYTES_MIN: usize = 16;

impl Files {
    /// Reads and judges every file that `config` names, at wall time `wall`.
    pub fn load(config: &Config, wall: WallTime) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let svid = load_svid(config, &mut mistakes);
        let domain = svid.as_ref().map(|svid| svid.id().trust_domain());
        let trust_bundle = load_bundle(config, domain, &mut mistakes);
        let token = load_token(config, &mut mistakes);
        if let (Some(svid), Some(bundle)) = (&svid, &trust_bundle) {
            check_chain(config, svid, bundle, wall, &mut mistakes);
        }
        if let Some(svid) = &svid {
            check_identity(config, svid.id(), &mut mistakes);
        }
        check_workload_tls(config, &mut mistakes);
        Mistakes::none_of(mistakes)?;
        let (svid, trust_bundle) = svid.zip(trust_bundle).expect("a file that cannot be used is a mistake");
        Ok(Self { svid, trust_bundle, token })
    }
}

fn load_svid(config: &Config, mistakes: &mut Vec<Mistake>) -> Option<Svid> {
    let certificate = read_file(config, "identity.certificate", &config.identity.certificate, mistakes);
    let key = read_file(config, "identity.key", &config.identity.key, mistakes);
    let error = match Svid::from_pem(&certificate?, &key?) {
        Ok(svid) => return Some(svid),
        Err(error) => error,
    };
    let (at, path) = match &error {
        SvidError::NoKey(_) | SvidError::KeyMismatch => ("identity.key", &config.identity.key),
        _ => ("identity.certificate", &config.identity.certificate),
    };
    let suggestion = "make both with `starling ca issue`, or have your issuer write them anew";
    mistakes.push(config.sources.mistake(at, format!("{}: {error}", path.display()), suggestion));
    None
}

fn load_bundle(
    config: &Config,
    domain: Option<TrustDomain>,
    mistakes: &mut Vec<Mistake>,
) -> Option<TrustBundle> {
    let path = &config.identity.trust_bundle;
    let pem = read_file(config, "identity.trust_bundle", path, mistakes)?;
    // Without a certificate there is no trust domain; the bundle's own mistakes still count.
    let known = domain.is_some();
    let domain = domain.or_else(|| "unknown".parse().ok())?;
    match TrustBundle::from_pem(domain, &pem) {
        Ok(bundle) => {
            let bundle = bundle.without(load_revoked(config, mistakes)?);
            known.then_some(bundle)
        }
        Err(error) => {
            let problem = format!("{}: {error}", path.display());
            let suggestion =
                "name the file with the roots of the trust domain, such as the ca.crt of `starling ca init`";
            mistakes.push(config.sources.mistake("identity.trust_bundle", problem, suggestion));
            None
        }
    }
}

fn load_revoked(config: &Config, mistakes: &mut Vec<Mistake>) -> Option<Revocations> {
    let Some(path) = &config.identity.revoked else { return Some(Revocations::default()) };
    let bytes = read_file(config, "identity.revoked", path, mistakes)?;
    match Revocations::parse(&bytes) {
        Ok(revoked) => Some(revoked),
        Err(error) => {
            let problem = format!("{}: {error}", path.display());
            let suggestion =
                "correct the line; `openssl x509 -serial -fingerprint -sha256` says what a certificate has";
            mistakes.push(config.sources.mistake("identity.revoked", problem, suggestion));
            None
        }
    }
}

fn load_token(config: &Config, mistakes: &mut Vec<Mistake>) -> Option<String> {
    let path = config.admin.token_file.as_ref()?;
    let bytes = read_file(config, "admin.token_file", path, mistakes)?;
    let token = String::from_utf8(bytes).unwrap_or_default().trim().to_owned();
    if token.len() >= TOKEN_BYTES_MIN && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some(token);
    }
    let problem =
        format!("{} holds no token of {TOKEN_BYTES_MIN} or more visible characters", path.display());
    let suggestion = format!("make one: openssl rand -hex 32 > {}", path.display());
    mistakes.push(config.sources.mistake("admin.token_file", problem, suggestion));
    None
}

/// Both ways: this node dials with the certificate and answers with it.
fn check_chain(
    config: &Config,
    svid: &Svid,
    bundle: &TrustBundle,
    wall: WallTime,
    mistakes: &mut Vec<Mistake>,
) {
    let outcomes = [Usage::Client, Usage::Server].map(|usage| bundle.verify(svid.chain(), usage, wall));
    let Some(error) = outcomes.into_iter().find_map(Result::err) else { return };
    let suggestion = match error {
        ChainError::Revoked(_) => "use another identity, or take the entry out of identity.revoked",
        ChainError::NotValidNow(_) => "issue a new certificate, or set the machine's clock",
        _ => "use a certificate for client and server authentication, issued under the bundle's root",
    };
    let problem = format!("{}: {error}", config.identity.certificate.display());
    mistakes.push(config.sources.mistake("identity.certificate", problem, suggestion));
}

/// What is wrong with `config` for a node whose identity is `id`, but for files.
pub(super) fn check_identity(config: &Config, id: &SpiffeId, mistakes: &mut Vec<Mistake>) {
    for (index, service) in config.services.iter().enumerate() {
        let name = wrong_name(&service.name, id).map(|wrong| ("name".to_owned(), wrong));
        let wrong = name.into_iter().chain(wrong_allowed(service, id));
        mistakes.extend(wrong.map(|(key, wrong)| of_service(config, index, &key, wrong)));
    }
}

/// Why a node whose identity is `id` may not announce `name`, if so.
pub(crate) fn wrong_name(name: &ServiceName, id: &SpiffeId) -> Option<Wrong> {
    let may = match id.announces() {
        Some(name) => format!("it may announce {:?}", name.as_str()),
        None => "it may announce no service".to_owned(),
    };
    (!id.may_announce(name)).then(|| Wrong {
        problem: format!("{id} may not announce {:?}; {may}", name.as_str()),
        suggestion: format!(
            "use a certificate for spiffe://{}/svc/{name}, or another name",
            id.trust_domain()
        ),
    })
}

/// Only identities of this node's own trust domain get as far as being asked for.
pub(super) fn wrong_allowed(service: &Service, id: &SpiffeId) -> Vec<(String, Wrong)> {
    let own = id.trust_domain();
    let patterns = service.allow.patterns().iter().enumerate();
    let foreign = patterns.filter(|(_, pattern)| *pattern.trust_domain() != own);
    let wrong = foreign.map(|(at, pattern)| {
        let domain = pattern.trust_domain();
        let problem = format!(
            "{pattern} is of the trust domain {domain}, and nobody of it can connect: this node's is {own}"
        );
        let suggestion = format!("write identities of spiffe://{own}/, or remove it");
        (format!("allow[{at}]"), Wrong { problem, suggestion })
    });
    wrong.collect()
}

/// What is wrong with the files of `[service.tls]`. Reads them.
pub(super) fn wrong_workload_tls(service: &Service) -> Vec<(String, Wrong)> {
    let Some(tls) = &service.tls else { return Vec::new() };
    let wrong = tls.read().and_then(|contents| tls.judge(&contents).map(drop)).err().into_iter().flatten();
    wrong
        .map(|WrongFile { key, problem, suggestion }| (format!("tls.{key}"), Wrong { problem, suggestion }))
        .collect()
}

fn check_workload_tls(config: &Config, mistakes: &mut Vec<Mistake>) {
    for (index, service) in config.services.iter().enumerate() {
        let wrong = wrong_workload_tls(service).into_iter();
        mistakes.extend(wrong.map(|(key, wrong)| of_service(config, index, &key, wrong)));
    }
}

fn of_service(config: &Config, index: usize, key: &str, wrong: Wrong) -> Mistake {
    config.sources.mistake(&format!("service[{index}].{key}"), wrong.problem, wrong.suggestion)
}

fn read_file(config: &Config, key: &str, path: &Path, mistakes: &mut Vec<Mistake>) -> Option<Vec<u8>> {
    let wrong = match read_bounded(path) {
        Ok(bytes) => return Some(bytes),
        Err(wrong) => wrong,
    };
    mistakes.push(config.sources.mistake(key, wrong.problem, wrong.suggestion));
    None
}

/// Reads a file that may be as large as a certificate, bundle, key or token can be.
pub(super) fn read_bounded(path: &Path) -> Result<Vec<u8>, Wrong> {
    let mut bytes = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(IDENTITY_FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let (problem, suggestion) = match read {
        Ok(_) if bytes.len() as u64 <= IDENTITY_FILE_BYTES_MAX => return Ok(bytes),
        Ok(_) => ("it is too large".to_owned(), format!("at most {IDENTITY_FILE_BYTES_MAX} bytes are read")),
        Err(error) => (
            error.to_string(),
            "name a file that this user may read; relative paths start at the configuration file".to_owned(),
        ),
    };
    wrong(format!("{} cannot be read: {problem}", path.display()), suggestion)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca::Authority;

    const NOW: WallTime = WallTime { unix_millis: 1_800_000_000_000 };
    const HOUR: Duration = Duration::from_secs(3600);
    const TOKEN: &str = "0123456789abcdef\n";

    /// A directory with everything that a right configuration names.
    struct World {
        directory: tempfile::TempDir,
        authority: Authority,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let world = Self { directory, authority: authority("acme") };
            world.issue(&world.authority, "spiffe://acme/svc/web");
            world.write("ca.crt", world.authority.certificate_pem());
            world.write("token", TOKEN);
            world
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.directory.path().join(name), text).expect("written");
        }

        fn remove(&self, name: &str) {
            fs::remove_file(self.directory.path().join(name)).expect("removed");
        }

        fn issue(&self, authority: &Authority, id: &str) {
            let issued = authority.issue(&id.parse().expect(id), HOUR, NOW).expect("issued");
            self.write("tls.crt", &issued.certificate);
            self.write("tls.key", &issued.key);
        }

        fn load(&self, wall: WallTime) -> Result<Files, Mistakes> {
            self.load_with(wall, "")
        }

        /// With further keys of the service.
        fn load_with(&self, wall: WallTime, keys: &str) -> Result<Files, Mistakes> {
            let text = format!(
                "[admin]\ntoken_file = \"token\"\n[identity]\n\
                 [[service]]\nname = \"web\"\naddress = \"127.0.0.1:80\"\n{keys}"
            );
            let path = self.directory.path().join("starling.toml");
            let config = Config::parse(&text, &path, []).expect("a right configuration");
            Files::load(&config, wall)
        }

        /// The keys that are mistaken, and everything that was said.
        fn mistakes(&self, wall: WallTime) -> (Vec<String>, String) {
            let mistakes = self.load(wall).expect_err("mistakes");
            (mistakes.iter().map(|one| one.key.clone()).collect(), mistakes.to_string())
        }
    }

    fn authority(domain: &str) -> Authority {
        Authority::new(domain.parse().expect(domain), NOW).expect("a root")
    }

    #[test]
    fn right_files_are_read() {
        let files = World::new().load(NOW).expect("right files");
        assert_eq!(files.svid.id().as_str(), "spiffe://acme/svc/web");
        assert_eq!(files.trust_bundle.domain().as_str(), "acme");
        assert_eq!(files.token.as_deref(), Some(TOKEN.trim()));
    }

    #[test]
    fn every_wrong_file_has_its_own_message_at_its_key() {
        type Spoil = fn(&World);
        let rows: [(Spoil, &str, &str); 10] = [
            (|w| w.remove("tls.crt"), "identity.certificate", "cannot be read"),
            (|w| w.remove("tls.key"), "identity.key", "cannot be read"),
            (|w| w.remove("ca.crt"), "identity.trust_bundle", "cannot be read"),
            (|w| w.write("tls.crt", "junk"), "identity.certificate", "no PEM certificate"),
            (|w| w.write("tls.key", "junk"), "identity.key", "no usable private key"),
            (|w| w.write("tls.key", &authority("acme").key_pem()), "identity.key", "does not belong"),
            (|w| w.write("ca.crt", "junk"), "identity.trust_bundle", "no PEM certificate"),
            (
                |w| w.write("ca.crt", authority("acme").certificate_pem()),
                "identity.certificate",
                "does not lead to the trust bundle",
            ),
            (
                |w| w.issue(&w.authority, "spiffe://acme/svc/db"),
                "service[0].name",
                "may not announce \"web\"; it may announce \"db\"",
            ),
            (|w| w.write("token", "short"), "admin.token_file", "openssl rand"),
        ];
        for (spoil, key, message) in rows {
            let world = World::new();
            spoil(&world);
            let (keys, told) = world.mistakes(NOW);
            assert_eq!(keys, [key], "{told}");
            assert!(told.contains(message), "{told}\nshould say: {message}");
        }
    }

    #[test]
    fn nobody_of_another_trust_domain_is_let_in() {
        let world = World::new();
        world.load_with(NOW, "allow = [\"spiffe://acme/*\"]").expect("the own trust domain");
        let allow = "allow = [\"spiffe://acme/svc/db\", \"spiffe://other/svc/db\"]";
        let mistakes = world.load_with(NOW, allow).expect_err("another trust domain");
        let told: Vec<&Mistake> = mistakes.iter().collect();
        assert_eq!((told.len(), told[0].key.as_str()), (1, "service[0].allow[1]"), "{mistakes}");
        assert!(told[0].problem.contains("nobody of it can connect"), "{mistakes}");
    }

    #[test]
    fn every_wrong_file_for_tls_to_a_workload_has_its_own_message_at_its_key() {
        let load = |world: &World, names: [&str; 3]| {
            let [bundle, certificate, key] = names;
            let text = format!(
                "[[service]]\nname = \"web\"\naddress = \"https://app:443\"\n[service.tls]\n\
                 trust_bundle = {bundle:?}\ncertificate = {certificate:?}\nkey = {key:?}\n"
            );
            let path = world.directory.path().join("starling.toml");
            Files::load(&Config::parse(&text, &path, []).expect("a right configuration"), NOW)
        };
        let world = World::new();
        world.write("junk", "junk");
        world.write("other.key", &authority("acme").key_pem());
        load(&world, ["ca.crt", "tls.crt", "tls.key"]).expect("right files");
        for (names, key, message) in [
            (["none", "tls.crt", "tls.key"], "service[0].tls.trust_bundle", "cannot be read"),
            (["junk", "tls.crt", "tls.key"], "service[0].tls.trust_bundle", "no PEM certificate"),
            (["ca.crt", "none", "tls.key"], "service[0].tls.certificate", "cannot be read"),
            (["ca.crt", "tls.key", "tls.key"], "service[0].tls.certificate", "no PEM certificate"),
            (["ca.crt", "tls.crt", "tls.crt"], "service[0].tls.key", "no PEM private key"),
            (["ca.crt", "tls.crt", "other.key"], "service[0].tls.key", "does not go with the certificate"),
        ] {
            let mistakes = load(&world, names).expect_err(message);
            let told: Vec<&Mistake> = mistakes.iter().collect();
            assert_eq!((told.len(), told[0].key.as_str()), (1, key), "{mistakes}");
            assert!(mistakes.to_string().contains(message), "{mistakes}\nshould say: {message}");
        }
        let mistakes = load(&world, ["junk", "junk", "tls.key"]).expect_err("two");
        assert_eq!(mistakes.iter().count(), 2, "all at once: {mistakes}");
    }

    #[test]
    fn certificates_are_judged_by_the_calendar() {
        let world = World::new();
        for unix_millis in [NOW.unix_millis - 3_600_000, NOW.unix_millis + 3_601_000] {
            let (keys, told) = world.mistakes(WallTime { unix_millis });
            assert_eq!(keys, ["identity.certificate"], "{told}");
            assert!(told.contains("not valid now"), "{told}");
        }
    }

    #[test]
    fn all_wrong_files_are_told_together() {
        let world = World::new();
        world.remove("tls.crt");
        world.write("ca.crt", "junk");
        world.write("token", "");
        let (keys, told) = world.mistakes(NOW);
        assert_eq!(keys, ["admin.token_file", "identity.certificate", "identity.trust_bundle"], "{told}");
    }
}
