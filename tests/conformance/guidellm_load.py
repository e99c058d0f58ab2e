"""guidellm: a full run of streamed completions that arrive at random, without an error. It needs PyTorch, which is 5 GB."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import MODEL, MODEL_DIRECTORY, URL

REQUESTS = 100


def main():
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        subprocess.run(
            [Path(sys.executable).parent / "guidellm", "run", "--disable-progress"]
            + ["--backend", f"kind=openai_http,target={URL},model={MODEL},request_format=/v1/completions"]
            + ["--profile", "kind=poisson,rate=20", "--constraint", f"kind=max_requests,count={REQUESTS}"]
            + ["--tokenizer", f"kind=huggingface_auto,model={MODEL_DIRECTORY}"]
            + ["--data", "kind=synthetic_text,prompt_tokens=100,output_tokens=40", "--output", f"kind=json,path={report}"],
            check=True,
        )
        totals = json.loads(report.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    print(totals)
    good, bad = totals["successful"], totals["errored"]
    print(f"{good} passed, {bad} failed")
    sys.exit(bad > 0 or good < REQUESTS * 0.9)


main()
