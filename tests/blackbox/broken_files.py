"""What the tables of broken_models.py are made with: a sound folder with one file changed."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Callable, NamedTuple

DATA = Path(__file__).resolve().parents[1] / "data"
SOUND = DATA / "tiny-llama-tied"  # two shards
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"


class Case(NamedTuple):
    name: str
    reader: str  # whose file is broken: a fuzz target's name
    make: Callable[[Path], Path]  # writes the model into an empty folder; its path
    words: tuple  # what the sentence must hold
    seed: object = None  # the broken file's bytes, where they are small


def shard(header, data_bytes=0, length=None):
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + b"<" * data_bytes


def folder_with(name, content):
    """The sound folder with one file changed: bytes, or a function of the file's path."""
    def make(folder):
        model = folder / "model"
        shutil.copytree(SOUND, model)
        if callable(content):
            content(model / name)
        else:
            (model / name).write_bytes(content)
        return model
    return make


def special(kind):
    """Replaces the file by something that is not one."""
    def write(path):
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path.name)
        else:  # a link that leaves the folder
            outside = path.parents[1] / "outside"
            shutil.copy(SOUND / path.name, outside)
            path.symlink_to(outside)
    return write


def cut(keep):
    """Keeps the first bytes; a negative number cuts from the end."""
    return lambda path: path.write_bytes(path.read_bytes()[:keep])


def edited(name, change):
    """The JSON file `name` of the sound folder after `change(value)`."""
    value = json.loads((SOUND / name).read_text())
    changed = change(value)
    return json.dumps(value if changed is None else changed).encode()


def json_case(name, reader, file, content, *words):
    content = content if isinstance(content, bytes) else edited(file, content)
    return Case(f"{reader}: {name}", reader, folder_with(file, content), words,
                content if len(content) < 1 << 16 else None)
