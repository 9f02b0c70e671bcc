"""Verifiers: completions in, numbers out. No jax."""

from jaxpost.rewards.sql import sql, sql_reward
from jaxpost.rewards.sql_process import Limits

__all__ = ["Limits", "sql", "sql_reward"]
