"""The documents are programs: every ``python`` block of README.md and docs/*.md runs.

The blocks of one file run in order, in one namespace, as one module would. The convention for what they
print: the lines that a block writes to stdout are exactly its ``# prints: ...`` comments, in order;
``...`` inside of one stands for any text. A block without such a comment prints nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from tests.conftest import WATCHDOG

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"# prints: ?(.*)$", re.MULTILINE)


def blocks(document: Path) -> list[tuple[str, str]]:
    """Return the python blocks of a document: where each stands, and its code on the lines it has there."""
    text = document.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        found.append((f"{document.name}:{line + 1}", "\n" * line + match[1]))
    return found


def fits(expected: str, line: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in expected.rstrip().split("..."))
    return re.fullmatch(pattern, line.rstrip()) is not None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_run_and_print_what_they_say(document, monkeypatch, capsys, tmp_path):
    """Every python block of a document runs, and prints what its comments say."""
    module = ModuleType(f"docs_{document.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)  # some make files
    for where, code in blocks(document):
        exec(compile(code, str(document), "exec"), module.__dict__)
        printed = capsys.readouterr().out.splitlines()
        expected = PRINTS.findall(code)
        right = len(printed) == len(expected) and all(map(fits, expected, printed))
        assert right, f"{where} says that it prints {expected}, and prints {printed}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    """What a document links to inside the repository exists, headings included."""
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith(("http:", "https:")):
            continue
        name, _, heading = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        if file.name == "performance.md" and not file.exists():
            continue  # it is made from measurements
        assert file.exists(), f"{document.name} links to {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{document.name} links to {target}"


def test_the_pictures_are_those_of_their_script(tmp_path):
    """The script makes every picture that the documents show, and of a flow that has not run the very same one."""
    script, images = ROOT / "docs" / "pictures.py", ROOT / "docs" / "images"
    subprocess.run([sys.executable, script, tmp_path], check=True, timeout=6 * WATCHDOG)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in images.iterdir()}
    assert (tmp_path / "orders.svg").read_text("utf-8") == (images / "orders.svg").read_text("utf-8")
    for path in tmp_path.iterdir():
        ElementTree.parse(path)
        assert "ms-failed" not in path.read_text("utf-8").partition("</style>")[2] or path.name == "orders-run.svg"


def test_the_test_command_installs_the_test_group():
    """The README's test command names exactly the requirements of the group ``test``; ``.`` is Millstream there."""
    command = re.search(
        r"^python3 -m venv .* -m pytest [-a-z ]*$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert command is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    named = [name.replace(".[", "millstream[") for name in re.findall(r"'([^']+)'", command[0])]
    assert named == project["dependency-groups"]["test"]


def test_architecture_names_every_module():
    """The map of the house in docs/architecture.md has every module, and no other."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `([\w/]+\.py)` \|", text, re.MULTILINE))
    source = ROOT / "src" / "millstream"
    files = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    assert named == {name for name in files if not name.endswith("__init__.py")}
