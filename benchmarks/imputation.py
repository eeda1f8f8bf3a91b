"""Imputation within a section through `stimg bench`: every rival, five masks, hidden observations alone.

Protocol `imputation` on HER2ST (20 sections, 4 donors), the mouse olfactory bulb (2 sections), breast cancer of Ståhl et al. (4 layers) and DLPFC (hexagonal, 2 sections). The random mask is
drawn three times, the quarter grid has its four phases; the other masks are one each. Rivals that read other donors run on HER2ST with the first draw and the first phase alone, their axes found in the sections of
the three other donors among the same eight, or the same twelve.

The default of `tl.impute` was chosen on eight sections of HER2ST (`CHOSEN_ON`) with half of the spots hidden by chance; the tables keep them apart from the other twelve, which are of the same donors, and from
the other data sets, on which nothing was chosen.

`limits`: how r on the same hidden tenth of the spots changes with the spots that are left, and with the reads that are left of each. `s2s`: S2SImputer, trained in each fold on the
observed spots alone, and kriging of what it leaves, on one section of each donor; 250 genes and those with most counts beside them are read, as by the rivals.

    python benchmarks/imputation.py [--only her2st,others,limits,s2s] [--quick] [--s2s-seeds 1]

One thread: her2st 5 minutes of a processor, others 4, limits 1, s2s 4.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from common import save, table

import stimg
from stimg.bench import Prediction, Task, get_protocol, recall
from stimg.bench.factors import paired_difference
from stimg.bench.masks import MASKS
from stimg.bench.protocol import library_of
from stimg.bench.protocols.imputation import ImputationProtocol
from stimg.bench.tables import number
from stimg.metrics import cluster_bootstrap

PROTOCOL = get_protocol("imputation")
HER2ST = (
    *(f"B{i}" for i in range(1, 7)),
    *(f"C{i}" for i in range(1, 6)),
    *(f"D{i}" for i in range(1, 7)),
    *(f"E{i}" for i in range(1, 4)),
)
CHOSEN_ON = ("B1", "B3", "C1", "C3", "D1", "D3", "E1", "E3")
RANDOM, QUARTER = "random 50 %", "quarter grid"
OTHERS = ("checkerboard", "hole", "right half")
DRAWS, PHASES = 3, 4
BASE, BEST = "PCA-20 + kriging", "kriging ensemble"
DONORS = ("other donors' axes + kriging", "krigings by depth, other donors", "kriging ensemble, other donors")
AUDITS = ("true neighbours", "hidden values permuted")
SMALL = ("nearest", "linear", "cubic", "Gaussian", "kriging", BASE, "PCA-20 + kriging by depth", "factors + kriging by depth", BEST)
"""Methods of the tables where not all of them fit."""
FLOORS = {RANDOM: (0.239, 0.968), QUARTER: (0.211, 0.980)}
AIMS = {RANDOM: (0.32, 0.94), QUARTER: (0.28, 0.96)}
"""Gene-mean r and relative RMSE: PCA-20 + kriging on 16 sections of 8 donors, and what was aimed at there."""
TENTH = "random 10 %"
SPOTS, READS = (1.0, 0.5, 0.25, 0.1), (1.0, 0.5, 0.25)
"""Parts of the nine tenths of the spots that are not hidden, and of their reads."""

MASKS.add(TENTH, ("random", {"fraction": 0.1}))
for _phase in range(1, PHASES):
    MASKS.add(f"{QUARTER}, phase {_phase}", ("quarter", {"phase": _phase}))


# ---- runs


def own_rivals() -> list[str]:
    """Return the protocol's methods that read the section alone."""
    table = stimg.bench.list_methods()
    return [name for name in PROTOCOL.nulls if name not in DONORS and not table.loc[name, "needs"]]


