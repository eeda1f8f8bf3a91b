"""``stimg bench``: protocols from the shell."""

import argparse
from argparse import Namespace
from pathlib import Path
from typing import Any

from stimg._core import keys
from stimg.bench import sections


def add(commands: Any) -> None:
    """Add the command and its four verbs to the parser."""
    bench = commands.add_parser("bench", help="score predictions under a protocol, beside nulls that see no pixel")
    verbs = bench.add_subparsers(dest="verb", required=True, metavar="VERB")

    listing = verbs.add_parser("list", help="protocols and methods")
    listing.add_argument("--methods", action="store_true", help="methods in place of protocols")

    run = verbs.add_parser("run", help="score methods or finished predictions; a run that was interrupted goes on")
    run.add_argument("protocol", help="name of a protocol (stimg bench list)")
    run.add_argument("--data", required=True, help=f"folder of .h5ad files, one file, or one of: {', '.join(sections.DATASETS)}")
    run.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="method (stimg bench list --methods), or package.module:function"
    )
    run.add_argument("--prediction", action="append", default=[], metavar="LAYER", help="layer of the data that holds finished predictions")
    run.add_argument("--feature", action="append", default=[], metavar="KEY", help="slot of obsm that methods may read")
    run.add_argument("--labels", metavar="COLUMN", help="column of obs with known regions")
    run.add_argument("--no-nulls", action="store_true", help="leave the protocol's nulls out")
    run.add_argument(
        "--allow-leakage", action="store_true", help="score all the same where something has seen test data; the report is stamped"
    )
    _common(run, out_required=True, seeds=3)

    audit = verbs.add_parser("audit", help="what predictors that see no pixel score on your data")
    audit.add_argument("data", help="as --data of `stimg bench run`")
    audit.add_argument("--protocol", default="her2st-strict", help="name of a protocol (default: %(default)s)")
    audit.add_argument("--no-images", action="store_true", help="leave out the second report, on the sections that have an image")
    _common(audit, out_required=False, seeds=1)

    show = verbs.add_parser("show", help="the tables of a finished run")
    show.add_argument("out", type=Path, help="folder of the run")


def _common(parser: argparse.ArgumentParser, *, out_required: bool, seeds: int) -> None:
    parser.add_argument("--out", type=Path, required=out_required, help="folder for report.json, report.html and tables")
    parser.add_argument("--overwrite", action="store_true", help="replace another run in that folder")
    parser.add_argument(
        "--seeds", type=int, default=seeds, metavar="N", help="seeds of methods that depend on chance (default: %(default)s)"
    )
    parser.add_argument("--layer", help="layer with raw counts (default: X)")
    parser.add_argument("--library-key", default=keys.LIBRARY, help="column of obs with the capture area (default: %(default)s)")
    parser.add_argument("--donor-key", default=keys.DONOR, help="column of obs with the donor (default: %(default)s)")
    parser.add_argument(
        "--missing-donor", choices=sections.MISSING_DONOR, default="error", help="own-group: a section without a donor is one of its own"
    )


def bench(options: Namespace) -> int:
    """Do one verb."""
    from stimg import bench as api

    if options.verb == "list":
        table = api.list_methods() if options.methods else api.list_protocols()
        columns = ["role", "kinds", "what"] if options.methods else ["kind", "level", "version", "hash", "title"]
        for name, row in table.iterrows():
            print(f"{name}\n    " + "  ".join(str(row[c]) for c in columns))
        return 0
    if options.verb == "show":
        print(api.Report.load(options.out).markdown())
        return 0
    common = {name: getattr(options, name) for name in ("out", "overwrite", "seeds", "layer", "library_key", "donor_key", "missing_donor")}
    if options.verb == "audit":
        reports = api.audit(options.data, protocol=options.protocol, images=not options.no_images, **common)
    else:
        report = api.run(
            options.protocol,
            options.data,
            methods=options.model,
            predictions={layer: layer for layer in options.prediction},
            features=options.feature,
            labels=options.labels,
            nulls=not options.no_nulls,
            allow_leakage=options.allow_leakage,
            **common,
        )
        reports = {"all": report}
    for name, each in reports.items():
        print(f"\n{each}" + (f" on the {len(each.data['sections'])} sections that have an image" if name == "images" else ""))
        print(each.markdown())
    if options.out is not None:
        print(f"Written to {options.out.resolve()}; look at {options.out.resolve() / 'report.html'}")
    return 0
