"""Our verdict on .safetensors files against the Rust crate's (the Python package is the crate): we
accept nothing that it refuses, and refuse what it accepts only by the rules of
engine/model/README.md."""

import copy
import json
import random
import re
import struct
import subprocess

import safetensors

from broken_files import DATA, SECOND, SOUND, shard
from broken_models import CASES, GOOD, entries, entry, one_tensor
from jobs import PROGRAM, ROOT

ROUNDS = 50_000
VERDICTS = PROGRAM.parent / "tests" / "safetensors_verdicts"

# Rule as the README names it: the words we refuse with, a file that only we refuse.
STRICTER = {
    "a header of more than 16 MiB": ("at most 16777216", shard("{}" + " " * (16 << 20))),
    "a key given twice": ("is given twice", shard(entries(("a", GOOD), ("a", GOOD)), 8)),
    "a name of more than 512 bytes or with control characters":
        ("name is not printable", shard(entry(GOOD, "a\\u0007"), 8)),
    "a field of an entry other than the three": ("field '.*' is unknown",
                                                 shard(entry(GOOD + ',"x":1'), 8)),
    "an entry or a dtype in serde's other spellings":
        ("the entry '.*' is not an object|'dtype' is .* not a string", shard('{"a":["F32",[2],[0,8]]}', 8)),
    "`__metadata__` that is null": ("'__metadata__' is not an object",
                                    shard('{"__metadata__":null}')),
    "more than 16 dimensions": ("'shape' is missing or not the list",
                                shard(entry(one_tensor("U8", [1] * 17, 0, 1)), 1)),
    "a size from 2^63 on, or of an empty tensor a product beyond 2^62":
        ("not a size|cannot be computed", shard(entry(one_tensor("U8", [0, 2**63], 0, 0)))),
    "more than 64 levels or four million values":
        ("more than 64 levels|too many values",
         shard(entry(GOOD + ',"x":' + "[" * 70 + "]" * 70), 8)),
}

VALUES = [0, 1, -1, 2, 8, 16, 2.0, 1e3, 1e308, 2**31, 2**61, 2**62, 2**63, 2**64 - 1, 2**64, None,
          True, "", "F32", "f32", "BF16", "U8", "F4", "F6_E2M3", "C64", "I64", "F8_E8M0", [], {},
          [0], [2], [0, 8], [2, 3], [0, 0], [8, 20], [[2]], {"F32": None}, ["F32", [2], [0, 8]],
          [0, 2**63], [2**40, 2**40, 0], [1] * 17]
NAMES = ["dtype", "shape", "data_offsets", "__metadata__", "a", "b", "x", "", "n" * 513, "\u0000"]


def accepted_by_crate(data):
    try:
        safetensors.deserialize(data)
        return True
    except safetensors.SafetensorError:
        return False


def our_verdicts(files):
    frames = b"".join(struct.pack("<Q", len(data)) + data for data in files)
    lines = subprocess.run([VERDICTS], input=frames, stdout=subprocess.PIPE, check=True).stdout
    return lines.decode(errors="replace").split("\n")[:-1]


def pick(rng, value):
    """An object or array inside `value`, at random."""
    while True:
        inner = [v for v in (value.values() if isinstance(value, dict) else value)
                 if isinstance(v, (dict, list)) and v]
        if not inner or rng.random() < 0.3:
            return value
        value = rng.choice(inner)


def mutated(rng, sound):
    """A header changed as JSON, then now and then as bytes; the data a little too long or short."""
    header = copy.deepcopy(sound[0])
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if not header:
            break
        place = pick(rng, header)
        where = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        how = rng.random()
        if how < 0.6:
            place[where] = copy.deepcopy(rng.choice(VALUES))
        elif how < 0.7:
            del place[where]
        elif isinstance(place, dict):
            place[rng.choice(NAMES)] = copy.deepcopy(rng.choice([place[where], *VALUES]))
        else:
            place.append(copy.deepcopy(rng.choice(VALUES)))
    text = bytearray(json.dumps(header, separators=rng.choice([(",", ":"), (", ", ": ")])).encode())
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        if text:
            text[rng.randrange(len(text))] = rng.choice(b'\0\x7f\xff {}[]",:0-19.eE\\u \n')
    length = len(text) + rng.choice([0] * 20 + [1, -1, 2**63])
    num_bytes = max(0, sound[1] + rng.choice([0] * 20 + [1, -1, 8]))
    return struct.pack("<Q", max(length, 0)) + bytes(text) + bytes(num_bytes)


SOUND_HEADERS = [
    ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
      "b": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [8, 20]},
      "__metadata__": {"format": "pt"}}, 20),
    ({"e": {"dtype": "F16", "shape": [0, 7], "data_offsets": [0, 0]},
      "s": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]},
      "f": {"dtype": "F4", "shape": [2, 3], "data_offsets": [8, 11]}}, 11),
    ({}, 0),
]


def test_verdicts_differ_by_the_written_rules_only():
    rng = random.Random(6)
    files = [(SOUND / SECOND).read_bytes(), (DATA / "tiny-llama/model.safetensors").read_bytes()]
    files += [case.seed for case in CASES if case.reader == "safetensors" and case.seed is not None]
    files += [data for _, data in STRICTER.values()]
    files += [mutated(rng, rng.choice(SOUND_HEADERS)) for _ in range(ROUNDS)]
    ours = our_verdicts(files)
    assert len(ours) == len(files)
    both, neither, used = 0, 0, dict.fromkeys(STRICTER, 0)
    for data, verdict in zip(files, ours):
        if not accepted_by_crate(data):
            assert verdict != "ok", f"the crate refuses {data[:400]}"
            neither += 1
        elif verdict == "ok":
            both += 1
        else:
            rules = [rule for rule, (words, _) in STRICTER.items() if re.search(words, verdict)]
            assert rules, f"the crate accepts {data[:400]}, but: {verdict}"
            used[rules[0]] += 1
    print(f"\n{len(files)} files: {both} accepted and {neither} refused by both, by our rules {used}")
    assert both > ROUNDS / 20 and neither > ROUNDS / 5 and min(used.values()) > 0


def test_the_rules_are_written():
    text = (ROOT / "engine/model/README.md").read_text()
    written = text.split("## Stricter than safetensors")[1].split("\n## ")[0]
    assert [line[2:].split(":")[0] for line in written.splitlines() if line.startswith("- ")] \
        == list(STRICTER)
