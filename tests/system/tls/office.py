"""A certificate authority for tests. Certificates are created by the `openssl` program in their own folder."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path
from typing import List, NamedTuple, Optional

from harness.suite import patience

CONFIG = """
[ca]
default_ca = ours
[ours]
dir = {folder}
database = {folder}/index.txt
new_certs_dir = {folder}
serial = {folder}/serial
crl_extensions = of_lists
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[of_lists]
authorityKeyIdentifier = keyid
[any]
commonName = optional
[req]
distinguished_name = name
[name]
"""


class Paper(NamedTuple):
    """The files of a certificate and its key."""

    certificate: Path
    key: Path


class Office:
    """A certificate authority."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.txt").write_text("")
        (folder / "serial").write_text("1000\n")
        (folder / "ca.cnf").write_text(CONFIG.format(folder=folder))
        self.authority = folder / "ca.pem"
        key = self.make_key("ca")
        self.openssl("req", "-x509", "-new", "-key", str(key), "-subj", f"/CN={name}", "-days", "3650",
                     "-config", str(folder / "ca.cnf"), "-addext", "basicConstraints=critical,CA:TRUE",
                     "-out", str(self.authority))

    def openssl(self, *arguments: str) -> str:
        done = subprocess.run(["openssl", *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=patience(120), cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"openssl {' '.join(arguments)}: {done.stdout}")
        return done.stdout

    def make_key(self, name: str, kind: str = "P-256") -> Path:
        """Returns a private key: P-256, or RSA with this many bits."""
        key = self.folder / f"{name}.key"
        how = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
        if kind.startswith("rsa:"):
            how = ["-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{kind[4:]}"]
        self.openssl("genpkey", *how, "-out", str(key))
        os.chmod(key, 0o600)
        return key

    def issue(self, name: str, common_name: str = "", names: Optional[List[str]] = None, kind: str = "P-256",
              days: int = 365, starts_in: int = -1, is_version_3: bool = True) -> Paper:
        """Creates a certificate for `names` (such as `DNS:localhost`), valid from `starts_in` days from now on. A
        certificate without extensions has version 1."""
        key = self.make_key(name, kind)
        request, certificate = self.folder / f"{name}.csr", self.folder / f"{name}.pem"
        extensions = ["-addext", "basicConstraints=CA:FALSE"] if is_version_3 else []
        extensions += ["-addext", "subjectAltName=" + ",".join(names)] if names else []
        self.openssl("req", "-new", "-key", str(key), "-subj", f"/CN={common_name or name}", *extensions,
                     "-config", str(self.folder / "ca.cnf"), "-out", str(request))
        start = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=starts_in)
        end = start + datetime.timedelta(days=days)
        self.openssl("ca", "-batch", "-notext", "-config", str(self.folder / "ca.cnf"), "-cert", str(self.authority),
                     "-keyfile", str(self.folder / "ca.key"), "-in", str(request), "-out", str(certificate),
                     "-startdate", start.strftime("%Y%m%d%H%M%SZ"), "-enddate", end.strftime("%Y%m%d%H%M%SZ"))
        return Paper(certificate, key)

    def revocations(self, place: Path, *revoked: Paper, days: int = 30) -> None:
        """Returns a revocation list with these certificates, valid for some days."""
        config = str(self.folder / "ca.cnf")
        signed_by = ["-config", config, "-cert", str(self.authority), "-keyfile", str(self.folder / "ca.key")]
        for paper in revoked:
            self.openssl("ca", *signed_by, "-revoke", str(paper.certificate))
        now = datetime.datetime.now(datetime.timezone.utc)
        dates = [(now + datetime.timedelta(days=by)).strftime("%Y%m%d%H%M%SZ") for by in (min(0, days) - 1, days)]
        beside = self.folder / "crl.new"
        self.openssl("ca", *signed_by, "-gencrl", "-crl_lastupdate", dates[0], "-crl_nextupdate", dates[1],
                     "-out", str(beside))
        os.replace(beside, place)

    def server(self, name: str = "server", kind: str = "P-256", starts_in: int = -1) -> Paper:
        """Creates a certificate for this machine."""
        return self.issue(name, "localhost", ["DNS:localhost", "IP:127.0.0.1"], kind, starts_in=starts_in)
