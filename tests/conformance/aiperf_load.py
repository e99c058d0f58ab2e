"""aiperf: a full run of streamed completions that arrive as a Poisson process and of which some are cancelled, without any other
error. Its `builtin` tokenizer is fetched from the network, where there is one; the model's own does without."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import MODEL, MODEL_DIRECTORY, URL

REQUESTS = 300
CANCELLED = "RequestCancellationError"


def main():
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(
            [Path(sys.executable).parent / "aiperf", "profile", "--ui-type", "simple", "--artifact-dir", directory]
            + ["--model", MODEL, "--url", URL, "--endpoint-type", "completions", "--streaming", "--use-legacy-max-tokens"]
            + ["--tokenizer", os.environ.get("SCONE_AIPERF_TOKENIZER", MODEL_DIRECTORY)]
            + ["--request-rate", "40", "--arrival-pattern", "poisson", "--request-count", str(REQUESTS)]
            + ["--request-cancellation-rate", "20", "--request-cancellation-delay", "0.01"]
            + ["--isl", "100", "--osl", "60", "--extra-inputs", "ignore_eos:true", "--random-seed", "1"],
            check=True,
        )
        report = json.loads((Path(directory) / "profile_export_aiperf.json").read_text())
    errors = {error["error_details"]["type"]: error["count"] for error in report["error_summary"] or []}
    good, cancelled = int(report["request_count"]["avg"]), errors.pop(CANCELLED, 0)
    print(f"{good} answered, {cancelled} cancelled, other errors: {errors}")
    bad = sum(errors.values()) + (REQUESTS - good - cancelled)
    print(f"{good + cancelled} passed, {bad} failed")
    sys.exit(bad > 0 or cancelled == 0)


main()
