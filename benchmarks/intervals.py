"""What intervals over donors and p-values of block permutation are worth: simulated coverage and false positives.

Coverage: 4, 8 or 12 donors with normal effects, one section each; how often the nominal 95 % bootstrap interval holds the true mean. False positives: truth and prediction are
independent smooth random fields on 24 x 24 spots (sigma 1.5), so that nothing is predicted; how often p is below .05 when blocks of 6 x 6 are laid elsewhere, and when single spots are.

    python benchmarks/intervals.py [--draws 100]
"""

import argparse

import numpy as np
from common import save, table
from scipy.ndimage import gaussian_filter

from stimg.image.split import square_blocks
from stimg.metrics import block_permutation_p, cluster_bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=100)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    values: dict[str, float] = {}
    for donors in (4, 8, 12):
        found = [cluster_bootstrap(rng.normal(size=donors), np.arange(donors), n=1000, rng=0) for _ in range(args.draws)]
        values[f"coverage, {donors} donors"] = float(np.mean([i.low <= 0 <= i.high for i in found]))
    rc = np.argwhere(np.ones((24, 24)))
    blocks, single = square_blocks(rc.astype(float), 6.0), np.arange(len(rc))
    below = np.zeros(2)
    for _ in range(args.draws):
        truth, predicted = (gaussian_filter(rng.normal(size=(24, 24)), 1.5).reshape(-1, 1) for _ in range(2))
        below += [block_permutation_p(truth, predicted, b, n=99, rng=int(rng.integers(2**31)), rc=rc).p < 0.05 for b in (blocks, single)]
    values["p below .05, blocks"], values["p below .05, single spots"] = (below / args.draws).tolist()
    print(table(["simulated", "share"], [[k, v] for k, v in values.items()]))
    print("written to", save("intervals", {"script": "benchmarks/intervals.py", "arguments": vars(args)}, values))


if __name__ == "__main__":
    main()
