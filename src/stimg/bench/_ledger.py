"""The ledger, under the name by which users call it."""

from stimg._core.ledger import Leak, LeakageError, Seen
from stimg.data.ledger import check_leakage, recall, remember, seen_of

__all__ = ["Leak", "LeakageError", "Seen", "check_leakage", "recall", "remember", "seen_of"]
