"""A trained alignment for programs that know no stimg: its image side as one file, or under a name that LazySlide knows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stimg._core import files, keys, validate
from stimg._core.optional import need
from stimg.model import _lazyslide
from stimg.nn.clip import CLIPModule

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.model.image_gene_clip import ImageGeneCLIP

FORMATS = ("torch", "onnx")


class ImageSide(nn.Module):
    """The image side alone: from features, or tiles, to the embedding, and to expression where there is a decoder.

    Parameters
    ----------
    module
        The whole network.
    normalise
        Whether the embedding has unit length.
    """

    def __init__(self, module: CLIPModule, normalise: bool) -> None:
        super().__init__()
        self.encoder, self.image_in, self.image_axes, self.image_head = (
            module.encoder,
            module.image_in,
            module.image_axes,
            module.image_head,
        )
        self.decoder, self.expression_in, self.normalise = module.decoder, module.expression_in, normalise

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the embedding (B, n_dim), and log1p counts per 10,000 (B, genes) where there is a decoder."""
        if self.encoder is not None:
            image = self.encoder(image.flatten(0, 1)).reshape(image.shape[0], -1)
        x = self.image_in(image)
        raw = self.image_head(x if self.image_axes is None else self.image_axes(x))
        embedding = nn.functional.normalize(raw, dim=1) if self.normalise else raw
        if self.decoder is None or self.expression_in is None:
            return (embedding,)
        return embedding, self.expression_in.invert(self.decoder(raw)).clamp_min(0.0)


def export(model: "ImageGeneCLIP", path: Path, kind: str, *, overwrite: bool) -> None:
    """Write the image side; see :meth:`stimg.model.ImageGeneCLIP.export`."""
    model.need_trained()
    validate.one_of(kind, FORMATS, "format")
    if kind == "onnx":
        need("onnx", purpose="to write ONNX files")
        need("onnxscript", purpose="to write ONNX files")
    side = ImageSide(model.module, model.options.normalise).eval().cpu()
    example = torch.zeros(2, model.facts["n_image"])
    if model.reads_tiles:
        size = model.facts["sources"][keys.TILES]["size_px"]
        fields = model.facts["n_image"] // model.facts["encoder_width"]
        example = torch.zeros(2, fields, size, size, 3, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("n", min=1)},)
    device = model.device
    try:
        with files.replacing(path, overwrite=overwrite) as temporary:
            if kind == "torch":
                torch.export.save(torch.export.export(side, (example,), dynamic_shapes=shapes), temporary)
            else:
                program = torch.onnx.export(side, (example,), dynamo=True, dynamic_shapes=shapes, input_names=["image"], verbose=False)
                assert program is not None
                program.save(str(temporary), external_data=False)  # one file, which can be moved
    finally:
        model.to_device(device)  # the parts of the exported side are the model's own


def to_lazyslide(model: "ImageGeneCLIP", name: str, head: str | None, reference: "AnnData | None") -> Any:
    """Register with LazySlide; see :meth:`stimg.model.ImageGeneCLIP.to_lazyslide`."""
    model.need_trained()
    if model.options.does("centre"):
        raise ValueError(
            "LazySlide hands over features in parts, so they cannot be centred by section, as batch='centre' asks for. "
            "Predict with `stimg.tl.predict_expression`, or train a model with another `batch`."
        )
    if model.reads_tiles or len(model.image_keys) != 1:
        raise ValueError(
            f"LazySlide hands over one table of features; this model reads {list(model.image_keys)}. Train one on a single slot of obsm."
        )
    key = model.image_keys[0]
    encoder = str(model.facts["sources"][key].get("encoder", key.removeprefix("X_")))
    about = model.facts["about"].get(key, {})

    def predict(features: np.ndarray) -> pd.DataFrame:
        from anndata import AnnData

        names = [str(i) for i in range(len(features))]
        data = AnnData(obs=pd.DataFrame(index=names), obsm={key: features})
        return model.predict_expression(data, head=head, reference=reference)

    return _lazyslide.register(
        name,
        model.module,
        predict,
        features=encoder,
        width=model.facts["widths"][key],
        about={
            "description": f"Expression of {len(model.genes)} genes from features of {encoder}, an alignment trained with stimg.",
            "license": about.get("licence"),
            "commercial": about.get("commercial"),
        },
    )
