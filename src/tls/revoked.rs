//! Certificate revocation lists: the files of `crl` under `[tls]`.
//!
//! The certificate of a stolen device is valid for years unless it is revoked. These decisions suit boards that run
//! unattended:
//! - A list whose next update is overdue is still used. It still revokes certificates, and to refuse all clients until an
//!   operator installs a new list would be worse. An error is logged when the list is loaded.
//! - An authority without a list has revoked nothing.
//! - If an authority has several lists, all of them are used, whatever their order and dates.
//!
//! # Invariants
//! - All lists together have a maximum size.
//! - If an authority in `client_ca` has the name of a list's authority, such an authority has signed the list.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::SignatureVerificationAlgorithm;
use rustls::pki_types::pem::PemObject;

use super::certificates::{TlsError, read};
use super::der::{Certificate, RevocationList};
use super::verifier::{Clock, Utc};

/// Maximum size of all lists together in bytes, enough for about 200 revoked certificates.
const LISTS_BYTES_MAX: usize = 8 << 10;
/// Maximum memory of the lists in bytes. It includes the old lists while new ones are loaded. A revoked certificate takes
/// at least 22 bytes in a list and up to 180 bytes in memory.
pub const CRL_BYTES: usize = LISTS_BYTES_MAX * 16;

/// The lists of all files.
#[derive(Debug, Default)]
pub(super) struct RevocationLists {
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// The file of each list.
    paths: Vec<PathBuf>,
    /// For each list, whether an authority in `client_ca` has signed it.
    have_known_signer: Vec<bool>,
}

/// The lists as the verifiers need them: one verifier of rustls uses only the first list with each authority name.
#[derive(Debug, Default)]
pub(super) struct Sets {
    /// Lists whose authority name is unique. One verifier can use all of them.
    pub(super) unique: Vec<CertificateRevocationListDer<'static>>,
    /// The other lists. Each needs a verifier of its own.
    pub(super) shared: Vec<SharedNameList>,
}

/// A list whose authority name occurs in another list, or twice in `client_ca`.
#[derive(Debug)]
pub(super) struct SharedNameList {
    pub(super) list: CertificateRevocationListDer<'static>,
    /// Whether an authority in `client_ca` has signed the list.
    pub(super) has_known_signer: bool,
}

impl RevocationLists {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be read, contains something other than revocation lists, or the lists are too large.
    pub(super) fn read(paths: &[PathBuf]) -> Result<Self, TlsError> {
        let mut all = Self::default();
        for path in paths {
            let failed = |why: &str| Err(TlsError::new("[tls] crl", path, why));
            let (text, _) = read("[tls] crl", path)?;
            let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&text).collect();
            let Ok(lists) = lists else {
                return failed("is damaged: it is not a valid PEM file");
            };
            if lists.is_empty() {
                return failed(
                    "contains no list in PEM format (-----BEGIN X509 CRL-----); `openssl crl -inform der` \
                     converts a DER file",
                );
            }
            if lists.iter().any(|der| RevocationList::parse(der).is_none()) {
                return failed("contains something that is not a list of revoked certificates");
            }
            all.paths.extend(lists.iter().map(|_| path.clone()));
            all.lists.extend(lists);
            if all.lists.iter().map(|der| der.len()).sum::<usize>() > LISTS_BYTES_MAX {
                let why = format!(
                    "and the other lists have more than {LISTS_BYTES_MAX} bytes together; leave out certificates that \
                     have expired anyway, or replace the authority"
                );
                return Err(TlsError::new("[tls] crl", path, why));
            }
        }
        Ok(all)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Determines for each list whether an authority in `authorities` has signed it.
    ///
    /// # Errors
    /// There are authorities with the name of the list's authority, and none of them has signed the list.
    pub(super) fn find_signers(
        &mut self,
        authorities: &[CertificateDer<'static>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<(), TlsError> {
        let mut have_known_signer = Vec::new();
        for (list, path) in self.each() {
            let mut namesakes = namesakes(authorities, &list).peekable();
            let has_namesake = namesakes.peek().is_some();
            let has_known_signer = namesakes.any(|authority| list.is_signed_by(&authority, algorithms));
            if has_namesake && !has_known_signer {
                let why = "is signed by no authority of that name in client_ca: it is damaged, or from another authority \
                           of the same name; replace the list by an undamaged one, or leave it out";
                return Err(TlsError::new("[tls] crl", path, why));
            }
            have_known_signer.push(has_known_signer);
        }
        self.have_known_signer = have_known_signer;
        Ok(())
    }

    /// Returns when the newest list was created, in seconds since 1970; 0 without lists. The right time is not earlier.
    pub(super) fn newest_update_s(&self) -> u64 {
        self.each().map(|(list, _)| list.this_update).max().unwrap_or(0)
    }

    /// Converts the lists into sets for the verifiers.
    pub(super) fn sets(self, authorities: &[CertificateDer<'static>]) -> Sets {
        let is_unique = |list: &RevocationList<'_>| {
            let same_name = self.each().filter(|(other, _)| other.issuer == list.issuer);
            same_name.count() == 1 && namesakes(authorities, list).count() <= 1
        };
        let are_unique: Vec<bool> = self.each().map(|(list, _)| is_unique(&list)).collect();
        let mut sets = Sets::default();
        let lists = self.lists.into_iter().zip(are_unique).zip(self.have_known_signer);
        for ((list, is_unique), has_known_signer) in lists {
            if is_unique {
                sets.unique.push(list);
            } else {
                sets.shared.push(SharedNameList { list, has_known_signer });
            }
        }
        sets
    }

    /// Logs the dates of the lists, and a warning for each list whose authority is not in `client_ca`.
    pub(super) fn log_validity(&self, authorities: &[CertificateDer<'static>], clock: Clock) {
        for (list, path) in self.each() {
            log_revocation_list(&list, path, clock);
            if namesakes(authorities, &list).next().is_none() {
                log::warn!(
                    "[tls] crl: the authority of {} is not in client_ca: the list is used only for certificates whose \
                     chain contains that authority",
                    path.display()
                );
            }
        }
    }

    /// Returns each list with the path of its file.
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

/// Logs the dates of a list.
fn log_revocation_list(list: &RevocationList<'_>, path: &Path, clock: Clock) {
    let (path, made) = (path.display(), Utc(list.this_update));
    match list.next_update {
        Some(next) if next < clock.now_s() => log::error!(
            "[tls] crl: {path} was to be replaced by {} at the latest: its certificates stay revoked, but later \
             revocations are missing; install a new list",
            Utc(next)
        ),
        Some(next) => {
            log::info!("[tls] crl: {path} was created {made} and is to be replaced by {}", Utc(next))
        }
        None => log::info!("[tls] crl: {path} was created {made}"),
    }
}
