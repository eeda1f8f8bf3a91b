"""The table of an AnnData or SpatialData, for verbs that take either."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData


def is_spatialdata(data: Any) -> bool:
    """Whether ``data`` is a SpatialData, without importing spatialdata for anything else."""
    return type(data).__module__.split(".")[0] == "spatialdata"


def table_of(data: Any, table_key: str) -> "AnnData":
    """Return ``data`` where it is an AnnData, or ``data.tables[table_key]`` of a SpatialData."""
    if not is_spatialdata(data):
        if not hasattr(data, "obsm"):
            raise TypeError(f"data is a {type(data).__name__}; wanted an AnnData or a SpatialData.")
        return data
    if table_key not in data.tables:
        raise KeyError(f"sdata.tables[{table_key!r}] is missing (found {sorted(data.tables)}). Pass `table_key=`.")
    return data.tables[table_key]
