"""What the README and docs/ say is there is there: commands, flags, files, links, snippets."""

import argparse
import functools
import importlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml

from method import __version__
from method.data.captions import Caption
from method.evaluation.moments import Moment
from method.runtime.errors import InputError
from method.serving.answer import Answer, Hit
from method.serving.output import as_json
from tests.helpers.paths import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
NAMES = [page.relative_to(REPOSITORY).as_posix() for page in PAGES]
LANGUAGES = {"bash", "python", "json", "yaml", "text", "bibtex"}
# Programs that are not of this repository, and words of the shell before a command.
FOREIGN = {"bash", "python", "python3", "pip", "conda", "tensorboard", "pre-commit", "scontrol", "cd", "exit", "."}
SHELL = {"srun", "if", "then", "fi"}
PROGRAMS = [
    *(f"method/{name}.py" for name in ("train", "evaluate", "search")),
    *sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "utils").glob("[!_]*.py")),
    "benchmarks/ablation.py",
]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"(?:(?:method|utils|tests|docs|configs|benchmarks)/|do_|requirements)[\w./*-]*")
_VARIABLE = re.compile(r"[A-Za-z_]+=")
_OPERATORS = {"&&", "||", "|", ";"}


@dataclass(frozen=True)
class Fence:
    language: str
    code: str


class _Called(Exception):
    """What a program gives to its argument parser."""

    def __init__(self, parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> None:
        super().__init__()
        self.parser, self.arguments = parser, arguments


def fences(page: Path) -> list[Fence]:
    return [Fence(*match.groups()) for match in _FENCE.finditer(page.read_text("utf-8"))]


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text("utf-8"))


def spans(page: Path) -> list[str]:
    """What stands in backticks, in one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command of a page, operators and redirections of the shell taken off."""
    for fence in fences(page):
        if fence.language == "bash":
            for line in fence.code.replace("\\\n", " ").splitlines():
                words = shlex.shlex(line, posix=True, punctuation_chars=True)
                words.whitespace_split = True
                yield from _split(list(words))


