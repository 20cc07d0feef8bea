"""What is written for Helion is the configuration that Helion itself would have been given."""

import importlib.util
import random

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
helion = pytest.importorskip("helion", reason="helion is not installed")

import helion.language as hl  # noqa: E402

from evotune import history  # noqa: E402
from evotune.export import export, find  # noqa: E402
from evotune.export.helion import joined  # noqa: E402
from evotune.helion.headless import H100, fake_arguments, pretended  # noqa: E402
from evotune.helion.space import HelionSpace  # noqa: E402
from tests.export.journals import write  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]


@helion.kernel
def matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    (m, k), (_, n) = x.size(), y.size()
    out = torch.empty([m, n], dtype=x.dtype, device=x.device)
    for rows, cols in hl.tile([m, n]):
        acc = hl.zeros([rows, cols], dtype=torch.float32)
        for ks in hl.tile(k):
            acc = torch.addmm(acc, x[rows, ks], y[ks, cols])
        out[rows, cols] = acc
    return out


def test_lists_are_put_together_as_helions_space_takes_them_apart(tmp_path):
    arguments, mode = fake_arguments(((512, 256), "float16"), ((256, 512), "float16"))
    with pretended(H100), mode:
        space = HelionSpace(matmul.bind(arguments).config_spec.create_config_generation())
        drawn = [space.space.default, *space.space.sample(random.Random(0), 40)]
        configs = [c for c in map(space.canonical, drawn) if c is not None]
        assert len({space.space.key(c) for c in configs}) > 20
        for config in configs:
            assert space.from_config(helion.Config(**joined(config))) == config
    write(tmp_path / "j.db", [space.space.default])
    pasted = f"{HEAD}{export(find([history.load(tmp_path / 'j.db')]), 'helion').text}{FUNCTION}"
    (tmp_path / "pasted.py").write_text(pasted, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("pasted", tmp_path / "pasted.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (config,) = module.twice.configs
    assert config == helion.Config(**joined(space.space.default))


HEAD = "import helion\nimport helion.language as hl\nimport torch\n\n\n"
FUNCTION = """def twice(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    for tile in hl.tile(x.size()):
        out[tile] = 2 * x[tile]
    return out
"""
