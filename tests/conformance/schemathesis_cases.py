"""schemathesis, from the server's own description: no answer of 500, and no status, header or body that is not described."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import URL

# All operations together have at least so many cases.
CASES = int(os.environ.get("SCONE_CONFORMANCE_CASES", "2000"))
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance"
)


def run(seed, examples, report):
    """One run; how many cases it had and whether none failed."""
    command = [Path(sys.executable).parent / "schemathesis", "run", f"{URL}/openapi.json", "--checks", CHECKS]
    command += ["--max-examples", str(examples), "--seed", str(seed), "--phases", "examples,coverage,fuzzing"]
    command += ["--continue-on-failure", "--request-timeout", "60", "--report", "json", "--report-json-path", str(report)]
    good = subprocess.run(command).returncode == 0
    return good, json.loads(report.read_text())


def main():
    with tempfile.TemporaryDirectory() as directory:
        good, report = run(1, CASES // 4, Path(directory) / "report.json")
    print(json.dumps(report)[:3000])
    sys.exit(not good)


main()
