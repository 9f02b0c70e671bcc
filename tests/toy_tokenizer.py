"""Tiny byte-level tokenizers, built in a moment, with the templates that chat models have.

`toy(template=CHATML)` is a tokenizer of transformers. Special tokens come first, then the 256 bytes, then the merges.
"""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>")
MERGES = ("t h", "th e", "i n", "Ġ t", "Ġt h", "Ġth e", "in g", "a n", "an d", "Ċ Ċ", "Ġ Ġ")
BYTES = bytes_to_unicode()
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)

_HEADER = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
_PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
CHATML = (
    "{% for message in messages %}" + _HEADER + "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}" + _PROMPT
)  # no tags: by prefixes


def _tagged(inside: str, after: str) -> str:
    answer = "{% generation %}" + inside + "{% endgeneration %}" + after
    other = "{{ message['content'] + '<|im_end|>\\n' }}"
    turn = "{% if message['role'] == 'assistant' %}" + answer + "{% else %}" + other + "{% endif %}"
    return "{% for message in messages %}" + _HEADER + turn + "{% endfor %}" + _PROMPT


TAGGED = _tagged("{{ message['content'] + '<|im_end|>' }}", "{{ '\\n' }}")
TAGGED_WITH_NEWLINE = _tagged("{{ message['content'] + '<|im_end|>\\n' }}", "")
TAGGED_CONTENT_ONLY = _tagged("{{ message['content'] }}", "{{ '<|im_end|>\\n' }}")
TAGGED_BARE = _tagged("{{ message['content'] }}", "{{ '|' }}")  # no stop token anywhere
TAGGED_WITH_HEADER = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ '<|im_start|>assistant\\n' + message['content'] + '<|im_end|>\\n' }}{% endgeneration %}{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    + _PROMPT
)
TAGGED_IN_MACRO = (
    "{% macro turn(message) %}" + _HEADER + "{% generation %}{{ message['content'] + '<|im_end|>\\n' }}"
    "{% endgeneration %}{% endmacro %}{% for message in messages %}{{ turn(message) }}{% endfor %}" + _PROMPT
)
TAGGED_USER = TAGGED.replace("== 'assistant'", "== 'system'")  # tags that no assistant turn is inside of
# Reasoning is kept in the last turn and dropped from earlier ones, as Qwen3 does.
THINKING = (
    "{% for message in messages %}{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in content and not loop.last %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    + _HEADER
    + "{{ content + '<|im_end|>\\n' }}{% endfor %}"
    + _PROMPT
)
# The generation prompt opens the reasoning, tags mark the turn with it.
OPENED = _tagged("{{ message['content'] + '<|im_end|>' }}", "{{ '\\n' }}").replace(
    "assistant\\n' }}{% endif %}", "assistant\\n<think>\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_end|>\\n\\n' + "
    "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
# Takes lists of parts, as vision models do; of a string it shows nothing.
PARTS = CHATML.replace(
    "{{ message['content'] + '<|im_end|>\\n' }}",
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ '<|im_end|>\\n' }}",
)
TOOLS = (
    "{% if tools is not none %}{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}" + TAGGED
)


def toy(
    template: str | None = None,
    *,
    eos: str | None = "<|im_end|>",
    pad: str | None = "<|endoftext|>",
    adds_bos: bool = False,
    adds_eos: bool = False,
    merges: tuple[str, ...] = MERGES,
    trim_offsets: bool = False,
    regex: str = "",
    blank_before: bool = False,
) -> PreTrainedTokenizerFast:
    """A tokenizer.

    `adds_bos`, `adds_eos`: its post-processor puts `<|bos|>` before, `eos` after a text. `trim_offsets`: offsets leave
    out blanks, as those of GPT-2 and Llama 3. `regex`: words are split first, so merges stay inside of them ("gpt2" or
    "llama3", which differ in where they split blanks).
    `blank_before`: a blank is put before a text and after each special token, as SentencePiece does.
    """
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *BYTES.values()])}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    for left, right in pairs:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=blank_before, use_regex=regex == "gpt2")
    words = [pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")] if regex == "llama3" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*words, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.normalizer = normalizers.NFC() if regex else None
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    trim = processors.ByteLevel(add_prefix_space=blank_before, trim_offsets=trim_offsets)
    around = f"{'<|bos|> ' if adds_bos else ''}$A{f' {eos}' if adds_eos else ''}"
    ends = processors.TemplateProcessing(single=around, special_tokens=[(t, SPECIAL.index(t)) for t in SPECIAL])
    tokenizer.post_processor = processors.Sequence([trim, ends])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token=eos, pad_token=pad)
    fast.chat_template = template
    fast.name_or_path = "toy/folder"
    return fast


def messages(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation of these contents, user and assistant in turn.

    >>> messages("hi", "hello")
    [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
    """
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
