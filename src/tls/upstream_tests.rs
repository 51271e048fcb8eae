//! Tests with Leveret on both sides: a link's client and a listener's server, byte by byte in memory.

use std::fs;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, version};

use super::tests::Office;
use super::*;
use leveret_config::bridge::Sha256;
use leveret_config::transports::ClientCertificates;

/// The result of a handshake at the client's side, and at the server's.
type Met = (Result<Session, String>, Result<Session, String>);

/// Runs steps at one side until it waits; its output is appended to `said`.
fn advance(
    mut handshake: Box<Handshake>,
    certificates: Option<&mut CertificateStore>,
    known: &mut KnownTime,
    said: &mut Vec<u8>,
) -> HandshakeResult {
    if !handshake.is_ready() {
        return HandshakeResult::More(handshake);
    }
    let shaken = core::mem::replace(&mut handshake, Handshake::new(None)).step(certificates, known);
    said.extend(shaken.outgoing);
    shaken.next
}

fn begun(opened: Opened) -> Session {
    let mut pool = BytePool::with_bytes(64 << 10);
    Session::begin(opened, &mut pool, &mut ByteChain::default()).unwrap()
}

fn meet(server: &mut CertificateStore, host: &str, tls: &UpstreamTls, known: &mut KnownTime) -> Met {
    let Tls::Shaking(client) = Tls::to_upstream(host, tls) else { unreachable!("it begins so") };
    let (mut client, mut listener) =
        (HandshakeResult::More(client), HandshakeResult::More(Handshake::new(None)));
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        if let HandshakeResult::More(mut handshake) = client {
            handshake.append_input(&core::mem::take(&mut down));
            client = advance(handshake, None, known, &mut up);
        }
        if let HandshakeResult::More(mut handshake) = listener {
            handshake.append_input(&core::mem::take(&mut up));
            listener = advance(handshake, Some(server), &mut KnownTime::default(), &mut down);
        }
    }
    let ended = |next| match next {
        HandshakeResult::Open(opened) => Ok(*opened),
        HandshakeResult::Failed(why) => Err(why),
        HandshakeResult::More(_) => Err("it waits".to_string()),
    };
    let mut client = ended(client);
    if let Ok(opened) = &mut client {
        opened.incoming.extend(down);
    }
    (client.map(begun_with_input), ended(listener).map(begun))
}

/// Opens input that is left over at the client's side (an alert, or tickets).
fn begun_with_input(mut opened: Opened) -> Session {
    let mut left = core::mem::take(&mut opened.incoming);
    let mut session = begun(opened);
    let mut plain = vec![0; left.len()];
    let mut pool = BytePool::with_bytes(8 << 10);
    session.unseal(&mut left, &mut plain, &mut ByteChain::default(), &mut pool);
    session
}

fn trusting(office: &Office) -> UpstreamTls {
    UpstreamTls { ca_file: Some(office.path("ca.pem")), ..UpstreamTls::default() }
}

fn why(met: Met) -> String {
    met.0.err().expect("it is refused")
}

#[test]
fn an_upstream_that_is_who_it_says_is_spoken_with() {
    let office = Office::new("upstream-good");
    office.issue("rabbit", None);
    let mut server = CertificateStore::open(&office.keys("rabbit")).unwrap();
    let mut known = KnownTime::default();
    let (client, listener) = meet(&mut server, "rabbit", &trusting(&office), &mut known);
    let (mut client, mut listener) = (client.unwrap(), listener.unwrap());
    assert!(known.seconds() > 1_700_000_000, "by the clock its certificate was found good");
    let (mut sealed, mut plain) = (vec![0; SEALED_BYTES_MAX], vec![0; SEALED_BYTES_MAX]);
    let (mut unsent, mut pool) = (ByteChain::default(), BytePool::with_bytes(8 << 10));
    for (from, to) in [(&mut client, &mut listener)] {
        for text in [&b"to"[..], b"fro"] {
            let len = from.seal(text, &mut sealed).unwrap();
            let got = to.unseal(&mut sealed[..len], &mut plain, &mut unsent, &mut pool);
            assert_eq!((&plain[..got.plain], got.taken), (text, len));
        }
    }
    let len = listener.seal(b"back", &mut sealed).unwrap();
    let got = client.unseal(&mut sealed[..len], &mut plain, &mut unsent, &mut pool);
    assert_eq!((&plain[..got.plain], client.fault()), (&b"back"[..], None));
}

