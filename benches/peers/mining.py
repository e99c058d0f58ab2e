"""Counting n-grams with a data engine's GROUP BY, beside `scone-train mine`.

    python benches/peers/mining.py DATASET [--n 3] [--threads 2] [--engine duckdb polars]

Reads the training tokens of a dataset that `scone-train prepare` made, lays the n-grams out as a table in memory (n
columns, those with a document's end left out), and times nothing but the GROUP BY, once for each engine. Prints one
JSON document a measurement. Compare `tokens_per_second` with that of the scan in the output of `mine --json`, which
includes reading the tokens. Needs numpy, and pyarrow with duckdb, or polars.
"""

import argparse
import json
import os
import pathlib
import resource
import time


def ngrams(dataset: pathlib.Path, n: int):
    """The n-grams of a dataset, a column a token, and the number of its training tokens."""
    import numpy

    manifest = json.loads((dataset / "dataset.json").read_text())
    dtype = {"u16": "<u2", "u32": "<u4"}[manifest["dtype"]]
    shards = [numpy.fromfile(dataset / shard["file"], dtype) for shard in manifest["train"]["shards"]]
    tokens = numpy.concatenate(shards)
    inside = numpy.ones(len(tokens) - n + 1, bool)
    for i in range(n):
        inside &= tokens[i : len(tokens) - n + 1 + i] != manifest["eos"]
    return {f"t{i}": tokens[i : len(tokens) - n + 1 + i][inside] for i in range(n)}, len(tokens)


def duckdb_count(columns, threads):
    import duckdb
    import pyarrow

    connection = duckdb.connect(config={"threads": threads})
    connection.register("source", pyarrow.table(columns))
    connection.execute("CREATE TABLE ngrams AS SELECT * FROM source")
    names = ", ".join(columns)
    # The groups are counted, not fetched: the engine does all of its work and moves nothing to Python.
    query = f"SELECT count(*), sum(c) FROM (SELECT {names}, count(*) AS c FROM ngrams GROUP BY {names})"
    start = time.perf_counter()
    groups, rows = connection.execute(query).fetchone()
    return time.perf_counter() - start, groups, rows


def polars_count(columns, _threads):
    import polars

    frame = polars.DataFrame(columns)
    start = time.perf_counter()
    counted = frame.lazy().group_by(list(columns)).agg(polars.len().alias("c")).collect()
    seconds = time.perf_counter() - start
    return seconds, len(counted), counted["c"].sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=pathlib.Path)
    parser.add_argument("--n", type=int, nargs="+", default=[3])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", nargs="+", choices=["duckdb", "polars"], default=["duckdb"])
    arguments = parser.parse_args()
    # Read by Polars when it is imported.
    os.environ["POLARS_MAX_THREADS"] = str(arguments.threads)
    for n in arguments.n:
        columns, tokens = ngrams(arguments.dataset, n)
        for engine in arguments.engine:
            count = {"duckdb": duckdb_count, "polars": polars_count}[engine]
            seconds, groups, rows = count(columns, arguments.threads)
            row = {
                "engine": engine,
                "n": n,
                "threads": arguments.threads,
                "tokens": tokens,
                "ngrams": int(rows),
                "groups": int(groups),
                "seconds": round(seconds, 3),
                "tokens_per_second": round(tokens / seconds),
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
