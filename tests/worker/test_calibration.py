"""What is gathered on calibration sets, and merges that use it: real speech, real checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from app.contract.errors import InvalidManifestError, InvalidRequestError, StorageError
from app.contract.evaluation import DecodingOptions
from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.services.preparation import prepare, source_policy
from app.sources.architectures.registry import calibration_obstacle
from app.storage.leases import JobKind
from tests.worker.test_adapters import FORMS, adapter
from tests.worker.test_evaluation_job import SAMPLES, Service, service
from worker.calibration.examples import teacher_forced
from worker.calibration.gather import Calibration, gatherer
from worker.calibration.measuring import measure
from worker.evaluation.disjoint import refuse_shared
from worker.evaluation.whisper.decoding import SpeechDecoder
from worker.merging.local import fetch_all, merge_recipe
from worker.merging.sweep import sweep_recipe

__all__ = ["service"]
EXPERTS = ("telephone", "fast")
FC1, QUERY = (
    "model.encoder.layers.1.fc1.weight",
    "model.decoder.layers.0.encoder_attn.q_proj.weight",
)


def sets(part: str = "dev", **more: Any) -> dict[str, Any]:
    found = [
        {
            "name": name,
            "uri": (SAMPLES / "speech" / name / f"{part}.jsonl").as_uri(),
            "expert": name,
        }
        for name in EXPERTS
    ]
    return {"datasets": found, "utterances": 3, **more}


def recipe(method: str, **more: Any) -> dict[str, Any]:
    models = SAMPLES / "checkpoints"
    return {
        "base": (models / "base").as_uri(),
        "checkpoints": [(models / name).as_uri() for name in EXPERTS],
        "method": method,
        "calibration": sets(),
        **more,
    }


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("calibration"), device="cpu", threads=2)


@pytest.fixture(scope="module")
def calibration(settings: Settings) -> Calibration:
    parsed = parse_request(recipe("regmean"))
    policy = source_policy(settings, None, any_path=True)
    prepared = prepare(parsed.recipe, policy)
    assert parsed.recipe.calibration is not None
    locals_ = fetch_all(prepared, policy)
    return Calibration(parsed.recipe.calibration, prepared, locals_, settings, policy)


@pytest.fixture(scope="module")
def taught(calibration: Calibration) -> Iterator[tuple[SpeechDecoder, list[Any]]]:
    """An expert's model and its examples."""
    local = calibration.locals[1]
    with local.opened() as folder:
        decoder = SpeechDecoder(folder, "cpu", "float32", DecodingOptions())
        examples = calibration._examples["telephone"]
        yield decoder, [teacher_forced(decoder, one) for one in examples]


