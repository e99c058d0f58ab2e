"""The two servers that are compared, started one at a time: `scone serve` and llama.cpp's `llama-server`."""

import contextlib
import pathlib
import shlex
import socket
import subprocess
import sys
import time
import urllib.request

NAMES = ["scone", "llama-server"]


def add_arguments(parser):
    parser.add_argument("--scone", type=pathlib.Path, default=pathlib.Path("target/release/scone"))
    parser.add_argument("--llama-bin", type=pathlib.Path, help="where llama-server is; left out: scone alone")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="a GGUF file, or for scone alone a directory")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=32, help="that are decoded at a time")
    parser.add_argument("--context", type=int, default=2048, help="tokens that llama-server keeps for each of them")
    parser.add_argument("--scone-arguments", default="", help="more of `scone serve`")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/peers"), help="where servers log to")
    parser.add_argument("--llama-arguments", default="--no-cache-prompt --cache-ram 0", help="more of llama-server")


def names(arguments):
    return NAMES if arguments.llama_bin else NAMES[:1]


def command(name, arguments, port):
    threads, sequences = str(arguments.threads), str(arguments.sequences)
    if name == "scone":
        line = [arguments.scone, "serve", arguments.model, "--listen", f"127.0.0.1:{port}", "--threads", threads]
        return [*line, "--max-sequences", sequences, *shlex.split(arguments.scone_arguments)]
    line = [arguments.llama_bin / "llama-server", "-m", arguments.model, "--host", "127.0.0.1", "--port", str(port)]
    line += ["-t", threads, "-tb", threads, "-np", sequences, "-c", str(arguments.context * arguments.sequences)]
    return [*line, *shlex.split(arguments.llama_arguments)]


def is_ready(url):
    try:
        with urllib.request.urlopen(url + "/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def running(name, arguments):
    """The server's address, for as long as it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [str(part) for part in command(name, arguments, port)]
    log = arguments.work / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        server = subprocess.Popen(line, stdout=output, stderr=output)
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(url):
            if server.poll() is not None:
                sys.exit(f"{' '.join(line)} ended:\n{log.read_text()[-4000:]}")
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
