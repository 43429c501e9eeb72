"""Cost of reading data: 1, 4 and 16 times the rows, tokenised and found again, each in a fresh process.

usage: python bench/rows.py --model DIR --data FILE.jsonl[.gz] [--times 1 4 16]

Prints rows, processor seconds to read them with an account of what is read, seconds to tokenise, seconds to open what
is cached, seconds to plan an epoch and read its first step, and peak memory. Copies of a row differ by a number in
front of its first text, so that none is a duplicate.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def child(model: str, data: str, cache: str) -> None:
    from espalier.config.sections import DataConfig
    from espalier.data.columns.ledger import Ledger
    from espalier.data.dataset import Dataset, open_data
    from espalier.data.read import Source, read
    from espalier.data.render.renderer import Renderer
    from espalier.models.load import load_tokenizer

    start = time.process_time()
    for _ in read(Source(data), Ledger()):
        pass
    reading = time.process_time() - start
    renderer = Renderer(load_tokenizer(model))
    start = time.perf_counter()
    opened = open_data(DataConfig(data=(data,)), renderer, cache=Path(cache), seed=0)
    tokenised = time.perf_counter()
    data_set = Dataset(opened, seed=0, samples_per_step=16, tokens_per_step=0, replay_fraction=0.0, epochs=1.0, steps=0)
    data_set.groups(0)
    planned = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([len(opened.main[0]), reading, tokenised - start, planned - tokenised, peak]))


def measure(model: str, data: str, cache: str) -> list[float]:
    command = [sys.executable, __file__, "child", model, data, cache]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16])
    o = parser.parse_args()
    opener = gzip.open if o.data.endswith(".gz") else open
    with opener(o.data, "rt", encoding="utf8") as file:
        rows = [json.loads(line) for line in file]
    print("    rows   read s   tokenise s   us a row   open again s   plan s   peak MiB")
    with tempfile.TemporaryDirectory() as folder:
        for times in o.times:
            path = Path(folder) / f"{times}.jsonl"
            with path.open("w", encoding="utf8") as out:
                for copy in range(times):
                    for row in rows:
                        key = next(iter(row))
                        out.write(json.dumps({**row, key: f"{copy} {row[key]}"}) + "\n")
            count, reading, seconds, plan, peak = measure(o.model, str(path), folder)
            _, _, again, _, _ = measure(o.model, str(path), folder)
            each = seconds / count * 1e6
            print(
                f"{count:8,.0f} {reading:8.2f} {seconds:12.2f} {each:10.0f} {again:14.3f} {plan:8.3f} {peak:10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["child"] else main()
