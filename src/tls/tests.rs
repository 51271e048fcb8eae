//! Tests of TLS in memory with rustls' own client, byte by byte.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SigningKey as _};
use rustls::client::Resumption;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, version};

use super::der::tests::version_1;
use super::records::is_aligned;
use super::*;
use leveret_config::transports::{ClientCertificates, LoginFrom, Tls as Keys, TlsVersion};

/// An authority with its folder, which is removed at the end.
pub(super) struct Office {
    pub(super) folder: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, in PEM files of this name.
pub(super) struct Paper {
    certificate: rcgen::Certificate,
    key: KeyPair,
    pub(super) serial: [u8; 4],
}

impl Office {
    pub(super) fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("leveret-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "office");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
        Self { folder, authority }
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    pub(super) fn params(&self, name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(vec![name.to_string()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("cn of {name}"));
        params
    }

    pub(super) fn issue(&self, name: &str, not_after: Option<(i32, u8, u8)>) -> Paper {
        let mut params = self.params(name);
        if let Some((year, month, day)) = not_after {
            params.not_after = rcgen::date_time_ymd(year, month, day);
        }
        self.sign(name, params)
    }

    pub(super) fn sign(&self, name: &str, mut params: CertificateParams) -> Paper {
        let serial: [u8; 4] = core::array::from_fn(|at| name.as_bytes()[at % name.len()]);
        params.serial_number = Some(serial.to_vec().into());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        Paper { certificate, key, serial }
    }

    /// Issues a certificate of X.509 version 1.
    pub(super) fn issue_version_1(&self, name: &str) {
        let paper = self.issue(name, None);
        let der = version_1(paper.certificate.der(), |tbs| paper.key.sign(tbs).unwrap());
        fs::write(self.path(&format!("{name}.pem")), pem(&der)).unwrap();
    }

    /// Issues a self-signed certificate, optionally one of an authority.
    pub(super) fn issue_itself(&self, name: &str, is_ca: IsCa) {
        let mut params = self.params(name);
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        fs::write(self.path(&format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    pub(super) fn keys(&self, name: &str) -> Keys {
        Keys {
            certificates: vec![self.path(&format!("{name}.pem"))],
            keys: vec![self.path(&format!("{name}.key"))],
            client_ca: Some(self.path("ca.pem")),
            ..Keys::default()
        }
    }

    fn client(
        &self,
        paper: Option<&Paper>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        Arc::new(match paper {
            None => builder.with_no_client_auth(),
            Some(paper) => {
                let key = PrivateKeyDer::try_from(paper.key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![paper.certificate.der().clone()], key).unwrap()
            }
        })
    }
}

/// Formats a certificate as a PEM file.
fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits = (0..3).fold(0, |all, at| all << 8 | u32::from(*group.get(at).unwrap_or(&0)));
            let digit = |at: usize| char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]);
            (0..4).for_each(|at| text.push(if at <= group.len() { digit(at) } else { '=' }));
        }
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

impl Drop for Office {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Both sides, and the bytes between them.
struct Line {
    client: ClientConnection,
    pools: (BytePool, BytePool),
    stash: ByteChain,
    unsent: ByteChain,
}

impl Line {
    fn new(config: &Arc<ClientConfig>, name: &str) -> Self {
        let name = ServerName::try_from(name.to_string()).unwrap();
        Self {
            client: ClientConnection::new(config.clone(), name).unwrap(),
            pools: (BytePool::with_bytes(1 << 20), BytePool::with_bytes(1 << 20)),
            stash: ByteChain::default(),
            unsent: ByteChain::default(),
        }
    }

    fn said(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    fn hear(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.client.read_tls(&mut bytes).unwrap();
            if self.client.process_new_packets().is_err() {
                return;
            }
        }
    }

    /// Runs the handshake byte by byte; returns the number of steps.
    fn shake(
        &mut self,
        certificates: &mut CertificateStore,
    ) -> Result<(Session, Option<String>, u32), String> {
        let mut handshake = Handshake::new(None);
        let mut steps = 0;
        for _ in 0..10 {
            let said = self.said();
            for (at, octet) in said.iter().enumerate() {
                handshake.append_input(&[*octet]);
                if !handshake.is_ready() {
                    continue;
                }
                steps += 1;
                let HandshakeOutput { outgoing, next } =
                    handshake.step(Some(certificates), &mut KnownTime::default());
                self.hear(&outgoing);
                handshake = match next {
                    HandshakeResult::More(handshake) => handshake,
                    HandshakeResult::Failed(why) => return Err(why),
                    HandshakeResult::Open(mut opened) => {
                        opened.incoming.extend(&said[at + 1..]);
                        let login = opened.login.take();
                        let session = Session::begin(*opened, &mut self.pools.0, &mut self.stash);
                        return Ok((session.unwrap(), login, steps));
                    }
                };
            }
        }
        Err("no end".into())
    }

    /// Passes what the client sends in pieces of this size; returns the plaintext.
    fn send(&mut self, session: &mut Session, piece: usize) -> (Vec<u8>, bool) {
        let mut held = vec![0; session.incomplete_record.len()];
        session.incomplete_record.copy_front(&self.pools.0, &mut held);
        session.incomplete_record.clear(&mut self.pools.0);
        let (mut out, mut end) = (Vec::new(), false);
        for octets in self.said().chunks(piece) {
            held.extend(octets);
            let mut plain = vec![0; held.len()];
            let unsealed = session.unseal(&mut held, &mut plain, &mut self.unsent, &mut self.pools.1);
            out.extend(&plain[..unsealed.plain]);
            end |= unsealed.end;
            held.drain(..unsealed.taken);
            assert!(is_aligned(&held) && held.len() < RECORD_BYTES_MAX);
        }
        assert!(held.is_empty());
        (out, end)
    }

    fn receive(&mut self, session: &mut Session, plain: &[u8]) -> Vec<u8> {
        let mut out = vec![0; SEALED_BYTES_MAX];
        let mut heard = Vec::new();
        for piece in plain.chunks(PLAIN_BYTES_MAX) {
            let len = session.seal(piece, &mut out).unwrap();
            for octet in &out[..len] {
                self.hear(&[*octet]);
            }
            let mut room = vec![0; piece.len()];
            self.client.reader().read_exact(&mut room).unwrap();
            heard.extend(room);
        }
        heard
    }
}

const BOTH: [&[&rustls::SupportedProtocolVersion]; 2] = [&[&version::TLS13], &[&version::TLS12]];

#[test]
fn octets_go_both_ways_however_they_are_cut() {
    let office = Office::new("both-ways");
    office.issue("localhost", None);
    for versions in BOTH {
        let mut certificates = CertificateStore::open(&office.keys("localhost")).unwrap();
        let mut line = Line::new(&office.client(None, versions), "localhost");
        let (mut session, login, steps) = line.shake(&mut certificates).unwrap();
        assert_eq!(login, None);
        assert!(steps <= 4, "{steps} steps: each is a job");
        let body: Vec<u8> = (0..100_000_u32).map(|number| (number * 7) as u8).collect();
        for piece in [1, 7, 1_000, 40_000] {
            line.client.writer().write_all(&body[..60_000]).unwrap();
            assert_eq!(line.send(&mut session, piece), (body[..60_000].to_vec(), false));
            assert_eq!(line.receive(&mut session, &body), body);
        }
        line.client.send_close_notify();
        assert_eq!(line.send(&mut session, 3), (Vec::new(), true));
        let mut out = [0; 100];
        let len = session.seal_close_notify(&mut out);
        line.hear(&out[..len]);
        assert_eq!(line.client.reader().read(&mut [0]).unwrap(), 0, "it was said farewell");
    }
}

#[test]
fn a_client_that_comes_again_is_known_by_its_ticket_until_the_files_change() {
    let office = Office::new("tickets");
    office.issue("localhost", None);
    for versions in BOTH {
        let mut config = office.client(None, versions);
        Arc::get_mut(&mut config).unwrap().resumption = Resumption::in_memory_sessions(8);
        let keys = office.keys("localhost");
        let mut certificates = CertificateStore::open(&keys).unwrap();
        let mut kinds = Vec::new();
        for round in 0..3 {
            if round == 2 {
                certificates.reload(&keys);
            }
            let mut line = Line::new(&config, "localhost");
            line.shake(&mut certificates).unwrap();
            kinds.push(line.client.handshake_kind());
        }
        let (full, resumed) = (Some(HandshakeKind::Full), Some(HandshakeKind::Resumed));
        assert_eq!(kinds, [full, resumed, full]);
    }
}

#[test]
fn a_clients_certificate_names_its_user() {
    let office = Office::new("names");
    office.issue("localhost", None);
    let paper = office.issue("meter-1", None);
    for versions in BOTH {
        for (from, name) in [
            (LoginFrom::CommonName, "cn of meter-1"),
            (LoginFrom::DistinguishedName, "CN=cn of meter-1"),
            (LoginFrom::Dns, "meter-1"),
        ] {
            let mut keys = office.keys("localhost");
            keys.client_certificates = ClientCertificates::Require;
            keys.login_from = from;
            let mut certificates = CertificateStore::open(&keys).unwrap();
            let mut line = Line::new(&office.client(Some(&paper), versions), "localhost");
            let (_, login, _) = line.shake(&mut certificates).unwrap();
            assert_eq!(login.as_deref(), Some(name));
        }
    }
}

#[test]
fn who_shows_no_good_certificate_is_refused_with_the_reason() {
    let office = Office::new("refused");
    let stranger = Office::new("refused-stranger");
    office.issue("localhost", None);
    let expired = office.issue("late", Some((2020, 1, 1)));
    let foreign = stranger.issue("foreign", None);
    let mut keys = office.keys("localhost");
    keys.client_certificates = ClientCertificates::Require;
    let refused = |paper: Option<&Paper>, keys: &Keys, versions| {
        let mut certificates = CertificateStore::open(keys).unwrap();
        let mut line = Line::new(&office.client(paper, versions), "localhost");
        line.shake(&mut certificates).err().unwrap()
    };
    for versions in BOTH {
        assert!(refused(None, &keys, versions).starts_with("the client presented no certificate"));
        assert!(
            refused(Some(&foreign), &keys, versions)
                .contains("not signed by an authority in [tls] client_ca")
        );
        let why = refused(Some(&expired), &keys, versions);
        assert!(
            why.starts_with("the client's certificate expired at 2020-01-01 00:00 UTC; the clock"),
            "{why}"
        );
    }
    let mut keys = office.keys("localhost");
    keys.minimum_version = TlsVersion::Tls13;
    assert!(refused(None, &keys, BOTH[1]).contains("minimum_version"));
}

#[test]
fn the_certificate_is_chosen_by_the_name_asked_for() {
    let office = Office::new("by-name");
    let mut keys = office.keys("first.example");
    for name in ["first.example", "*.second.example"] {
        office.issue(name, None);
    }
    keys.certificates.push(office.path("*.second.example.pem"));
    keys.keys.push(office.path("*.second.example.key"));
    let mut certificates = CertificateStore::open(&keys).unwrap();
    for (name, is_served) in [("first.example", true), ("a.second.example", true), ("third.example", false)] {
        let mut line = Line::new(&office.client(None, BOTH[0]), name);
        let shaken = line.shake(&mut certificates);
        assert_eq!(shaken.is_ok(), is_served, "{name}");
        if let Err(why) = shaken {
            assert!(why.contains("our certificate"), "{why}");
        }
    }
}

/// Editors under Windows write a byte-order mark.
#[test]
fn a_byte_order_mark_before_a_certificate_or_a_key_is_skipped() {
    let office = Office::new("mark");
    office.issue("localhost", None);
    let keys = office.keys("localhost");
    for file in keys.certificates.iter().chain(&keys.keys) {
        let text = fs::read_to_string(file).unwrap();
        fs::write(file, format!("\u{feff}{text}")).unwrap();
    }
    CertificateStore::open(&keys).unwrap();
}

#[test]
fn files_that_do_not_go_together_are_refused_and_the_old_ones_stay() {
    let office = Office::new("files");
    office.issue("localhost", None);
    office.issue("other", None);
    let good = office.keys("localhost");
    let refused = |keys: &Keys| CertificateStore::open(keys).err().unwrap().to_string();
    let mut keys = good.clone();
    keys.keys = vec![office.path("other.key")];
    assert!(refused(&keys).contains("is not the key of the certificate in"), "{}", refused(&keys));
    keys.keys = keys.certificates.clone();
    assert!(refused(&keys).contains("interchanged"));
    keys.certificates = good.keys.clone();
    assert!(refused(&keys).contains("contains a private key and no certificate"));
    let mut keys = good.clone();
    keys.client_certificates = ClientCertificates::Allow;
    keys.client_ca = None;
    assert!(refused(&keys).starts_with("[tls] client_ca: name the file of the authorities"));
    let secret = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByq=SECRET\n-----END PRIVATE KEY-----\n";
    fs::write(office.path("bad.key"), secret).unwrap();
    keys = Keys { keys: vec![office.path("bad.key")], ..good.clone() };
    assert!(!refused(&keys).contains("SECRET") && !refused(&keys).contains("MIGH"), "{}", refused(&keys));
    fs::write(office.path("locked.key"), "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n").unwrap();
    keys.keys = vec![office.path("locked.key")];
    assert!(refused(&keys).contains("is encrypted"));
    let mut certificates = CertificateStore::open(&good).unwrap();
    certificates.reload(&keys);
    let mut line = Line::new(&office.client(None, BOTH[0]), "localhost");
    assert!(line.shake(&mut certificates).is_ok(), "the certificates read before stay in use");
}

#[test]
fn damaged_handshakes_and_records_end_their_connection_and_nothing_else() {
    let office = Office::new("damaged");
    office.issue("localhost", None);
    let mut certificates = CertificateStore::open(&office.keys("localhost")).unwrap();
    let config = office.client(None, BOTH[0]);
    let hello = Line::new(&config, "localhost").said();
    for at in 0..hello.len() {
        let mut damaged = hello.clone();
        damaged[at] ^= 0x55;
        let mut handshake = Handshake::new(None);
        handshake.append_input(&damaged);
        if handshake.is_ready() {
            drop(handshake.step(Some(&mut certificates), &mut KnownTime::default()));
        }
    }
    for at in [0, 3, 4, 5, 20] {
        let mut line = Line::new(&config, "localhost");
        let (mut session, ..) = line.shake(&mut certificates).unwrap();
        line.client.writer().write_all(b"AMQP").unwrap();
        let mut sealed = line.said();
        sealed[at] ^= 0x80;
        let mut plain = vec![0; sealed.len()];
        let unsealed = session.unseal(&mut sealed, &mut plain, &mut line.unsent, &mut line.pools.1);
        assert!(unsealed.plain == 0, "nothing comes out of it");
    }
}

/// Cuts the bytes into records of this size.
fn cut(records: &[u8], each: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = records;
    while let Some(len) = super::records::first_record_len(rest) {
        let (record, after) = rest.split_at(len);
        for piece in record[5..].chunks(each) {
            out.extend(&record[..3]);
            out.extend((piece.len() as u16).to_be_bytes());
            out.extend(piece);
        }
        rest = after;
    }
    out
}

#[test]
fn a_handshake_takes_so_many_records_and_no_more() {
    let office = Office::new("records");
    office.issue("localhost", None);
    let mut certificates = CertificateStore::open(&office.keys("localhost")).unwrap();
    for versions in BOTH {
        let hello = Line::new(&office.client(None, versions), "localhost").said();
        // Records of one byte: refused after a bounded number of steps, whether they arrive one by one or at once.
        let tiny = cut(&hello, 1);
        assert!(tiny.len() / 6 > 128, "the hello has {} octets", tiny.len() / 6);
        for piece in [1, tiny.len()] {
            let mut handshake = Handshake::new(None);
            let (mut steps, mut why) = (0, None);
            for bytes in tiny.chunks(piece) {
                handshake.append_input(bytes);
                if !handshake.is_ready() {
                    continue;
                }
                steps += 1;
                match handshake.step(Some(&mut certificates), &mut KnownTime::default()).next {
                    HandshakeResult::More(again) => handshake = again,
                    HandshakeResult::Failed(said) => {
                        why = Some(said);
                        break;
                    }
                    HandshakeResult::Open(_) => panic!("it is not over"),
                }
            }
            assert_eq!(why.as_deref(), Some("the handshake is not complete after 128 records"));
            assert_eq!(steps, if piece == 1 { 128 } else { 1 });
        }
        // A hello in a hundred pieces is accepted.
        let mut handshake = Handshake::new(None);
        handshake.append_input(&cut(&hello, hello.len().div_ceil(100)));
        let shaken = handshake.step(Some(&mut certificates), &mut KnownTime::default());
        assert!(
            matches!(shaken.next, HandshakeResult::More(_)) && !shaken.outgoing.is_empty(),
            "it is answered"
        );
    }
}

#[test]
fn what_comes_behind_a_handshake_is_not_counted_as_part_of_it() {
    let office = Office::new("behind");
    office.issue("localhost", None);
    let mut certificates = CertificateStore::open(&office.keys("localhost")).unwrap();
    let mut line = Line::new(&office.client(None, BOTH[0]), "localhost");
    let mut handshake = Handshake::new(None);
    handshake.append_input(&line.said());
    let HandshakeOutput { outgoing, next } =
        handshake.step(Some(&mut certificates), &mut KnownTime::default());
    let HandshakeResult::More(mut handshake) = next else { panic!("more is to come") };
    line.hear(&outgoing);
    let mut said = line.said();
    let text: Vec<u8> = (0..300_u16).map(|number| number as u8).collect();
    for octet in &text {
        line.client.writer().write_all(&[*octet]).unwrap();
        said.extend(line.said());
    }
    handshake.append_input(&said);
    let HandshakeResult::Open(opened) =
        handshake.step(Some(&mut certificates), &mut KnownTime::default()).next
    else {
        panic!("it is over")
    };
    assert_eq!((opened.plain, opened.incoming), (text, Vec::new()));
}

#[test]
fn a_chain_of_certificates_as_long_as_may_be_comes_in_small_records() {
    let office = Office::new("chain");
    office.issue("localhost", None);
    let paper = office.issue("meter", None);
    let mut keys = office.keys("localhost");
    keys.client_certificates = ClientCertificates::Require;
    let chain_of = |bytes: usize| {
        let mut chain = vec![paper.certificate.der().clone()];
        let one = office.authority.der().clone();
        while chain.iter().map(|der| der.len()).sum::<usize>() + one.len() <= bytes {
            chain.push(one.clone());
        }
        chain
    };
    for (bytes, is_let_in) in [(CLIENT_CHAIN_BYTES_MAX, true), (15 << 10, false)] {
        for versions in BOTH {
            let mut config = (*office.client(Some(&paper), versions)).clone();
            let key = PrivateKeyDer::try_from(paper.key.serialize_der()).unwrap();
            let provider = rustls::crypto::ring::default_provider();
            let signer = provider.key_provider.load_private_key(key).unwrap();
            config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(
                rustls::sign::CertifiedKey::new(chain_of(bytes), signer),
            ));
            config.max_fragment_size = Some(512);
            let mut certificates = CertificateStore::open(&keys).unwrap();
            let shaken = Line::new(&Arc::new(config), "localhost").shake(&mut certificates);
            match shaken {
                Ok(..) => assert!(is_let_in, "{bytes}"),
                Err(why) => {
                    assert!(
                        !is_let_in && why == "the certificates of the peer have more than 8192 bytes",
                        "{bytes}: {why}"
                    );
                }
            }
        }
    }
}

#[test]
fn keys_are_not_changed_for_ever_and_records_are_counted() {
    let office = Office::new("floods");
    office.issue("localhost", None);
    let mut certificates = CertificateStore::open(&office.keys("localhost")).unwrap();
    let mut line = Line::new(&office.client(None, BOTH[0]), "localhost");
    let (mut session, ..) = line.shake(&mut certificates).unwrap();
    for octet in 0..100 {
        line.client.writer().write_all(&[octet]).unwrap();
    }
    let mut said = line.said();
    let mut plain = vec![0; said.len()];
    let unsealed = session.unseal(&mut said, &mut plain, &mut line.unsent, &mut line.pools.1);
    assert_eq!((unsealed.plain, unsealed.records, unsealed.taken), (100, 100, said.len()));
    let mut changes = 0;
    while changes < 1_000 {
        line.client.refresh_traffic_keys().unwrap();
        let mut said = line.said();
        let mut plain = vec![0; said.len()];
        if session.unseal(&mut said, &mut plain, &mut line.unsent, &mut line.pools.1).end {
            break;
        }
        changes += 1;
    }
    assert!(changes <= 32, "{changes} changes of keys");
}

#[test]
fn a_revoked_certificate_is_refused_and_an_old_list_goes_on_counting() {
    use rcgen::{
        CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd,
    };
    let office = Office::new("revoked");
    office.issue("localhost", None);
    let papers = [office.issue("good", None), office.issue("stolen", None)];
    let list = |name: &str, revoked: &[&Paper], until| {
        let entry = |paper: &&Paper| RevokedCertParams {
            serial_number: SerialNumber::from_slice(paper.serial.as_slice()),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: until,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        fs::write(office.path(name), params.signed_by(&office.authority).unwrap().pem().unwrap()).unwrap();
    };
    let mut keys = office.keys("localhost");
    keys.client_certificates = ClientCertificates::Require;
    keys.crls = vec![office.path("crl.pem")];
    let let_in = |certificates: &mut CertificateStore, versions, paper: &Paper| {
        let shaken = Line::new(&office.client(Some(paper), versions), "localhost").shake(certificates);
        shaken.map(|_| ())
    };
    for versions in BOTH {
        for until in [date_time_ymd(2999, 1, 1), date_time_ymd(2024, 2, 1)] {
            list("crl.pem", &[], until);
            let mut certificates = CertificateStore::open(&keys).unwrap();
            assert_eq!(let_in(&mut certificates, versions, &papers[1]), Ok(()));
            list("crl.pem", &[&papers[1]], until);
            certificates.reload(&keys);
            let why = let_in(&mut certificates, versions, &papers[1]).unwrap_err();
            assert_eq!(why, "the client's certificate was revoked: a list in [tls] crl contains its number");
            assert_eq!(let_in(&mut certificates, versions, &papers[0]), Ok(()), "until {until}");
        }
    }
    let refused = |keys: &Keys| CertificateStore::open(keys).err().unwrap().to_string();
    keys.client_certificates = ClientCertificates::None;
    assert!(refused(&keys).contains("[tls] crl: names lists"), "{}", refused(&keys));
    keys.client_certificates = ClientCertificates::Allow;
    keys.crls.push(office.path("ca.pem"));
    assert!(refused(&keys).contains("ca.pem contains no list in PEM form"), "{}", refused(&keys));
    keys.crls = vec![office.path("none.pem")];
    assert!(refused(&keys).contains("[tls] crl:") && refused(&keys).contains("does not exist"));
}
