"""Mean over what counts."""

from torch import Tensor


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    r"""Return :math:`\sum_i w_i v_i / \sum_i w_i` as a scalar; 0 where no weight is above zero.

    ``values`` and ``weight`` broadcast against each other. NaN or infinite values are left out where their weight is 0.
    """
    weight = weight.to(values.dtype)
    total = (values.masked_fill(weight == 0, 0.0) * weight).sum()
    count = weight.expand_as(values).sum()
    return total / count.clamp(min=1e-12)
