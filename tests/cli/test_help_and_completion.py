"""Help on stdout, and what a shell's completion offers."""

import pytest
from support.command_line import telehandler


@pytest.mark.parametrize(
    "words",
    [
        *(["--help"], ["help"], ["client", "--help"], ["version"], ["--version"]),
        *(["help", "client", "run"], ["client", "help", "run"], ["client", "run", "--help"]),
    ],
)
def test_help_is_on_stdout_and_costs_no_grpc(words: list[str]) -> None:
    done = telehandler(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2]  # each line is whole on 80 columns


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = telehandler("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_TELEHANDLER_COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["client", "w"], ["watch", "wait"]),
        (["client", "run", "--mem"], ["--memory", "--memory-reservation"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["help", "client", "st"], ["stop", "status"]),
        (["client", "si"], ["signal"]),
        (["help", "ver"], ["version"]),
    ],
)
def test_what_completion_offers(typed: list[str], words: list[str]) -> None:
    """As the script of bash asks; by the command's own name, since click finds its variable by that."""
    asked = {"_TELEHANDLER_COMPLETE": "bash_complete", "COMP_CWORD": str(len(typed))}
    done = telehandler(env=asked | {"COMP_WORDS": " ".join(["telehandler", *typed])})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [f"plain,{word}" for word in words]
