import json

import pytest

from tests.test_cli import KEYS, evotune, needs_compiler

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kernels/attention.py", "--shapes", "smal,defualt"], ["'smal'", "did you mean 'small'", "'default'"]),
        (["kernels/attention.py", "--shapes", "small,odd,small"], ["'small' is given twice"]),
        (["kernels/attention.py", "--shapes", "small"], ["found 1", "give 2 to 12"]),
        (["kernels/attention.py", "--shapes", "small,odd", "--shape", "long"], ["--shape is given too"]),
        (["kernels/attention.py", "--shapes", "small,odd", "--search", "pattern"], ["'pattern'", "--search"]),
        (["kernels/attention.py", "--shapes", "small,odd", "--warm-start", "x.db"], ["--warm-start"]),
        (["kernels/attention.py", "--shapes", "small,odd", "--prompts", "."], ["--prompts"]),
        (["recordings/conv_A100", "--shapes", "a,b"], ["recording", "kernel file"]),
        (
            ["kernels/attention.py", "--shapes", "small,odd", "--out", "nowhere/h.py"],
            ["nowhere/h.py", "no folder nowhere"],
        ),
        (["kernels/attention.py", "--shapes", "small,odd", "--out", "."], [". cannot be written", "not a file"]),
        (["kernels/attention.py", "--shapes", "small,odd", "--max-evaluations", "1"], ["--max-evaluations 1"]),
        (["kernels/attention.py", "--out", "h.py"], ["--out", "--shapes"]),
    ],
)
def test_shapes_that_cannot_be_used_end_with_2_and_say_what_to_do(tmp_path, arguments, words):
    done = evotune("run", *arguments, cwd=tmp_path, check=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_a_kernel_is_tuned_for_several_shapes_and_the_program_is_written_to_a_file(tmp_path):
    command = ["run", "kernels/attention.py", "--target", "cpu", "--shapes", "small,odd", "--max-evaluations", 14]
    command += ["--out", "heuristic.py", "--journal", "j.db"]
    first = json.loads(evotune(*command, "--json", cwd=tmp_path, check=0).stdout)
    assert set(first) == KEYS | {"program", "score", "single", "shapes"}
    assert first["provenance"] == "measured"
    assert first["evaluations"] == 14
    assert [row["shape"] for row in first["shapes"]] == ["small", "odd"]
    text = (tmp_path / "heuristic.py").read_text(encoding="utf-8")
    assert text == first["program"]
    namespace = {}
    exec(text, namespace)
    for row in first["shapes"]:
        assert (
            namespace["get_kernel_config"](row["problem"]) == row["config"] == first["best"]["config"][row["shape"]]
        )
        assert row["speedup_ci95"][0] <= row["speedup"] <= row["speedup_ci95"][1]
    again = evotune(*command, cwd=tmp_path, check=0)
    assert first["run_id"] in again.stdout
    assert text.strip() in again.stdout
