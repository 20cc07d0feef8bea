"""Content is found as given, in the checkout, or as installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from evotune import content
from evotune.errors import UsageError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder as a wheel leaves it, and an empty current folder."""
    package = tmp_path / "site-packages" / "evotune"
    for path in ("kernels/matmul.py", "kernels/softmax.py", "evaluators/cpu.yaml", "recordings/gemm/meta.json"):
        file = package / "_content" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("", encoding="utf-8")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(content, "PACKAGE", package)
    return package / "_content"


def test_the_checkout_holds_the_content_that_it_runs_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert content.checkout() == content.root() == ROOT
    assert content.find("evaluators/cpu.yaml", content.EVALUATORS) == ROOT / "evaluators" / "cpu.yaml"


def test_a_shipped_file_is_found_from_an_empty_folder(installed: Path) -> None:
    assert content.checkout() is None
    assert content.find("kernels/matmul.py", content.KERNELS) == installed / "kernels" / "matmul.py"


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("matmul", content.KERNELS, "kernels/matmul.py"),
        ("matmul.py", content.KERNELS, None),
        ("cpu", content.EVALUATORS, "evaluators/cpu.yaml"),
        ("gemm", content.RECORDINGS, "recordings/gemm"),
    ],
)
def test_a_bare_name_is_that_of_a_shipped_entry(
    installed: Path, name: str, kind: content.Kind, path: str | None
) -> None:
    if path is None:
        with pytest.raises(UsageError, match="did you mean"):
            content.find(name, kind)
    else:
        assert content.find(name, kind) == installed / path


def test_a_users_copy_hides_the_shipped_file(installed: Path) -> None:
    shutil.copytree(installed / "kernels", "kernels")
    assert content.find("kernels/matmul.py", content.KERNELS) == Path("kernels/matmul.py")


def test_a_folder_does_not_hide_a_shipped_file_of_its_name(installed: Path) -> None:
    Path("cpu").mkdir()
    assert content.find("cpu", content.EVALUATORS) == installed / "evaluators" / "cpu.yaml"


def test_several_kinds_are_searched_in_their_order(installed: Path) -> None:
    assert content.find("gemm", content.KERNELS, content.RECORDINGS) == installed / "recordings" / "gemm"


def test_nothing_outside_the_content_is_reached_through_it(installed: Path) -> None:
    (installed.parent / "secret.py").write_text("", encoding="utf-8")
    with pytest.raises(UsageError):
        content.find("../secret.py", content.KERNELS)


def test_a_missing_file_names_the_nearest_and_all_that_is_shipped(installed: Path) -> None:
    with pytest.raises(UsageError) as caught:
        content.find("kernels/matmull.py", content.KERNELS)
    text = str(caught.value)
    assert "'kernels/matmull.py'" in text
    assert "did you mean 'kernels/matmul.py'?" in text
    assert "kernels/softmax.py" in text


def test_a_file_of_another_kind_is_said_to_be_there(installed: Path) -> None:
    Path("kernel.cu").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"'kernel\.cu' is not a \.py file"):
        content.find("kernel.cu", content.KERNELS)


def test_an_installation_without_content_says_so(installed: Path) -> None:
    shutil.rmtree(installed)
    with pytest.raises(UsageError, match="shipped: nothing"):
        content.find("matmul", content.KERNELS)
