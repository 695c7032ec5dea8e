"""The program ``peerseal``, before its commands begin."""

import subprocess
import sys

INTERRUPTED_WHILE_LOADING = """
import importlib.abc, signal, sys

class CtrlC(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "peerseal.commands.whoami":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, CtrlC())
from peerseal.__main__ import main
sys.exit(main(["--version"]))
"""


def test_ctrl_c_while_the_modules_are_loaded_ends_the_program_quietly() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_LOADING], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