def run(
    data: Sequence[AnnData], masks: Sequence[str], *, draw: int = 0, protocol: ImputationProtocol = PROTOCOL, **options: Any
) -> pd.DataFrame:
    """Return one row for each section, mask, method and seed, with its time: :func:`stimg.bench.run` with these masks and this draw."""
    report = stimg.bench.run(replace(protocol, masks=tuple(masks), mask_seed=draw), data, progress=False, **{"seeds": 1, **options})
    assert not report.data["stamps"], report.data["stamps"]
    cost = pd.DataFrame(report.data["cost"])[["fold", "method", "seed", "processor_seconds"]]
    found = report.scores().merge(cost, on=["fold", "method", "seed"])
    phase = found["mask"].str.extract(r", phase (\d)")[0]
    found["draw"] = np.where(phase.isna(), draw, phase.fillna("0").astype(int))
    found["mask"] = found["mask"].str.replace(r", phase \d", "", regex=True)
    return found


def within(data: Sequence[AnnData], *, quick: bool, first: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return the rows of all masks, draws and phases; ``first`` are more methods of the first draw and phase."""
    own = {name: name for name in own_rivals()}
    parts = [run(data, (RANDOM, QUARTER), nulls=False, methods={**own, **(first or {})})]
    if not quick:
        parts.append(run(data, (*OTHERS, *(f"{QUARTER}, phase {p}" for p in range(1, PHASES))), nulls=False, methods=own))
        parts += [run(data, (RANDOM,), draw=d, nulls=False, methods=own) for d in range(1, DRAWS)]
    return pd.concat(parts, ignore_index=True)


def verb(task: Task, rng: np.random.Generator) -> Prediction:
    """:func:`stimg.tl.impute` as it comes, with its standard deviations."""
    out, fitted = {}, []
    for a in task.test:
        where = task.where[library_of(a)]
        found = stimg.tl.impute(a, targets=where, genes=task.genes, rng=rng)
        (key,) = [k for k in found.layers if not k.endswith("_sd")]
        at = found[where.obs_names, list(task.genes)]
        out[library_of(a)] = {"mean": at.layers[key], "sd": at.layers[f"{key}_sd"]}
        fitted += recall(found, only=[key])
    return Prediction(out, tuple(fitted))


class Learned:
    """S2SImputer trained on the observed spots of a fold, once for the two methods that use it."""

    def __init__(self, **training: Any) -> None:
        self.training, self.models = training, {}
        self.judged: list[dict[str, Any]] = []

    def model(self, task: Task, adata: AnnData, rng: np.random.Generator) -> Any:
        """Return the model of a fold's observed spots."""
        key = (task.fold, library_of(adata))
        if self.models.get("key") != key:
            from stimg.model import S2SImputer

            start = time.process_time()
            given = adata.copy()
            S2SImputer.setup_anndata(given)
            model = S2SImputer(given, genes=list(task.genes))
            model.train(rng=rng, enable_progress_bar=False, **self.training)
            self.judged.append({"fold": task.fold, "seconds": time.process_time() - start, **model.judged_})
            self.models = {"key": key, "model": model}
        return self.models["model"]

    def alone(self, task: Task, rng: np.random.Generator) -> Prediction:
        """S2SImputer, this section only."""
        out, fitted = {}, []
        for a in task.test:
            model = self.model(task, a, rng)
            found = model.impute(targets=task.where[library_of(a)], genes=list(task.genes))
            out[library_of(a)] = {"mean": found[0], "sd": found[1]}
            fitted.append(model)
        return Prediction(out, tuple(fitted), {"regime": "this section only"})

    def and_kriging(self, task: Task, rng: np.random.Generator) -> Prediction:
        """S2SImputer, and kriging of what it misses at observed spots that are left out of its input."""
        out, fitted = {}, []
        for a in task.test:
            model, where = self.model(task, a, rng), task.where[library_of(a)]
            found = stimg.tl.impute(a, method=(model, "kriging"), targets=where, genes=task.genes, uncertainty=False)
            (key,) = found.layers
            out[library_of(a)] = found[where.obs_names, list(task.genes)].layers[key]
            fitted += recall(found, only=[key])
        return Prediction(out, tuple(fitted), {"regime": "this section only"})


@dataclass(frozen=True)
class Sparser(ImputationProtocol):
    """The protocol with a part of the observed spots, and a part of their reads, left; what is hidden stays the same."""

    spots: float = 1.0
    reads: float = 1.0

    def divided(self, adata: AnnData, mask: str) -> tuple[AnnData, AnnData]:
        """Return observed and hidden observations as the protocol does, the observed ones thinned."""
        observed, held = super().divided(adata, mask)
        rng = np.random.default_rng(self.mask_seed)
        observed = observed[np.sort(rng.permutation(observed.n_obs)[: round(self.spots * observed.n_obs)])].copy()
        if self.reads < 1:
            observed.X.data = rng.binomial(observed.X.data.astype(np.int64), self.reads).astype(np.float32)
            observed.X.eliminate_zeros()
        return observed[np.asarray(observed.X.sum(axis=1)).ravel() > 0].copy(), held


# ---- tables


def units(found: pd.DataFrame, metric: str, by: Sequence[str] = ("method",)) -> pd.DataFrame:
    """Return the mean over draws and seeds of each section."""
    return found.groupby([*by, "library", "donor"], sort=False)[metric].mean().dropna().reset_index()


def mean(found: pd.DataFrame, method: str, metric: str) -> float:
    """Return the mean over sections, draws of a section first; NaN for a method that was not run on all of them."""
    part = units(found[found["method"] == method], metric)
    return float(part[metric].mean()) if len(part) == found["library"].nunique() else float("nan")


def spread(found: pd.DataFrame, method: str, metric: str) -> float:
    """Return the standard deviation over draws of the mean over sections."""
    return float(found[found["method"] == method].groupby("draw")[metric].mean().std())


def with_interval(found: pd.DataFrame, method: str, metric: str) -> str:
    """Return mean, the 95 % interval over donors (where there is one: the range over sections), and the deviation over draws."""
    part = units(found[found["method"] == method], metric)
    if len(part) < found["library"].nunique():
        return "–"
    values = part[metric].to_numpy()
    if part["donor"].nunique() > 1:
        low, high = cluster_bootstrap(values, part["donor"].to_numpy())[1:3]
    else:
        low, high = values.min(), values.max()
    text = f"{number(values.mean())} [{number(low)}, {number(high)}]"
    sd = spread(found, method, metric)
    return text if np.isnan(sd) else f"{text} ± {number(sd)}"


def cells(parts: Sequence[pd.DataFrame], method: str, metrics: Sequence[str]) -> str:
    """Return the metrics of one method as `a / b`, for the rows that have them."""
    return " | ".join(" / ".join(number(mean(p, method, m)) for m in metrics) for p in parts)


def listed(found: pd.DataFrame) -> list[str]:
    """Return the methods in the order of the protocol, then others."""
    have = list(dict.fromkeys(found["method"]))
    return [m for m in PROTOCOL.nulls if m in have] + [m for m in have if m not in PROTOCOL.nulls]


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table under its title."""
    print(f"\n**{title}**\n\n{table(header, rows)}", flush=True)


def less(found: pd.DataFrame, first: str, second: str, metric: str, cluster: str) -> str:
    """Return first less second over the same sections, masks and draws, with its interval over clusters."""
    if not {first, second} <= set(found["method"]):
        return "–"
    both = found[found["method"].isin([first, second])]
    shared = ["library", "donor", "mask", "draw"]
    count = both.groupby(shared)["method"].nunique()
    both = both.set_index(shared)[(count == 2).reindex(both.set_index(shared).index).to_numpy()].reset_index()
    # sections weigh alike: each is first averaged over its draws
    each = both.groupby(["method", "library", "donor"], as_index=False)[metric].mean()
    d = paired_difference(each, {"method": first}, {"method": second}, by=["library", "donor"], value=metric, cluster=cluster)
    return f"{_signed(d.value)} [{_signed(d.low)}, {_signed(d.high)}]"


def _signed(value: float) -> str:
    text = number(value)
    return text if text.startswith("-") else f"+{text}"


def differences(found: pd.DataFrame, groups: Mapping[str, pd.DataFrame], cluster: str) -> None:
    """Print what the default gains on each other method."""
    for metric in ("mean_r", "relative_rmse"):
        rows = [
            [
                other,
                *(less(part[part["mask"] == mask], BEST, other, metric, cluster) for mask in (RANDOM, QUARTER) for part in groups.values()),
            ]
            for other in listed(found)
            if other not in (BEST, "section mean", *AUDITS)
        ]
        show(
            f"{metric}: {BEST} less another, 95 % over {'donors' if cluster == 'donor' else 'sections'}",
            ["less", *(f"{m}, {g}" for m in (RANDOM, QUARTER) for g in groups)],
            rows,
        )


# ---- parts


def her2st(args: argparse.Namespace) -> pd.DataFrame:
    """All rivals on HER2ST."""
    names = CHOSEN_ON[::2] if args.quick else HER2ST
    data = {n: stimg.datasets.her2st(n) for n in names}
    same, rest = ([data[n] for n in names if (n in CHOSEN_ON) == chosen] for chosen in (True, False))
    parts = [
        within(list(data.values()), quick=args.quick, first={"tl.impute, default": verb}),
        run(same, (RANDOM, QUARTER), nulls=False, methods=DONORS),
    ]
    if rest:
        parts.append(run(rest, (RANDOM,), nulls=False, methods=DONORS[1:]))
    found = pd.concat(parts, ignore_index=True)
    chosen = found["library"].isin(CHOSEN_ON)
    groups = {"chosen on": found[chosen], "others": found[~chosen]} if not args.quick else {"chosen on": found}
    methods = listed(found)
    for mask in (RANDOM, QUARTER):
        parts = [p[p["mask"] == mask] for p in groups.values()]
        show(
            f"HER2ST, {mask}: gene-median r / gene-mean r / relative RMSE; gene-mean r with its interval over donors, ± over draws",
            [
                "method",
                *(f"{g}, {p['library'].nunique()} sections" for g, p in zip(groups, parts, strict=True)),
                "gene-mean r, all sections",
            ],
            [
                [m, cells(parts, m, ("median_r", "mean_r", "relative_rmse")), with_interval(found[found["mask"] == mask], m, "mean_r")]
                for m in methods
            ],
        )
    masks = [m for m in PROTOCOL.masks if m in set(found["mask"])]
    by_mask = [found[found["mask"] == m] for m in masks]
    show(
        "HER2ST, all sections, gene-mean r / relative RMSE",
        ["method", *masks],
        [[m, cells(by_mask, m, ("mean_r", "relative_rmse"))] for m in methods],
    )
    columns = ("mean_r", "fraction_of_ceiling", "depth_residual_r", "ssim", "inflated_r", "coverage_90", "width_90")
    for mask in masks:
        part = found[found["mask"] == mask]
        show(f"HER2ST, all sections, {mask}", ["method", *columns], [[m, *(number(mean(part, m, c)) for c in columns)] for m in methods])
    differences(found, {**groups, "all": found}, "donor")
    aims(groups["chosen on"], methods)
    half = found[found["mask"] == RANDOM]
    by_donor = [half[half["donor"] == d] for d in sorted(set(found["donor"]))]
    show(
        f"HER2ST, {RANDOM}, by donor",
        ["", *sorted(set(found["donor"]))],
        [["noise ceiling", *(number(mean(p, BEST, "ceiling")) for p in by_donor)]]
        + [[m, *(number(mean(p, m, "mean_r")) for p in by_donor)] for m in (BASE, BEST, DONORS[-1])],
    )
    seconds(found, "HER2ST")
    return found


def aims(found: pd.DataFrame, methods: Sequence[str]) -> None:
    """Print whether the aims are reached on the sections that they can be compared on."""
    rows = []
    for mask, aim in AIMS.items():
        part, floor = found[found["mask"] == mask], FLOORS[mask]
        for method in [m for m in methods if m in (BASE, BEST, *DONORS)]:
            own = [mean(part, method, m) for m in ("mean_r", "relative_rmse")]
            gain = "–" if method == BASE else " / ".join(less(part, method, BASE, m, "donor") for m in ("mean_r", "relative_rmse"))
            wanted = " / ".join(_signed(a - f) for a, f in zip(aim, floor, strict=True))
            rows.append([mask, method, " / ".join(number(o) for o in own), " / ".join(number(a, 2) for a in aim), gain, wanted])
    show(
        f"Aims, {found['library'].nunique()} sections",
        ["mask", "method", "r / relative RMSE", "aim", f"gain over {BASE}", "gain aimed at"],
        rows,
    )


def seconds(found: pd.DataFrame, title: str) -> None:
    """Print the time of a section."""
    each = found.groupby(["method", "mask"], sort=False)["processor_seconds"].mean().unstack()
    show(
        f"{title}: seconds of a section, 250 genes",
        ["method", *each.columns],
        [[m, *(number(v, 2) for v in each.loc[m])] for m in listed(found)],
    )


def others(args: argparse.Namespace) -> pd.DataFrame:
    """Run the data sets on which nothing was chosen."""
    sets: dict[str, Callable[[], pd.DataFrame]] = {
        "MOB": lambda: within([stimg.datasets.mob()], quick=args.quick),
        "Ståhl breast": lambda: within([stimg.datasets.stahl()], quick=args.quick),
        "DLPFC": lambda: cortex(quick=args.quick),
    }
    parts = []
    for name, make in sets.items():
        found = make().assign(data=name)
        parts.append(found)
        masks = [m for m in PROTOCOL.masks if m in set(found["mask"])]
        by_mask = [found[found["mask"] == m] for m in masks]
        show(
            f"{name}: gene-median r / gene-mean r / relative RMSE",
            ["method", *(f"{m} ({p['library'].nunique()} sections)" for m, p in zip(masks, by_mask, strict=True))],
            [[m, cells(by_mask, m, ("median_r", "mean_r", "relative_rmse"))] for m in listed(found)],
        )
        columns = ("mean_r", "fraction_of_ceiling", "depth_residual_r", "ssim", "inflated_r", "coverage_90", "width_90")
        for mask, part in zip(masks[:1], by_mask[:1], strict=True):
            show(
                f"{name}, {mask}; gene-mean r with its range over sections, ± over draws",
                ["method", *columns],
                [[m, with_interval(part, m, "mean_r"), *(number(mean(part, m, c)) for c in columns[1:])] for m in listed(found)],
            )
        if found["library"].nunique() > 1:
            differences(found, {name: found}, "library")
        seconds(found, name)
    return pd.concat(parts, ignore_index=True)


def cortex(*, quick: bool) -> pd.DataFrame:
    """Return two sections of 3,600 spots, where kriging works in windows: more draws and other masks on the first alone, with some methods."""
    first, second = (stimg.datasets.dlpfc(s) for s in ("151673", "151674"))
    own = own_rivals()
    if quick:
        return run([first], (QUARTER,), nulls=False, methods=SMALL)
    parts = [run([first, second], (RANDOM, QUARTER), nulls=False, methods=own), run([first], OTHERS, nulls=False, methods=SMALL)]
    parts += [run([first], (RANDOM,), draw=d, nulls=False, methods=SMALL) for d in range(1, DRAWS)]
    return pd.concat(parts, ignore_index=True)


def limits(args: argparse.Namespace) -> pd.DataFrame:
    """Measure what fewer spots cost, and fewer reads."""
    data = [stimg.datasets.her2st(n) for n in (CHOSEN_ON[::4] if args.quick else CHOSEN_ON)]
    kept = {f.name: getattr(PROTOCOL, f.name) for f in PROTOCOL.__dataclass_fields__.values()} | {
        "name": "imputation, sparser",
        "nulls": (),
        "ceiling_splits": 1,
    }
    parts = []
    for draw in range(1 if args.quick else DRAWS):
        for spots, reads in [(s, 1.0) for s in SPOTS] + [(1.0, r) for r in READS if r < 1]:
            protocol = Sparser(**{**kept, "spots": spots, "reads": reads})
            found = run(data, (TENTH,), draw=draw, protocol=protocol, nulls=False, methods=(BASE, BEST))
            parts.append(found.assign(spots=spots, reads=reads))
    found = pd.concat(parts, ignore_index=True)
    rows = []
    for spots, reads in dict.fromkeys(zip(found["spots"], found["reads"], strict=True)):
        part = found[(found["spots"] == spots) & (found["reads"] == reads)]
        rows.append(
            [
                f"{90 * spots:.0f} %",
                f"{100 * reads:.0f} %",
                *(f"{number(mean(part, m, 'mean_r'))} / {number(mean(part, m, 'relative_rmse'))}" for m in (BASE, BEST)),
            ]
        )
    show(
        f"{found['library'].nunique()} sections, r / relative RMSE of the same hidden tenth, whose noise ceiling is {number(mean(found, BEST, 'ceiling'))}",
        ["spots observed", "reads of each", BASE, BEST],
        rows,
    )
    return found


def s2s(args: argparse.Namespace) -> pd.DataFrame:
    """S2SImputer on one section of each donor."""
    data = [stimg.datasets.her2st(n) for n in (CHOSEN_ON[:1] if args.quick else CHOSEN_ON[::2])]
    learned = Learned(**({"max_epochs": 1} if args.quick else {}))
    methods = {"S2SImputer": learned.alone, "S2SImputer, then kriging": learned.and_kriging, **{n: n for n in ("kriging", BASE, BEST)}}
    masks = (QUARTER,) if args.quick else (RANDOM, QUARTER)
    found = run(data, masks, seeds=args.s2s_seeds, nulls=False, methods=methods)
    columns = ("median_r", "mean_r", "relative_rmse", "ssim", "depth_residual_r", "fraction_of_ceiling", "coverage_90", "width_90")
    for mask in masks:
        part = found[found["mask"] == mask]
        show(
            f"{part['library'].nunique()} sections, {mask}",
            ["method", *columns],
            [[m, *(number(mean(part, m, c)) for c in columns)] for m in methods],
        )
        rows = [
            [first, *(less(part, first, second, "mean_r", "donor") for second in ("kriging", BASE, BEST))] for first in list(methods)[:2]
        ]
        show(f"{mask}: gene-mean r, less", ["", "kriging", BASE, BEST], rows)
    sections = found.groupby(["mask", "library", "method"], sort=False)["mean_r"].mean().unstack()
    show(
        "gene-mean r by section",
        ["mask", "section", *methods],
        [[*at, *(number(v) for v in row[list(methods)])] for at, row in sections.iterrows()],
    )
    judged = pd.DataFrame(learned.judged)
    show("the models' own held-out spots", list(judged.columns), judged.to_numpy().tolist())
    return found


PARTS = {"her2st": her2st, "others": others, "limits": limits, "s2s": s2s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="few sections, one draw, two masks, one epoch")
    parser.add_argument("--s2s-seeds", type=int, default=1)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for noisy in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for part in args.only.split(","):
        start = time.perf_counter(), time.process_time()
        print(f"\n## {part}", flush=True)
        found = PARTS[part](args)
        spent = time.perf_counter() - start[0], time.process_time() - start[1]
        print(f"\n{spent[0]:.0f} s, {spent[1]:.0f} s of a processor", flush=True)
        if not args.quick:
            facts = {
                "protocol": PROTOCOL.hash,
                "chosen_on": CHOSEN_ON,
                "draws": DRAWS,
                "phases": PHASES,
                **vars(args),
                "processor_seconds": spent[1],
            }
            save(f"imputation_{part}", facts, found.where(found.notna(), None).to_dict(orient="records"))


if __name__ == "__main__":
    main()
