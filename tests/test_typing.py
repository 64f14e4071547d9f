"""What a type checker sees: typical code of users under ``mypy --strict``."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import millstream

HERE = Path(__file__).parent
USER_CODE = HERE / "typing_user_code.py"


def test_the_package_says_that_it_is_typed():
    """Without py.typed a checker of the user's would not look at our annotations."""
    assert (Path(millstream.__file__).parent / "py.typed").is_file()


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed (group lint)")
def test_typical_code_of_users_is_checked_as_it_should_be(tmp_path):
    """Right calls pass, wrong ones are refused: an ignore that is not needed is an error too."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--no-error-summary"),
            *("--config-file", "", "--cache-dir", str(HERE.parent / ".mypy_cache" / "user_code"), str(USER_CODE)),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_user_code_can_fail():
    """It has a good number of calls to be refused, and of types to be inferred."""
    text = USER_CODE.read_text()
    assert text.count("# type: ignore[") >= 20
    assert text.count("assert_type(") >= 30
