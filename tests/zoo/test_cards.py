"""The cards against what is known of each model elsewhere, and what a card refuses."""

from dataclasses import FrozenInstanceError, replace

import pytest

import stimg
from stimg.zoo.card import GENE, IMAGE_LOADERS, POOLING, GeneCard, ImageCard

PUBLISHED = {
    "efficientnet_lite0": (1280, 224, "Apache-2.0", True, False),
    "efficientnet_lite0_stages": (896, 224, "Apache-2.0", True, False),
    "resnet50": (2048, 224, "BSD-3-Clause", True, False),
    "dinov2_small": (384, 224, "Apache-2.0", True, False),
    "dinov2_base": (768, 224, "Apache-2.0", True, False),
    "uni": (1024, 224, "CC-BY-NC-ND-4.0", False, True),
    "uni2_h": (1536, 224, "CC-BY-NC-ND-4.0", False, True),
    "conch": (512, 448, "CC-BY-NC-ND-4.0", False, True),
    "virchow2": (2560, 224, "CC-BY-NC-ND-4.0", False, True),
    "prov_gigapath": (1536, 224, "Apache-2.0, for research", False, True),
    "h_optimus_0": (1536, 224, "Apache-2.0", True, True),
    "h_optimus_1": (1536, 224, "CC-BY-NC-ND-4.0", False, True),
    "h0_mini": (768, 224, "CC-BY-NC-ND-4.0", False, True),
    "phikon_v2": (1024, 224, "Owkin non-commercial licence", False, False),
    "ctranspath": (768, 224, "GPL-3.0, for academic use", False, False),
    "image_mae": (None, None, "that of the data it was trained on", False, False),
}
"""Width, side in pixels, licence, commercial use, gating, written down a second time from the model cards."""
GENES = {
    "pca": (None, "stimg", True, None),
    "mlp": (None, "stimg", True, None),
    "scvi": (None, "scvi-tools", True, None),
    "drvi": (None, "drvi-py", True, None),
    "stmae": (None, "stimg", True, None),
    "nicheformer": (512, "stimg", False, 20310),
    "scfoundation": (3072, "stimg", False, 19264),
}
"""Width, who fits or loads it, commercial use of code and weights, genes of the vocabulary."""


def test_the_cards_are_those_of_the_model_cards():
    found = {name: stimg.zoo.IMAGE[name] for name in stimg.zoo.IMAGE}
    assert {n: (c.n_features, c.size_px, c.licence, c.commercial, c.gated) for n, c in found.items()} == PUBLISHED


@pytest.mark.parametrize("name", sorted(PUBLISHED))
class TestContract:
    """What holds of every card."""

    def test_says_what_a_user_must_know(self, name):
        card = stimg.zoo.get(name)
        assert isinstance(card, ImageCard)
        assert card.name == name
        assert any(word in card.citation for word in ("doi", "arXiv", "bioptimus"))
        assert any(year in card.citation for year in map(str, range(2015, 2027)))
        assert card.loader in IMAGE_LOADERS
        assert card.pooling in POOLING
        assert not (card.commercial and "NC" in card.licence)
        assert card.gated <= (card.repo is not None)

    def test_can_be_built_from_what_it_says(self, name):
        card = stimg.zoo.get(name)
        if card.loader == "timm":
            assert card.extra["architecture"]
            assert "num_classes" in card.extra["kwargs"]
        if card.loader == "transformers":
            assert card.extra["model_type"] == "dinov2"
            assert card.pooling == "class"
        if card.pooling == "class_mean":
            assert card.n_features % 2 == 0
            assert card.extra["prefix_tokens"] == 1 + card.extra["kwargs"]["reg_tokens"]

    def test_no_scale_means_natural_images_or_is_explained(self, name):
        card = stimg.zoo.get(name)
        if card.mpp is None:
            assert "scale" in card.notes
            assert card.accepts_mpp(0.1)
            assert card.accepts_mpp(10.0)
        else:
            assert card.accepts_mpp(card.mpp * 1.04)
            assert not card.accepts_mpp(card.mpp * 1.4)


def test_table():
    table = stimg.zoo.list()
    assert set(PUBLISHED) <= set(table.index)
    assert table.index.name == "name"
    images = stimg.zoo.list("image")
    assert set(images.index) == set(PUBLISHED)
    assert (images["kind"] == "image").all()
    free = stimg.zoo.list("image", commercial=True, gated=False)
    assert sorted(free.index) == ["dinov2_base", "dinov2_small", "efficientnet_lite0", "efficientnet_lite0_stages", "resnet50"]
    assert sorted(stimg.zoo.list("image", gated=True).index) == sorted(n for n, p in PUBLISHED.items() if p[4])
    assert not stimg.zoo.list("image", commercial=False)["commercial"].any()
    assert images.loc["virchow2", "n_features"] == 2560
    assert images.loc["image_mae"].isna()["n_features"]
    assert stimg.zoo.list("image", commercial=True, gated=True).index.tolist() == ["h_optimus_0"]


