"""What the doctor says about the options of a run: capacity, learning rate, number of steps."""

import math
from typing import Any

import jax

from jaxpost.adapters import num_parameters
from jaxpost.adapters.targets import matrices, select
from jaxpost.data.checks.findings import Finding, finding
from jaxpost.data.checks.survey import Survey
from jaxpost.hub.model import Model
from jaxpost.hub.peft import load_adapter
from jaxpost.models.config import abstract_params
from jaxpost.recipes.sft_config import LEARNING_RATE, SftConfig

BITS_PER_PARAMETER = 2.0
BITS_PER_TOKEN = 1.0
SLOWER, FASTER = 5.0, 10.0  # how far below and above the default a learning rate is not remarked
FEW_STEPS = 10
LONG_WARMUP = 0.5


def option_findings(config: SftConfig, model: Model, numbers: Survey) -> list[Finding]:
    """Remarks on a resolved configuration for data of these numbers."""
    return [*capacity_findings(config, model, numbers), *rate_findings(config), *step_findings(config, numbers)]


def capacity_findings(config: SftConfig, model: Model, numbers: Survey) -> list[Finding]:
    """Whether what is trained can hold what the data tell: parameters * 2 bits against trained tokens * 1 bit.

    A trained parameter holds about 2 bits of knowledge (Allen-Zhu & Li 2024), and language data tell about 1 bit (0.69
    nats) a token; an adapter with less room than its data learns more slowly than full fine-tuning from then on ("LoRA
    Without Regret", Schulman et al. 2025). Tokens are those of one epoch: a second tells nothing new.
    """
    parameters = trained_parameters(config, model)
    room, told = BITS_PER_PARAMETER * parameters, BITS_PER_TOKEN * numbers.trained_tokens
    if room >= told:
        return []
    detail = f"{parameters:,} parameters hold about {room:.3g} bits, {numbers.trained_tokens:,} tokens tell {told:.3g}"
    return [finding("capacity.adapter", detail=detail)]


def trained_parameters(config: SftConfig, model: Model) -> int:
    """How many numbers a run trains, without loading the model: rank * (in + out) over the adapted matrices."""
    shapes: Any = abstract_params(model.config)
    if config.full:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    if config.adapter is not None:
        return num_parameters(load_adapter(config.adapter, model))
    sizes = {path: leaf.shape for path, leaf in matrices(shapes).items()}
    hits = select(shapes, config.lora.targets)
    return config.lora.rank * sum(sum(hit) * (sizes[path][-1] + sizes[path][-2]) for path, hit in hits.items())


def rate_findings(config: SftConfig) -> list[Finding]:
    """Whether the learning rate is one of its kind: the best of an adapter is about 10 times that of full fine-tuning.

    Measured over 14 models in "LoRA Without Regret" (Schulman et al. 2025); the defaults 2e-4 and 2e-5 stand to each
    other so. Rates from a fifth of the default to ten times it are not remarked.
    """
    usual = LEARNING_RATE["full" if config.full else "adapter"]
    rate = config.learning_rate
    assert rate is not None, "filled in by resolve"
    if usual / SLOWER <= rate <= usual * FASTER:
        return []
    kind = "full fine-tuning" if config.full else "an adapter"
    return [finding("rate.unusual", detail=f"{rate:g} for {kind}, usual is {usual:g}")]


def step_findings(config: SftConfig, numbers: Survey) -> list[Finding]:
    """Runs too short to train, or that are warm-up for the most part."""
    found = []
    if numbers.steps < FEW_STEPS:
        found.append(finding("steps.few", detail=f"{numbers.steps} of batch size {config.batch_size}"))
    warmup = math.ceil(config.warmup_ratio * numbers.steps)
    if warmup > max(1, LONG_WARMUP * numbers.steps):
        found.append(finding("steps.warmup", detail=f"{warmup} of {numbers.steps} steps"))
    return found
