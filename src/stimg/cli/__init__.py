"""The command ``stimg``: the public verbs for clusters and scripts, evaluation, and a look at the installation."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["main"]


def _add_walk_options(parser: argparse.ArgumentParser, *, epochs: int | None) -> None:
    number = "%(default)s" if epochs else "as many as the model's train() takes"
    parser.add_argument("--genes", type=int, metavar="N", help="number of genes used as image channels (default: %(default)s)", default=256)
    parser.add_argument("--epochs", type=int, metavar="N", help=f"passes over the training crops (default: {number})", default=epochs)
    parser.add_argument("--seed", type=int, default=0, help="seed of everything drawn by chance (default: %(default)s)")


def _parser() -> argparse.ArgumentParser:
    import stimg

    parser = argparse.ArgumentParser(prog="stimg", description="Spatial transcriptomics as images.")
    parser.add_argument("--version", action="version", version=f"stimg {stimg.__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error came from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole walk on an example slide, with a page of results")
    demo.add_argument("--out", type=Path, default=Path("stimg-results"), help="folder for the results (default: %(default)s)")
    demo.add_argument(
        "--data",
        choices=("auto", "simulated", "her2st"),
        default="auto",
        help="auto: a public breast cancer section where it can be read or downloaded, else a simulated slide (default: %(default)s)",
    )
    demo.add_argument("--quick", action="store_true", help="a small simulated slide and a few epochs: seconds, to see that all works")
    _add_walk_options(demo, epochs=60)

    run = commands.add_parser("run", help="the same walk on your own slide")
    run.add_argument("slide", type=Path, help=".h5ad, or .zarr of an AnnData or a SpatialData object; raw counts")
    run.add_argument("--out", type=Path, required=True, help="folder for the results")
    run.add_argument("--overwrite", action="store_true", help="replace the folder where it exists")
    run.add_argument("--table", default="table", help="table of a SpatialData object (default: %(default)s)")
    run.add_argument("--layer", help="layer with raw counts (default: X)")
    run.add_argument("--library-key", default="library_id", help="column of obs that names the capture area (default: %(default)s)")
    run.add_argument("--lattice", default="auto", help="lattice of the observations, as for stimg.pp.rasterize (default: %(default)s)")
    run.add_argument("--label", metavar="COLUMN", help="column of obs with known regions, to compare the embedding with (default: none)")
    run.add_argument(
        "--validation", choices=("blocks", "none"), default="blocks", help="what the training is stopped by (default: %(default)s)"
    )
    _add_walk_options(run, epochs=None)

    from stimg.cli import bench, predict

    predict.add(commands)
    bench.add(commands)

    doctor = commands.add_parser("doctor", help="versions, device, memory, data folders, and what is missing or does not fit")
    doctor.add_argument("--json", action="store_true", help="as JSON, for a bug report")
    return parser


def _message(error: Exception) -> str:
    """Return the text of an error; that of a KeyError without the quotes that ``str`` adds."""
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        return error.args[0]
    return str(error) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 something is wrong with the installation, 2 the call or its input is wrong."""
    options: Any = _parser().parse_args(arguments)
    try:
        if options.command == "doctor":
            from stimg.cli.doctor import doctor

            return doctor(as_json=options.json)
        if options.command == "bench":
            from stimg.cli.bench import bench

            return bench(options)
        if options.command == "predict":
            from stimg.cli.predict import predict

            return predict(options)
        from stimg.cli import walk

        return walk.demo(options) if options.command == "demo" else walk.run(options)
    except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
        if options.traceback:
            raise
        print(f"stimg {options.command}: {_message(error)}", file=sys.stderr)
        return 2
