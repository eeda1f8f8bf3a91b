"""A trained model under a name that LazySlide knows: its feature prediction takes features of tiles and gives one column for each gene."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from stimg._core.optional import need

PACKAGE = "lazyslide_models"


def register(
    name: str,
    module: nn.Module,
    predict: Callable[[np.ndarray], pd.DataFrame],
    *,
    features: str,
    width: int,
    about: Mapping[str, Any],
) -> Any:
    """Register a feature-prediction model in LazySlide's registry, and return an instance of it.

    LazySlide makes models by calling the registered class without arguments, and asks them ``predict(features)`` for a mapping of names to
    arrays (n,): ``lazyslide.tl.feature_prediction(wsi, name)`` then works.

    Parameters
    ----------
    name
        Under which LazySlide finds it.
    module
        What is moved between devices.
    predict
        From features, float32 (n, width), to a table (n, genes).
    features
        Name of the encoder whose features are read.
    width
        Their number of columns.
    about
        ``description``, ``license``, ``commercial``, as far as known.

    Raises
    ------
    ImportError
        Where LazySlide's models are not installed, or too old to know feature prediction.
    ValueError
        Where the name is taken.
    """
    base = need(f"{PACKAGE}.base", purpose="to register a model with LazySlide")
    registry = need(PACKAGE, purpose="to register a model with LazySlide")
    missing = [
        n for where, n in ((base, "FeaturePredictionModel"), (base, "ModelTask"), (registry, "MODEL_REGISTRY")) if not hasattr(where, n)
    ]
    if missing:
        raise ImportError(
            f"the installed {PACKAGE} has no {missing}; feature prediction came later. Run `pip install -U lazyslide-models`."
        )
    if name in registry.MODEL_REGISTRY:
        raise ValueError(f"LazySlide knows a model named {name!r} already. Choose another name.")

    class Registered(base.FeaturePredictionModel):  # type: ignore[misc, name-defined]
        """A trained model of stimg."""

        task = base.ModelTask.feature_prediction
        is_gated = False
        license = about.get("license")
        commercial = about.get("commercial")
        description = about.get("description")
        vision_encoder = features
        features_model_name = features

        def __init__(self, model_path: Any = None, token: Any = None) -> None:
            self.model = module

        @property
        def name(self) -> str:
            return name

        def predict(self, features: Any) -> dict[str, np.ndarray]:
            """Return log1p counts per 10,000 of each gene, float32 (n,), of features (n, width)."""
            dense = features.toarray() if hasattr(features, "toarray") else np.asarray(features)
            if dense.ndim != 2 or dense.shape[1] != width:
                raise ValueError(
                    f"features have shape {dense.shape}; the model {name!r} reads (n, {width}) of {self.features_model_name!r}."
                )
            table = predict(dense.astype(np.float32, copy=False))
            return {str(gene): table[gene].to_numpy() for gene in table.columns}

    Registered.__name__ = Registered.__qualname__ = name
    registry.MODEL_REGISTRY[name] = Registered
    return Registered()
