"""How an alignment is made and what it is asked to read: the part of ImageGeneCLIP before training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField, LayerField

from stimg._core import keys, validate
from stimg._core.ledger import Seen
from stimg.data.ledger import recall
from stimg.data.tile_plan import tile_plan
from stimg.model import _clip_read, _clip_tiles
from stimg.model._common import Common
from stimg.model._seeded import seeded
from stimg.model._vocabulary import chosen_by, vocabulary
from stimg.model.clip_options import ImageGeneCLIPOptions
from stimg.nn.clip import CLIPModule

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.nn.image.encoder import ImageEncoder

IMAGE = "X_efficientnet_lite0"


class ClipBase(Common):
    """What :class:`stimg.model.ImageGeneCLIP` is before it learns."""

    module: CLIPModule

    def __init__(
        self,
        adata: "AnnData | None" = None,
        genes: Sequence[str] | None = None,
        *,
        options: ImageGeneCLIPOptions | None = None,
        encoder: "ImageEncoder | str | None" = None,
        encoder_path: str | Path | None = None,
        registry: dict | None = None,
        facts: dict | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(adata, registry)
        if isinstance(encoder, str):
            changes["encoder"], encoder = encoder, None
        elif encoder is not None and options is None:
            changes["encoder"] = _clip_tiles.name_of(encoder)
        self.options = (options or ImageGeneCLIPOptions()).changed(**changes)
        self.genes = vocabulary(adata, genes)
        if self.options.init == "cca" and self.gene_key is None and self.options.gene_encoder == "mlp":
            raise ValueError(
                "init='cca' needs a gene side that is there before the training. Pass gene_encoder='pca' or 'linear', or init='random'."
            )
        if facts is None and adata is None:
            raise ValueError("There is no adata, and nothing is known of the data. Pass adata, or load a model with `ImageGeneCLIP.load`.")
        network = None
        if self.reads_tiles:
            network = _clip_tiles.load_encoder(self.options, encoder, encoder_path)
        elif encoder is not None or encoder_path is not None:
            raise ValueError(f"encoder= goes with setup_anndata(image={keys.TILES!r}); this model reads {list(self.image_keys)} of obsm.")
        self.facts: dict[str, Any] = facts if facts is not None else _facts(self, adata, network)
        self.module = self._make_module()
        if network is not None:
            if facts is not None:
                _clip_tiles.check_weights(self, network)
            self.module.encoder = _clip_tiles.adapt(network, self.options, self.facts["sources"][keys.TILES]["size_px"])
        own = Seen(type(self).__name__, "model", genes=tuple(self.genes))
        sides = [*self.image_keys, *([self.gene_key] if self.gene_key else [])]
        before = [] if adata is None else recall(adata, only=sides)
        self.ledger: tuple[Seen, ...] = (*chosen_by(adata, genes), *before, *getattr(network, "ledger", ()), own)
        self.monitor_: str | None = None
        self.scores_: dict[str, Any] = {}
        o = self.options
        self._model_summary_string = (
            f"ImageGeneCLIP of {', '.join(self.image_keys)} ({self.facts['n_image']} features) and "
            f"{self.gene_key or f'{len(self.genes)} genes'}, loss: {o.loss}, n_dim: {o.n_dim}, batch: {o.batch}"
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls,
        adata: "AnnData",
        *,
        image: str | Sequence[str] = IMAGE,
        gene: str | None = None,
        layer: str | None = None,
        library_key: str = keys.LIBRARY,
        donor_key: str | None = keys.DONOR,
        batch_key: str | None = None,
    ) -> None:
        """Register the two sides of ``adata``.

        Parameters
        ----------
        adata
            ``X`` or ``layers[layer]`` holds raw counts, ``obsm`` the image features.
        image
            Slot of ``obsm`` with finished image features, or several of them, which then stand beside each other. ``"tiles"``: tiles are read
            as :func:`stimg.pp.plan_tiles` has planned them, and go through the encoder of the options.
        gene
            None: expression of the model's genes is the other side. A slot of ``obsm``: a finished embedding of expression is.
        layer
            Layer with raw counts.
        library_key, donor_key
            Columns of ``obs`` with the capture area and the donor; ``donor_key`` may be missing there.
        batch_key
            Column of ``obs`` whose groups are the batches that ``options.batch`` and ``options.sampling`` speak of; None: ``library_key``.

        Raises
        ------
        KeyError
            Where a slot is missing.
        ValueError
            For values that are no counts, features that are not finite, and views.
        """
        validate.not_empty(adata)
        cls._refuse_view(adata)
        validate.counts(adata, layer)
        validate.unique_names(adata.var_names, "gene names", todo="Run `adata.var_names_make_unique()` or add up the duplicates.")
        names = (image,) if isinstance(image, str) else tuple(str(i) for i in image)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"image={image!r}; wanted one slot of obsm, or several different ones.")
        if keys.TILES in names:
            if len(names) > 1:
                raise ValueError(
                    f"image={image!r}; tiles are read alone. Write their features with `stimg.tl.embed_image` to have them beside others."
                )
            tile_plan(adata)
        else:
            _clip_read.features(adata, names)
        if gene is not None:
            _clip_read.embedding(adata, gene)
        for key in (library_key, batch_key or library_key):
            _clip_read.codes_of(adata, key)
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, layer, is_count_data=False),  # the check is done above, on all values and without chance
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, library_key),
        ]
        keys_ = {"library_key": library_key, "donor_key": donor_key, "batch_key": batch_key}
        cls._register(adata, fields, image=list(names), gene=gene, layer=layer, **keys_)

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Slots of ``obsm`` with the image features, or ``("tiles",)``."""
        return tuple(self._setup["image"])

    @property
    def reads_tiles(self) -> bool:
        """Whether the image side is tiles, which an encoder reads."""
        return self.image_keys == (keys.TILES,)

    @property
    def gene_key(self) -> str | None:
        """Slot of ``obsm`` with the embedding of expression; None where counts are read."""
        return self._setup["gene"]  # type: ignore[no-any-return]

    @property
    def scale(self) -> float:
        """One over the temperature."""
        return float(self.module.log_scale.detach().exp())

    @property
    def _batch_key(self) -> str:
        return self._setup["batch_key"] or self._library_key

    def _make_module(self, seed: int = 0) -> CLIPModule:
        """Return a network with weights drawn from ``seed``, without an encoder of tiles."""
        o = self.options
        with seeded(seed):
            return CLIPModule(
                self.facts["n_image"],
                self.facts["n_gene"],
                n_dim=o.n_dim,
                image_head=o.image_head,
                gene_head=o.gene_head,
                gene_encoder=o.gene_encoder if self.gene_key is None else "linear",
                image_components=o.image_components,
                gene_components=o.gene_components,
                n_hidden=o.n_hidden,
                n_layers=o.n_layers,
                dropout=o.dropout,
                n_expression=len(self.genes) if o.expression_weight else 0,
                decoder=o.decoder,
                n_batches=len(self.facts["batches"]) if o.does("adversarial") else 0,
                log_scale=-math.log(o.temperature),
                bias=o.siglip_bias if o.loss == "siglip" else None,
            )


