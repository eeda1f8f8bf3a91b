"""One argument for chance: what it may be, and that it is all there is."""

import numpy as np
import pytest

from stimg._core.rng import as_generator, as_seed, derive


def test_the_same_seed_gives_the_same_numbers_and_leaves_the_global_state():
    np.random.seed(3)  # noqa: NPY002 (the global state is what is watched)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert as_generator(7).random() == as_generator(np.random.SeedSequence(7)).random() == np.random.default_rng(7).random()
    assert as_seed(7) == 7
    assert as_seed(np.int64(7)) == 7
    assert 0 <= as_seed(None) < 2**31
    assert derive(1, 2, 3).random() == derive(1, 2, 3).random() != derive(1, 3, 2).random()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_a_generator_is_shared():
    rng = np.random.default_rng(0)
    assert as_generator(rng) is rng
    assert as_seed(rng) != as_seed(rng)


@pytest.mark.parametrize("wrong", ["seven", 1.5, True, [1, 2]])
def test_anything_else_is_a_type_error(wrong):
    for function in (as_generator, as_seed):
        with pytest.raises(TypeError, match=rf"rng=.* is a {type(wrong).__name__}; wanted an integer seed"):
            function(wrong)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match=rf"rng={seed} is outside 0 <= rng < 2\*\*31"):
        as_seed(seed)
