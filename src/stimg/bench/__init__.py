"""Evaluation that cannot flatter: protocols, nulls, ceilings, a ledger of what was seen, and one runner."""

from typing import TYPE_CHECKING

from stimg._core.lazy import attach

if TYPE_CHECKING:
    from stimg._core.ledger import Leak, LeakageError, Seen
    from stimg.bench.auditing import audit
    from stimg.bench.expression import ExpressionProtocol, Target
    from stimg.bench.gene_rules import Panel
    from stimg.bench.method import Method, Prediction
    from stimg.bench.method import listing as list_methods
    from stimg.bench.protocol import Fold, Hidden, Metric, Protocol, Scored, Task
    from stimg.bench.protocol import get as get_protocol
    from stimg.bench.protocol import listing as list_protocols
    from stimg.bench.published import Division, Fix, PublishedSplit, SplitFold, check_hold_out, published_split, published_splits
    from stimg.bench.report import Report
    from stimg.bench.runner import run
    from stimg.bench.sections import load_sections
    from stimg.data.ledger import check_leakage, recall, remember, seen_of

_NAMES = {
    "Division": "published",
    "ExpressionProtocol": "expression",
    "Fix": "published",
    "Fold": "protocol",
    "Hidden": "protocol",
    "Leak": "_ledger",
    "LeakageError": "_ledger",
    "Method": "method",
    "Metric": "protocol",
    "Panel": "gene_rules",
    "Prediction": "method",
    "Protocol": "protocol",
    "PublishedSplit": "published",
    "Report": "report",
    "Scored": "protocol",
    "Seen": "_ledger",
    "SplitFold": "published",
    "Target": "expression",
    "Task": "protocol",
    "audit": "auditing",
    "check_hold_out": "published",
    "check_leakage": "_ledger",
    "get_protocol": "protocol:get",
    "list_methods": "method:listing",
    "list_protocols": "protocol:listing",
    "load_sections": "sections",
    "published_split": "published",
    "published_splits": "published",
    "recall": "_ledger",
    "remember": "_ledger",
    "run": "runner",
    "seen_of": "_ledger",
}
"""Public name to the module of this package that defines it."""
__getattr__, __dir__, __all__ = attach(__name__, _NAMES)
