//! Certificate revocation lists: the files of `crl` under `[tls]`.
//!
//! A stolen device has a certificate that is valid for years. Decisions for boards that no person visits:
//! - An outdated list still counts. Revoked certificates stay revoked, and refusing all clients until someone
//!   brings a new list would be worse. A warning is logged when the list is read.
//! - An authority without a list has revoked nothing.
//! - If an authority has several lists, each counts, whatever their order and dates.
//!
//! # Invariants
//! - All lists together take a bounded amount of memory.
//! - A list with the name of an authority is signed by an authority of that name.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::SignatureVerificationAlgorithm;
use rustls::pki_types::pem::PemObject;

use super::certificates::{TlsError, read};
use super::der::{Certificate, RevocationList};
use super::verifier::{Clock, Utc};

/// Maximum size of all lists together in bytes: about two hundred certificates.
const LISTS_BYTES_MAX: usize = 8 << 10;
/// Maximum memory of the lists in bytes, old lists included while new ones are read. An entry has at least 22
/// bytes and takes up to 180 bytes with its tables.
pub const CRL_BYTES: usize = LISTS_BYTES_MAX * 16;

/// The content of the files.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// The file of each list.
    paths: Vec<PathBuf>,
    /// Whether each list is signed by a known authority.
    are_known: Vec<bool>,
}

/// The lists for the verifiers. rustls uses only the first list of each authority name in a set.
#[derive(Debug, Default)]
pub(super) struct Sets {
    /// Lists whose authority name is unique. They form one set.
    pub(super) alone: Vec<CertificateRevocationListDer<'static>>,
    /// The other lists. Each is used alone.
    pub(super) sharing: Vec<Sharing>,
}

/// A list that shares the name of its authority with another list or another authority.
#[derive(Debug)]
pub(super) struct Sharing {
    pub(super) list: CertificateRevocationListDer<'static>,
    /// Whether it is signed by a known authority.
    pub(super) is_known: bool,
}

impl Revoked {
    /// Reads the files.
    ///
    /// # Errors
    /// The error in one of them.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, TlsError> {
        let mut all = Self::default();
        for path in paths {
            let refused = |why: &str| Err(TlsError::new("[tls] crl", path, why));
            let (text, _) = read("[tls] crl", path)?;
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
                return Err(TlsError::new("[tls] crl", path, why));
            }
        }
        Ok(all)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Finds the authority of each list.
    ///
    /// # Errors
    /// A list is not signed by any authority of its name.
    pub(super) fn attribute(
        &mut self,
        authorities: &[CertificateDer<'static>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), TlsError> {
        let mut are_known = Vec::new();
        for (list, path) in self.each() {
            let mut namesakes = namesakes(authorities, &list).peekable();
            let has_namesake = namesakes.peek().is_some();
            let is_known = namesakes.any(|authority| list.is_signed_by(&authority, algorithms));
            if has_namesake && !is_known {
                let why = "is signed by no authority of that name in client_ca: it is damaged, or another's; \
                           put the whole list of one of them there, or leave it out";
                return Err(TlsError::new("[tls] crl", path, why));
            }
            are_known.push(is_known);
        }
        self.are_known = are_known;
        Ok(())
    }

    /// Returns when the latest list was made, in seconds since 1970. The current time is not earlier.
    pub(super) fn made_s(&self) -> u64 {
        self.each().map(|(list, _)| list.this_update).max().unwrap_or(0)
    }

    /// Returns the lists as sets for the verifiers.
    pub(super) fn sets(self, authorities: &[CertificateDer<'static>]) -> Sets {
        let is_alone = |list: &RevocationList<'_>| {
            let of_its_name = self.each().filter(|(other, _)| other.issuer == list.issuer);
            of_its_name.count() == 1 && namesakes(authorities, list).count() <= 1
        };
        let are_alone: Vec<bool> = self.each().map(|(list, _)| is_alone(&list)).collect();
        let mut sets = Sets::default();
        for ((list, is_alone), is_known) in self.lists.into_iter().zip(are_alone).zip(self.are_known) {
            if is_alone {
                sets.alone.push(list);
            } else {
                sets.sharing.push(Sharing { list, is_known });
            }
        }
        sets
    }

    /// Logs what the operator should know about the lists.
    pub(super) fn tell(&self, authorities: &[CertificateDer<'static>], clock: Clock) {
        for (list, path) in self.each() {
            log_revocation_list(&list, path, clock);
            if namesakes(authorities, &list).next().is_none() {
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

/// Returns the authorities with the name of a list's authority.
fn namesakes<'a>(
    authorities: &'a [CertificateDer<'static>],
    list: &RevocationList<'_>,
) -> impl Iterator<Item = Certificate<'a>> {
    let authorities = authorities.iter().filter_map(|der| Certificate::parse(der));
    authorities.filter(|authority| authority.subject == list.issuer)
}

fn log_revocation_list(list: &RevocationList<'_>, path: &Path, clock: Clock) {
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
