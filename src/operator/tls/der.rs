//! What a certificate says of its owner and its time, and a list of revoked ones of its own, read out of DER.
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
//! ```
//!
//! Why it exists: whether a certificate is sound and by whom it is signed is for rustls to say; a login name
//! and a time are all that is wanted of it here, and of a list whose it is. Always true: nothing is copied
//! but names, nothing is trusted to be whole, and what is not understood is not there.

use rustls::pki_types::SignatureVerificationAlgorithm;

use super::clock::days_since_1970;

/// Tags, as octets.
const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
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

/// A kind of subject alternative name, by its tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum AlternativeName {
    Email = 0x81,
    Dns = 0x82,
    Uri = 0x86,
}

/// The parts of a certificate that are of interest here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Certificate<'a> {
    /// Seconds since 1970.
    pub(super) not_before: u64,
    /// Seconds since 1970.
    pub(super) not_after: u64,
    pub(super) subject: &'a [u8],
    /// Who signed it.
    pub(super) issuer: &'a [u8],
    /// How it is used, and the key.
    public_key: &'a [u8],
    alternative_names: &'a [u8],
}

/// Octets of DER, taken from the front.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element: its tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let len = match first {
            0..=0x7f => usize::from(first),
            // Longer lengths than these no certificate has.
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

    /// The content of the next element, if it has this tag; otherwise it stays.
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
    /// Reads a certificate; `None`: this is none.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut outer = Der(Der(der).take(SEQUENCE)?);
        let mut tbs = Der(outer.take(SEQUENCE)?);
        tbs.take(VERSION);
        tbs.take(INTEGER)?;
        tbs.take(SEQUENCE)?;
        let issuer = tbs.take(SEQUENCE)?;
        let mut validity = Der(tbs.take(SEQUENCE)?);
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        let subject = tbs.take(SEQUENCE)?;
        let public_key = tbs.take(SEQUENCE)?;
        let mut alternative_names: &[u8] = &[];
        while let Some((tag, content)) = tbs.next() {
            if tag == EXTENSIONS {
                alternative_names = find_alternative_names(content).unwrap_or_default();
            }
        }
        Some(Self { not_before, not_after, subject, issuer, public_key, alternative_names })
    }

    /// The common names of the subject, in their order.
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

    /// The alternative names of one kind, in their order.
    pub(super) fn alternative_names(&self, kind: AlternativeName) -> impl Iterator<Item = &'a str> {
        let mut names = Der(self.alternative_names);
        let all = core::iter::from_fn(move || names.next());
        all.filter(move |(tag, _)| *tag == kind as u8).filter_map(|(_, text)| printable(text))
    }
}

/// The parts of a list of revoked certificates that are of interest here.
#[derive(Clone, Copy, Debug)]
pub(super) struct RevocationList<'a> {
    /// As the subject of a certificate.
    pub(super) issuer: &'a [u8],
    /// Seconds since 1970.
    pub(super) this_update: u64,
    /// Seconds since 1970, if it says when there is to be another.
    pub(super) next_update: Option<u64>,
    /// What is signed, with its tag and length.
    signed: &'a [u8],
    /// How.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> RevocationList<'a> {
    /// Reads a list; `None`: this is none.
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

    /// Whether the key of an authority's certificate has signed it.
    pub(super) fn is_signed_by(
        &self,
        authority: &Certificate<'_>,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> bool {
        let mut public_key = Der(authority.public_key);
        let (Some(kind), Some(key)) = (public_key.take(SEQUENCE), bits(&mut public_key)) else {
            return false;
        };
        algorithms.iter().any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == kind
                && algorithm.signature_alg_id().as_ref() == self.algorithm
                && algorithm.verify_signature(key, self.signed, self.signature).is_ok()
        })
    }
}

/// A string of whole octets: none of the bits of the last is unused.
fn bits<'a>(der: &mut Der<'a>) -> Option<&'a [u8]> {
    der.take(BIT_STRING)?.split_first().filter(|(unused, _)| **unused == 0).map(|(_, octets)| octets)
}

fn find_alternative_names(extensions: &[u8]) -> Option<&[u8]> {
    let mut list = Der(Der(extensions).take(SEQUENCE)?);
    while let Some(extension) = list.take(SEQUENCE) {
        let mut extension = Der(extension);
        if extension.take(OID)? != SUBJECT_ALTERNATIVE_NAME {
            continue;
        }
        extension.take(BOOLEAN);
        return Der(extension.take(OCTET_STRING)?).take(SEQUENCE);
    }
    None
}

/// A text that may be a name: UTF-8 without control characters.
fn printable(text: &[u8]) -> Option<&str> {
    let text = core::str::from_utf8(text).ok()?;
    (!text.is_empty() && !text.contains(char::is_control)).then_some(text)
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ` in seconds since 1970; earlier is 1970.
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
mod tests {
    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        match content.len() {
            len @ 0..=0x7f => bytes.push(len as u8),
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
                }
            }
        }
    }
}
