"""What evotune is built from and with: the lock, the wheel, and the workflows that may publish it."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # coverage brings it

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LEFT_OUT = {"torch", "triton", "helion"}  # scripts/lock says why
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def locked() -> list[Requirement]:
    text = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line[:1].isalnum()]
    assert lines
    for line in lines:
        assert "--hash=sha256:" in line, line[:60]
    return [Requirement(line.split(" --hash")[0]) for line in lines]


def wanted(*extras: str) -> list[Requirement]:
    """Of an installation, with what its extras of evotune itself stand for."""
    texts = PROJECT["dependencies"] + [t for extra in extras for t in PROJECT["optional-dependencies"][extra]]
    out: list[Requirement] = []
    for requirement in map(Requirement, texts):
        own = requirement.name == "evotune"
        out += wanted(*requirement.extras) if own else [requirement]
    return out


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_has_every_package_in_a_version_that_is_wanted(python: str) -> None:
    where = {"python_version": python, "python_full_version": f"{python}.5", "sys_platform": "linux"}
    here = [r for r in locked() if r.marker is None or r.marker.evaluate(where)]
    versions = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in here}
    assert len(versions) == len(here), "one version of each"
    for requirement in wanted("dev"):
        name = canonicalize_name(requirement.name)
        is_wanted = requirement.marker is None or requirement.marker.evaluate(where)
        if is_wanted and name not in LEFT_OUT:
            assert name in versions, f"{name} is not locked: run scripts/lock"
            assert requirement.specifier.contains(versions[name]), f"{requirement}, locked {versions[name]}"


def test_nothing_of_what_the_lock_leaves_out_is_in_it() -> None:
    assert not LEFT_OUT & {canonicalize_name(r.name) for r in locked()}


def build_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_a_wheel_is_complete_and_the_same_each_time_it_is_built(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    first, second = (build_wheel(tmp_path / name) for name in ("first", "second"))
    digests = {hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in (first, second)}
    assert len(digests) == 1
    with zipfile.ZipFile(first) as archive:
        inside = set(archive.namelist())
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=ROOT, check=False, capture_output=True, text=True).stdout
    if not tracked:
        pytest.skip("not a git checkout: nothing says which files belong to it")
    content = ("kernels/", "evaluators/", "prompts/", "recordings/", "config.yaml")
    files = [f for f in tracked.split() if (ROOT / f).exists()]
    due = {f for f in files if f.startswith("evotune/")}
    due |= {f"evotune/_content/{f}" for f in files if f.startswith(content)}
    assert {f for f in inside if ".dist-info/" not in f} == due


# -- workflows ------------------------------------------------------------------------------------


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_the_rights_that_it_names_and_runs_no_action_that_can_change(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {}
    for job in workflow["jobs"].values():
        assert "permissions" in job
        assert "timeout-minutes" in job
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"]), step["uses"]
            if step["uses"].startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
        # What others name (a branch, a title) must not become part of a command.
        assert "${{" not in step.get("run", "")


def test_a_pull_request_gets_neither_secrets_nor_the_right_to_write() -> None:
    assert WORKFLOWS
    for path in WORKFLOWS:
        text = path.read_text(encoding="utf-8")
        workflow = yaml.safe_load(text)
        events = workflow[True]  # YAML reads the word `on` as a truth value
        assert "pull_request_target" not in events
        if "pull_request" in events:
            assert "secrets." not in text
            assert "github.token" not in text
            assert {right for job in workflow["jobs"].values() for right in job["permissions"].values()} == {"read"}


def test_only_the_job_that_runs_none_of_our_code_may_sign() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    signing = [job for job in workflow["jobs"].values() if "id-token" in job["permissions"]]
    assert [job["permissions"] for job in signing] == [{"id-token": "write"}]
    assert all("run" not in step for job in signing for step in job["steps"])
