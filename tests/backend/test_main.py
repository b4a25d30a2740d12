"""The web program stays free of what only workers need."""

import subprocess
import sys

CODE = """
import sys
import backend.main, backend.storage, backend.db.migrate
print(sorted({"torch", "transformers", "peft", "numpy", "worker", "dashboard"} & set(sys.modules)))
"""


def test_no_tensors_are_loaded() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
