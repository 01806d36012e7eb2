"""The example of the docs runs."""

import re
from pathlib import Path


def test_the_example_runs():
    page = Path(__file__).parents[2] / "docs/integrations/vllm.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    exec(compile(block, "vllm.md", "exec"), {})
