from dataclasses import FrozenInstanceError, fields

import pytest

from stimg.model import STMAEOptions


def test_round_trip_through_json():
    import json

    options = STMAEOptions(crop_size=[3, 4], mask_ratios=[0.5], crop_um=300.0, n_hidden=8, variant="released")
    assert STMAEOptions.from_dict(json.loads(json.dumps(options.to_dict()))) == options
    assert options == STMAEOptions(crop_size=(3, 4), mask_ratios=(0.5,), crop_um=300.0, n_hidden=8, variant="released")


def test_changes():
    options = STMAEOptions()
    assert options.changed(n_latent=8).n_latent == 8
    assert options.n_latent == STMAEOptions.n_latent
    with pytest.raises(TypeError, match=r"no option \['n_latnet'\]; it has \['crop_size'"):
        options.changed(n_latnet=8)
    with pytest.raises(FrozenInstanceError):
        options.n_latent = 8


def test_every_field_is_documented():
    for field in fields(STMAEOptions):
        assert field.name in STMAEOptions.__doc__, field.name


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rule": "best"}, "rule='best'"),
        ({"mask_scope": "spot"}, "mask_scope='spot'"),
        ({"token": "conv"}, "token='conv'"),
        ({"likelihood": "zip"}, "likelihood='zip'"),
        ({"init": "zeros"}, "init='zeros'"),
        ({"variant": "paper"}, "variant='paper'"),
        ({"n_latent": 0}, "n_latent"),
        ({"n_channels": -1}, "n_channels"),
        ({"n_latent": 10, "n_heads": 4}, "n_latent=10 is not a multiple of n_heads=4"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"crop_size": (0, 3)}, "size"),
        ({"crop_size": (3, 3, 3)}, "size"),
        ({"min_occupied": 300}, "min_occupied=300"),
        ({"coverage": 0.0}, "coverage"),
    ],
)
def test_values_that_make_no_sense(changes, match):
    with pytest.raises(ValueError, match=match):
        STMAEOptions(**changes)
