"""`jaxpost import FILE.gguf --output DIR`: a Hugging Face folder of a GGUF file, weights dequantised to float32."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxpost.core.config import load_config, option
from jaxpost.core.files import new_folder, refuse_existing, write_json
from jaxpost.hub.gguf import hf_tensors
from jaxpost.hub.gguf_config import generation_config, hf_config
from jaxpost.hub.gguf_file import open_gguf
from jaxpost.hub.gguf_tokenizer import tokenizer_config, tokenizer_json
from jaxpost.hub.safetensors_writer import write_folder
from jaxpost.models.families import config_from_hf

ABOUT = "Make a Hugging Face folder of a GGUF file: Llama, Qwen2 or Qwen3, byte-level BPE tokenizer."


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """The options of `jaxpost import`."""

    file: Path = option(help="GGUF file to read", positional=True)
    output: Path = option(help="new folder for the checkpoint")


def main(argv: Sequence[str]) -> int:
    """Runs the command on its arguments; 0 when the folder is there."""
    config = load_config(ImportConfig, argv, command="import", about=ABOUT)
    print(import_gguf(config))
    return 0


def import_gguf(config: ImportConfig) -> str:
    """Writes the folder, whole or not at all, and returns one line about it.

    Weights are read, dequantised and written one at a time; everything that can be refused is refused before.

    Raises:
      InputError: a file that is not understood, or an output folder that is not free.
    """
    refuse_existing(config.output)
    file = open_gguf(config.file)
    settings = hf_config(file)
    config_from_hf(settings, str(config.file))  # what jaxpost itself would refuse is not written
    tensors = hf_tensors(file, settings)
    tokenizer = tokenizer_json(file.metadata, vocab_size=settings["vocab_size"])
    max_length = settings["max_position_embeddings"]
    files = {
        "config.json": settings,
        "generation_config.json": generation_config(file.metadata),
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config(file.metadata, tokenizer, max_length=max_length),
    }
    with new_folder(config.output) as folder:
        for name, content in files.items():
            write_json(folder / name, content)
        write_folder(folder, tensors)
    kinds = Counter(tensor.tensor_type.name for tensor in file.tensors.values())
    stored = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    parameters = sum(math.prod(tensor.shape) for tensor in tensors)
    return f"{config.output}: {settings['num_hidden_layers']} layers, {parameters:,} parameters ({stored}) as float32"
