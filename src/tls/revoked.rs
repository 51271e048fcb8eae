//! Lists of certificates that count no longer: what `crl` under `[tls]` names.
//!
//! Why it exists: a device that was stolen holds a certificate that is good for years. What is decided here,
//! for boards that nobody visits: a list that is out of date goes on counting, because who was revoked stays
//! so, and because refusing everybody until somebody comes by with a new list (or with the time) would be
//! the worse harm; it is said loudly when it is read. An authority without a list has revoked nobody. Of
//! several lists of one authority each counts: who is on any of them stays out, whatever their order and
//! their dates, for an older one that was left behind must let nobody in. Always true: all lists together
//! take a bounded part of memory; a list that bears the name of an authority is signed by one of that name.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::SignatureVerificationAlgorithm;
use rustls::pki_types::pem::PemObject;

use super::certificates::{TlsError, read};
use super::der::{Certificate, RevocationList};
use super::verifier::{Clock, Utc};

/// All lists together: some two hundred certificates.
const LISTS_BYTES_MAX: usize = 8 << 10;
/// Bytes of memory that they take at most, the old ones included while new ones are read. An entry has 22
/// octets at least and takes up to 180 bytes with the tables it lies in.
pub const CRL_BYTES: usize = LISTS_BYTES_MAX * 16;

/// What the files hold.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    lists: Vec<CertificateRevocationListDer<'static>>,
    /// Which file each is from.
    paths: Vec<PathBuf>,
    /// Whether each is signed by an authority that is known.
    are_known: Vec<bool>,
}

/// The lists, for whoever checks certificates. Of those that are gone through together the first of a name is
/// all that counts.
#[derive(Debug, Default)]
pub(super) struct Sets {
    /// Those that share the name of their authority with nobody, to be gone through together.
    pub(super) alone: Vec<CertificateRevocationListDer<'static>>,
    /// The others, to be gone through one by one.
    pub(super) sharing: Vec<Sharing>,
}

/// A list that shares the name of its authority with another list, or its authority with another one.
#[derive(Debug)]
pub(super) struct Sharing {
    pub(super) list: CertificateRevocationListDer<'static>,
    /// It is signed by an authority that is known.
    pub(super) is_known: bool,
}

impl Revoked {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with one of them.
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

    /// Finds out whose each is.
    ///
    /// # Errors
    /// One is of nobody who bears the name of its authority.
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

    /// When the latest was made, in seconds since 1970: it is no earlier than that.
    pub(super) fn made_s(&self) -> u64 {
        self.each().map(|(list, _)| list.this_update).max().unwrap_or(0)
    }

    /// The lists as they are gone through.
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

    /// Says what the operator should know of them.
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

/// The authorities that bear the name of a list's.
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
