//! Reads names and times from certificates, and the authority and times from revocation lists. Both are in DER.
//!
//! ```text
//! Certificate   { TBSCertificate, … }
//! TBSCertificate{ [0] version?, serialNumber, signature, issuer, Validity{ notBefore, notAfter },
//!                 subject, subjectPublicKeyInfo{ algorithm, key }, …,
//!                 [3]{ { Extension{ OID, critical?, value } … } }? }
//! CertificateList{ TBSCertList{ version?, signature, issuer, thisUpdate, nextUpdate?, … },
//!                 algorithm, signature }
//! Name          { SET{ SEQUENCE{ OID, text } } … }            the common name is OID 2.5.4.3
//! SAN value     { [1] email | [2] dns | [6] uri | … }         OID 2.5.29.17
//! basicConstraints value{ cA?, pathLenConstraint? }           OID 2.5.29.19
//! ```
//!
//! rustls decides whether a certificate is valid and who signed it. The exceptions are [`Certificate::has_signed`] and
//! [`RevocationList::is_signed_by`], which check a signature.
//!
//! # Invariants
//! - Incomplete or invalid input causes no panic. Parts that cannot be parsed count as absent.

use rustls::pki_types::SignatureVerificationAlgorithm;

use super::verifier::days_since_1970;

/// Tags of DER.
const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const NUMERIC_STRING: u8 = 0x12;
const PRINTABLE_STRING: u8 = 0x13;
const TELETEX_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const UNIVERSAL_STRING: u8 = 0x1c;
const BMP_STRING: u8 = 0x1e;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// The tag of an alternative name that is an IP address.
const ADDRESS: u8 = 0x87;

/// Types of attributes in a distinguished name, and RabbitMQ's names for them.
const ATTRIBUTES: [(&[u8], &str); 17] = [
    (COMMON_NAME, "CN"),
    (&[0x55, 0x04, 0x04], "SN"),
    (&[0x55, 0x04, 0x05], "SERIALNUMBER"),
    (&[0x55, 0x04, 0x06], "C"),
    (&[0x55, 0x04, 0x07], "L"),
    (&[0x55, 0x04, 0x08], "ST"),
    (&[0x55, 0x04, 0x09], "STREET"),
    (&[0x55, 0x04, 0x0a], "O"),
    (&[0x55, 0x04, 0x0b], "OU"),
    (&[0x55, 0x04, 0x0c], "TITLE"),
    (&[0x55, 0x04, 0x2a], "GIVENNAME"),
    (&[0x55, 0x04, 0x2b], "INITIALS"),
    (&[0x55, 0x04, 0x2c], "GENERATIONQUALIFIER"),
    (&[0x55, 0x04, 0x41], "PSEUDONYM"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x01], "EMAILADDRESS"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19], "DC"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x01], "UID"),
];

/// A type of subject alternative name, by its tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum AlternativeName {
    Email = 0x81,
    Dns = 0x82,
    Uri = 0x86,
}

/// The parts of a certificate that Leveret uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Certificate<'a> {
    /// Seconds since 1970.
    pub(super) not_before: u64,
    /// Seconds since 1970.
    pub(super) not_after: u64,
    /// The owner's name.
    pub(super) subject: &'a [u8],
    /// The issuer's name.
    pub(super) issuer: &'a [u8],
    /// The algorithm and the public key.
    pub(super) public_key: &'a [u8],
    /// The public key with its tag and length.
    pub(super) public_key_der: &'a [u8],
    /// The content of the extension subjectAltName; empty without it.
    alternative_names: &'a [u8],
    /// Whether the version is 3, as standards require since 1999.
    pub(super) is_version_3: bool,
    /// Whether the certificate is that of an authority (CA:TRUE).
    pub(super) is_authority: bool,
}

/// A parser that removes elements from the front of DER.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Removes the next element and returns its tag and content; `None` at the end or if the element is incomplete.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let len = match first {
            0..=0x7f => usize::from(first),
            // Longer length fields would mean more than 16 MiB.
            0x81..=0x83 => {
                let (octets, after) = rest.split_at_checked(usize::from(first & 3))?;
                rest = after;
                octets.iter().fold(0, |len, octet| len << 8 | usize::from(*octet))
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// Removes the next element and returns its content, if the element has this tag. Otherwise nothing is removed.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let (found, content) = ahead.next()?;
        (found == tag).then(|| {
            *self = ahead;
            content
        })
    }
}

