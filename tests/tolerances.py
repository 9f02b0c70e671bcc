"""How near two numbers must be, by what is compared, dtype and device. None is relaxed in a test.

`absolute` bounds |a - b|; `relative` bounds max |a - b| / max |b|, per leaf for gradients.
"""

from typing import NamedTuple


class Tolerance(NamedTuple):
    """One of the two is set."""

    absolute: float = 0.0
    relative: float = 0.0


FLOAT32_CPU = {
    "logits": Tolerance(absolute=1e-4),  # against transformers, PEFT
    "gradients": Tolerance(relative=1e-4),  # against torch, every leaf
    "packed": Tolerance(absolute=1e-5),  # packed against unpacked, padding, buckets
    "accumulation": Tolerance(relative=1e-6),  # 8x1 = 2x4 = 1x8: loss and gradient norm
    "mesh": Tolerance(relative=1e-5),  # many devices against one: loss and every gradient leaf
    "same_maths": Tolerance(relative=1e-5),  # remat, scan, chunked against whole, merged against unmerged
    "curve": Tolerance(absolute=1e-3),  # loss curve against TRL over 50 steps
}

BFLOAT16_CPU = {
    "logits": Tolerance(relative=3e-2),  # 8 bits of mantissa through a few layers
    "logps": Tolerance(absolute=1e-1),
}
