"""The tensors of a GGUF file under Hugging Face's names.

Facts of the format: llama.cpp's converter lays the rows of a Llama's q and k in pairs (row `i` of a head beside row
`i + head_dim / 2`, as its rotary embedding turns them) and keeps every other matrix as Hugging Face has it; dimensions
are listed innermost first.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from jaxpost.core.errors import InputError
from jaxpost.hub.gguf_families import ARCHITECTURES
from jaxpost.hub.gguf_file import GgufFile, read_float32
from jaxpost.hub.safetensors_writer import Unwritten

# GGUF's tensor of a block -> (Hugging Face's module, rows, columns) in the sizes of `_sizes`.
BLOCK_MATRICES = {
    "attn_q": ("self_attn.q_proj", "q", "d"),
    "attn_k": ("self_attn.k_proj", "kv", "d"),
    "attn_v": ("self_attn.v_proj", "kv", "d"),
    "attn_output": ("self_attn.o_proj", "d", "q"),
    "ffn_gate": ("mlp.gate_proj", "f", "d"),
    "ffn_up": ("mlp.up_proj", "f", "d"),
    "ffn_down": ("mlp.down_proj", "d", "f"),
}
BLOCK_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
ROPE_FACTORS = "rope_freqs.weight"  # no weight of the model: the llama3 scaling of the rotary frequencies


def hf_tensors(file: GgufFile, config: Mapping[str, Any]) -> list[Unwritten]:
    """The checkpoint's float32 tensors under Hugging Face's names, for the config.json of `gguf_config.hf_config`.

    Every tensor of the file is accounted for before any is read.

    Raises:
      InputError: missing, unknown or mis-shaped tensors, or a quantisation that the `gguf` package cannot undo.
    """
    expected = _expected(config)
    _check_names(file, set(expected), config["model_type"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    if not ARCHITECTURES[config["model_type"]].paired_rows:
        heads = {}
    out = []
    for name, (hf_name, shape) in expected.items():
        tensor = file.tensors[name]
        got = tuple(int(n) for n in reversed(tensor.shape))
        if got != shape:
            raise InputError(f"{file.path}: tensor `{name}` must be {list(shape)} by the metadata; got {list(got)}.")
        _check_dequantisable(file.path, tensor)
        pairs = next((count for part, count in heads.items() if f".{part}." in name), None)
        out.append(Unwritten(hf_name, np.dtype(np.float32), shape, partial(_read, file.path, tensor, pairs)))
    return out


def unpair_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo GGUF's row order of q and k: row `2i + j` of a head goes to row `i + j * head_dim / 2`.

    Args:
      rows: `[heads * head_dim, ...]`.

    >>> unpair_rows(np.arange(8), heads=2).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _read(path: Path, tensor: gguf.ReaderTensor, pairs: int | None) -> np.ndarray:
    values = read_float32(path, tensor)
    return values if pairs is None else unpair_rows(values, pairs)


def _expected(config: Mapping[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF name -> (Hugging Face's name, shape) of every tensor that this config has."""
    size = _sizes(config)
    table = (size["v"], size["d"])
    out: dict[str, tuple[str, tuple[int, ...]]] = {"token_embd.weight": ("model.embed_tokens.weight", table)}
    for i in range(config["num_hidden_layers"]):
        for part, (module, rows, columns) in BLOCK_MATRICES.items():
            out[f"blk.{i}.{part}.weight"] = (f"model.layers.{i}.{module}.weight", (size[rows], size[columns]))
            if _has_bias(config, part):
                out[f"blk.{i}.{part}.bias"] = (f"model.layers.{i}.{module}.bias", (size[rows],))
        for part, module in BLOCK_NORMS.items():
            out[f"blk.{i}.{part}.weight"] = (f"model.layers.{i}.{module}.weight", (size["d"],))
        for part, module in HEAD_NORMS.items() if ARCHITECTURES[config["model_type"]].qk_norm else ():
            out[f"blk.{i}.{part}.weight"] = (f"model.layers.{i}.{module}.weight", (config["head_dim"],))
    out["output_norm.weight"] = ("model.norm.weight", (size["d"],))
    if not config["tie_word_embeddings"]:
        out["output.weight"] = ("lm_head.weight", table)
    return out


def _has_bias(config: Mapping[str, Any], part: str) -> bool:
    if part.startswith("ffn"):
        return config.get("mlp_bias", False)
    if ARCHITECTURES[config["model_type"]].qkv_bias:
        return part != "attn_output"
    return config["attention_bias"]


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["head_dim"]
    sizes = {"v": config["vocab_size"], "d": config["hidden_size"], "f": config["intermediate_size"]}
    return sizes | {"q": heads * width, "kv": kv_heads * width}


def _check_names(file: GgufFile, expected: set[str], family: str) -> None:
    got = set(file.tensors) - ({ROPE_FACTORS} if ARCHITECTURES[family].rope_factors else set())
    for problem, names in (("lacks", expected - got), ("has unknown", got - expected)):
        if names:
            listed = ", ".join(f"`{name}`" for name in sorted(names)[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(f"{file.path}: a {family} model of this metadata {problem} tensors: {listed}{more}.")


def _check_dequantisable(path: Path, tensor: gguf.ReaderTensor) -> None:
    try:
        gguf.dequantize(tensor.data[:1], tensor.tensor_type)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise InputError(
            f"{path}: tensor `{tensor.name}` must be of a type that the gguf package dequantises; got {kind}. "
            "Take a file quantised as Q8_0 or F16."
        ) from error
