"""The `jaxpost` command: finds the recipe of a command and turns errors into one line and an exit status."""

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import jaxpost
from jaxpost.core.errors import InputError, RunError, Stopped, suggestion
from jaxpost.core.signals import end_at_once

# command -> (module:function, what it does). Imported when called: `--help` must not load jax.
COMMANDS = {
    "sft": ("jaxpost.recipes.sft:main", "fine-tune on messages, prompt + completion or text rows (LoRA or full)"),
    "rows": ("jaxpost.recipes.rows:main", "name the rows of a step of a run, with the loss of each"),
    "generate": ("jaxpost.recipes.generate:main", "sample from a model: prompts, files, or a chat in the terminal"),
    "doctor": ("jaxpost.recipes.doctor:main", "check data, tokenizer, template, masks and options before a run"),
    "import": ("jaxpost.recipes.import_gguf:main", "make a Hugging Face folder of a GGUF file"),
    "export": ("jaxpost.recipes.export:main", "merge an adapter into a Hugging Face checkpoint"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit status is 0 done, 1 a run that failed, 2 a usage or input error, 130 Ctrl-C,
    143 SIGTERM.

    Without `argv` the process is the command's own, and a signal ends it at once, but for a training that has begun.
    """
    # transformers says on stderr that it found no PyTorch; it is not needed here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        if argv is not None:
            return _run(argv)
        with end_at_once():
            return _run(sys.argv[1:])
    except (InputError, RunError) as error:
        print(f"jaxpost: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except Stopped as stop:
        print(f"jaxpost: {stop}", file=sys.stderr)
        return stop.status
    except OSError as error:  # a full disk, a folder without permission: of the machine, and said in one line too
        print(f"jaxpost: error: {' '.join(str(error).split())}. See the disk and its permissions.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("jaxpost: interrupted", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("--help", "-h", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"jaxpost {jaxpost.__version__}")
        return 0
    command, *rest = argv
    if command not in COMMANDS:
        hint = suggestion(command, COMMANDS) or f" Commands: {', '.join(COMMANDS)}."
        raise InputError(f"unknown command `{command}`.{hint}")
    module, function = COMMANDS[command][0].split(":")
    return getattr(importlib.import_module(module), function)(rest)


def _usage() -> str:
    commands = "\n".join(f"  {name:<10} {does}" for name, (_, does) in COMMANDS.items())
    return (
        "usage: jaxpost COMMAND [--config run.yaml] [--section.key value ...]\n\n"
        f"Post-training of language models in JAX.\n\ncommands:\n{commands}\n\n"
        "`jaxpost COMMAND --help` lists a command's options with their defaults,\n"
        "`jaxpost --version` prints the version."
    )


if __name__ == "__main__":
    sys.exit(main())
