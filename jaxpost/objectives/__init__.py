"""Forward, statistics and loss glued into what `make_step` differentiates."""

from jaxpost.objectives.policy import adapter_policy, full_policy
from jaxpost.objectives.score import make_score, token_logprobs
from jaxpost.objectives.sft import sft

__all__ = ["adapter_policy", "full_policy", "make_score", "sft", "token_logprobs"]
