"""STMAE under the protocols of known regions, beside their nulls and rivals, through ``stimg.bench.run``.

``domains-random`` (a random 20 % of the spots train the probe, as the code of the paper does, and neighbours leak, which the report says) and
``domains`` (clusters; probes on contiguous blocks, from section to section, and with the donor left out). Data: DLPFC 151673 and 151674 (seven
expert layers, one donor) and HER2ST B1, C1, D1, E1 (pathologist labels, four donors). In every fold the model is trained on what the fold lets
it read: the section itself, or the training sections alone; it never sees a region.

    python benchmarks/probes.py [--seeds 1] [--quick] [--option field=value]
"""

import argparse
import warnings
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
from common import RESULTS, options_of

import stimg
from stimg.bench import Prediction
from stimg.bench.methods.labels import ranked_genes
from stimg.bench.protocols.domains import EmbeddingTask

DATA = {"dlpfc": ("151673", "151674"), "her2st": ("B1", "C1", "D1", "E1")}
METRICS = ("accuracy", "macro_f1", "ari", "nmi", "chance_accuracy")


class Embedder:
    """STMAE as two methods: spots with what is around them, and each spot alone, a crop of one lattice point, by the same trained model."""

    def __init__(self, options: dict[str, Any], training: dict[str, Any]) -> None:
        self.options, self.training = options, training
        self.trained: dict[tuple[str, str], list[Any]] = {}

    def train(self, task: EmbeddingTask, rng: np.random.Generator) -> Any:
        """Return STMAE trained on the sections that the task lets be read."""
        joined = ad.concat(task.fitted_on, join="inner", uns_merge="unique", index_unique="-")
        stimg.model.STMAE.setup_anndata(joined)
        model = stimg.model.STMAE(joined, ranked_genes(task), **self.options)
        model.train(rng=int(rng.integers(2**31)), enable_progress_bar=False, **self.training)
        return model

    def whole(self, task: EmbeddingTask, rng: np.random.Generator) -> Prediction:
        """Embedding of each spot in its surroundings."""
        model = self.train(task, rng)
        self.trained.setdefault((task.protocol, task.fold), []).append(model)
        return Prediction({name: model.get_latent_representation(a) for name, a in task.asked().items()}, (model,))

    def alone(self, task: EmbeddingTask, rng: np.random.Generator) -> Prediction:
        """Embedding of each spot with nothing around it."""
        waiting = self.trained.get((task.protocol, task.fold))  # empty where an interrupted run goes on
        model = waiting.pop(0) if waiting else self.train(task, rng)
        model.crop = stimg.image.CropSpec((1, 1))
        values = {name: model.get_latent_representation(a, overlap=0, batch_size=512) for name, a in task.asked().items()}
        return Prediction(values, (model,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="trainings of STMAE per fold")
    parser.add_argument("--draws", type=int, default=5, help="divisions of each section, and starts of clusterings")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="two divisions, few epochs")
    parser.add_argument("--only", default="dlpfc,her2st")
    parser.add_argument("--option", action="append", default=[], help="field=value of STMAEOptions, or train.field=value")
    parser.add_argument("--name", default="probes", help="folder in benchmarks/results; a run that was interrupted goes on")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    options, training = options_of(args.option)
    if args.quick:
        args.draws, args.epochs = 2, 3
    stmae = Embedder(options, {"max_epochs": args.epochs, **training})
    for dataset in args.only.split(","):
        data = [getattr(stimg.datasets, dataset)(name) for name in DATA[dataset]]
        for name in ("domains-random", "domains"):
            report = stimg.bench.run(
                replace(stimg.bench.get_protocol(name), n_draws=args.draws),
                data,
                methods={"STMAE": stmae.whole, "STMAE, one spot alone": stmae.alone},
                labels="label",
                seeds=args.seeds,
                out=RESULTS / f"{args.name}_{dataset}_{name}",
                allow_leakage=name == "domains-random",
                overwrite=True,
            )
            print(f"{dataset}, {name}\n\n{report.markdown(METRICS)}\n", flush=True)


if __name__ == "__main__":
    main()
