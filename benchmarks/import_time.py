"""Wall time of imports in fresh interpreters, beside anndata, which every user of stimg loads anyway.

Run it on an idle machine: ``python benchmarks/import_time.py``. Prints one JSON object: medians in seconds, and the ratio to anndata.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

STATEMENTS = {
    "nothing": "pass",
    "anndata": "import anndata",
    "stimg": "import stimg",
    "stimg.pp": "import stimg.pp",
    "stimg.pl": "import stimg.pl",
    "stimg.datasets": "import stimg.datasets",
    "stimg.metrics": "import stimg.metrics",
    "stimg.model": "import stimg.model; stimg.model.STMAE",
}


def seconds(statement: str, repeats: int) -> float:
    """Return the median wall time of ``statement``; the first run, which may compile bytecode, is not counted."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    found = {name: seconds(statement, repeats) for name, statement in STATEMENTS.items()}
    ratio = {name: round(value / found["anndata"], 2) for name, value in found.items()}
    print(
        json.dumps(
            {"repeats": repeats, "seconds": {name: round(value, 3) for name, value in found.items()}, "ratio_to_anndata": ratio}, indent=2
        )
    )


if __name__ == "__main__":
    main()