def test_gram_matrices_are_those_of_what_went_into_each_layer(
    calibration: Calibration, taught: tuple[SpeechDecoder, list[Any]]
) -> None:
    decoder, examples = taught
    seen: dict[str, list[torch.Tensor]] = {FC1: [], QUERY: []}
    layers = {name: dict(decoder.model.named_modules())[name[: -len(".weight")]] for name in seen}
    handles = [
        layer.register_forward_hook(
            lambda _, given, __, name=name: seen[name].append(given[0][0].double())
        )
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        for one in examples:
            one.logits(decoder.model)
    for handle in handles:
        handle.remove()
    gathered = calibration.gather(parse_request(recipe("regmean")).recipe)["input_grams"]
    for name, parts in seen.items():
        rows, found = torch.cat(parts), gathered.of(name)
        assert found is not None
        size = rows.shape[1]
        expected = (rows.mT @ rows / len(rows)).float()
        here = found.read(0, size * size)[0].view(size, size)
        torch.testing.assert_close(here, expected, rtol=1e-4, atol=1e-4 * float(expected.max()))
    key = gathered.of(QUERY.replace("q_proj", "k_proj"))
    other = gathered.of("model.decoder.layers.1.encoder_attn.v_proj.weight")
    assert key is not None
    assert other is not None
    assert key.places == other.places  # what the encoder says is stored once
    assert gathered.of("model.decoder.embed_tokens.weight") is None
    assert gathered.of("model.encoder.layers.1.fc1.bias") is None


def test_squared_gradients_are_those_of_the_references_log_likelihood(
    calibration: Calibration, taught: tuple[SpeechDecoder, list[Any]]
) -> None:
    decoder, examples = taught
    expected: dict[str, torch.Tensor] = {}
    for one in examples:
        labels = one.tokens[:, 1:].clone()
        labels[:, : one.prompt - 1] = -100
        decoder.model.zero_grad()
        loss = decoder.model(
            input_features=one.features, decoder_input_ids=one.tokens[:, :-1], labels=labels
        ).loss
        (loss * int((labels >= 0).sum())).backward()
        for name, parameter in decoder.model.named_parameters():
            if parameter.grad is not None:
                expected[name] = expected.get(name, 0) + parameter.grad**2 / len(examples)
    decoder.model.zero_grad()
    gathered = calibration.gather(parse_request(recipe("fisher")).recipe)["squared_gradients"]
    for name in (FC1, "model.decoder.embed_tokens.weight", "model.encoder.conv1.bias"):
        found = gathered.of(name)
        assert found is not None
        here = found.read(0, expected[name].numel())[0].view(expected[name].shape)
        scale = float(expected[name].max())
        torch.testing.assert_close(here, expected[name], rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", ["input_grams", "sampled_squared_gradients"])
def test_threads_and_memory_do_not_change_a_bit(
    kind: Any, taught: tuple[SpeechDecoder, list[Any]]
) -> None:
    decoder, examples = taught

    def measured(threads: int, memory_bytes: int) -> dict[str, torch.Tensor]:
        found = measure(
            decoder.model,
            kind,
            examples.__getitem__,
            len(examples),
            threads=threads,
            memory_bytes=memory_bytes,
        )
        return found.tensors

    alone = measured(1, 0)
    for threads, memory in ((3, 2**40), (3, 1)):
        again = measured(threads, memory)
        assert alone.keys() == again.keys()
        assert all(torch.equal(alone[name], again[name]) for name in alone)


def test_drawn_tokens_are_other_tokens(taught: tuple[SpeechDecoder, list[Any]]) -> None:
    decoder, examples = taught
    by_kind = [
        measure(
            decoder.model, kind, examples.__getitem__, 3, threads=1, memory_bytes=0, seed=seed
        ).tensors[FC1]
        for kind, seed in (
            ("squared_gradients", 0),
            ("sampled_squared_gradients", 0),
            ("sampled_squared_gradients", 1),
        )
    ]
    assert not torch.equal(by_kind[1], by_kind[2])
    assert not torch.equal(by_kind[0], by_kind[1])


def test_what_was_gathered_once_is_read_by_later_merges(
    calibration: Calibration, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = parse_request(recipe("regmean")).recipe
    first = calibration.gather(wanted)["input_grams"]
    kept = {path: path.stat().st_ino for path in (settings.data / "statistics").iterdir()}
    monkeypatch.setattr("worker.calibration.gather.SpeechDecoder", None)  # nothing is loaded
    again = replace(calibration, warnings=[], _gathered={})
    assert again.gather(wanted)["input_grams"].sha256 == first.sha256
    assert {path: path.stat().st_ino for path in kept} == kept


def test_an_utterance_that_cannot_be_used_is_left_out_and_named(
    calibration: Calibration, tmp_path: Path
) -> None:
    speech = SAMPLES / "speech" / "fast"
    lines = [json.loads(line) for line in (speech / "dev.jsonl").read_text().splitlines()[:3]]
    for line in lines:
        line["audio_filepath"] = str(speech / line["audio_filepath"])
    lines[1]["audio_filepath"] = str(tmp_path / "gone.flac")
    lines[2]["text"] = "sete " * 40
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "none.jsonl").write_text(json.dumps(lines[1]) + "\n")

    def given(name: str) -> Calibration:
        spec = {"datasets": [{"name": "own", "uri": (tmp_path / name).as_uri()}]}
        parsed = parse_request(recipe("regmean") | {"calibration": spec}).recipe
        assert parsed.calibration is not None
        return replace(calibration, spec=parsed.calibration, warnings=[], _gathered={})

    some = given("some.jsonl")
    some.gather(parse_request(recipe("regmean")).recipe)
    said = " ".join(warning["message"] for warning in some.warnings)
    assert "gone.flac" in said
    assert "too long for the model" in said
    with pytest.raises(InvalidManifestError, match=r"none of the calibration set own .*gone\.flac"):
        given("none.jsonl").gather(parse_request(recipe("regmean")).recipe)


def test_an_adapter_has_the_statistics_of_the_checkpoint_that_it_makes(
    settings: Settings, tmp_path: Path
) -> None:
    base = SAMPLES / "checkpoints" / "base"
    both = adapter(base, tmp_path / "lora", **FORMS["listed"])
    spec = {"datasets": [sets()["datasets"][0] | {"expert": None}], "utterances": 1}
    document = recipe("regmean", checkpoints=[one.as_uri() for one in both], calibration=spec)
    parsed = parse_request(document).recipe
    policy = source_policy(settings, None, any_path=True)
    prepared = prepare(parsed, policy)
    assert parsed.calibration is not None
    made = Calibration(parsed.calibration, prepared, fetch_all(prepared, policy), settings, policy)
    found = made.gather(parsed)["input_grams"].of(QUERY)
    assert found is not None
    first, second = found.read(0, 64 * 64)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4 * float(first.max()))


def test_a_sweep_gives_the_bytes_of_its_points_merged_alone(
    settings: Settings, tmp_path: Path
) -> None:
    gather = gatherer(settings)
    swept = {"labels": ["references", "sampled"]}
    sweep_recipe(recipe("fisher"), swept, tmp_path / "swept", settings, gather=gather)
    for labels in swept["labels"]:
        document = recipe("fisher", parameters={"labels": labels})
        merged = merge_recipe(document, tmp_path / labels, settings, gather=gather)
        for file in merged.files:
            other = tmp_path / "swept" / f"labels={labels}" / file["name"]
            assert other.read_bytes() == (tmp_path / labels / file["name"]).read_bytes()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    elsewhere = Settings(data_dir=tmp_path / "data", device="cpu", threads=2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "statistics").write_bytes(b"")
    with pytest.raises(StorageError, match=r"data/statistics cannot be written.*AFLUENTE_DATA_DIR"):
        merge_recipe(recipe("regmean"), tmp_path / "merged", elsewhere, gather=gatherer(elsewhere))


def test_a_merge_over_the_api_gathers_and_records_what_it_used(service: Service) -> None:
    document = recipe("regmean", rules=[{"match": "*.conv*", "method": "fisher"}])
    answer = service.client.post("/merges", json=document)
    assert answer.status_code == 202, answer.text
    service.work(JobKind.MERGE, answer.json()["id"])
    found = service.client.get(answer.headers["location"]).json()
    assert found["status"] == "succeeded", found["error"]
    folder = f"/merges/{found['id']}/artifacts"
    kept = service.client.get(f"{folder}/recipe.json").json()["calibration"]
    assert set(kept["statistics"]) == {"input_grams", "squared_gradients"}
    assert [one["expert"] for one in kept["datasets"]] == list(EXPERTS)
    tensors = service.client.get(f"{folder}/diagnostics.json").json()["tensors"]
    assert tensors[FC1]["regression"] is True
    assert tensors["model.encoder.conv1.weight"]["experts"][0]["fisher_norm"] > 0
    heard = {name: value for name, value in sets()["datasets"][0].items() if name != "expert"}
    spec = {"datasets": [heard], "language": "pt"}
    refused = service.client.post(f"/merges/{found['id']}/evaluations", json=spec)
    assert refused.status_code == 422
    assert "Calibration and test sets must not share audio" in refused.text


def test_a_later_evaluation_on_what_was_heard_is_refused_in_any_format(
    service: Service, tmp_path: Path
) -> None:
    answer = service.client.post("/merges", json=recipe("regmean"))
    service.work(JobKind.MERGE, answer.json()["id"])
    source = SAMPLES / "speech" / "fast"
    line = json.loads((source / "dev.jsonl").read_text().splitlines()[0])
    samples, rate = soundfile.read(source / line["audio_filepath"], dtype="int16")
    folder = service.settings.data_dir / "sources"
    folder.mkdir(parents=True, exist_ok=True)
    soundfile.write(folder / "same.wav", samples, rate)
    (folder / "same.jsonl").write_text(json.dumps({"audio_filepath": "same.wav", "text": "um"}))
    spec = {"datasets": [{"name": "x", "uri": (folder / "same.jsonl").as_uri()}], "language": "pt"}
    answer = service.client.post(f"{answer.headers['location']}/evaluations", json=spec)
    assert answer.status_code == 202, answer.text
    service.work(JobKind.EVALUATION, answer.json()["id"])
    found = service.client.get(answer.headers["location"]).json()
    assert found["status"] == "failed"
    assert "Calibration and test sets share audio" in found["error"]["message"]


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"calibration": None}, "calibration", "fisher needs speech of each expert's domain"),
        ({"method": "soup"}, "calibration", "soup uses no calibration sets"),
        (
            {"calibration": {"datasets": [sets()["datasets"][0]]}},
            "calibration.datasets",
            "No set is for fast",
        ),
        (
            {"calibration": {"datasets": [sets()["datasets"][0] | {"expert": "telefone"}]}},
            "calibration.datasets[0].expert",
            'Did you mean "telephone"',
        ),
        (
            {"calibration": {"datasets": [{"name": "a", "uri": "file:///nowhere"}]}},
            "calibration.datasets[0].uri",
            "nowhere",
        ),
        (
            {"evaluation": {"datasets": sets()["datasets"][1:], "language": "pt"}},
            "calibration",
            "Calibration and test sets must not share audio",
        ),
    ],
)
def test_calibration_sets_are_checked_before_a_merge_is_queued(
    change: dict[str, Any], param: str, says: str, service: Service
) -> None:
    document = recipe("fisher") | change
    for one in (document.get("evaluation") or {}).get("datasets", ()):
        one.pop("expert", None)
    answer = service.client.post("/merges", json=document)
    problems = answer.json()
    listed = problems.get("errors") or [problems]
    assert answer.status_code in {404, 422, 403}, answer.text
    assert any(says in one["message"] and one["param"] == param for one in listed), answer.text