#[test]
fn who_is_not_is_refused_and_why() {
    let (office, others) = (Office::new("upstream-office"), Office::new("upstream-others"));
    office.issue("rabbit", None);
    office.issue("late", Some((2020, 1, 1)));
    let mut server = CertificateStore::open(&office.keys("rabbit")).unwrap();
    let mut known = KnownTime::default();
    let mut refused = |host: &str, tls: &UpstreamTls| why(meet(&mut server, host, tls, &mut known));
    let other = refused("rabbit", &trusting(&others));
    assert!(other.contains("not signed by an authority in ca_file"), "{other}");
    let name = refused("hare", &trusting(&office));
    assert!(name.ends_with("made out to rabbit, not to hare: set server_name"), "{name}");
    let nothing = refused("rabbit", &UpstreamTls::default());
    assert!(nothing.contains("this system"), "{nothing}");
    for (file, text, part) in [
        ("missing.pem", None, "does not exist"),
        ("empty.pem", Some(""), "contains no certificate"),
        ("torn.pem", Some("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"), "is damaged"),
    ] {
        if let Some(text) = text {
            fs::write(office.path(file), text).unwrap();
        }
        let tls = UpstreamTls { ca_file: Some(office.path(file)), ..UpstreamTls::default() };
        let said = refused("rabbit", &tls);
        assert!(said.contains(part) && said.contains(file), "{said}");
    }
    let said = refused("a b", &trusting(&office));
    assert!(said.contains("set server_name"), "{said}");
    let mut server = CertificateStore::open(&office.keys("late")).unwrap();
    let late = why(meet(&mut server, "late", &trusting(&office), &mut known));
    assert!(late.contains("expired at 2020-01-01"), "{late}");
    let mut params = office.params("rabbit");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    office.sign("itself", params);
    let mut server = CertificateStore::open(&office.keys("itself")).unwrap();
    let itself = why(meet(&mut server, "rabbit", &trusting(&office), &mut known));
    assert!(itself.contains("(CA:TRUE), which no server may use"), "{itself}");
    assert_eq!(known.seconds(), 0, "nothing was found good");
}

#[test]
fn a_name_that_is_set_counts_instead_of_the_address() {
    let office = Office::new("upstream-name");
    office.issue("rabbit", None);
    let mut server = CertificateStore::open(&office.keys("rabbit")).unwrap();
    let tls = UpstreamTls { server_name: Some("rabbit".into()), ..trusting(&office) };
    assert!(meet(&mut server, "10.0.0.1", &tls, &mut KnownTime::default()).0.is_ok());
}

#[test]
fn a_clock_that_is_not_to_be_trusted_is_told_and_the_last_known_time_counts() {
    let office = Office::new("upstream-clock");
    let mut params = office.params("early");
    params.not_before = rcgen::date_time_ymd(2040, 1, 1);
    params.not_after = rcgen::date_time_ymd(2050, 1, 1);
    office.sign("early", params);
    office.issue("rabbit", Some((2045, 1, 1)));
    let mut server = CertificateStore::open(&office.keys("early")).unwrap();
    let early = why(meet(&mut server, "early", &trusting(&office), &mut KnownTime::default()));
    assert!(early.contains("the clock here shows") && early.contains("2040-01-01"), "{early}");
    // In 2041, the last known time, the certificate is valid; in 2046 it no longer is.
    fs::write(office.path("last-known-time"), "2240611200\n").unwrap();
    let known = || KnownTime::stored_in(&office.folder);
    assert!(meet(&mut server, "early", &trusting(&office), &mut known()).0.is_ok());
    assert_eq!(known().seconds(), 2_240_611_200, "what is only known from before is not written down anew");
    fs::write(office.path("last-known-time"), "2398377600\n").unwrap();
    let mut server = CertificateStore::open(&office.keys("rabbit")).unwrap();
    let late = why(meet(&mut server, "rabbit", &trusting(&office), &mut known()));
    assert!(late.contains("expired at 2045-01-01") && late.contains("the time here is 2046-01-01"), "{late}");
}

