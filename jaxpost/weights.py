"""The verbs that touch a weight: `linear`, `embed`, `materialize`; all that the model knows about weights.

A weight is an Array `[out, in]`, or an object with the methods of `Weight` (an adapter on a base, a quantised matrix).
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

PARTIAL_SUM = 64  # terms; shorter sums gain nothing on a model of 30 layers


@runtime_checkable
class Weight(Protocol):
    """What a weight that is not a plain Array can do; `shape` is that of the matrix it stands for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any:
        """What `merge` casts the sum to."""
        ...

    def matmul(self, x: Array) -> Array:
        """x [..., in] -> [..., out], in x's dtype."""
        ...

    def take(self, ids: Array, dtype: Any) -> Array:
        """Rows `ids` [...] -> [..., in]."""
        ...

    def materialize(self, dtype: Any) -> Array:
        """The matrix itself, [out, in]."""
        ...


AnyWeight: TypeAlias = Array | Weight


def linear(x: Float[Array, " *batch d_in"], w: AnyWeight) -> Float[Array, " *batch d_out"]:
    """y = x W^T in x's dtype; a weight of another dtype is cast for the product, its gradient comes in its own.

    >>> linear(jnp.ones((1, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    Array([[ 3.,  7., 11.]], dtype=float32)
    """
    if isinstance(w, Weight):
        return w.matmul(x)
    flat = x.reshape(-1, x.shape[-1])  # two axes between dots: XLA:CPU runs those without copies
    return _dense(flat, w).reshape(*x.shape[:-1], w.shape[0])


def embed(tokens: Int[Array, " *batch"], w: AnyWeight, dtype: Any = None) -> Float[Array, " *batch D"]:
    """Rows `tokens` of the table `w` [V, D], cast to `dtype` (None: the table's own)."""
    if isinstance(w, Weight):
        return w.take(tokens, dtype)
    # An id outside the table gives NaN, which the step's guard reports, where XLA alone would clamp it in silence.
    tokens = tokens.astype(jnp.int32)
    tokens = jnp.where(tokens < 0, w.shape[0], tokens)  # a negative one would count from the end
    return w.at[tokens].get(mode="fill", fill_value=jnp.nan).astype(dtype or w.dtype)


def materialize(w: AnyWeight, dtype: Any) -> Float[Array, " *stack out in"]:
    """The matrix (or stack of matrices) that `w` stands for, [*stack, out, in] in `dtype`."""
    return w.materialize(dtype) if isinstance(w, Weight) else w.astype(dtype)


def along_last(v: Float[Array, " D"], x: Float[Array, " *batch D"]) -> Array:
    """`v` with as many axes as `x`, to meet its last one: ranks are never promoted unseen.

    >>> along_last(jnp.ones(3), jnp.ones((2, 5, 3))).shape
    (1, 1, 3)
    """
    return v.reshape((1,) * (x.ndim - 1) + v.shape)


def contract(a: Array, b: Array, axes: tuple[int, int], out_dtype: Any) -> Array:
    """Dot of two matrices over a's axis axes[0] and b's axis axes[1], summed in float32 at least.

    Under `jax.default_matmul_precision("highest")` CPUs sum `PARTIAL_SUM` terms at a time: XLA:CPU adds a whole
    contraction in one chain, whose error grows with its length.
    """
    wide = jnp.promote_types(jnp.float32, out_dtype)
    dims = (((axes[0],), (axes[1],)), ((), ()))
    dot = functools.partial(jax.lax.dot_general, dimension_numbers=dims, preferred_element_type=wide)
    in_parts = jax.default_backend() == "cpu" and _highest() and a.shape[axes[0]] > PARTIAL_SUM
    return (_dot_in_parts(dot, a, b, axes) if in_parts else dot(a, b)).astype(out_dtype)


def _dot_in_parts(dot: Callable, a: Array, b: Array, axes: tuple[int, int]) -> Array:
    """The sum of the dots of `PARTIAL_SUM` terms each; what an addition rounds off goes into the next (Kahan 1965)."""
    count, rest = divmod(a.shape[axes[0]], PARTIAL_SUM)

    def part(start: Any, size: int) -> Array:
        cuts = (jax.lax.dynamic_slice_in_dim(x, start, size, axis) for x, axis in zip((a, b), axes, strict=True))
        return dot(*cuts)

    def add(n: Any, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        total, excess = sums
        term = part(rest + n * PARTIAL_SUM, PARTIAL_SUM) - excess
        after = total + term
        return after, (after - total) - term

    # A remainder comes first, so that the loop's slices are of one size.
    first = part(0, rest) if rest else jnp.zeros_like(jax.eval_shape(dot, a, b))
    return jax.lax.fori_loop(0, count, add, (first, jnp.zeros_like(first)))[0]


def _highest() -> bool:
    asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return asked in ("highest", "float32")


@jax.custom_vjp
def _dense(x: Float[Array, " N d_in"], w: Float[Array, " d_out d_in"]) -> Float[Array, " N d_out"]:
    return contract(x, w.astype(x.dtype), (1, 1), x.dtype)


def _dense_forward(x: Any, w: Any) -> tuple[Array, tuple]:
    # x is kept for the weight's gradient only: a frozen weight saves nothing of the batch.
    return _dense(x.value, w.value), (x.value if w.perturbed else None, w.value, x.perturbed)


def _dense_backward(saved: tuple, dy: Array) -> tuple[Array | None, Array | None]:
    x, w, x_perturbed = saved
    if isinstance(dy, SymbolicZero):
        return None, None
    dx = contract(dy, w.astype(dy.dtype), (1, 0), dy.dtype) if x_perturbed else None
    return dx, None if x is None else _weight_gradient(dy, x, w.dtype)


def _weight_gradient(dy: Float[Array, " N d_out"], x: Float[Array, " N d_in"], dtype: Any) -> Array:
    """dW = dy^T x, with the narrower operand on the left.

    Both operands are contracted over their rows. XLA:CPU transposes the left one in a slow strided loop first, so
    the left one should be small; the transpose of a product is cheap (LoRA's B: 1.7 times the whole step's speed).
    """
    if dy.shape[1] <= x.shape[1]:
        return contract(dy, x, (0, 0), dtype)
    return contract(x, dy, (0, 0), dtype).T


_dense.defvjp(_dense_forward, _dense_backward, symbolic_zeros=True)
