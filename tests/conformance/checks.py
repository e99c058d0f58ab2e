"""What the Python clients share: where the servers are, and checks that run one after the other and are counted."""

import os
import sys
import time
import traceback

# The servers that `run` has started: one as it comes; one that wants a key, has one place and no queue to speak of; one
# whose model has a chat template.
URL = os.environ.get("SCONE_URL", "http://127.0.0.1:8080")
STRICT_URL = os.environ.get("SCONE_STRICT_URL", "")
STRICT_KEY = os.environ.get("SCONE_STRICT_KEY", "")
CHAT_URL = os.environ.get("SCONE_CHAT_URL", "")
MODEL = os.environ.get("SCONE_MODEL", "default")
MODEL_DIRECTORY = os.environ.get("SCONE_MODEL_DIRECTORY", "model_cards/default")

_CHECKS = []


def check(function):
    """Marks a function as a check; its name says what holds if it does not raise."""
    _CHECKS.append(function)
    return function


def raises(kind, function, *arguments, **named):
    """The exception of `kind` that the call ends with."""
    try:
        result = function(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}, but {result!r}"[:500])


def run_checks():
    """Runs the checks in the order in which they are written, and ends the program with 1 if one of them fails."""
    only = sys.argv[1:]
    failed = passed = 0
    for function in _CHECKS:
        name = function.__name__.replace("_", " ")
        if only and not any(word in name for word in only):
            continue
        start = time.monotonic()
        try:
            function()
        except Exception:
            failed += 1
            print(f"FAIL {name}\n{traceback.format_exc()}", flush=True)
        else:
            passed += 1
            print(f"ok   {name} ({time.monotonic() - start:.2f} s)", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0 or passed == 0)
