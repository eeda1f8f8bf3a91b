from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import stimg


def table(name, values, start=0):
    return pd.DataFrame({name: values}, index=pd.RangeIndex(start, start + len(values), name="epoch"))


@pytest.fixture
def curves():
    loss = {
        "train_loss": [5.0, 4, 3, 2, 1],
        "validation_loss": [6.0, 4, 3.5, 4, 5],
        "elbo_train": [9.0, 8, 7, 6, 5],
        "elbo_validation": [9.0, 9, 9, 8, 9],
    }
    return {name: table(name, values) for name, values in loss.items()} | {"train_loss_step": table("train_loss_step", [5.0, 4.5, 4.0])}


def lines(ax):
    return {line.get_label(): line for line in ax.lines if line.get_gid() != "best epoch"}


def test_curves_are_paired_and_the_best_epoch_is_marked(curves):
    panels = stimg.pl.history(curves)
    assert list(panels) == ["loss", "elbo"]
    for quantity, names in {"loss": ("train_loss", "validation_loss"), "elbo": ("elbo_train", "elbo_validation")}.items():
        drawn = lines(panels[quantity])
        assert list(drawn) == ["train", "validation"]
        for part, name in zip(("train", "validation"), names, strict=True):
            np.testing.assert_array_equal(drawn[part].get_ydata(), curves[name][name])
            np.testing.assert_array_equal(drawn[part].get_xdata(), np.arange(5))
        best = next(line for line in panels[quantity].lines if line.get_gid() == "best epoch")
        assert best.get_xdata()[0] == 2.0


def test_monitor_and_mode_choose_the_epoch(curves):
    ax = stimg.pl.history(SimpleNamespace(history=curves), keys="loss", monitor="elbo_validation")
    assert next(line for line in ax.lines if line.get_gid() == "best epoch").get_xdata()[0] == 3.0
    ax = stimg.pl.history(curves, keys=["loss"], monitor="validation_loss", mode="max")
    assert next(line for line in ax.lines if line.get_gid() == "best epoch").get_xdata()[0] == 0.0


def test_missing_epochs_are_left_out_and_steps_are_drawn_on_request():
    history = {"train_loss": table("train_loss", [3.0, np.nan, 1.0], start=4), "train_loss_step": table("train_loss_step", [2.0, 1.0])}
    ax = stimg.pl.history(history)
    np.testing.assert_array_equal(lines(ax)["train"].get_xdata(), [4.0, 6.0])
    assert not [line for line in ax.lines if line.get_gid() == "best epoch"]
    assert stimg.pl.history(history, keys="loss_step", log=True).get_yscale() == "log"


def test_errors(curves):
    with pytest.raises(KeyError, match=r"\['losss'\] are not quantities"):
        stimg.pl.history(curves, keys=["losss"])
    with pytest.raises(KeyError, match="monitor='val'"):
        stimg.pl.history(curves, monitor="val")
    with pytest.raises(TypeError, match="wanted a mapping of DataFrames"):
        stimg.pl.history(3)
    with pytest.raises(ValueError, match="history is empty"):
        stimg.pl.history({})
    with pytest.raises(ValueError, match="mode='least'"):
        stimg.pl.history(curves, mode="least")
