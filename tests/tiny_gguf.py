"""Tiny GGUF files of Llama, Qwen2 and Qwen3 by gguf's own writer, and what an import must give, in float64.

    expected = tiny_gguf.write(tmp_path / "tiny.gguf", seed=3, types={"ffn_up": "Q4_1"})

Rows of a Llama's q and k are laid pairwise as llama.cpp's converter does; the expected tensors are decoded here from
the stored blocks in float64 and put back by an explicit loop, so nothing of the product or of gguf's dequantiser is in
them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot|>")
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# Merges that tell the rules of words apart: digits that would join, a space that joins a letter, words.
MERGES = ("1 2", "12 3", "Ġ a", "a b", "Ġ ab", "Ġ 1", "Ġ Ġ", "Ġ ,", "' s", "' S", "Ċ Ċ", ". Ċ", "Ã ©", "1 a")
SIZES = {"vocab": 304, "d": 96, "f": 160, "layers": 2, "heads": 12, "kv": 3, "head_dim": 16}
DEFAULT_TYPES = {"token_embd": "Q8_0", "output": "F16", "attn": "Q4_1", "ffn": "Q8_0", "norm": "F32", "bias": "F32"}

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}


def metadata(sizes: Mapping[str, int] = SIZES, architecture: str = "llama") -> dict[str, Any]:
    """Keys and values of a file that imports; int, float, bool, str and lists of these."""
    tokens, types = vocabulary(sizes["vocab"])
    pre = "smollm" if architecture == "llama" else "qwen2"
    return {
        "general.name": "tiny",
        f"{architecture}.block_count": sizes["layers"],
        f"{architecture}.context_length": 256,
        f"{architecture}.embedding_length": sizes["d"],
        f"{architecture}.feed_forward_length": sizes["f"],
        f"{architecture}.attention.head_count": sizes["heads"],
        f"{architecture}.attention.head_count_kv": sizes["kv"],
        f"{architecture}.attention.key_length": sizes["head_dim"],
        f"{architecture}.attention.value_length": sizes["head_dim"],
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.dimension_count": sizes["head_dim"],
        f"{architecture}.rope.freq_base": 500.0,
        f"{architecture}.vocab_size": sizes["vocab"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tiny.CHATML,
    }


def vocabulary(size: int) -> tuple[list[str], list[int]]:
    """Specials, bytes, merged tokens, two user-defined tokens, then unused rows up to `size`."""
    words = [*SPECIALS, *tiny.byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES), "<tool>", "~~~"]
    kinds = [CONTROL] * len(SPECIALS) + [NORMAL] * (256 + len(MERGES)) + [USER_DEFINED] * 2
    unused = [f"[PAD{i}]" for i in range(len(words), size)]
    return words + unused, kinds + [UNUSED] * len(unused)


def write(
    path: Path,
    seed: int = 0,
    *,
    architecture: str = "llama",
    sizes: Mapping[str, int] = SIZES,
    tied: bool = False,
    biases: bool = False,
    types: Mapping[str, str] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    **changes: Any,
) -> dict[str, np.ndarray]:
    """Write the file; returns the float64 tensors by Hugging Face's name that an import must give.

    Args:
      biases: of every linear layer; those of Qwen2's q, k and v are always there.
      types: GGUF's type by the start of a tensor's name inside its block ("attn", "attn_q", "token_embd", ...).
      tensors: float32 or int8 tensors to add or replace, by GGUF's name, or, with None, to leave out.
      changes: metadata by key, with `__` for `.`; None leaves the key out.
    """
    chosen = {**DEFAULT_TYPES, **(types or {})}
    blocks, expected = {}, {}
    for name, values in random_tensors(seed, sizes, architecture, tied=tied, biases=biases).items():
        kind = gguf.GGMLQuantizationType[_type_of(name, chosen)]
        order = row_order(name, sizes) if architecture == "llama" else None
        blocks[name] = (gguf.quantize(values if order is None else values[order], kind), kind)
        expected[hf_name(name)] = _restored(blocks[name][0], kind, order)
    for name, values in (tensors or {}).items():
        if values is None:
            del blocks[name]
        else:
            blocks[name] = (values, gguf.GGMLQuantizationType[{"float32": "F32", "int8": "I8"}[values.dtype.name]])
    kept = metadata(sizes, architecture) | {key.replace("__", "."): value for key, value in changes.items()}
    _write(path, architecture, {key: value for key, value in kept.items() if value is not None}, blocks)
    return expected


def random_tensors(
    seed: int, sizes: Mapping[str, int], architecture: str, *, tied: bool, biases: bool
) -> dict[str, np.ndarray]:
    """Float32 tensors by GGUF's name, rows of q and k still in Hugging Face's order."""
    rng = np.random.default_rng(seed)
    d, f, q, kv = sizes["d"], sizes["f"], sizes["heads"] * sizes["head_dim"], sizes["kv"] * sizes["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (sizes["vocab"], d), "output_norm.weight": (d,)}
    if not tied:
        shapes["output.weight"] = (sizes["vocab"], d)
    matrices = {"attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q)}
    matrices |= {"ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f)}
    for i in range(sizes["layers"]):
        for part, shape in matrices.items():
            shapes[f"blk.{i}.{part}.weight"] = shape
            if biases or (architecture == "qwen2" and part in ("attn_q", "attn_k", "attn_v")):
                shapes[f"blk.{i}.{part}.bias"] = shape[:1]
        shapes |= {f"blk.{i}.{part}.weight": (d,) for part in ("attn_norm", "ffn_norm")}
        if architecture == "qwen3":
            shapes |= {f"blk.{i}.{part}.weight": (sizes["head_dim"],) for part in ("attn_q_norm", "attn_k_norm")}
    return {
        name: (rng.standard_normal(shape) * shape[-1] ** -0.5 + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }


def hf_name(name: str) -> str:
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    stem, kind = name.rsplit(".", 1)
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{MODULES[part]}.{kind}"


def _restored(stored: np.ndarray, kind: gguf.GGMLQuantizationType, source: list[int] | None) -> np.ndarray:
    values = decode(stored, kind)
    if source is None:
        return values
    out = np.empty_like(values)
    out[source] = values
    return out


def row_order(name: str, sizes: Mapping[str, int]) -> list[int] | None:
    """For each row of a Llama file the row in Hugging Face's order, or None where both are the same.

    Row `i + j * head_dim / 2` of a head of q or k goes to `2 i + j`.
    """
    heads = sizes["heads"] if ".attn_q." in name else sizes["kv"] if ".attn_k." in name else 0
    width = sizes["head_dim"]
    order = [h * width + i + j * (width // 2) for h in range(heads) for i in range(width // 2) for j in range(2)]
    return order or None


def decode(stored: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """The stored numbers in float64; of other types than these three by gguf's own dequantiser.

    Q8_0: blocks of a float16 scale and 32 int8. Q4_1: float16 scale and minimum, then 16 bytes: low halves are values
    0 to 15 of the block, high halves 16 to 31.
    """
    if kind.name in ("F32", "F16"):
        return stored.astype(np.float64)
    if kind.name not in ("Q8_0", "Q4_1"):
        return gguf.dequantize(stored, kind)
    size = 34 if kind.name == "Q8_0" else 20
    blocks = stored.reshape(*stored.shape[:-1], -1, size)
    scale = blocks[..., :2].copy().view(np.float16).astype(np.float64)
    if kind.name == "Q8_0":
        values = scale * blocks[..., 2:].copy().view(np.int8)
    else:
        minimum = blocks[..., 2:4].copy().view(np.float16).astype(np.float64)
        halves = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
        values = scale * halves + minimum
    return values.reshape(*stored.shape[:-1], -1)


def llama3_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """`rope_freqs.weight` as llama.cpp's converter computes it, frequency by frequency."""
    out = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < 8192 / 4:
            out.append(1.0)
        elif wavelength > 8192:
            out.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def _type_of(name: str, types: Mapping[str, str]) -> str:
    if name.endswith(".bias"):
        return types["bias"]
    part = name.removesuffix(".weight").split(".")[-1]
    if part.endswith("norm"):
        return types["norm"]
    return types[max((start for start in types if part.startswith(start)), key=len)]


def _write(path: Path, architecture: str, values: Mapping[str, Any], blocks: Mapping[str, tuple]) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    kinds = {bool: "BOOL", int: "UINT32", float: "FLOAT32", str: "STRING"}
    for key, value in values.items():
        if isinstance(value, list):
            item = gguf.GGUFValueType.STRING if isinstance(value[0], str) else gguf.GGUFValueType.INT32
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=item)
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType[kinds[type(value)]])
    for name, (stored, kind) in blocks.items():
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
