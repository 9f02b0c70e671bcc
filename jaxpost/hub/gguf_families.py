"""The architectures of GGUF files that are understood, as one table."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What one `general.architecture` fixes; transformers' `model_type` is the same word.

    Attributes:
      model_class: transformers' class.
      paired_rows: llama.cpp's converter lays rows `i` and `i + head_dim / 2` of a q or k head side by side, as its
        rotary embedding of this architecture turns them; else rows are in Hugging Face's order.
      rope_factors: the llama3 scaling may be stored as a tensor.
      qkv_bias: q, k and v have biases, nothing else has; None: as the file has them (q, k, v and o all or none).
      mlp_bias: the MLP may have biases.
      qk_norm: heads of q and k have a norm, [head_dim].
    """

    model_class: str
    paired_rows: bool = False
    rope_factors: bool = False
    qkv_bias: bool | None = None
    mlp_bias: bool = False
    qk_norm: bool = False


ARCHITECTURES = {
    "llama": Architecture(model_class="LlamaForCausalLM", paired_rows=True, rope_factors=True, mlp_bias=True),
    "qwen2": Architecture(model_class="Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Architecture(model_class="Qwen3ForCausalLM", qk_norm=True),
}
