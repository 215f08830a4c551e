"""`telehandler check`: what holds is found, and what does not, each with its remedy and an exit code of 1."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.cgroups import missing_controllers
from support.command_line import telehandler
from support.policies import policy_text
from support.servers import Server

pytestmark = pytest.mark.usefixtures("as_root")


def check(*arguments: str, policy: Path) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit code and the findings by name."""
    done = telehandler("check", "-o", "json", "--helper-policy", str(policy), *arguments)
    assert "Traceback" not in done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(done.stdout)["findings"]:
        found.setdefault(finding["name"], []).append(finding)
    return done.returncode, found


def missing(found: dict[str, list[dict[str, Any]]]) -> set[str]:
    return {name for name, findings in found.items() if any(finding["ok"] is False for finding in findings)}


def of_server(server: Server) -> list[str]:
    ssl = server.ssl
    words = {"-s": f"localhost:{server.port}", "-c": ssl / "client.pem", "-k": ssl / "client-key.pem"}
    words |= {"-r": ssl / "root.pem", "--server-cert": ssl / "server.pem", "--server-key": ssl / "server-key.pem"}
    return [str(word) for pair in words.items() for word in pair]


def test_the_security_of_this_installation(server: Server, policy: Path) -> None:
    status, found = check("--security", *of_server(server), policy=policy)
    expected = {"S10"} if missing_controllers() else set()
    assert missing(found) == expected
    assert status == (1 if expected else 0)
    seen = {name for name, findings in found.items() if all(finding["ok"] is not None for finding in findings)}
    assert seen >= {f"S{n}" for n in (1, 7, 9, 10, 11, 13, 14, 15, 16, 17, 18, 19, 21, 22, 23, 24, 25, 26, 27, 30, 35)}
    assert seen >= {"S36", "S38"}


def test_what_a_loose_policy_gives_away_is_missing(place: Path, ssl: Path) -> None:
    policy = place / "loose.toml"
    policy.write_text(policy_text('[profile.host]\nnetwork = "host"\nhidden = []\n'))
    policy.chmod(0o644)
    keys = place / "loose-ssl"
    shutil.copytree(ssl, keys)
    (keys / "client-key.pem").chmod(0o644)
    words = ["-s", "localhost:1", "-c", str(keys / "client.pem"), "-k", str(keys / "client-key.pem")]
    status, found = check("--security", *words, policy=policy)
    assert status == 1
    assert missing(found) >= {"S27", "S38"}
    assert [finding["ok"] for finding in found["S36"]] == [None]  # nobody listens there


def test_a_policy_that_others_can_write_is_one_finding(place: Path) -> None:
    policy = place / "open.toml"
    policy.write_text(policy_text())
    policy.chmod(0o666)
    status, found = check("--security", policy=policy)
    assert status == 1
    assert missing(found) == {"helper"}


def test_the_machine(server: Server, policy: Path) -> None:
    status, found = check(*of_server(server), policy=policy)
    assert {name for name, findings in found.items() if findings[0]["ok"]} >= {"kernel", "machine", "helper", "job"}
    assert missing(found) == ({"limits"} if missing_controllers() else set())
    assert status == (1 if missing_controllers() else 0)
    assert len(found["certificates"]) == 2


def test_a_strict_policy_refuses_ordinary_jobs_where_controllers_are_missing(place: Path) -> None:
    policy = place / "strict-check.toml"
    policy.write_text("")
    policy.chmod(0o644)
    _, found = check(policy=policy)
    assert ("job" in missing(found)) == bool(missing_controllers())
    for name in missing_controllers()[:1]:
        assert name in found["job"][0]["text"]


def test_text_names_what_is_missing_and_the_score(policy: Path) -> None:
    done = telehandler("check", "--helper-policy", str(policy), "-c", "/no/such.pem")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"ok        kernel        Linux {os.uname().release}")
    assert any(line.startswith("not seen  certificates") and "/no/such.pem" in line for line in lines)
    assert lines[-1].endswith("hold")
    assert done.stderr == ""