#[test]
fn a_certificate_of_ours_is_shown_and_its_refusal_is_told() {
    let (office, others) = (Office::new("upstream-mutual"), Office::new("upstream-strange"));
    office.issue("rabbit", None);
    let meter = office.issue("meter", None);
    others.issue("meter", None);
    let mut keys = office.keys("rabbit");
    keys.client_certificates = ClientCertificates::Require;
    let mut server = CertificateStore::open(&keys).unwrap();
    let mut known = KnownTime::default();
    let own = |office: &Office| Some((office.path("meter.pem"), office.path("meter.key")));
    let shown = UpstreamTls { identity: own(&office), ..trusting(&office) };
    let (client, listener) = meet(&mut server, "rabbit", &shown, &mut known);
    assert!(client.unwrap().fault().is_none() && listener.is_ok(), "serial {:?}", meter.serial);
    for (identity, part) in [(None, "set certificate and key"), (own(&others), "refuses our certificate")] {
        let tls = UpstreamTls { identity, ..trusting(&office) };
        let (client, listener) = meet(&mut server, "rabbit", &tls, &mut known);
        assert!(listener.is_err());
        // With TLS 1.3 the client's handshake ends before the server has verified its certificate.
        let told = client.unwrap().fault().expect("an alert says it");
        assert!(told.contains(part), "{told}");
    }
    let torn = Some((office.path("meter.pem"), office.path("rabbit.key")));
    let said =
        why(meet(&mut server, "rabbit", &UpstreamTls { identity: torn, ..trusting(&office) }, &mut known));
    assert!(said.contains("is not the key of the certificate"), "{said}");
}

/// Returns certificates that a strict verifier refuses, by name, with the explanation on both sides.
fn odd(office: &Office) -> [(&'static str, &'static str); 3] {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "rabbit");
    office.sign("nameless", params);
    office.issue_version_1("old");
    office.issue_itself("itself", IsCa::Ca(BasicConstraints::Unconstrained));
    [
        ("nameless", "names no host, and a common name does not count: add subjectAltName"),
        ("old", "is of X.509 version 1"),
        ("itself", "(CA:TRUE), which no server may use"),
    ]
}

/// Regression test: with only a common name, the text was "made out to , not to …", and with version 1
/// `Other(OtherError(…))`.
#[test]
fn a_server_certificate_that_breaks_rules_is_refused_with_what_to_do_on_both_sides() {
    let office = Office::new("upstream-odd");
    for (name, part) in odd(&office) {
        let mut server = CertificateStore::open(&office.keys(name)).unwrap();
        let ca_file = Some(office.path(if name == "itself" { "itself.pem" } else { "ca.pem" }));
        let tls = UpstreamTls { ca_file, ..UpstreamTls::default() };
        let (client, listener) = meet(&mut server, "itself", &tls, &mut KnownTime::default());
        let (here, there) = (client.err().unwrap(), listener.err().unwrap());
        assert!(here.contains(part), "{name}: {here}");
        assert!(there.contains("refuses our certificate") && there.contains("subjectAltName"), "{there}");
        assert!(!here.contains("OtherError") && !there.contains("OtherError"), "{here} {there}");
        assert!(here.len() < 170, "a cause has 200 bytes: {here}");
    }
}

#[test]
fn a_client_certificate_that_breaks_rules_is_refused_with_what_to_do_on_both_sides() {
    let (office, others) = (Office::new("client-odd"), Office::new("client-others"));
    office.issue("rabbit", None);
    odd(&office);
    others.issue("meter", None);
    office.issue_itself("alone", IsCa::NoCa);
    fs::copy(others.path("meter.pem"), office.path("meter.pem")).unwrap();
    fs::copy(others.path("meter.key"), office.path("meter.key")).unwrap();
    for (name, client_ca, part) in [
        ("old", "ca.pem", "is of X.509 version 1"),
        ("itself", "ca.pem", "(CA:TRUE), which no client may use"),
        ("itself", "itself.pem", "is itself in [tls] client_ca and is that of an authority (CA:TRUE)"),
        ("meter", "ca.pem", "is not signed by an authority in [tls] client_ca"),
        ("meter", "meter.pem", "is itself in [tls] client_ca, which is for authorities"),
        ("alone", "alone.pem", ""),
    ] {
        let mut keys = office.keys("rabbit");
        keys.client_certificates = ClientCertificates::Require;
        keys.client_ca = Some(office.path(client_ca));
        let mut server = CertificateStore::open(&keys).unwrap();
        let identity = Some((office.path(&format!("{name}.pem")), office.path(&format!("{name}.key"))));
        let tls = UpstreamTls { identity, ..trusting(&office) };
        let (client, listener) = meet(&mut server, "rabbit", &tls, &mut KnownTime::default());
        let Err(here) = listener else {
            assert_eq!(part, "", "{name} is admitted by {client_ca}");
            continue;
        };
        assert!(here.contains(part) && !part.is_empty() && !here.contains("OtherError"), "{name}: {here}");
        let there = client.unwrap().fault().expect("an alert says it");
        let is_said =
            there.contains("the upstream refuses our certificate: the certificate must have version 3");
        assert!(is_said || there.contains("does not trust the issuer of our certificate"), "{name}: {there}");
    }
}