impl<'a> Certificate<'a> {
    /// Parses a certificate; `None` if `der` is not a certificate.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut outer = Der(Der(der).take(SEQUENCE)?);
        let mut tbs = Der(outer.take(SEQUENCE)?);
        let is_version_3 = tbs.take(VERSION).and_then(|version| Der(version).take(INTEGER)) == Some(&[2]);
        tbs.take(INTEGER)?;
        tbs.take(SEQUENCE)?;
        let issuer = tbs.take(SEQUENCE)?;
        let mut validity = Der(tbs.take(SEQUENCE)?);
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        let subject = tbs.take(SEQUENCE)?;
        let whole = tbs.0;
        let public_key = tbs.take(SEQUENCE)?;
        let public_key_der = &whole[..whole.len() - tbs.0.len()];
        let (mut alternative_names, mut is_authority): (&[u8], _) = (&[], false);
        while let Some((tag, content)) = tbs.next() {
            if tag == EXTENSIONS {
                let value = |oid| Der(find_extension(content, oid)?).take(SEQUENCE);
                alternative_names = value(SUBJECT_ALTERNATIVE_NAME).unwrap_or_default();
                let constraints = value(BASIC_CONSTRAINTS).unwrap_or_default();
                is_authority = Der(constraints).take(BOOLEAN).is_some_and(|value| value != [0]);
            }
        }
        Some(Self {
            not_before,
            not_after,
            subject,
            issuer,
            public_key,
            public_key_der,
            alternative_names,
            is_version_3,
            is_authority,
        })
    }

    /// Returns whether the certificate contains a host name or IP address in subjectAltName. A common name does not
    /// count.
    pub(super) fn names_a_host(&self) -> bool {
        let mut names = Der(self.alternative_names);
        let mut all = core::iter::from_fn(move || names.next());
        all.any(|(tag, _)| tag == AlternativeName::Dns as u8 || tag == ADDRESS)
    }

    /// Returns whether `signature` is a valid signature of `message` by the certificate's key, with one of these
    /// algorithms.
    pub(super) fn has_signed(
        &self,
        message: &[u8],
        signature: &[u8],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> bool {
        let mut public_key = Der(self.public_key);
        let (Some(kind), Some(key)) = (public_key.take(SEQUENCE), bits(&mut public_key)) else {
            return false;
        };
        algorithms.iter().any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == kind
                && algorithm.verify_signature(key, message, signature).is_ok()
        })
    }

    /// Returns the subject in the format of RFC 4514, the last part first, as RabbitMQ formats it. `None` if the
    /// subject is empty or invalid.
    pub(super) fn distinguished_name(&self) -> Option<String> {
        let mut subject = Der(self.subject);
        let mut parts = Vec::new();
        while let Some(set) = subject.take(SET) {
            let mut set = Der(set);
            let mut part = String::new();
            while let Some(attribute) = set.take(SEQUENCE) {
                let mut attribute = Der(attribute);
                let oid = attribute.take(OID)?;
                let (tag, value) = attribute.next()?;
                if !part.is_empty() {
                    part.push('+');
                }
                match ATTRIBUTES.iter().find(|(known, _)| *known == oid) {
                    Some((_, name)) => part.push_str(name),
                    None => part.push_str(&dotted(oid)),
                }
                part.push('=');
                push_value(&mut part, tag, value);
            }
            parts.push(part);
        }
        parts.reverse();
        Some(parts.join(",")).filter(|name| !name.is_empty())
    }

    /// Returns the common names of the subject, in their order.
    pub(super) fn common_names(&self) -> impl Iterator<Item = &'a str> {
        let mut subject = Der(self.subject);
        let sets = core::iter::from_fn(move || subject.next());
        let attributes = sets.filter(|(tag, _)| *tag == SET).flat_map(|(_, set)| {
            let mut set = Der(set);
            core::iter::from_fn(move || set.take(SEQUENCE))
        });
        attributes.filter_map(|attribute| {
            let mut attribute = Der(attribute);
            let is_name = attribute.take(OID)? == COMMON_NAME;
            let (tag, text) = attribute.next()?;
            let is_text = matches!(tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING);
            (is_name && is_text).then(|| printable(text)).flatten()
        })
    }

    /// Returns the subject alternative names of one type, in their order.
    pub(super) fn alternative_names(&self, kind: AlternativeName) -> impl Iterator<Item = &'a str> {
        let mut names = Der(self.alternative_names);
        let all = core::iter::from_fn(move || names.next());
        all.filter(move |(tag, _)| *tag == kind as u8).filter_map(|(_, text)| printable(text))
    }
}

