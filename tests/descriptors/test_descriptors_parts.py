import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from descriptors_cases import HYPERS, LODE, RADIAL, random_piece

from dlpr.descriptors import Lode, Parts, RadialSpectrum, Soap, UserFeatures, descriptor, members
from dlpr.errors import JobError

SPECIES = (1, 6)
PARTS = {"short": {"soap": HYPERS}, "pair": {"radial": RADIAL}, "long": {"lode": LODE}}
MADE = descriptor({"parts": PARTS}, SPECIES)
PIECES = [random_piece(n, s, i) for i, (n, s) in enumerate([(6, SPECIES), (3, [6])])]


def test_columns_are_those_of_the_parts_by_name():
    expected = [Lode(LODE, SPECIES), RadialSpectrum(RADIAL, SPECIES), Soap(HYPERS, SPECIES)]
    features = MADE.compute(PIECES)
    assert list(MADE.components) == ["long", "pair", "short"]
    for columns, one in zip(MADE.components.values(), expected, strict=True):
        np.testing.assert_array_equal(features[:, columns], one.compute(PIECES))
        np.testing.assert_array_equal(MADE.columns_with(1)[columns], one.columns_with(1))
        for name, values in one.columns.items():
            np.testing.assert_array_equal(MADE.columns[name][columns], values)
    assert features.shape == (9, MADE.n_features) == (9, sum(one.n_features for one in expected))
    assert columns.stop == MADE.n_features
    assert MADE.cutoff == np.inf
    assert not MADE.reads_rows


def test_columns_that_a_part_lacks_are_marked():
    columns = MADE.columns
    assert {len(values) for values in columns.values()} == {MADE.n_features}
    pair = columns["part"] == 1
    assert (columns["neighbour_1"][pair] == -1).all()
    assert (columns["neighbour_1"][~pair] > 0).all()
    assert np.isnan(columns["weight"][pair]).all()
    assert (columns["neighbour"] == -1).tolist() == (~pair).tolist()


def test_order_in_the_job_does_not_matter_and_settings_are_kept():
    other = descriptor({"parts": dict(reversed(PARTS.items()))}, SPECIES)
    assert json.dumps(other.settings()) == json.dumps(MADE.settings())
    kept = json.loads(json.dumps(MADE.settings()))
    again = pickle.loads(pickle.dumps(descriptor(kept)))  # noqa: S301
    assert again.settings() == kept
    np.testing.assert_array_equal(again.compute(PIECES), MADE.compute(PIECES))
    assert [type(one) for one in members(again)] == [Lode, RadialSpectrum, Soap]
    assert next(iter(members(Soap(HYPERS, [6])))).cutoff == 3.0


def test_users_features_are_a_part_too(tmp_path):
    values = np.arange(12.0).reshape(6, 2)
    np.save(tmp_path / "a.npy", values)
    settings = {"own": {"features": {"file": str(tmp_path / "a.npy")}}, "soap": {"soap": HYPERS}}
    parts = descriptor({"parts": settings}, SPECIES)
    assert parts.reads_rows
    assert parts.cutoff == 3.0
    piece = replace(PIECES[0], centre=np.array([4, 1]), row=np.array([5, 0]))
    features = parts.compute([piece])
    np.testing.assert_array_equal(features[:, :2], values[[5, 0]])
    np.testing.assert_array_equal(features[:, 2:], Soap(HYPERS, SPECIES).compute([piece]))
    assert isinstance(next(members(parts)), UserFeatures)


def test_memory_is_enough_for_each():
    needs = [one.compute_nbytes(50, 100, 0.1, 1e4) for one in members(MADE)]
    assert max(needs) < MADE.compute_nbytes(50, 100, 0.1, 1e4) < sum(needs)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, r"descriptor\.parts is empty; it must have one"),
        ({"a": {"saop": HYPERS}}, r"in descriptor\.parts\.a: unknown descriptor 'saop'.*'soap'"),
        ({"a": {"parts": {}}}, r"in descriptor\.parts\.a: unknown descriptor 'parts'"),
        ({"a": {"soap": HYPERS, "lode": LODE}}, r"parts\.a: .* has 2 descriptors; it must have"),
        ({"b": {"soap": {**HYPERS, "cutoff": 3}}}, r"parts\.b: descriptor\.soap\.cutoff is 3"),
    ],
)
def test_parts_that_cannot_be_made(parts, message):
    with pytest.raises(JobError, match=message):
        descriptor({"parts": parts}, SPECIES)


def test_versions_of_featomic_are_told_apart_in_parts():
    kept = {**MADE.settings(), "featomic": "0.1.2"}
    with pytest.raises(JobError, match=r"belong to featomic 0\.1\.2"):
        descriptor(kept)
    assert isinstance(MADE, Parts)
