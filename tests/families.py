"""Tokenizers with the special tokens that ten and more families of models have, tiny, and their templates.

`tokenizer("qwen3")` has that family's template as models ship it, without tags.
"""

import dataclasses
import functools
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from toy_tokenizer import BYTES, LLAMA3_WORDS, MERGES
from transformers import PreTrainedTokenizerFast

from jaxpost.data.chat.twins import family_templates

IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
INST = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")
INST += ("[TOOL_RESULTS]", "[/TOOL_RESULTS]")
CALLS = ("<tool_call>", "</tool_call>")
GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3 += ("<|eom_id|>", "<|python_tag|>", "<|reserved_special_token_0|>")
PHI3 = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>")
R1 += ("<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>")
R1 += ("<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>")
PHI4_MINI = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|tool|>", "<|/tool|>")
GRANITE = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """`kind`: "bytes" (GPT-2's way), "gemma" (blanks are written as bars), "llama" (one more bar before each piece of
    text) or "mistral" (one before the first). `added` are tokens that are not special by name. `stop` ends a turn;
    `lead` is what the template puts before an answer beside the generation prompt; `trims`: it takes blanks away."""

    special: tuple[str, ...]
    stop: str
    kind: str = "bytes"
    added: tuple[str, ...] = ()
    bos: str | None = None
    eos: str | None = None
    lead: str = ""
    trims: bool = False
    system: bool = True
    tools: bool = False
    thinks: bool = False
    rstrip: bool = False


FAMILIES = {
    "chatml": Family(special=IM, stop="<|im_end|>"),
    "smollm2": Family(special=(*IM, "<repo_name>", "<file_sep>"), stop="<|im_end|>"),
    "qwen2": Family(special=IM, stop="<|im_end|>"),
    "qwen2_5": Family(special=IM, stop="<|im_end|>", added=(*CALLS, "<|fim_prefix|>"), tools=True),
    "qwen3": Family(
        **dict(special=IM, stop="<|im_end|>", tools=True, thinks=True),
        added=(*CALLS, "<tool_response>", "</tool_response>", "<think>", "</think>"),
    ),
    "qwen3_instruct_2507": Family(special=IM, stop="<|im_end|>", added=CALLS, tools=True),
    "qwen3_thinking_2507": Family(
        **dict(special=IM, stop="<|im_end|>", tools=True, thinks=True),
        added=(*CALLS, "<tool_response>", "</tool_response>", "<think>", "</think>"),
    ),
    "llama3": Family(special=LLAMA3, stop="<|eot_id|>", bos="<|begin_of_text|>", eos="<|end_of_text|>", trims=True),
    "llama3_1": Family(special=LLAMA3, stop="<|eot_id|>", bos="<|begin_of_text|>", trims=True, tools=True),
    "llama3_2": Family(special=LLAMA3, stop="<|eot_id|>", bos="<|begin_of_text|>", trims=True, tools=True),
    "mistral": Family(special=INST[:3], stop="</s>", kind="llama", bos="<s>", system=False),
    "mistral_v3": Family(special=INST, stop="</s>", kind="mistral", bos="<s>", lead=" ", trims=True, tools=True),
    "mistral_nemo": Family(special=INST, stop="</s>", bos="<s>", tools=True),
    "gemma": Family(
        **dict(special=GEMMA, stop="<end_of_turn>", kind="gemma", bos="<bos>", eos="<eos>", trims=True, system=False),
        added=("\n\n", "<h1>", "[multimodal]"),
    ),
    "gemma3": Family(
        **dict(special=GEMMA, stop="<end_of_turn>", kind="gemma", bos="<bos>", eos="<eos>", trims=True),
        added=("\n\n", "<h1>", "[multimodal]"),
    ),
    "phi3": Family(special=PHI3, stop="<|end|>", kind="llama", bos="<s>", eos="<|endoftext|>", rstrip=True),
    "phi3_5": Family(special=PHI3, stop="<|end|>", kind="llama", bos="<s>", eos="<|endoftext|>", rstrip=True),
    "phi4_mini": Family(special=PHI4_MINI, stop="<|end|>", eos="<|endoftext|>"),
    "phi4": Family(special=(*IM, "<|im_sep|>"), stop="<|im_end|>"),
    "deepseek_r1_distill": Family(
        **dict(special=R1, stop=R1[1], added=("<think>", "</think>"), bos=R1[0], thinks=True),
    ),
    "granite3": Family(special=GRANITE, stop="<|end_of_text|>"),
    "olmo2": Family(special=IM, stop="<|endoftext|>", bos="<|endoftext|>"),
    "zephyr": Family(special=INST[:3], stop="</s>", kind="llama", bos="<s>"),
}


def untagged(template: str) -> str:
    """The template as models ship it."""
    return re.sub(r"\{%- (end)?generation -%\}", "", template)


@functools.cache
def _backend(name: str) -> str:
    family = FAMILIES[name]
    tokenizer = _bytewise(family) if family.kind == "bytes" else _sentencepiece(family)
    for token in (*family.special, *family.added):
        special = token in family.special
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special, rstrip=family.rstrip and special)])
    return tokenizer.to_str()


def _bytewise(family: Family) -> Tokenizer:
    """Control tokens come after the vocabulary, as those of Llama 3 and Qwen do."""
    vocabulary = {token: index for index, token in enumerate(BYTES.values())}
    pairs = [tuple(merge.split(" ")) for merge in (*MERGES, "Ċ Ġ", "< |", "Ġ <", "| >")]
    for left, right in pairs:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=True))
    words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(family: Family) -> Tokenizer:
    """Control tokens stand in the vocabulary, before the bytes, as those of Llama 2, Mistral and Gemma do."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ<>|/[]_:{}\"',.0123456789\n"
    pieces = [*family.special, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    pairs = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("▁", "▁"), ("i", "n"), ("\n", "\n"), ("<", "|")]
    for left, right in pairs:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    bar = normalizers.Replace(" ", "▁")
    if family.kind == "mistral":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), bar]) if family.kind == "llama" else bar
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def tokenizer(name: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """The family's tokenizer with its template as shipped, or with another."""
    family = FAMILIES[name]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(name)), bos_token=family.bos, eos_token=family.eos or family.stop
    )
    fast.chat_template = untagged(family_templates()[name]) if template is None else template
    fast.name_or_path = f"toy/{name}"
    return fast


def answer_text(family: Family, content: str) -> str:
    """What is trained of an answer: the text with its stop token."""
    return family.lead + (content.strip() if family.trims else content) + family.stop
