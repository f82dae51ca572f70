"""What holds for the project as a whole: arrows, generated pages, packaging, containers."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cli.reference import (
    methods_page,
    settings_page,
    with_checkpoint_forms,
    with_families,
    with_forms,
)

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
LOCK = [
    line for line in (ROOT / "requirements/lock.txt").read_text().splitlines() if line[0] != "#"
]
PROSE = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"]


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def _imports(folder: str) -> set[str]:
    """Return the distributions that a package's modules import, by their names on PyPI."""
    modules = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    ours = {"app", "worker", "cli", "samples"}
    known = packages_distributions()
    foreign = modules - set(sys.stdlib_module_names) - ours
    return {canonicalize_name(known[module][0]) for module in foreign}


def test_imports_run_one_way():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_api_loads_no_torch():
    script = (
        "import sys; import app.main\n"
        "heavy = {'torch', 'transformers', 'safetensors', 'soundfile', 'pyarrow', 'worker'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_what_the_code_imports_is_declared():
    core = _names(PROJECT["dependencies"])
    worker = _names(PROJECT["optional-dependencies"]["worker"])
    optional = _names(PROJECT["optional-dependencies"]["vad"])
    optional |= _names(PROJECT["optional-dependencies"]["ctranslate2"])
    embedded = _names(PROJECT["optional-dependencies"]["embedded"])
    # celery brings kombu and billiard, pydantic its core, httpx2 its own: they share releases.
    brought = {"kombu", "billiard", "pydantic-core", "starlette", "httpcore2"}
    # The API reads parquet where workers are installed too, and does without elsewhere.
    assert _imports("app") - brought - {"pyarrow"} <= core
    assert _imports("worker") - brought <= core | worker | optional
    assert _imports("cli") - brought <= core | embedded


def test_the_lock_has_one_exact_version_of_everything_asked_for():
    names = [canonicalize_name(line.partition("==")[0]) for line in LOCK]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in LOCK)
    asked = _names(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        asked |= _names(extra)
    assert asked <= set(names)
    assert "torch==2.13.0" in LOCK


@pytest.mark.parametrize(
    ("page", "current"), [("settings.md", settings_page), ("methods.md", methods_page)]
)
def test_generated_pages_are_current(page, current):
    assert (ROOT / "docs" / page).read_text() == current(), "run `make docs`"


@pytest.mark.parametrize(
    ("page", "updated"),
    [
        ("evaluation.md", with_forms),
        ("architectures.md", with_families),
        ("checkpoints.md", with_checkpoint_forms),
    ],
)
def test_the_tables_of_forms_and_families_are_current(page, updated):
    text = (ROOT / "docs" / page).read_text()
    assert updated(text) == text, "run `make docs`"


@pytest.mark.parametrize("page", PROSE)
def test_the_make_targets_that_pages_name_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert (
        set(re.findall(r"(?:`|^)make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE)) <= targets
    )


@pytest.mark.parametrize(
    "page", [*PROSE, *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_the_files_and_links_that_pages_name_exist(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:app|worker|cli|tests|docs|scripts|samples)/[\w./-]+)`", text)
    linked = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text)
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [path for path in linked if not (ROOT / page).parent.joinpath(path).exists()]
    assert not missing


def test_the_architecture_page_is_short():
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) < 200


def test_every_service_is_watched_and_restarted():
    for name, service in COMPOSE["services"].items():
        assert service["restart"] == "unless-stopped"
        watched = "healthcheck" in service or _stage(service["build"]["target"]).count(
            "HEALTHCHECK"
        )
        assert watched, name


def _stage(name: str) -> str:
    """Return the part of the Dockerfile that makes a stage."""
    return re.split(r"^FROM ", DOCKERFILE.split(f" AS {name}\n", 1)[1], flags=re.MULTILINE)[0]


def test_images_run_as_a_plain_user_without_capabilities():
    assert re.search(r"^USER 10001:10001$", _stage("runtime"), re.MULTILINE)
    for stage in ("api", "worker"):
        assert f"FROM runtime AS {stage}\n" in DOCKERFILE
        assert "USER" not in _stage(stage)
    for name in ("api", "worker", "worker-cpu"):
        service = COMPOSE["services"][name]
        assert service["cap_drop"] == ["ALL"]
        assert service["read_only"] is True


def test_the_api_image_has_no_torch_and_both_follow_the_lock():
    assert re.search(r"pip install -c requirements/lock.txt \.$", _stage("build-api"), re.MULTILINE)
    assert "pip install -c requirements/lock.txt '.[worker,ctranslate2,vad]'" in _stage(
        "build-worker"
    )
    assert "torch" not in _stage("build-api").lower()


def test_what_the_images_are_built_from_is_there_and_not_ignored():
    copied = " ".join(
        re.findall(r"^COPY (?!--from)(.*) \S+$", _stage("source"), re.MULTILINE)
    ).split()
    let_in = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert set(copied) == set(let_in)
    assert {"setup.py", "pyproject.toml", "worker"} <= set(copied)
    assert all((ROOT / path).exists() for path in copied)


def test_a_wheel_brings_all_that_its_kernels_were_compiled_from(monkeypatch):
    """What a build was made of is looked up beside it: a wheel without a header would not start."""
    asked: dict[str, list] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: asked.update(options))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    there = {str(path) for path in Path("worker/merging/native").glob("*.[ch]")}
    assert asked["ext_modules"]
    for extension in asked["ext_modules"]:
        assert {*extension.sources, *extension.depends} == there


def test_the_composed_service_keeps_its_queue_and_no_secret():
    services = COMPOSE["services"]
    assert "--appendonly yes" in " ".join(services["redis"]["command"])
    assert "redis:/data" in services["redis"]["volumes"]
    assert services["worker-cpu"]["profiles"] == ["cpu"]
    devices = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    assert services["api"]["ports"][0].startswith("127.0.0.1:")
    for password in ("POSTGRES_PASSWORD", "REDIS_PASSWORD"):
        used = re.findall(rf"\${{{password}([^}}]*)}}", (ROOT / "docker-compose.yml").read_text())
        assert used
        assert set(used) == {":?set it in .env"}


def test_the_settings_of_the_composed_service_exist():
    from app.contract.settings import Settings

    known = {f"AFLUENTE_{name.upper()}" for name in Settings.model_fields}
    for name in ("api", "worker", "worker-cpu"):
        assert set(COMPOSE["services"][name]["environment"]) <= known
    assert set(re.findall(r"AFLUENTE_[A-Z_]+", DOCKERFILE)) <= known


def test_make_alone_lists_every_documented_target():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ["install", "demo", "up", "test", "check", "docs", "lock", "bench", "clean"]:
        assert re.search(rf"^  make {target} ", listed, re.MULTILINE)