/// Returns the SHA-256 of a certificate in a file.
fn sum_of(office: &Office, name: &str) -> Sha256 {
    let der = CertificateDer::from_pem_file(office.path(&format!("{name}.pem"))).unwrap();
    let mut sum = [0; 32];
    sum.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &der).as_ref());
    Sha256(sum)
}

#[test]
fn server_certificate_sha256_accepts_exactly_one_certificate() {
    let office = Office::new("upstream-pinned");
    odd(&office);
    office.issue("late", Some((2020, 1, 1)));
    office.issue("other", None);
    let mut known = KnownTime::default();
    for name in ["nameless", "old", "itself", "late"] {
        let mut server = CertificateStore::open(&office.keys(name)).unwrap();
        let certificate_sha256 = Some(sum_of(&office, name));
        let tls = UpstreamTls { certificate_sha256, ..UpstreamTls::default() };
        let (client, listener) = meet(&mut server, "rabbit", &tls, &mut known);
        assert!(client.is_ok() && listener.is_ok(), "{name}: {:?}", client.err());
        let mut server = CertificateStore::open(&office.keys("other")).unwrap();
        let said = why(meet(&mut server, "rabbit", &tls, &mut known));
        let shown = sum_of(&office, "other").to_string();
        assert!(said.contains(&shown) && said.contains("not the one in server_certificate_sha256"), "{said}");
    }
    assert_eq!(known.seconds(), 0, "nothing was held against the clock");
}

/// Tests both versions of TLS, which sign differently.
#[test]
fn who_has_the_certificate_and_not_its_key_is_no_upstream() {
    let office = Office::new("upstream-stolen");
    odd(&office);
    for protocol in [&version::TLS12, &version::TLS13] {
        for (name, key, is_accepted) in
            [("old", "old", true), ("nameless", "nameless", true), ("old", "itself", false)]
        {
            let provider = Arc::new(handshake::provider());
            let der = CertificateDer::from_pem_file(office.path(&format!("{name}.pem"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(office.path(&format!("{key}.key"))).unwrap();
            let key = provider.key_provider.load_private_key(key).unwrap();
            let pair = rustls::sign::CertifiedKey::new(vec![der], key);
            let config = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[protocol])
                .unwrap()
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(pair)));
            let mut server = ServerConnection::new(Arc::new(config)).unwrap();
            let certificate_sha256 = Some(sum_of(&office, name));
            let tls = UpstreamTls { certificate_sha256, ..UpstreamTls::default() };
            let Tls::Shaking(client) = Tls::to_upstream("rabbit", &tls) else { unreachable!("it begins so") };
            let (mut client, mut up, mut known) =
                (HandshakeResult::More(client), Vec::new(), KnownTime::default());
            for _ in 0..10 {
                let mut down = Vec::new();
                while server.wants_write() {
                    server.write_tls(&mut down).unwrap();
                }
                if let HandshakeResult::More(mut handshake) = client {
                    handshake.append_input(&down);
                    client = advance(handshake, None, &mut known, &mut up);
                }
                let said = core::mem::take(&mut up);
                let mut said = &said[..];
                while !said.is_empty() {
                    server.read_tls(&mut said).unwrap();
                    let _ = server.process_new_packets();
                }
            }
            let is_open = matches!(client, HandshakeResult::Open(_));
            assert_eq!(is_open, is_accepted, "{protocol:?} {name}");
        }
    }
}
