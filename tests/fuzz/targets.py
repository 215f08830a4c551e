"""Atheris targets: `python tests/fuzz/targets.py wire|policy [libFuzzer's options] CORPUS`. A finding ends it."""

import sys
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
with atheris.instrument_imports(include=["helper.wire", "helper.policy", "tomllib"]):
    from helper import policy, wire

SEEDS: dict[str, list[bytes]] = {
    "policy": [path.read_bytes() for path in [*ROOT.glob("contrib/*.toml"), ROOT / "helper" / "policy.toml"]],
    "wire": [
        wire.pack(wire.Type.HELLO, 1),
        wire.pack(wire.Type.SIGNAL, 2, handle=1, signal=15),
        wire.pack(
            wire.Type.START, 3, tag=bytes(16), stdio=0, parent=0,
            place=[b"", b"/"], argv=[b"sh", b"-c", b"x"], env=[b"A=1"],
            **dict.fromkeys(wire.LIMITS.split(), 0),
        ),
        wire.pack(wire.Type.ERROR, 4, stage=1, errno=2, text=[b"why"]),
    ],
}  # fmt: skip


def parse_datagram(data: bytes) -> None:
    try:
        message = wire.unpack(data)
    except wire.WireError:
        return
    again = wire.pack(message.type, message.request_id, message.fd_count, **message.fields)
    if again != data:
        raise AssertionError("two datagrams for one message")


def parse_policy(data: bytes) -> None:
    try:
        rules = policy.parse("policy.toml", data.decode("utf-8", "replace"))
    except policy.SetupError as error:
        if "policy.toml" not in str(error):
            raise AssertionError("an error that does not name its file") from error
        return
    if rules.uid_first < 1000 or rules.uid_first + rules.uid_count > 1 << 31 or rules.max_jobs < 1:
        raise AssertionError("a policy that gives system uids, or no job")
    for name, value in rules.default.items():
        if not 1 <= value <= rules.maximum[name]:
            raise AssertionError(f"{name} is without a bound")


TARGETS: dict[str, Callable[[bytes], None]] = {"wire": parse_datagram, "policy": parse_policy}


def main() -> None:
    name, *options = sys.argv[1:]
    corpus = Path(options[-1])
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
