"""Retrieval protocols: neither encoder can know the pairs, and scores are those of naive ranks."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.cross_decomposition import CCA

import stimg
from stimg.bench import get_protocol, run
from stimg.bench.methods.retrieval import ridge_cca
from stimg.bench.protocols.hescape import GALLERIES, only_counts

QUICK = {"seeds": 1, "progress": False}


def row_of(rows, library, gallery, direction):
    (found,) = rows[(rows["library"] == library) & (rows["gallery"] == gallery) & (rows["direction"] == direction)].to_dict("records")
    return found


def encoders(noise=0.0):
    """Encoders that read the same gradient from coordinates and from counts."""

    def from_image(adata):
        rc = adata.obsm["stimg_rc"].astype(float)
        return np.column_stack([rc, np.ones(len(rc))])

    def from_counts(adata):
        rng = np.random.default_rng(0)
        return np.log1p(adata.X.toarray()[:, :3]) + rng.normal(0, noise, (adata.n_obs, 3))

    return lambda task, rng: {"image": from_image, "expression": from_counts}


def test_scores_are_those_of_naive_ranks(slides):
    report = run("hescape", slides, methods={"mine": encoders()}, nulls=False, **QUICK)
    rows = report.scores()
    loaded = stimg.bench.load_sections(slides)
    pair = encoders()(None, None)
    for name in ("A1", "C1"):
        adata = loaded[name]
        # the counts encoder sees shuffled rows; here in order, and its noise is off
        image, expression = pair["image"](adata), np.log1p(adata.X.toarray()[:, :3])
        for direction, (query, gallery) in {"image to expression": (image, expression), "expression to image": (expression, image)}.items():
            unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (query, gallery)]
            similarity = unit[0] @ unit[1].T
            for gallery_name, far in (("section", 0.0), ("section, near ones left out", 200.0)):
                rank = []
                where = adata.obsm["stimg_rc"] * pitch(adata)
                apart = cdist(where, where)
                for i in range(adata.n_obs):
                    others = np.array([j for j in range(adata.n_obs) if j != i and not (far and apart[i, j] < far)])
                    better = (similarity[i, others] > similarity[i, i] + 1e-12).sum()
                    ties = (np.abs(similarity[i, others] - similarity[i, i]) <= 1e-12).sum()
                    rank.append((better, ties))
                hits = np.mean([np.clip((5 - b) / (t + 1), 0, 1) for b, t in rank])
                row = row_of(rows, name, gallery_name, direction)
                assert row["recall_5"] == pytest.approx(hits, abs=1e-6)
                assert row["n_obs"] == adata.n_obs


def pitch(adata):
    return next(iter(adata.uns["stimg"]["raster"].values()))["pitch_um"]


@pytest.mark.slow
def test_random_encoders_score_chance_and_every_gallery_is_there(slides):
    report = run("hescape", slides, methods=["coordinates CCA"], nulls=True, **QUICK)
    rows = report.scores()
    assert set(rows["gallery"]) == set(GALLERIES[:4])
    random = rows[rows["method"] == "random encoders"]
    assert random["recall_5"].mean() == pytest.approx(random["chance_5"].mean(), abs=0.03)
    whole = rows[(rows["gallery"] == "test set") & (rows["donor"] == "A")]
    assert set(whole["library"]) == {"all"}
    assert (whole["n_obs"] == 144).all()
    assert report.data["stamps"] == []


def test_neither_encoder_can_know_the_pairs(slides):
    loaded = stimg.bench.load_sections(slides)
    shown = []

    def spy(task, rng):
        assert all(a.X is None for a in task.test)
        return {
            "image": lambda a: shown.append(("image", a)) or np.ones((a.n_obs, 2)),
            "expression": lambda a: shown.append(("expression", a)) or np.ones((a.n_obs, 2)),
        }

    report = run("hescape", slides, methods={"spy": spy}, nulls=False, **QUICK)
    for side, adata in shown:
        if side == "image":
            assert adata.X is None
        else:
            assert not adata.obsm.keys()
            assert not adata.uns.keys()
            assert set(adata.obs) == {"library_id", "donor"}
            library = adata.obs["library_id"].iloc[0]
            original = loaded[library].X.toarray()
            assert not set(adata.obs_names) & set(loaded[library].obs_names)
            assert (adata.X.toarray() != original).any(1).mean() > 0.8  # another order
            assert sorted(map(tuple, adata.X.toarray())) == sorted(map(tuple, original))
    rows = report.scores()  # constants: chance, not 1
    np.testing.assert_allclose(rows["recall_5"], rows["chance_5"])


def test_rows_return_to_their_order(slides):
    loaded = stimg.bench.load_sections(slides)
    adata = loaded["A1"]
    order = np.random.default_rng(0).permutation(adata.n_obs)
    np.testing.assert_array_equal(only_counts(adata, order).X.toarray(), adata.X.toarray()[order])
    counts = {n: a.X.toarray() for n, a in loaded.items()}
    same = {n: {"image": c, "expression": c} for n, c in counts.items()}

    def cheat(task, rng):  # an image encoder that holds the counts: every pair is found, if the rows are back in order
        return {"image": lambda a: counts[a.obs["library_id"].iloc[0]], "expression": lambda a: a.X.toarray()}

    for given in ({"methods": {"cheat": cheat}}, {"predictions": {"cheat": same}}):
        report = run("hescape", slides, nulls=False, **given, **QUICK)
        assert (report.scores()["recall_1"] > 0.99).all()


def test_the_released_protocol_scores_inside_batches(slides):
    report = run("hescape-released", slides, methods={"mine": encoders()}, nulls=False, **QUICK)
    rows = report.scores()
    assert set(rows["gallery"]) == {"batches of 64, consecutive"}
    adata = stimg.bench.load_sections(slides)["C1"]
    pair = encoders()(None, None)
    image, expression = pair["image"](adata), np.log1p(adata.X.toarray()[:, :3])
    hits = []
    for start in (0, 64):
        part = slice(start, start + 64)
        similarity = image[part] @ expression[part].T
        for i in range(len(similarity)):
            better = (similarity[i] > similarity[i, i] + 1e-12).sum()
            hits.append(better < 5)
    row = rows[(rows["library"] == "C1") & (rows["direction"] == "image to expression")].iloc[0]
    assert row["recall_5"] == pytest.approx(np.mean(hits))
    assert row["chance_5"] == pytest.approx((64 * 5 / 64 + 8 * 5 / 8) / 72)


def test_canonical_correlation_is_that_of_sklearn_where_the_penalty_vanishes():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(400, 2)) * [2.0, 1.0]
    x = shared @ rng.normal(size=(2, 5)) + rng.normal(0, 0.5, (400, 5))
    y = shared @ rng.normal(size=(2, 4)) + rng.normal(0, 0.5, (400, 4))
    x, y = x - x.mean(0), y - y.mean(0)
    left, right = ridge_cca(x, y, 2, (1e-9, 1e-9))
    theirs = CCA(n_components=2, scale=False, max_iter=5000, tol=1e-12).fit(x, y)
    a, b = theirs.transform(x, y)
    for i in range(2):
        ours = np.corrcoef((x @ left)[:, i], (y @ right)[:, i])[0, 1]
        assert ours == pytest.approx(abs(np.corrcoef(a[:, i], b[:, i])[0, 1]), abs=1e-5)
        assert abs(np.corrcoef((x @ left)[:, i], a[:, i])[0, 1]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"image": np.ones((72, 2))}, r"gave NoneType for A1; wanted two encoders"),
        (
            {"image": lambda a: np.ones((3, 2)), "expression": lambda a: np.ones((a.n_obs, 2))},
            r"gave image embeddings of shape \(3, 2\) for A1; wanted \(72, dim\)",
        ),
        (
            {"image": lambda a: np.ones((a.n_obs, 2)), "expression": lambda a: np.ones((a.n_obs, 3))},
            r"expression embeddings of shape \(72, 3\)",
        ),
    ],
)
def test_bad_answers(slides, answer, message):
    with pytest.raises(ValueError, match=message):
        run("hescape", slides, methods={"x": lambda t, r: answer}, nulls=False, **QUICK)
    assert get_protocol("hescape").hash != get_protocol("hescape-released").hash
