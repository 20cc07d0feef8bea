import shutil
import sys
from pathlib import Path

from evotune.cpu.builder import Builder
from evotune.files import digest
from evotune.kernel import load_checked, load_kernel

SAXPY = Path(__file__).parent / "cpu" / "saxpy.py"


def with_neighbour(folder: Path, text: str, package: str = "beside") -> Path:
    """A kernel that is called what a package beside it says, and whose C code begins with it."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(f"from .{package}_said import said\n")
    (folder / package / f"{package}_said.py").write_text(f"said = {text!r}\n")
    kernel = folder / "k.py"
    add = f"\nfrom {package} import said\nname = said\nTEMPLATE = f'/* {{said}} */' + TEMPLATE\n"
    kernel.write_text(SAXPY.read_text() + add)
    return kernel


def test_a_kernel_file_imports_what_lies_beside_it_here_and_in_its_children(tmp_path):
    kernel = load_checked(with_neighbour(tmp_path, "hello"))  # a child imports it first
    assert kernel.name == "hello"
    assert set(kernel.neighbours) == {"beside/__init__.py", "beside/beside_said.py"}
    assert str(tmp_path) not in sys.path
    builder = Builder(kernel, kernel.problem(None, "cpu"), 10.0)
    try:
        config = {"variant": "right", "opt": "-O2", "tag": 0}
        assert builder.source(config).text.startswith("/* hello */")
    finally:
        builder.close()


def test_an_edit_of_a_module_beside_the_kernel_is_another_kernel(tmp_path):
    path = with_neighbour(tmp_path, "first")
    first = load_kernel(path)
    assert load_kernel(path).source_hash == first.source_hash
    (tmp_path / "beside" / "beside_said.py").write_text("said = 'the second'\n")
    second = load_kernel(path)
    assert second.name == "the second"
    assert second.source_hash != first.source_hash


def test_modules_of_the_same_name_beside_two_kernels_are_told_apart(tmp_path):
    one, other = (load_kernel(with_neighbour(tmp_path / text, text)) for text in ("one", "other"))
    assert (one.name, other.name) == ("one", "other")


def test_what_is_installed_is_not_hidden_by_a_file_beside_the_kernel(tmp_path):
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('not the library')")
    kernel = Path(shutil.copy(SAXPY, tmp_path))
    kernel.write_text(kernel.read_text() + "\nimport colorsys\n")
    sys.modules.pop("colorsys", None)
    assert load_kernel(kernel).neighbours == {}


def test_a_kernel_without_neighbours_is_known_by_its_text_alone(tmp_path):
    """So that journals of earlier versions are still its own; a virtual environment beside it is none of it."""
    installed = tmp_path / ".venv" / "lib" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "installed_beside.py").write_text("")
    kernel = Path(shutil.copy(SAXPY, tmp_path))
    paths = f"sys.path.append({str(installed)!r}); import installed_beside; sys.path.pop()"
    kernel.write_text(f"{kernel.read_text()}\nimport sys; {paths}\n")
    assert load_kernel(kernel).source_hash == digest(kernel.read_text())
