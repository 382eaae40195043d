import json

import numpy as np
import paddle
import pytest
from conftest import network, run
from sklearn.metrics.pairwise import cosine_similarity

from ppconvmixer import UserError
from ppconvmixer.insight import diversity, maps
from ppconvmixer.insight.diversity import channel_correlation, cka, describe, effective_rank, position_similarity
from ppconvmixer.loader import evenly

RNG = np.random.default_rng(0)


def test_similarity_of_positions_is_the_mean_over_all_pairs():
    features = RNG.standard_normal((3, 5, 2, 4)) + 0.3
    pairs = []
    for picture in features:
        cosines = cosine_similarity(picture.reshape(5, 8).T)
        pairs.extend(cosines[~np.eye(8, dtype=bool)])
    assert position_similarity(features) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert position_similarity(np.ones((1, 3, 2, 2))) == pytest.approx(1)
    assert position_similarity(RNG.standard_normal((2, 3, 1, 1))) == 1
    opposite = np.zeros((1, 2, 1, 2))
    opposite[0, 0, 0] = [1, -4]
    assert position_similarity(opposite) == pytest.approx(-1)


def test_correlation_of_channels_that_vary():
    matrix = RNG.standard_normal((50, 6)) @ RNG.standard_normal((6, 6)) + 7
    wanted = np.abs(np.corrcoef(matrix.T))[~np.eye(6, dtype=bool)].mean()
    assert channel_correlation(matrix) == pytest.approx(wanted, abs=1e-12)
    assert channel_correlation(np.insert(matrix, 2, 3.0, axis=1)) == pytest.approx(wanted, abs=1e-12)
    assert channel_correlation(np.ones((5, 3))) == 0


def test_effective_ranks_that_are_known():
    left, right = (np.linalg.qr(RNG.standard_normal((40, 8)))[0] for _ in range(2))
    for values, wanted in (
        ([2] * 5 + [0] * 3, 5),
        ([1] + [0] * 7, 1),
        ([3, 1] + [0] * 6, 0.75**-0.75 * 0.25**-0.25),  # exp of -(3/4 log 3/4 + 1/4 log 1/4)
    ):
        assert effective_rank(left * values @ right.T) == pytest.approx(wanted, rel=1e-9)
    assert effective_rank(np.zeros((3, 2))) == 0


def test_cka_against_its_definition_by_kernels():
    a, b = RNG.standard_normal((30, 4)) + 2, RNG.standard_normal((30, 7))
    b[:, :2] += a[:, :2]
    centring = np.eye(30) - 1 / 30

    def hsic(x, y):
        return np.trace(x @ x.T @ centring @ y @ y.T @ centring)

    wanted = hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))
    np.testing.assert_allclose(cka([a, b]), [[1, wanted], [wanted, 1]], atol=1e-12)
    turn = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    np.testing.assert_allclose(cka([a, 5 * a @ turn - 3, b])[2], [wanted, wanted, 1], atol=1e-12)
    # By hand: x, and (x, y) with y independent of x and as large, so that 1 / sqrt(1 * 2) is left.
    x, y = np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1])
    np.testing.assert_allclose(cka([x[:, None], np.stack([x, y], 1), y[:, None]])[0], [1, 0.5**0.5, 0], atol=1e-12)
    assert cka([a, np.ones((30, 2))])[0, 1] == 0


def test_layers_of_a_network_computed_one_after_the_other():
    model = network(dim=6, depth=2, kernel_size=3, patch_size=2)
    model.eval()
    images = RNG.standard_normal((20, 3, 8, 8)).astype(np.float32)
    found = describe(model, images)
    with paddle.no_grad():
        x = model.stem(paddle.to_tensor(images))
        streams = [x]
        for block, layer in zip(model.blocks, found["layers"][1:]):
            half = block[0].fn(x)
            stream, more = x.numpy().astype(float).ravel(), half.numpy().astype(float).ravel()
            assert layer["added"] == pytest.approx(np.linalg.norm(more) / np.linalg.norm(stream), rel=1e-5)
            cosine = more @ stream / np.linalg.norm(more) / np.linalg.norm(stream)
            assert layer["along"] == pytest.approx(cosine, abs=1e-5)
            x = block[3](block[2](block[1](half + x)))
            streams.append(x)
    rows = [np.moveaxis(s.numpy().astype(float), 1, -1).reshape(-1, 6) for s in streams]
    np.testing.assert_allclose(found["cka"], cka(rows), atol=1e-5)
    for layer, stream, matrix in zip(found["layers"], streams, rows):
        assert layer["positions"] == pytest.approx(position_similarity(stream.numpy()), abs=1e-5)
        assert layer["channels"] == pytest.approx(channel_correlation(matrix), abs=1e-5)
        assert layer["rank"] == pytest.approx(effective_rank(matrix - matrix.mean(0)), rel=1e-4)
    assert found["layers"][0]["added"] is None and [layer["name"] for layer in found["layers"]][1] == "block 0"


def test_large_maps_are_seen_a_picture_at_a_time_and_compared_at_some_positions(monkeypatch):
    model = network(dim=6, depth=2, kernel_size=3, patch_size=2)
    images = RNG.standard_normal((5, 3, 8, 8)).astype(np.float32)
    whole, seen = describe(model, images), []
    monkeypatch.setattr(maps, "ROOM", 0)
    monkeypatch.setattr(diversity, "ROOM", 0)
    assert whole["compared"] == 5 * 16
    forward = model.forward_features
    monkeypatch.setattr(model, "forward_features", lambda x: (seen.append((len(x), forward(x).numpy())), x)[1])
    monkeypatch.setattr(diversity, "POSITIONS", 33)
    some = describe(model, images)
    assert some["compared"] == 33 and [count for count, _ in seen] == [1] * 5
    for layer, wanted in zip(some["layers"], whole["layers"]):
        for key in ("positions", "added", "along"):  # these are of all positions as ever
            assert layer[key] == (wanted[key] and pytest.approx(wanted[key], abs=1e-5)), key
    rows = np.concatenate([np.moveaxis(part, 1, -1).reshape(-1, 6) for _, part in seen]).astype(float)
    rows = rows[evenly(5 * 16, 33)]
    last = some["layers"][-1]
    assert last["channels"] == pytest.approx(channel_correlation(rows), abs=1e-5)
    assert last["rank"] == pytest.approx(effective_rank(rows - rows.mean(0)), rel=1e-4)


def test_maps_that_hold_no_numbers_are_refused():
    model = network(dim=6, depth=2, kernel_size=3, patch_size=2)
    model.blocks[0][1].bias.set_value(paddle.to_tensor(np.float32([0, 0, np.nan, 0, 0, 0])))
    with pytest.raises(UserError, match="the map of block 0 holds what is no number; .*; take another checkpoint"):
        describe(model, RNG.standard_normal((2, 3, 8, 8)).astype(np.float32))


def test_inspect_mixing(tmp_path, capsys, tiny_weights, class_folders):
    command = ["inspect", "mixing", "--weights", tiny_weights, "--data", class_folders, "--limit", 3]
    assert run(*command, "--output", tmp_path / "mixing.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 pictures") and len(lines) == 7 and len(lines[2].split()) == 4
    assert (tmp_path / "mixing.png").read_bytes().startswith(b"\x89PNG")
    assert run(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert np.shape(found["cka"]) == (5, 5) and all(1 <= layer["rank"] <= 64 for layer in found["layers"])
