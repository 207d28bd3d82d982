"""Scalars for TensorBoard: every number of metrics.jsonl, over environment steps."""

import struct
import sys

import numpy as np
import pytest

import surefoot as sf
from surefoot import history

SMALL = {"envs": 8, "horizon": 16, "hidden": (8,), "critic_hidden": (8,), "critic_epochs": 1, "evaluation_episodes": 1}


def events(folder):
    """(step, tag, value) of every scalar in the event files of a folder."""
    from tensorboardX.proto.event_pb2 import Event

    for file in folder.iterdir():
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)


@pytest.mark.long
def test_the_scalars_are_those_of_the_metrics(tmp_path):
    out = tmp_path / "run"
    sf.train("CartPole-v1", steps=300, out=out, tensorboard=True, progress=False, **SMALL)
    told = list(events(out / "tensorboard"))
    read = history.read(out)
    for name in ("kl", "promised_gain", "accepted", "realised_gain"):
        column = read.column(name)
        seen = {step: value for step, tag, value in told if tag == name}
        known = np.isfinite(column)
        assert list(seen) == read.column("steps")[known].tolist()
        np.testing.assert_allclose(list(seen.values()), column[known], rtol=1e-6)
    bounds = [row["estimated_bounds"] for row in read.rows if row["estimated_bounds"]]
    assert len(bounds) == sum(tag == "estimated_bounds/chain-kl" for _, tag, _ in told) > 0


def test_without_tensorboardx_it_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(sf.SettingError, match=r"pip install 'surefoot\[tensorboard\]'"):
        sf.train("CartPole-v1", steps=300, out=tmp_path / "run", tensorboard=True, progress=False, **SMALL)
    assert not (tmp_path / "run").exists()
