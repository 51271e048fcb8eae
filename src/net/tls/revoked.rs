//! Lists of certificates that count no longer: what `crl` under `[tls]` names.
//!
//! Why it exists: a device that was stolen holds a certificate that is good for years. What is decided here,
//! for boards that nobody visits: a list that is out of date goes on counting, because who was revoked stays
//! so, and because refusing everybody until somebody comes by with a new list (or with the time) would be
//! the worse harm; it is said loudly when it is read. An authority without a list has revoked nobody. Always
//! true: all lists together take a bounded part of memory.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;

use super::certificates::{TlsError, read};
use super::clock::{Clock, Utc};
use super::der::{Certificate, RevocationList};

/// All lists together: some two hundred certificates.
const LISTS_BYTES_MAX: usize = 8 << 10;
/// Bytes of memory that they take at most, the old ones included while new ones are read. An entry has 22
/// octets at least and takes up to 180 bytes with the tables it lies in.
pub(in crate::net) const CRL_BYTES: usize = LISTS_BYTES_MAX * 16;

/// What the files hold.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// Which file each is from.
    paths: Vec<PathBuf>,
}

impl Revoked {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, TlsError> {
        let mut all = Self::default();
        for path in paths {
            let refused = |why: &str| Err(TlsError::new("crl", path, why));
            let (text, _) = read("crl", path)?;
            let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
            let Ok(lists) = lists else {
                return refused("is damaged: its lines are not those of a PEM file");
            };
            if lists.is_empty() {
                return refused(
                    "holds no list in PEM form (-----BEGIN X509 CRL-----); `openssl crl -inform der` makes \
                     it of a DER file",
                );
            }
            if lists.iter().any(|der| RevocationList::parse(der).is_none()) {
                return refused("holds something that is no list of revoked certificates");
            }
            all.paths.extend(lists.iter().map(|_| path.clone()));
            all.lists.extend(lists);
            if all.lists.iter().map(|der| der.len()).sum::<usize>() > LISTS_BYTES_MAX {
                let why = format!(
                    "makes more than {LISTS_BYTES_MAX} bytes of all lists; leave out certificates that have \
                     expired anyway, or begin with a new authority"
                );
                return Err(TlsError::new("crl", path, why));
            }
        }
        Ok(all)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// When the latest was made, in seconds since 1970: it is no earlier than that.
    pub(super) fn made_s(&self) -> u64 {
        self.each().map(|(list, _)| list.this_update).max().unwrap_or(0)
    }

    /// The lists, for whoever checks certificates.
    pub(super) fn lists(self) -> Vec<CertificateRevocationListDer<'static>> {
        self.lists
    }

    /// Says what the operator should know of them.
    pub(super) fn tell(&self, authorities: &[CertificateDer<'static>], clock: Clock) {
        for (list, path) in self.each() {
            tell_one(&list, path, clock);
            let is_of = |der: &CertificateDer<'_>| {
                Certificate::parse(der).is_some_and(|authority| authority.subject == list.issuer)
            };
            if !authorities.iter().any(is_of) {
                log::warn!(
                    "[tls] crl: {} is of an authority that is not in client_ca: it counts only for \
                     certificates that lead to that authority on their way",
                    path.display()
                );
            }
        }
    }

    fn each(&self) -> impl Iterator<Item = (RevocationList<'_>, &Path)> {
        let lists = self.lists.iter().zip(&self.paths);
        lists.filter_map(|(der, path)| Some((RevocationList::parse(der)?, path.as_path())))
    }
}

fn tell_one(list: &RevocationList<'_>, path: &Path, clock: Clock) {
    let (path, made) = (path.display(), Utc(list.this_update));
    match list.next_update {
        Some(next) if next < clock.now_s() => log::error!(
            "[tls] crl: {path} was to be replaced by {} at the latest: whom it names stays out, but who was \
             revoked since comes in; put a new one there",
            Utc(next)
        ),
        Some(next) => log::info!("[tls] crl: {path} is of {made}, to be replaced by {}", Utc(next)),
        None => log::info!("[tls] crl: {path} is of {made}"),
    }
}
