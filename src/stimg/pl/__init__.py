"""Pictures of what the other verbs wrote. Importing this module does not import matplotlib; calling a function does."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg.pl._alignment import alignment
    from stimg.pl._calibration import calibration
    from stimg.pl._check_slide import check_slide
    from stimg.pl._crops import crops
    from stimg.pl._embedding import embedding_map
    from stimg.pl._gene_scores import gene_scores, score_maps
    from stimg.pl._genes import genes
    from stimg.pl._history import history
    from stimg.pl._imputation import imputation
    from stimg.pl._raster import raster
    from stimg.pl._reconstruction import reconstruction
    from stimg.pl._retrieval import retrieval
    from stimg.pl._scores import scores
    from stimg.pl._tiles import tiles

_WHERE = {
    "alignment": "_alignment",
    "calibration": "_calibration",
    "check_slide": "_check_slide",
    "crops": "_crops",
    "embedding_map": "_embedding",
    "gene_scores": "_gene_scores",
    "genes": "_genes",
    "history": "_history",
    "imputation": "_imputation",
    "raster": "_raster",
    "reconstruction": "_reconstruction",
    "retrieval": "_retrieval",
    "score_maps": "_gene_scores",
    "scores": "_scores",
    "tiles": "_tiles",
}
__getattr__, __dir__, __all__ = attach(__name__, _WHERE)