/// The parts of a certificate revocation list that Leveret uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct RevocationList<'a> {
    /// The authority's name, in the form of a certificate's subject.
    pub(super) issuer: &'a [u8],
    /// When the list was created, in seconds since 1970.
    pub(super) this_update: u64,
    /// When a new list will be available at the latest, in seconds since 1970; `None` if the list does not contain it.
    pub(super) next_update: Option<u64>,
    /// The signed part with its tag and length.
    signed: &'a [u8],
    /// The signature algorithm.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> RevocationList<'a> {
    /// Parses a revocation list; `None` if `der` is not one.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut outer = Der(Der(der).take(SEQUENCE)?);
        let whole = outer.0;
        let mut tbs = Der(outer.take(SEQUENCE)?);
        let signed = &whole[..whole.len() - outer.0.len()];
        let (algorithm, signature) = (outer.take(SEQUENCE)?, bits(&mut outer)?);
        tbs.take(INTEGER);
        tbs.take(SEQUENCE)?;
        let issuer = tbs.take(SEQUENCE)?;
        let this_update = time(&mut tbs)?;
        let is_time = matches!(tbs.0.first(), Some(&(UTC_TIME | GENERALIZED_TIME)));
        let next_update = if is_time { Some(time(&mut tbs)?) } else { None };
        Some(Self { issuer, this_update, next_update, signed, algorithm, signature })
    }

    /// Returns whether an authority's key has signed the list.
    pub(super) fn is_signed_by(
        &self,
        authority: &Certificate<'_>,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> bool {
        let is_used = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
            algorithm.signature_alg_id().as_ref() == self.algorithm
        };
        let used: Vec<_> = algorithms.iter().filter(is_used).copied().collect();
        authority.has_signed(self.signed, self.signature, &used)
    }
}

/// Removes a bit string and returns its content; `None` if its length is not a whole number of bytes.
fn bits<'a>(der: &mut Der<'a>) -> Option<&'a [u8]> {
    der.take(BIT_STRING)?.split_first().filter(|(unused, _)| **unused == 0).map(|(_, octets)| octets)
}

/// Returns the value of the extension with this object identifier; `None` if there is none.
fn find_extension<'a>(extensions: &'a [u8], oid: &[u8]) -> Option<&'a [u8]> {
    let mut list = Der(Der(extensions).take(SEQUENCE)?);
    while let Some(extension) = list.take(SEQUENCE) {
        let mut extension = Der(extension);
        if extension.take(OID)? != oid {
            continue;
        }
        extension.take(BOOLEAN);
        return extension.take(OCTET_STRING);
    }
    None
}

/// Formats an object identifier as numbers with dots.
fn dotted(oid: &[u8]) -> String {
    let mut numbers: Vec<u64> = Vec::new();
    let mut number = 0_u64;
    for octet in oid {
        number = number << 7 | u64::from(octet & 0x7f);
        if octet & 0x80 == 0 {
            match numbers.is_empty() {
                true => numbers.extend([(number / 40).min(2), number - 40 * (number / 40).min(2)]),
                false => numbers.push(number),
            }
            number = 0;
        }
    }
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    numbers.join(".")
}

