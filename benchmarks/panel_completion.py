"""STMAE under a protocol of panel completion on HER2ST, beside the nulls and rivals of the protocol, through ``stimg.bench.run``.

``panel-completion-785`` (157 of a published list of 785 genes are hidden; the list was chosen by its authors with all sections, which the report
says) or ``panel-completion`` (the panel is chosen on the training donors). In every fold the model is trained on the other donors; it hides whole
genes (``mask_scope="crop"``), as the task does, and is stopped by blocks of the training sections. Its untrained start, a shrunken PCA, is scored too.

    python benchmarks/panel_completion.py [--seeds 3] [--draws 1] [--quick]
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import anndata as ad
import numpy as np
from common import RESULTS, options_of

import stimg
from stimg.bench import Fold, Method, Prediction, Task
from stimg.bench.protocols.panel_completion import PanelCompletionProtocol
from stimg.datasets.registry import libraries


@dataclass(frozen=True)
class SomeDonors(PanelCompletionProtocol):
    """The protocol with some of its folds."""

    donors: str = ""

    def folds(self, sections: Any) -> list[Fold]:
        """Return the folds of these donors."""
        return [fold for fold in super().folds(sections) if fold.name in self.donors]


def stmae(options: dict[str, Any], training: dict[str, Any]) -> Callable[[Task, np.random.Generator], Prediction]:
    """Return a method that trains STMAE on the training sections and predicts the hidden genes."""

    def predict(task: Task, rng: np.random.Generator) -> Prediction:
        joined = ad.concat(task.train, join="inner", uns_merge="unique")
        stimg.model.STMAE.setup_anndata(joined)
        model = stimg.model.STMAE(joined, list(task.extra["panel"]), **{"mask_scope": "crop", **options})
        model.train(rng=int(rng.integers(2**31)), enable_progress_bar=False, **training)
        values = {name: model.impute_genes(a, genes=list(task.genes)) for name, a in task.asked().items()}
        return Prediction(values, (model,), {"best epoch": model.best_epoch_})

    return predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--protocol", default="panel-completion-785", choices=["panel-completion", "panel-completion-785"])
    parser.add_argument("--seeds", type=int, default=3, help="trainings of STMAE per fold")
    parser.add_argument("--draws", type=int, default=1, help="draws of hidden genes")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--donors", default="", help="donors that are left out, one after the other, such as BC; all by default")
    parser.add_argument("--quick", action="store_true", help="one donor, one seed, few epochs")
    parser.add_argument("--option", action="append", default=[], help="field=value of STMAEOptions, or train.field=value")
    parser.add_argument("--name", default="panel_completion", help="folder in benchmarks/results; a run that was interrupted goes on")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    options, training = options_of(args.option)
    if args.quick:
        args.seeds, args.epochs, args.donors = 1, 20, args.donors[:1] or "B"
    training = {"batch_size": 8, "max_epochs": args.epochs, **training}
    untrained = Method(
        "STMAE, untrained start", stmae(options, {**training, "max_epochs": 1, "lr": 1e-12}), ("completion",), "model", "not trained"
    )
    frozen = stimg.bench.get_protocol(args.protocol)
    data = [stimg.datasets.her2st(name) for name in libraries("her2st")]
    for draw in range(args.draws):
        values = {f.name: getattr(frozen, f.name) for f in fields(frozen)} | {"draw": draw}
        report = stimg.bench.run(
            SomeDonors(**values, donors=args.donors) if args.donors else PanelCompletionProtocol(**values),
            data,
            methods={"STMAE, untrained start": untrained, "STMAE": stmae(options, training)},
            seeds=args.seeds,
            out=RESULTS / f"{args.name}_draw{draw}",
            allow_leakage=frozen.panel.seen == "all",
            overwrite=True,
        )
        print(f"draw {draw}\n\n{report.markdown()}\n{report.by_donor().round(3).to_string()}\n")


if __name__ == "__main__":
    main()
