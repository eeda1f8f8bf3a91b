"""The table of an AnnData or a SpatialData, for verbs that take either. Loads neither torch nor spatialdata."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData


def is_spatialdata(data: Any) -> bool:
    """Return whether ``data`` is a SpatialData object, without importing spatialdata."""
    return hasattr(data, "tables") and hasattr(data, "shapes")


def table_of(data: Any, table_key: str) -> "AnnData":
    """Return ``data`` where it is an AnnData, or the table itself, ``data.tables[table_key]``, of a SpatialData.

    Raises
    ------
    KeyError
        Where a SpatialData has no such table; the message names those it has.
    TypeError
        Where ``data`` is neither.
    """
    if is_spatialdata(data):
        if table_key not in data.tables:
            raise KeyError(f"sdata.tables[{table_key!r}] is missing (found {sorted(data.tables)}). Pass `table_key=`.")
        return data.tables[table_key]
    if not (hasattr(data, "obsm") and hasattr(data, "var_names")):
        raise TypeError(f"data is a {type(data).__name__}; wanted an AnnData or a SpatialData. Read the file, or pass `adata` itself.")
    return data
