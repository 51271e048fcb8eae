//! Both ends are ours: a link's client and a listener's server, every octet handed over in memory.

use std::fs;

use super::tests::Office;
use super::*;
use crate::config::transports::ClientCertificates;

/// What came of a handshake at the client's end, and what the server's end became.
type Met = (Result<Session, String>, Result<Session, String>);

/// Makes steps at one end until it waits; what it says is added to `said`.
fn advance(
    mut handshake: Box<Handshake>,
    certificates: Option<&mut CertificateStore>,
    known: &mut KnownTime,
    said: &mut Vec<u8>,
) -> Next {
    if !handshake.is_ready() {
        return Next::More(handshake);
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
    let (mut client, mut listener) = (Next::More(client), Next::More(Handshake::new(None)));
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for _ in 0..10 {
        if let Next::More(mut handshake) = client {
            handshake.take_in(&core::mem::take(&mut down));
            client = advance(handshake, None, known, &mut up);
        }
        if let Next::More(mut handshake) = listener {
            handshake.take_in(&core::mem::take(&mut up));
            listener = advance(handshake, Some(server), &mut KnownTime::default(), &mut down);
        }
    }
    let ended = |next| match next {
        Next::Open(opened) => Ok(*opened),
        Next::Failed(why) => Err(why),
        Next::More(_) => Err("it waits".to_string()),
    };
    let mut client = ended(client);
    if let Ok(opened) = &mut client {
        opened.incoming.extend(down);
    }
    (client.map(begun_with_input), ended(listener).map(begun))
}

/// What is left over at the client's end (an alert, or tickets) is opened at once.
fn begun_with_input(mut opened: Opened) -> Session {
    let mut left = core::mem::take(&mut opened.incoming);
    let mut session = begun(opened);
    let mut plain = vec![0; left.len()];
    let mut pool = BytePool::with_bytes(8 << 10);
    session.unseal(&mut left, &mut plain, (&mut ByteChain::default(), &mut pool));
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
            let got = to.unseal(&mut sealed[..len], &mut plain, (&mut unsent, &mut pool));
            assert_eq!((&plain[..got.plain], got.taken), (text, len));
        }
    }
    let len = listener.seal(b"back", &mut sealed).unwrap();
    let got = client.unseal(&mut sealed[..len], &mut plain, (&mut unsent, &mut pool));
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
        ("empty.pem", Some(""), "holds no certificate"),
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
    assert!(late.contains("good until 2020-01-01"), "{late}");
    let mut params = office.params("rabbit");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    office.sign("itself", params);
    let mut server = CertificateStore::open(&office.keys("itself")).unwrap();
    let itself = why(meet(&mut server, "rabbit", &trusting(&office), &mut known));
    assert!(itself.contains("(CA:TRUE), which no server may show"), "{itself}");
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
    assert!(early.contains("the clock here is not to be trusted") && early.contains("2040-01-01"), "{early}");
    // In 2041, as far as is known, it is good, and what was good before is not any more in 2046.
    fs::write(office.path("last-known-time"), "2240611200\n").unwrap();
    let known = || KnownTime::kept_in(&office.folder);
    assert!(meet(&mut server, "early", &trusting(&office), &mut known()).0.is_ok());
    assert_eq!(known().seconds(), 2_240_611_200, "what is only known from before is not written down anew");
    fs::write(office.path("last-known-time"), "2398377600\n").unwrap();
    let mut server = CertificateStore::open(&office.keys("rabbit")).unwrap();
    let late = why(meet(&mut server, "rabbit", &trusting(&office), &mut known()));
    assert!(late.contains("good until 2045-01-01") && late.contains("here it is 2046-01-01"), "{late}");
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
    for (identity, part) in [(None, "set certificate and key"), (own(&others), "it refuses our certificate")]
    {
        let tls = UpstreamTls { identity, ..trusting(&office) };
        let (client, listener) = meet(&mut server, "rabbit", &tls, &mut known);
        assert!(listener.is_err());
        // With TLS 1.3 the client's handshake is over before anybody has looked at its certificate.
        let told = client.unwrap().fault().expect("an alert says it");
        assert!(told.contains(part), "{told}");
    }
    let torn = Some((office.path("meter.pem"), office.path("rabbit.key")));
    let said =
        why(meet(&mut server, "rabbit", &UpstreamTls { identity: torn, ..trusting(&office) }, &mut known));
    assert!(said.contains("is not the key of the certificate"), "{said}");
}
