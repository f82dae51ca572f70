"""The forms in which checkpoints come, as docs/checkpoints.md lists them."""

from __future__ import annotations

from app.contract.tensors import ADAPTER_WEIGHTS
from app.sources.adapters import ADAPTER_CONFIG
from app.sources.layout import INDEX, WEIGHTS
from app.sources.pickles import ADAPTER_PICKLE, PICKLES
from app.sources.schemes import SCHEMES

_READ = (
    (
        "full checkpoint",
        f"a folder with `config.json` and `{WEIGHTS}`",
        "all of it; floating-point tensors in any mixture of F64, F32, F16 and BF16",
    ),
    (
        "full checkpoint in shards",
        f"`{INDEX}` and the shards that it names, beside `config.json`",
        "the same; a shard that is missing, cut off or not as the index says is named",
    ),
    (
        "full checkpoint saved inside a wrapper",
        "the same, all names behind one prefix (`_orig_mod.`, `module.`, `model.`, any other)",
        "the names without the prefix; warning `key_prefix`",
    ),
    (
        "full checkpoint with added tokens",
        "the same, with more rows in the token embedding than the base has, and its tokenizer",
        "the base's rows are merged, the others carried over; warning `vocabulary_grew`",
    ),
    (
        "LoRA adapter (PEFT)",
        f"a folder with `{ADAPTER_CONFIG}` and `{ADAPTER_WEIGHTS}`",
        "*W + s·B·A* of the base's tensors",
    ),
    (
        "difference",
        f'`"form": "difference"`, and a folder with `{WEIGHTS}`, or shards and their index',
        "the base's tensors plus these; nothing else in the folder is read",
    ),
)
_REFUSED = (
    (
        "pickled weights",
        f"`{PICKLES[0]}`, `model.pt`, `large-v3.pt`, `{ADAPTER_PICKLE}`, ...",
        "never; the error has the command that converts them",
    ),
    (
        "OpenAI's layout",
        f"`encoder.blocks.0...` in `{WEIGHTS}`",
        "not; the error has the command that renames the tensors",
    ),
)


def checkpoint_forms() -> str:
    """Return the forms as a table, and the schemes' URIs below it."""
    rows = "".join(f"| {' | '.join(row)} |\n" for row in (*_READ, *_REFUSED))
    schemes = ", ".join(dict.fromkeys(f"`{folder.form}`" for folder in SCHEMES.values()))
    return (
        f"| form | given as | what is read |\n| --- | --- | --- |\n{rows}\n"
        f"A folder is at a path (command line only), or {schemes}.\n"
    )
