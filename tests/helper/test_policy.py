"""The policy file: what is wrong in it is told with its line and key; what is shipped is right."""

import re
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.helper_driver import Helper
from support.policies import write_policy

from helper import policy


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[profile.a]\nnetwork = "host"\n[profile.b]\nnetwork = "no"\n', "line 4: profile.b.network must be"),
        ("[limits.default]\npids = 5\n[limits.maximum]\npids = 0\n", "line 4: limits.maximum.pids must be"),
        ('[profile.a]\nroot = "relative"\n', "line 2: profile.a.root must be an absolute path"),
        ('[profile.a]\nroot = "/a/"\n', "line 2: profile.a.root must be an absolute path"),
        ('[profile.a]\nroot = "/a\\u0000b"\n', "line 2: profile.a.root must be an absolute path"),
        ('[profile.a]\nroot = ["/"]\n', "line 2: profile.a.root must be a str"),
        ('[profile.a]\nroots = "/"\n', "line 2: profile.a.roots must be one of: root, hidden, read_only"),
        ('[profile.a]\nhidden = "/a"\n', "line 2: profile.a.hidden must be a list"),
        ("[profile.a]\nhidden = [1]\n", "line 2: profile.a.hidden must be an absolute path"),
        ('[profile.a]\nread_only = ["/a:/b", "/a:/b:/c"]\n', 'line 2: profile.a.read_only must be a list of "/source'),
        ('[profile.a]\nread_only = ["a:/b"]\n', "line 2: profile.a.read_only must be"),
        ('[profile.a]\nwritable = ["/a:/b/../c"]\n', "line 2: profile.a.writable must be"),
        ('[profile.a]\nwritable = ["/a:"]\n', "line 2: profile.a.writable must be"),
        ("[profile.a]\ntmp_bytes = 0\n", "line 2: profile.a.tmp_bytes must be a number of 1 or more"),
        ("[profile.a]\ntmp_bytes = -1\n", "line 2: profile.a.tmp_bytes must be"),
        ("[profile.a]\ntmp_bytes = 1e6\n", "line 2: profile.a.tmp_bytes must be a int"),
        ("\n\nmax_jobs = true\n", "line 3: max_jobs must be a int"),
        ("starts_per_second = 4611686018427387904\n", "line 1: starts_per_second must be a number"),
        ('allowed_uids = ["root"]\n', "line 1: allowed_uids must be a list of numbers"),
        ('io_devices = ["sda"]\n', "line 1: io_devices must be an absolute path"),
        ("max_jobs = 1\nmax_jobs = 2\n", "Cannot overwrite a value (at line 2"),
        ("[profile.a]\n[profile.a]\n", "twice (at line 2"),
        ("[limits]\nsoft = 1\n", "line 2: limits.soft must be one of: default, maximum"),
        (f"max_jobs = {'[' * 2000}", "maximum recursion depth exceeded"),
        ("[job_uids]\ncount = 10\n", "line 1: job_uids must be from 1000"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_key(text: str, words: str) -> None:
    with pytest.raises(policy.SetupError, match=re.escape(words)) as raised:
        policy.parse("/the/file.toml", text)
    assert str(raised.value).startswith("/the/file.toml")


@pytest.mark.usefixtures("as_root")
def test_the_policies_that_are_shipped_are_accepted(place: Path) -> None:
    """What `make install` puts into /etc names every key with the built-in's value."""
    built_in = Path(policy.BUILT_IN).read_text()
    assert policy.parse("x", built_in) == policy.parse("x", "")
    for path in sorted((ROOT / "contrib").glob("policy*.toml")):
        with Helper(write_policy(place, "shipped", path.read_text())) as helper:
            assert helper.welcome["profiles"] == [b"host"]


@pytest.mark.usefixtures("as_root")
def test_a_link_is_read_where_it_leads_and_one_to_nowhere_is_an_error(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built-in policy stands in for a file that is absent, not for one that has gone missing."""
    link = place / "a link to nowhere.toml"
    link.symlink_to(place / "nowhere.toml")
    monkeypatch.setattr(policy, "DEFAULT_PATH", str(link))
    with pytest.raises(policy.SetupError, match="cannot be read"):
        policy.load(None, set())
    write_policy(place, "nowhere", "max_jobs = 0\n")
    with pytest.raises(policy.SetupError, match=r"nowhere\.toml, line 1: max_jobs"):
        policy.load(None, set())
    link.unlink()
    assert policy.load(None, set()) == policy.parse("", "")