def _facts(model: ClipBase, adata: "AnnData", network: "ImageEncoder | None") -> dict[str, Any]:
    """Return what a model keeps of its data beside the genes: widths, where embeddings come from and under which licence, names of the batches."""
    slots = [*(() if model.reads_tiles else model.image_keys), *([model.gene_key] if model.gene_key else [])]
    widths = {key: int(np.shape(adata.obsm[key])[1]) for key in slots}
    sources = {key: _clip_read.source(adata, key) for key in slots}
    about = {key: _clip_read.about(adata, key) for key in slots}
    facts: dict[str, Any] = {"batches": _clip_read.codes_of(adata, model._batch_key)[1]}
    if network is not None:
        if model.options.does("centre") and model.options.tuning != "frozen":
            raise ValueError("batch='centre' needs features that do not change. Pass tuning='frozen', or another way to deal with batches.")
        spec = tile_plan(adata).spec
        _clip_tiles.check_spec(network, spec)
        widths[keys.TILES] = len(spec.fields) * network.n_features
        sources[keys.TILES] = {**_clip_read.source(adata, keys.TILES), "size_px": spec.size_px, **_clip_tiles.describe(network)}
        about[keys.TILES] = {"licence": network.card.licence, "commercial": network.card.commercial}
        facts["encoder_width"] = network.n_features
    gene = len(model.genes) + int(model.options.depth) if model.gene_key is None else widths[model.gene_key]
    return {
        **facts,
        "n_image": sum(widths[key] for key in model.image_keys),
        "n_gene": gene,
        "widths": widths,
        "sources": sources,
        "about": about,
    }
