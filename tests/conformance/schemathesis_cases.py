"""schemathesis, from the server's own description: no answer of 500, and no status, header or body that is not described."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import URL

# Altogether there are at least so many cases.
CASES = int(os.environ.get("SCONE_CONFORMANCE_CASES", "2000"))
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance"
)
# A run has more than the fuzzed ones: for each field the values at its borders, too.
EXAMPLES = 60


def run(seed):
    """One run; its cases and how many of them failed."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        command = [Path(sys.executable).parent / "schemathesis", "run", f"{URL}/openapi.json", "--checks", CHECKS]
        command += ["--max-examples", str(EXAMPLES), "--seed", str(seed), "--phases", "examples,coverage,fuzzing"]
        command += ["--continue-on-failure", "--request-timeout", "60", "--warnings", "off"]
        status = subprocess.run([*command, "--report", "json", "--report-json-path", report], cwd=directory).returncode
        result = json.loads(report.read_text())
    cases = result["test_cases"]
    failed = max(cases["with_failures"] + cases["errored"] + (result["operations"] or {"errored": 1})["errored"], int(status != 0))
    return cases["generated"], failed


def main():
    generated = failed = seed = 0
    while generated < CASES and not failed:
        seed += 1
        cases, failures = run(seed)
        generated, failed = generated + cases, failed + failures
    print(f"{generated - failed} passed, {failed} failed")
    sys.exit(failed > 0)


main()