def test_every_gene_card_is_in_the_table():
    table = stimg.zoo.list("gene")
    assert set(table.index) == set(GENE)
    assert (table["kind"] == "gene").all()
    cards = {name: stimg.zoo.get(name) for name in table.index}
    assert {n: (c.n_features, c.loader, c.commercial, c.n_genes) for n, c in cards.items()} == GENES
    assert sorted(stimg.zoo.list("gene", commercial=True, gated=False).index) == ["drvi", "mlp", "pca", "scvi", "stmae"]
    for name, card in cards.items():
        assert card.name == name
        assert any(word in card.citation for word in ("doi", "arXiv"))
        assert any(str(year) in card.citation for year in (1901, *range(2015, 2027)))
        assert card.fitted == (name not in ("nicheformer", "scfoundation"))
        assert card.fitted or "Not run on the published weights here" in card.notes
        assert not card.gated


def test_an_unknown_name_is_answered_with_the_closest():
    with pytest.raises(ValueError, match=r"no encoder named 'virchow'. Did you mean 'virchow2'\? Known: .*uni"):
        stimg.zoo.get("virchow")
    with pytest.raises(ValueError, match=r"kind='images' is not known; wanted one of \['image', 'gene'\]"):
        stimg.zoo.list("images")


def test_scales_and_sizes_that_a_card_takes():
    virchow = stimg.zoo.get("virchow2")
    assert [m for m in (0.25, 0.35, 0.5, 0.52, 0.53, 1.0, 2.0, 4.0) if virchow.accepts_mpp(m)] == [0.25, 0.5, 0.52, 1.0, 2.0]
    assert virchow.accepts_mpp(0.53, tolerance=0.1)
    assert [s for s in (112, 224, 448) if virchow.accepts_size(s)] == [224]
    assert [s for s in (0, 13, 14, 224, 230) if stimg.zoo.get("dinov2_small").accepts_size(s)] == [14, 224]
    assert all(stimg.zoo.get("efficientnet_lite0").accepts_size(s) for s in (1, 33, 224))
    assert stimg.zoo.get("image_mae").accepts_size(77)


def test_a_card_does_not_change():
    with pytest.raises(FrozenInstanceError):
        stimg.zoo.get("uni").mpp = 1.0
    assert hash(stimg.zoo.get("uni")) != hash(stimg.zoo.get("uni2_h"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"citation": " "}, ValueError, r"ImageCard 'uni': citation=' '; wanted a text"),
        ({"licence": None}, ValueError, "licence=None; wanted a text"),
        ({"gated": 1}, TypeError, "gated=1; wanted True or False"),
        ({"loader": "keras"}, ValueError, "loader='keras' is not known"),
        ({"pooling": "max"}, ValueError, "pooling='max' is not known"),
        ({"n_features": 0}, ValueError, "n_features=0 is not usable"),
        ({"n_features": None}, ValueError, "n_features is None; only a model trained with stimg"),
        ({"mpp": -0.5}, ValueError, "mpp=-0.5 is not above zero"),
        ({"mean": (0.5, 0.5)}, ValueError, r"mean=\(0.5, 0.5\); wanted three numbers"),
        ({"std": (127, 127, 127)}, ValueError, r"std=\(127, 127, 127\); wanted three numbers of 0 .. 1"),
        ({"std": (0.0, 0.1, 0.1)}, ValueError, "those of std above 0"),
        ({"repo": None, "extra": {}}, ValueError, r"neither repo nor extra\['architecture'\]"),
    ],
)
def test_bad_cards(change, error, message):
    with pytest.raises(error, match=message):
        replace(stimg.zoo.get("uni"), **change)


def test_bad_gene_cards():
    card = GeneCard(
        name="x", title="X", n_features=None, unit="counts", licence="MIT", commercial=True, gated=False, loader="stimg", citation="A 2020"
    )
    assert card.fitted
    for change, error, message in (
        ({"unit": ""}, ValueError, "unit=''; wanted a text"),
        ({"fitted": "yes"}, TypeError, "fitted='yes'; wanted True or False"),
        ({"n_genes": -1}, ValueError, "n_genes=-1 is not usable"),
        ({"parameters_m": 0}, ValueError, "parameters_m=0 is not above zero"),
    ):
        with pytest.raises(error, match=message):
            replace(card, **change)


def test_a_users_card_is_listed_and_a_name_is_taken_once():
    card = replace(stimg.zoo.get("uni"), name="mine")
    with pytest.raises(ValueError, match="named 'uni' is registered already"):
        stimg.zoo.IMAGE.add("uni", card)
    stimg.zoo.IMAGE.add("mine", card)
    try:
        assert stimg.zoo.list("image").loc["mine", "n_features"] == 1024
        assert stimg.zoo.get("mine") is card
    finally:
        del stimg.zoo.IMAGE._entries["mine"]
