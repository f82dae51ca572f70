"""Training in short windows: what the checkpoint has afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

from study.finetuning import Example, fine_tune

POSITIONS = "model.encoder.embed_positions.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model"), 16)
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1)
    config = WhisperConfig(vocab_size=20, decoder_start_token_id=0, **sizes, **tokens)
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_all_weights_but_the_positions_are_trained_and_the_window_is_30_s(
    base: Path, tmp_path: Path
) -> None:
    random = torch.Generator().manual_seed(0)
    examples = [
        Example(torch.randn(80, 3000, generator=random), 51 + 10 * n, torch.arange(2, 5 + n))
        for n in range(10)
    ]
    fine_tune(base, examples, tmp_path / "expert", steps=3, learning_rate=1e-2)
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "expert"))
    assert {name: weight.shape for name, weight in old.items()} == {
        name: weight.shape for name, weight in new.items()
    }
    unchanged = [name for name, weight in old.items() if torch.equal(weight, new[name])]
    assert unchanged == [POSITIONS]
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "expert")
    assert model.config.max_source_positions == 1500
    with torch.no_grad():
        model(input_features=examples[0].features[None], labels=examples[0].labels[None])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
def test_a_lora_is_an_adapter_of_all_linear_layers_that_peft_loads(
    base: Path, tmp_path: Path
) -> None:
    examples = [Example(torch.randn(80, 3000), 51, torch.arange(2, 6)) for _ in range(8)]
    fine_tune(base, examples, tmp_path / "expert", 2, 1e-2, lora_rank=2)
    model = WhisperForConditionalGeneration.from_pretrained(base)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, tmp_path / "expert").merge_and_unload()
    after = merged.state_dict()
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    linear = {
        f"{name}.weight"
        for name, module in merged.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "proj_out"
    }
    assert changed == linear
