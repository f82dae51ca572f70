"""Weights that are not read as they are: what such files are called, and how to convert them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection

ADAPTER_PICKLE = "adapter_model.bin"
_INDEX = "pytorch_model.bin.index.json"
# What OpenAI calls its releases.
_RELEASES = ("tiny", "base", "small", "medium", "large", "turbo")
_VERSIONS = ("tiny.en", "base.en", "small.en", "medium.en", "large-v1", "large-v2", "large-v3")
PICKLES = (
    "pytorch_model.bin",
    _INDEX,
    "model.pt",
    "pytorch_model.pt",
    "whisper.pt",
    *(f"{name}.pt" for name in (*_RELEASES, *_VERSIONS, "large-v3-turbo")),
)
_OPENAI = re.compile(r"(encoder|decoder)\.blocks\.\d+\..+")
# It is in no wheel, and this is the last release whose library it fits.
_SCRIPT = (
    "https://raw.githubusercontent.com/huggingface/transformers/v4.57.6/src/transformers/models/"
    "whisper/convert_openai_to_hf.py"
)


def conversion_of(name: str, *, has_config: bool) -> str:
    """Return the command that converts a pickled file to safetensors.

    A file ending in .pt is of OpenAI's layout, unless it stands beside a config.json.
    """
    if name == _INDEX:
        return _python(
            "import json, transformers as t; getattr(t, json.load(open('config.json'))"
            "['architectures'][0]).from_pretrained('.').save_pretrained('.')"
        )
    if name.endswith(".pt") and not has_config:
        return (
            f"pip install 'transformers<5' tiktoken torch && curl -LO {_SCRIPT} && python "
            f"convert_openai_to_hf.py --checkpoint_path {shlex.quote(name)} "
            "--pytorch_dump_folder_path converted --convert_preprocessor True"
        )
    target = "adapter_model" if name == ADAPTER_PICKLE else "model"
    return _python(
        "import torch, safetensors.torch as s; "
        f"t = torch.load({name!a}, weights_only=True, map_location='cpu'); "
        f"s.save_file({{n: v.clone() for n, v in t.items()}}, '{target}.safetensors')"
    )


def renaming_of(weights: Collection[str]) -> str:
    """Return the command that gives tensors of OpenAI's layout the names that transformers has."""
    loaded = " | ".join(f"s.load_file({name!a})" for name in weights)
    return f"curl -LO {_SCRIPT} && " + _python(
        "import safetensors.torch as s; "
        f"from convert_openai_to_hf import rename_keys; t = rename_keys({loaded}); "
        "s.save_file({'model.' + n: v.contiguous() for n, v in t.items()}, 'model.safetensors')"
    )


def _python(script: str) -> str:
    """Return the shell's command for a script.

    People paste it, and names of files are the checkpoint's: none may run anything.
    """
    plain = not any(mark in script for mark in '"$`\\!')
    return f'python -c "{script}"' if plain else f"python -c {shlex.quote(script)}"


def is_openai_name(name: str) -> bool:
    """Return whether a tensor of a Whisper has a name of OpenAI's layout."""
    return _OPENAI.fullmatch(name) is not None