/// Appends the value of an attribute as UTF-8. Characters that RFC 4514 reserves, and all that are not printable ASCII,
/// are escaped as RabbitMQ does it. A value that is not a text is appended in hexadecimal digits.
fn push_value(part: &mut String, tag: u8, value: &[u8]) {
    let of_units = |size: usize| -> Vec<u8> {
        let units =
            value.chunks(size).map(|unit| unit.iter().fold(0, |all, octet| all << 8 | u32::from(*octet)));
        let text: String =
            units.map(|unit| char::from_u32(unit).unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        text.into_bytes()
    };
    let text = match tag {
        UTF8_STRING | PRINTABLE_STRING | IA5_STRING | NUMERIC_STRING => value.to_vec(),
        TELETEX_STRING => of_units(1),
        BMP_STRING => of_units(2),
        UNIVERSAL_STRING => of_units(4),
        _ => {
            part.push('#');
            return value.iter().for_each(|octet| part.push_str(&format!("{octet:02X}")));
        }
    };
    for (at, octet) in text.iter().enumerate() {
        let is_first = at == 0;
        let is_last = at + 1 == text.len();
        match octet {
            b' ' if is_first || is_last => part.push_str("\\ "),
            b'#' if is_first => part.push_str("\\#"),
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => part.extend(['\\', char::from(*octet)]),
            0..32 | 126.. => part.push_str(&format!("\\{octet:02X}")),
            _ => part.push(char::from(*octet)),
        }
    }
}

/// Returns the text if it can be a name: not empty, UTF-8, and without control characters.
fn printable(text: &[u8]) -> Option<&str> {
    let text = core::str::from_utf8(text).ok()?;
    (!text.is_empty() && !text.contains(char::is_control)).then_some(text)
}

/// Removes a time, `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`, and returns it in seconds since 1970; 0 for an earlier time.
fn time(der: &mut Der<'_>) -> Option<u64> {
    let (tag, text) = der.next()?;
    let text = core::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let (year, rest) = match tag {
        UTC_TIME if text.len() == 12 => {
            let year: i64 = text[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        GENERALIZED_TIME if text.len() == 14 => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |at: usize| rest[at..at + 2].parse::<i64>().ok();
    let days = days_since_1970(year, part(0)?, part(2)?);
    let seconds = days * 86_400 + part(4)? * 3_600 + part(6)? * 60 + part(8)?;
    Some(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Converts a certificate to version 1: without extensions, signed again.
    pub(in super::super) fn version_1(der: &[u8], sign: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
        let mut outer = Der(Der(der).take(SEQUENCE).unwrap());
        let (mut tbs, algorithm) = (Der(outer.take(SEQUENCE).unwrap()), outer.take(SEQUENCE).unwrap());
        let parts =
            core::iter::from_fn(|| tbs.next()).filter(|(tag, _)| ![VERSION, EXTENSIONS].contains(tag));
        let parts: Vec<Vec<u8>> = parts.map(|(tag, content)| element(tag, content)).collect();
        let tbs = elements(SEQUENCE, &parts);
        let signature = element(BIT_STRING, &[&[0], &sign(&tbs)[..]].concat());
        elements(SEQUENCE, &[tbs, element(SEQUENCE, algorithm), signature])
    }

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        match content.len() {
            len @ 0..=0x7f => bytes.push(len as u8),
            len @ 0x80..=0xff => bytes.extend([0x81, len as u8]),
            len => bytes.extend([0x82, (len >> 8) as u8, len as u8]),
        }
        bytes.extend(content);
        bytes
    }

    fn elements(tag: u8, parts: &[Vec<u8>]) -> Vec<u8> {
        element(tag, &parts.concat())
    }

    fn common_name(text: &[u8]) -> Vec<u8> {
        elements(SET, &[elements(SEQUENCE, &[element(OID, COMMON_NAME), element(UTF8_STRING, text)])])
    }

    fn certificate(subject: &[Vec<u8>], names: &[Vec<u8>]) -> Vec<u8> {
        let value = element(OCTET_STRING, &elements(SEQUENCE, names));
        let extension =
            elements(SEQUENCE, &[element(OID, SUBJECT_ALTERNATIVE_NAME), element(BOOLEAN, &[255]), value]);
        let tbs = [
            element(VERSION, &element(INTEGER, &[2])),
            element(INTEGER, &[7]),
            element(SEQUENCE, &[]),
            element(SEQUENCE, &[]),
            elements(
                SEQUENCE,
                &[element(UTC_TIME, b"700102000000Z"), element(GENERALIZED_TIME, b"20480229235959Z")],
            ),
            elements(SEQUENCE, subject),
            element(SEQUENCE, &[]),
            element(EXTENSIONS, &elements(SEQUENCE, &[extension])),
        ];
        elements(SEQUENCE, &[elements(SEQUENCE, &tbs), element(SEQUENCE, &[])])
    }

    #[test]
    fn names_and_times_are_found() {
        let der = certificate(
            &[common_name(b"meter-1"), common_name("zähler".as_bytes())],
            &[element(0x82, b"a.example"), element(0x81, b"a@b"), element(0x82, b"*.b.example")],
        );
        let certificate = Certificate::parse(&der).unwrap();
        assert_eq!(certificate.common_names().collect::<Vec<_>>(), ["meter-1", "zähler"]);
        let dns: Vec<&str> = certificate.alternative_names(AlternativeName::Dns).collect();
        assert_eq!(dns, ["a.example", "*.b.example"]);
        assert_eq!(certificate.alternative_names(AlternativeName::Email).next(), Some("a@b"));
        assert_eq!(certificate.alternative_names(AlternativeName::Uri).next(), None);
        assert_eq!(certificate.not_before, 86_400);
        assert_eq!(certificate.not_after, 2_466_633_599);
    }

    fn attribute(oid: &[u8], tag: u8, text: &[u8]) -> Vec<u8> {
        elements(SEQUENCE, &[element(OID, oid), element(tag, text)])
    }

    /// Expected values are from RabbitMQ 3.10.8's `rabbit_cert_info:subject/1`.
    #[test]
    fn a_distinguished_name_is_written_as_rabbitmq_writes_it() {
        let set = |attributes: &[Vec<u8>]| elements(SET, attributes);
        let country = set(&[attribute(&[0x55, 0x04, 0x06], PRINTABLE_STRING, b"CH")]);
        let plant = set(&[attribute(&[0x55, 0x04, 0x0a], UTF8_STRING, b"Plant, North")]);
        let two = set(&[
            attribute(&[0x55, 0x04, 0x0b], UTF8_STRING, b"a+b"),
            attribute(COMMON_NAME, UTF8_STRING, "zähler~".as_bytes()),
        ]);
        let mail = attribute(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], IA5_STRING, b"a@b");
        let old = attribute(&[0x55, 0x04, 0x07], TELETEX_STRING, b"Z\xfcrich");
        let wide = attribute(&[0x55, 0x04, 0x08], BMP_STRING, b"\0Z\0\xfc");
        let own = attribute(&[0x2a, 0x03, 0x84, 0x00], UTF8_STRING, b"# x ");
        for (subject, wanted) in [
            (vec![common_name(b"meter-1")], "CN=meter-1"),
            (vec![country, plant, two], "OU=a\\+b+CN=z\\C3\\A4hler\\7E,O=Plant\\, North,C=CH"),
            (vec![set(&[mail]), set(&[old])], "L=Z\\C3\\BCrich,EMAILADDRESS=a@b"),
            (vec![set(&[wide]), set(&[own])], "1.2.3.512=\\# x\\ ,ST=Z\\C3\\BC"),
        ] {
            let der = certificate(&subject, &[]);
            assert_eq!(Certificate::parse(&der).unwrap().distinguished_name().as_deref(), Some(wanted));
        }
        let der = certificate(&[], &[]);
        assert_eq!(Certificate::parse(&der).unwrap().distinguished_name(), None);
    }

    #[test]
    fn names_with_control_characters_are_none() {
        let der = certificate(&[common_name(b"root\0.example"), common_name(b"")], &[]);
        assert_eq!(Certificate::parse(&der).unwrap().common_names().next(), None);
    }

    #[test]
    fn damaged_certificates_are_none_and_never_a_panic() {
        let sound = certificate(&[common_name(b"meter")], &[element(0x82, b"a.example")]);
        for len in 0..sound.len() {
            if let Some(certificate) = Certificate::parse(&sound[..len]) {
                certificate.common_names().for_each(drop);
            }
            for value in [0, 1, 0x7f, 0x80, 0x82, 0x84, 0xff] {
                let mut damaged = sound.clone();
                damaged[len] = value;
                if let Some(certificate) = Certificate::parse(&damaged) {
                    certificate.common_names().for_each(drop);
                    certificate.alternative_names(AlternativeName::Dns).for_each(drop);
                    drop(certificate.distinguished_name());
                }
            }
        }
    }
}
