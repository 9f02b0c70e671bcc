"""transformers and PEFT as oracles, in float32 with eager attention. Only tests/parity imports this."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def load(folder: str | Path) -> Any:
    """transformers' model of a folder; every tensor of the folder is used, none is made up."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """float32 logits [time, vocab] of one sequence of token ids, alone in its batch."""
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens, np.int64))[None]).logits[0].float().numpy()
