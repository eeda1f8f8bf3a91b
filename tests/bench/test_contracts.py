"""What every registered protocol and method must keep, whoever adds it."""

import json
import pickle
import subprocess
import sys

import pytest

import stimg
from stimg.bench import get_protocol, list_methods, list_protocols
from stimg.bench import method as _method
from stimg.bench.protocol import PROTOCOLS, Fold

_method.load()
METHODS = sorted(_method.METHODS)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_says_what_it_is(name):
    protocol = get_protocol(name)
    assert protocol.name == name
    assert protocol.version
    assert len(protocol.title) > 20
    assert len(protocol.source) > 4
    assert len(protocol.hash) == 16
    assert int(protocol.hash, 16) >= 0
    names = [m.name for m in protocol.metrics]
    assert names
    assert len(set(names)) == len(names)
    assert all(m.aggregate in ("mean", "median") and len(m.what) > 10 for m in protocol.metrics)
    assert protocol.level in ("observation", "section", "donor")
    assert pickle.loads(pickle.dumps(protocol)) == protocol
    for null in protocol.nulls:
        assert protocol.kind in _method.METHODS[null].kinds


def test_hashes_are_the_same_in_another_process_and_differ_from_each_other():
    code = "import json, stimg; print(json.dumps({n: stimg.bench.get_protocol(n).hash for n in stimg.bench.list_protocols().index}))"
    found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert found == {name: get_protocol(name).hash for name in PROTOCOLS}
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_is(name):
    method = _method.METHODS[name]
    assert len(method.what) > 10
    assert method.what.endswith((".", ")"))
    assert method.role in ("null", "audit", "rival")
    assert method.kinds
    assert {get_protocol(p).kind for p in PROTOCOLS} >= set(method.kinds)


@pytest.mark.parametrize("name", [n for n in METHODS if "expression" in _method.METHODS[n].kinds and not _method.METHODS[n].needs])
def test_methods_repeat_themselves_and_leave_global_chance_alone(slides, name):
    import numpy as np

    protocol = get_protocol("her2st-strict")
    task, hidden = protocol.task(stimg.bench.load_sections(slides), Fold("C", ("A1", "A2", "B1"), ("C1",)))
    method = _method.METHODS[name]
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    extra = (hidden,) if method.role == "audit" else ()
    answers = []
    for _ in range(2):
        found = method.function(task, np.random.default_rng(5), *extra)
        answers.append(protocol.check(task, getattr(found, "values", found) if not isinstance(found, dict) else found, name)["C1"])
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_the_lists_are_complete():
    assert set(list_protocols().index) == set(PROTOCOLS)
    assert set(list_methods().index) == set(METHODS)


def test_evaluation_loads_no_torch():
    code = "import stimg, sys; stimg.bench.list_protocols(); stimg.bench.list_methods(); print('torch' in sys.modules or 'scvi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
