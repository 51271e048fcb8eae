"""Tools of administrators: `openssl s_client`, and a scanner."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Callable, Dict

from harness import cache, environment
from harness.suite import patience

from office import Office
from support import Broker

SSLYZE = "6.2.0"


def s_client(broker: Broker, office: Office, *options: str) -> str:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{broker.tls_port}", "-servername", "localhost", "-CAfile",
         str(office.authority), "-verify_return_error", *options],
        input="", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=patience(30))
    return done.stdout


def with_openssl(folder: Path) -> None:
    office = Office(folder)
    with Broker(office.server()) as broker:
        for flag, name in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")]:
            said = s_client(broker, office, flag)
            assert "Verify return code: 0 (ok)" in said and f"New, {name}" in said, said
            ticket = folder / f"ticket{flag}"
            # TLS 1.3 sends its ticket after the handshake. The protocol header keeps the client connected until then.
            subprocess.run(
                ["openssl", "s_client", "-connect", f"127.0.0.1:{broker.tls_port}", "-servername",
                 "localhost", "-CAfile", str(office.authority), flag, "-sess_out", str(ticket), "-ign_eof"], input="HELO who is there", stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, text=True, timeout=patience(30))
            said = s_client(broker, office, flag, "-sess_in", str(ticket))
            assert re.search(f"Reused, {name}", said), f"{name}: the session is not resumed:\n{said}"
        for flag in ("-tls1", "-tls1_1"):
            said = s_client(broker, office, flag, "-cipher", "ALL:@SECLEVEL=0")
            assert "Verify return code: 0 (ok)" not in said or "Cipher is (NONE)" in said, said
        for suite in ("TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"):
            said = s_client(broker, office, "-tls1_3", "-ciphersuites", suite)
            assert f"Cipher is {suite}" in said, said


def scanner() -> Path:
    """Installs sslyze in its own environment."""
    home = cache.folder("env") / f"sslyze-{SSLYZE}"
    program, done = home / "bin" / "sslyze", home / "complete"
    if done.exists() and program.exists():
        return program
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    environment.make_venv(home)
    environment.attempt([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet",
                         "--disable-pip-version-check", f"sslyze=={SSLYZE}"], "sslyze")
    done.write_text("")
    return program


def with_scanner(folder: Path) -> None:
    """The scanner finds no old versions, no weak ciphers and no known vulnerabilities."""
    program = scanner()
    office = Office(folder)
    with Broker(office.server()) as broker:
        report = folder / "report.json"
        subprocess.run([str(program), f"localhost:{broker.tls_port}", "--json_out", str(report)],
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=patience(300))
        found = json.loads(report.read_text())["server_scan_results"][0]
        assert found["scan_status"] == "COMPLETED", found["scan_status"]
        result = {name: part["result"] for name, part in found["scan_result"].items() if part["result"]}
        accepted = {name: [suite["cipher_suite"]["name"] for suite in result[f"{name}_cipher_suites"]["accepted_cipher_suites"]]
                    for name in ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2", "tls_1_3")}
        assert [name for name, suites in accepted.items() if suites] == ["tls_1_2", "tls_1_3"], accepted
        weak = [suite for suite in accepted["tls_1_2"] if "ECDHE" not in suite or not re.search("GCM|POLY1305", suite)]
        assert not weak, f"ciphers without forward secrecy or authentication: {weak}"
        assert not result["heartbleed"]["is_vulnerable_to_heartbleed"]
        assert not result["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"]
        assert not result["tls_compression"]["supports_compression"]
        assert not result["session_renegotiation"]["is_vulnerable_to_client_renegotiation_dos"]
        assert result["tls_fallback_scsv"]["supports_fallback_scsv"]
        assert result["tls_extended_master_secret"]["supports_ems_extension"]
        assert "NOT_VULNERABLE" in result["robot"]["robot_result"], result["robot"]
        assert broker.alive(), broker.log()


CASES: Dict[str, Callable[[Path], None]] = {
    "openssl": with_openssl,
    "scanner": with_scanner,
}