def test_the_worker_refuses_to_test_on_what_was_heard(calibration: Calibration) -> None:
    heard = {"a": calibration.manifests["fast"]}
    with pytest.raises(InvalidManifestError, match="Calibration and test sets share audio"):
        refuse_shared(heard, {"b": calibration.manifests["fast"]}, None, called="Calibration")


def test_weights_of_calibrated_methods_are_not_negative() -> None:
    document = recipe("regmean")
    document["checkpoints"][1] = {"uri": document["checkpoints"][1], "weight": -1.0}
    with pytest.raises(InvalidRequestError, match="regmean takes no negative weights"):
        parse_request(document)
    rule = {"match": "*fc1*", "method": "regmean"}
    document |= {"method": "task_arithmetic", "rules": [rule]}
    with pytest.raises(InvalidRequestError, match="regmean takes no negative weights"):
        parse_request(document)
    parse_request(document | {"rules": [rule | {"weights": [1.0, 2.0]}]})


def test_only_a_model_that_can_be_taught_is_calibrated() -> None:
    assert calibration_obstacle({"model_type": "whisper", "model_class": None}) is None
    reason = calibration_obstacle({"model_type": "wav2vec2", "model_class": "Wav2Vec2ForCTC"})
    assert reason is not None
    assert reason.startswith("Wav2Vec2ForCTC checkpoints cannot be calibrated, only whisper")