def _split(words: Sequence[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in _OPERATORS:
            command.append(word)
        elif command:
            yield command[: command.index("<")] if "<" in command else command
            command = []


def call(program: str, arguments: Sequence[str]) -> _Called:
    """Start a program, up to the point where it reads its arguments."""
    module = importlib.import_module(program.removesuffix(".py").replace("/", "."))

    def stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> NoReturn:
        raise _Called(self, args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(_Called) as called:
            module.main(list(arguments))
    return called.value


def exists(name: str) -> bool:
    """Whether a path, which may have `*` in it, is there; folders end with a slash."""
    return any(REPOSITORY.glob(name.rstrip("/")))


def expect_parses(program: str, arguments: Sequence[str]) -> None:
    assert exists(program), program
    called = call(program, arguments)
    if "--help" not in arguments:
        called.parser.parse_args(called.arguments)  # raises, naming the flag


@functools.cache
def flags_of(program: str) -> set[str]:
    return {name for action in call(program, []).parser._actions for name in action.option_strings}


def check(command: Sequence[str]) -> None:
    """AssertionError or what the program raises for words that it does not know."""
    words = list(command)
    while words and (words[0] in SHELL or _VARIABLE.match(words[0])):
        name, is_set, _ = words.pop(0).partition("=")
        assert not is_set or name in _shell_code() or name.islower(), name
    if not words or words[0].startswith("("):
        return
    program, *rest = [name.removeprefix(".venv/bin/") for name in words]
    if program == "torchrun":
        script = next(i for i, word in enumerate(rest) if word.endswith(".py"))
        expect_parses(rest[script], rest[script + 1 :])
    elif program == "bash" and rest[0] == "do_search.sh":
        expect_parses("utils/search_videos.py", rest[1:])
    elif program == "bash" and rest[0].startswith("do_"):
        assert exists(rest[0]), rest[0]
        expect_parses("method/train.py", ["--dataset_name", rest[0][3:-3], *rest[1:]])
    elif program == "python" and rest[0].endswith(".py"):
        expect_parses(rest[0], rest[1:])
    else:
        assert program in FOREIGN, program
        missing = [word for word in rest if _PATH.fullmatch(word) and not exists(word)]
        assert not missing, missing


@functools.cache
def _shell_code() -> str:
    return "".join(
        path.read_text("utf-8") for path in (*REPOSITORY.glob("do_*.sh"), REPOSITORY / "utils/environment.sh")
    )


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_those_of_the_programs(page: Path) -> None:
    assert {fence.language for fence in fences(page)} <= LANGUAGES
    for command in commands(page):
        try:
            check(command)
        except BaseException as error:
            raise AssertionError(f"{page.name}: {shlex.join(command)}: {error}") from error


def test_a_wrong_command_is_found() -> None:
    for words in (
        ["bash", "do_charades.sh", "--no_such_flag"],
        ["python", "method/train.py", "--amp", "bf8"],
        ["python", "utils/no_such_program.py"],
        ["NPROCS=2", "bash", "do_tvr.sh"],
        ["pip", "install", "-r", "requirements-none.txt"],
        ["curl", "-O", "x"],
    ):
        with pytest.raises((AssertionError, InputError)):
            check(words)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_scripts_are_valid_bash(page: Path) -> None:
    script = "\n".join(fence.code for fence in fences(page) if fence.language == "bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_flags_and_files_in_the_text_exist(page: Path) -> None:
    flags = {"--help", "--strict", "--extra-index-url", "--signal"}.union(*map(flags_of, PROGRAMS))
    for span in spans(page):
        words = span.split()
        if span.startswith("--"):
            unknown = [word for word in words if word.startswith("--") and word not in flags]
            assert not unknown, f"{page.name}: {span}"
            if len(words) > 1 and all(word in flags_of("method/train.py") for word in words if word[:2] == "--"):
                expect_parses("method/train.py", words)
        elif _PATH.fullmatch(span):
            assert exists(span), f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            there = (page.parent / path).resolve() if path else page
            assert exists(there.relative_to(REPOSITORY).as_posix()), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(0).random((3, 2)).astype(np.float32)
    queries, videos = np.array(["a#enc#0", "b#enc#0", "b#enc#1"]), np.array(["a", "b"])
    np.savez(tmp_path / "scores.npz", query_ids=queries, video_ids=videos, action=scores, object=scores, fused=scores)
    monkeypatch.chdir(tmp_path)
    for fence in fences(page):
        # What extending.md has and the session in search.md have tests of their own.
        if fence.language == "python" and page.name != "extending.md" and not fence.code.startswith(">>>"):
            exec(compile(fence.code, page.name, "exec"), {})
        elif fence.language == "yaml":
            assert {f"--{key}" for key in yaml.safe_load(fence.code)} <= {"--base", *flags_of("method/train.py")}
        elif fence.language == "json":
            json.loads(fence.code)


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text("utf-8").splitlines()) <= 170


def test_the_json_of_a_search_is_documented() -> None:
    moment = Moment(0.1, 0.2, 0.15, 0.5)
    hit = Hit(
        1, "video", {"action": 0.5, "object": 0.5, "fused": 0.5}, {"action": 0.1, "object": 0.1}, (0.5,), moment, 9.0
    )
    answer = as_json(Answer(Caption("", "", "a sentence"), [hit], None, None, 0.1), "test", 1)
    (example,) = (json.loads(f.code) for f in fences(REPOSITORY / "docs/search.md") if f.language == "json")
    assert shape(example) == shape(answer)
    named = " ".join(spans(REPOSITORY / "docs/search.md")).split()
    assert set(example) | set(example["query"]) | {"score", "moment", "timeline"} <= {*named, "text", "caption_id"}


def shape(value: Any) -> Any:
    """The keys of a JSON value, and those of the first element of each list."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) else None


@pytest.mark.parametrize(
    "stage", ["model", "ops", "data", "text", "negatives", "training", "evaluation", "serving", "config"]
)
def test_the_architecture_page_names_every_module(stage: str) -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text("utf-8")
    named = set(re.findall(r"`(\w+(?:\.py|/))`", re.findall(rf"\*\*`method/{stage}/`\*\*.*?\n\n", text, re.DOTALL)[-1]))
    folder = REPOSITORY / "method" / stage
    there = {path.name for path in folder.glob("*.py")} | {
        f"{path.parent.name}/" for path in folder.glob("*/__init__.py")
    }
    assert there - {"__init__.py"} <= named
    assert named <= there | {path.name for path in folder.rglob("*.py")}


@pytest.mark.parametrize("name", ["CITATION.cff", ".pre-commit-config.yaml", ".github/ISSUE_TEMPLATE/bug.yml",
                                  ".github/workflows/tests.yml"])  # fmt: skip
def test_files_for_github_are_yaml(name: str) -> None:
    assert isinstance(yaml.safe_load((REPOSITORY / name).read_text("utf-8")), dict)


def test_the_version_is_the_newest_of_the_changelog() -> None:
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d{2}-\d{2}$", PAGES[2].read_text("utf-8"), re.MULTILINE)
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))["version"] == releases[0] == __version__
