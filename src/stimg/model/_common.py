"""What every model can be asked, whatever it learns."""

import math
from typing import TYPE_CHECKING, Any

import torch

from stimg.model import _kept

if TYPE_CHECKING:
    from anndata import AnnData


class Common:
    """Device, identity, epochs: the methods that all models share."""

    module: Any
    history_: Any

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.module.parameters()).device  # type: ignore[no-any-return]

    @property
    def _layer(self) -> str | None:
        return self.registry_["setup_args"]["layer"]  # type: ignore[attr-defined, no-any-return]

    @property
    def _library_key(self) -> str:
        return self.registry_["setup_args"]["library_key"]  # type: ignore[attr-defined, no-any-return]

    def identity(self, adata: "AnnData") -> dict[str, Any]:
        """Return what a record of a result should say of this model: class, hashes of weights and vocabulary, and how many of the rows of ``adata`` it was trained on."""
        return _kept.identity(self, adata)  # type: ignore[arg-type]

    def epochs(self) -> int:
        """Return the number of epochs trained."""
        return max((len(table) for table in (self.history_ or {}).values()), default=0)

    def is_finite(self) -> bool:
        """Return whether every weight is a finite number."""
        return all(math.isfinite(float(p.detach().abs().max())) for p in self.module.parameters())
