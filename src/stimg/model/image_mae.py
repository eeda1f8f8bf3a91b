"""ImageMAE: a masked autoencoder of H&E tiles, small enough to be trained on a laptop's processor."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from scvi import REGISTRY_KEYS
from scvi.data.fields import CategoricalObsField

from stimg._core import keys, validate
from stimg._core import rng as _rng
from stimg._core.ledger import Seen
from stimg.data.tile_plan import tile_plan
from stimg.image.augment_tiles import TileAugmentation
from stimg.image.spec import TileSpec
from stimg.model import _mae_inference, _mae_training
from stimg.model._common import Common
from stimg.model._mae_inference import MaskedTiles
from stimg.model._seeded import seeded
from stimg.model.mae_options import ImageMAEOptions
from stimg.nn.image.encoder import ImageEncoder
from stimg.nn.image.mae import MAEFeatures, MAEModule

if TYPE_CHECKING:
    from anndata import AnnData

    from stimg.image.slide import Slide

CARD = "image_mae"


class ImageMAE(Common):
    """Masked autoencoder of image tiles (He et al. 2022, arXiv 2111.06377): learns from tissue alone, without labels or counts.

    Training tiles lie anywhere on the tissue around the observations, not at the observations alone. The trained model is an encoder for
    :func:`stimg.tl.embed_image`.

    Parameters
    ----------
    adata
        Set up with :meth:`setup_anndata`, with planned tiles (:func:`stimg.pp.plan_tiles`). Training reads tiles of ``size_px`` at the µm per
        pixel of the plan and of its wider fields; embeddings read the tiles of the plan themselves.
    options
        What the model is made of; see :class:`stimg.model.ImageMAEOptions`.
    **changes
        Fields of ``options`` to change, such as ``n_latent=192``.

    Examples
    --------
    >>> import stimg
    >>> adata = stimg.datasets.simulate(technology="visium", shape=(8, 8), n_genes=20, image=True, rng=0)
    >>> stimg.pp.plan_tiles(adata, tile_um=64, mpp=1.0)
    >>> stimg.model.ImageMAE.setup_anndata(adata)
    >>> model = stimg.model.ImageMAE(adata, n_latent=16, n_layers=1, n_decoder=16)
    >>> model.train(max_epochs=1, validation=None, tiles_per_epoch=64, enable_progress_bar=False)
    >>> model.get_latent_representation().shape
    (64, 32)
    """

    module: MAEModule
    _setup_names = ("tiles_key", "library_key", "donor_key")
    _record_fields = ("tiles",)

    def __init__(
        self,
        adata: "AnnData | None" = None,
        *,
        options: ImageMAEOptions | None = None,
        registry: dict | None = None,
        spec: TileSpec | None = None,
        **changes: Any,
    ) -> None:
        if adata is None and (registry is None or spec is None):
            raise ValueError("There is no adata with planned tiles. Pass adata, or load a model with `ImageMAE.load`.")
        super().__init__(adata, registry)
        self.options = (options or ImageMAEOptions()).changed(**changes)
        spec = spec or tile_plan(adata, self._tiles_key).spec
        self.spec: TileSpec = spec
        """Scale and fields of the training tiles."""
        self.module = self._make_module()
        self.genes = pd.Index([], dtype=str)
        self.ledger: tuple[Seen, ...] = (Seen(type(self).__name__, "encoder"),)
        o = self.options
        self._model_summary_string = (
            f"ImageMAE of tiles of {o.size_px} px at {', '.join(f'{spec.mpp * f:g}' for f in spec.fields)} µm per pixel, patch: {o.patch}, "
            f"n_latent: {o.n_latent}, n_layers: {o.n_layers}, features: {self.module.n_features}"
        )
        self.init_params_ = self._get_init_params(locals())

    @classmethod
    def setup_anndata(
        cls, adata: "AnnData", *, tiles_key: str = keys.TILES, library_key: str = keys.LIBRARY, donor_key: str | None = keys.DONOR
    ) -> None:
        """Register the planned tiles of ``adata``; no count is read.

        Parameters
        ----------
        adata
            Observations with planned tiles.
        tiles_key
            Name of the plan in ``uns["stimg"]``.
        library_key, donor_key
            Columns of ``obs`` with the capture area and the donor; ``donor_key`` may be missing there.

        Raises
        ------
        KeyError
            Where the plan or a column is missing.
        ValueError
            For views, and objects without observations.
        """
        cls._refuse_view(adata)
        tile_plan(adata, tiles_key)
        validate.obs(adata, library_key, todo="Name the library of every observation.")
        fields = [CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, library_key)]
        cls._register(adata, fields, tiles_key=tiles_key, library_key=library_key, donor_key=donor_key)

    @property
    def _tiles_key(self) -> str:
        return self._setup["tiles_key"]

    def _make_module(self, seed: int = 0) -> MAEModule:
        sizes = self.options.to_dict()
        del sizes["size_px"]
        with seeded(seed):
            return MAEModule(**sizes)

    def train(
        self,
        max_epochs: int | None = None,
        *,
        validation: str | Sequence[str] | None = "blocks",
        validation_fraction: float = 0.1,
        early_stopping: bool = True,
        patience: int = 20,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        tiles_per_epoch: int | None = None,
        augment: bool | TileAugmentation = True,
        image: Any = None,
        slides: "Mapping[str, Slide] | None" = None,
        rng: _rng.RngLike = 0,
        checkpoint_dir: str | Path | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train on random tiles of the tissue; the weights of the best validation epoch are kept.

        Parameters
        ----------
        max_epochs
            Passes over the tissue; None: as many as make about 4,000 steps, at most 400.
        validation
            What the training is stopped by: ``"blocks"`` holds out a contiguous rectangle of every library, ``"libraries"`` a library, ``"donors"`` a donor, a
            list those that it names; ``"auto"``, None: as for :meth:`stimg.model.ImageGeneCLIP.train`. No training tile shares a pixel with a
            validation tile.
        validation_fraction
            Part of every library, for ``"blocks"``.
        early_stopping, patience
            Whether to stop after ``patience`` epochs without a better validation loss.
        batch_size
            Tiles of a step, on each device.
        lr, weight_decay
            Of AdamW; see :class:`stimg.plan.StepPlan`.
        tiles_per_epoch
            Tiles of an epoch; None: as many as cover the tissue four times, see :class:`stimg.data.RandomTileDataset`.
        augment
            How tiles are changed; True: turned and flipped, their colours as they are.
        image, slides
            Images of the libraries where they are not those of the plan's files, as for :class:`stimg.data.TileDataset`.
        rng
            Where weights, tiles, masks and what is held out come from. The global random state of torch, numpy and Python is left as it was.
        checkpoint_dir
            Folder for a checkpoint at the end of every epoch. Where it holds one, training goes on from there; a finished training is not
            repeated. The arguments, options and data have to be the same as then.
        **trainer_kwargs
            For :class:`scvi.train.Trainer`, and through it Lightning's: ``accelerator``, ``devices``, ``strategy``, ``precision``
            (``"bf16-mixed"``), ``enable_progress_bar`` (by default as ``stimg.settings.progress`` says), ...; and for the data:
            ``num_workers``, ``reach_um``, ``in_memory``. ``compile=True`` compiles the network.

        Raises
        ------
        ValueError
            Where the loss becomes infinite, there is nothing to hold out, or the checkpoint is damaged or of another training.

        Notes
        -----
        A training that fails or is interrupted leaves the model as it was; with ``checkpoint_dir``, the same call goes on from the last epoch.
        """
        tiles = {"tiles_per_epoch": tiles_per_epoch, "augment": augment, "image": image, "slides": slides}
        _mae_training.train(self, self._loop(locals()), **tiles, **trainer_kwargs)

    def get_image_encoder(self) -> ImageEncoder:
        """Return the trained encoder with its card, as :func:`stimg.tl.embed_image` uses it; it shares the weights of the model."""
        from stimg.zoo.image import IMAGE

        self.need_trained()
        card = replace(
            IMAGE[CARD],
            n_features=self.module.n_features,
            size_px=self.options.size_px,
            multiple_of=self.options.patch,
            mpp=self.spec.mpp,
            other_mpp=tuple(self.spec.mpp * field for field in self.spec.fields if field != 1.0),
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            parameters_m=sum(p.numel() for p in self.module.parameters()) / 1e6,
        )
        encoder = ImageEncoder(card, MAEFeatures(self.module), source="a trained stimg.model.ImageMAE").eval()
        encoder.ledger = list(self.ledger)  # type: ignore[assignment]
        return encoder

    def get_latent_representation(
        self,
        adata: "AnnData | None" = None,
        *,
        image: Any = None,
        slides: "Mapping[str, Slide] | None" = None,
        batch_size: int = 64,
    ) -> np.ndarray:
        """Return the embedding of the planned tiles of every observation, float32 (n_obs, fields x features).

        Parameters
        ----------
        adata
            Observations with planned tiles at the scale that the model knows, of any number of pixels that ``options.patch`` divides. None: what the
            model was made with.
        image, slides
            As for :meth:`train`.
        batch_size
            Tiles at a time.
        """
        return _mae_inference.embed(self, adata, image=image, slides=slides, batch_size=batch_size)

    def get_reconstruction(
        self,
        adata: "AnnData | None" = None,
        *,
        rows: Any = None,
        image: Any = None,
        slides: "Mapping[str, Slide] | None" = None,
        rng: _rng.RngLike = 0,
    ) -> MaskedTiles:
        """Return tiles, the same with patches hidden, and with predictions in their place: uint8 (n, size, size, 3) each.

        Parameters
        ----------
        adata, image, slides
            As for :meth:`get_latent_representation`. The first field of the plan is shown.
        rows
            Observations: a mask, or positions. None: all.
        rng
            Chooses what is hidden.

        Notes
        -----
        With ``patch_norm`` the model predicts structure alone: mean and spread of a hidden patch are taken from the tile itself.
        """
        return _mae_inference.reconstruct(self, adata, rows=rows, image=image, slides=slides, rng=rng)

    def _facts(self) -> dict[str, Any]:
        return {"tiles": self.spec.to_dict()}

    @classmethod
    def _from_record(cls, record: Mapping[str, Any], **options: Any) -> Self:
        made, spec = ImageMAEOptions.from_dict(record["options"]), TileSpec.from_dict(record["tiles"])
        return cls(None, options=made, registry=record["registry"], spec=spec, **options)

    def _accept(self, adata: "AnnData") -> None:
        _mae_inference.check(self, adata)
