"""How the numeric tests compare: trees within a `tolerances.Tolerance`, and gradients by differences in float64."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from tolerances import Tolerance


def assert_near(got: Any, want: Any, tolerance: Tolerance) -> None:
    """Two trees of one structure: every leaf of `got` is finite and near its leaf of `want`."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        where = jax.tree_util.keystr(path)
        assert a.shape == b.shape, where
        assert np.isfinite(a).all(), where
        bound = tolerance.absolute or tolerance.relative * np.abs(b).max(initial=0.0)
        worst = np.abs(a - b).max(initial=0.0)
        assert worst <= bound, f"{where}: {worst:.3g} off, {bound:.3g} allowed"


def assert_same_bits(got: Any, want: Any) -> None:
    """Two trees of one structure, dtypes and bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), jax.tree_util.keystr(path)


def host(tree: Any) -> Any:
    """A copy of a tree in numpy, which no donation can take away; keys as their data."""
    plain = lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return jax.tree.map(lambda x: np.array(plain(x)), tree)


def numeric_gradient(function: Callable[..., float], x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function of one float64 array, entry by entry; good to about 1e-9."""
    x, gradient = np.array(x, np.float64), np.zeros(np.shape(x))
    for index in np.ndindex(*x.shape):
        kept = x[index]
        x[index] = kept + step
        above = function(x)
        x[index] = kept - step
        gradient[index] = (above - function(x)) / (2 * step)
        x[index] = kept
    return gradient
