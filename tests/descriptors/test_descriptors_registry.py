import json
import subprocess
import sys

import numpy as np
import pytest
from descriptors_cases import HYPERS, random_piece

from dlpr.descriptors import descriptor
from dlpr.errors import JobError


def test_a_job_and_its_kept_settings_make_the_same_descriptor():
    made = descriptor({"soap": HYPERS}, [8, 1, 8])
    kept = json.loads(json.dumps(made.settings()))
    again = descriptor(kept)
    assert kept["species"] == [1, 8]
    assert made.species == again.species == (1, 8)
    assert again.settings() == made.settings() == descriptor(kept, [1, 8]).settings()
    assert again.cutoff == 3.0
    pieces = [random_piece(6, [1, 8], 0)]
    np.testing.assert_array_equal(again.compute(pieces), made.compute(pieces))


@pytest.mark.parametrize(
    ("settings", "species", "message"),
    [
        ({"saop": HYPERS}, [6], r"unknown descriptor 'saop'; .* is 'soap'"),
        ({}, [6], r"has 0 descriptors; it must have one"),
        ({"soap": HYPERS}, None, r"are for the species None"),
        ({"soap": HYPERS, "species": [1, 6]}, [6], r"species \[1, 6\]; the structures have \[6\]"),
        ({"soap": HYPERS, "featomic": "0.1.2"}, [6], r"featomic 0\.1\.2; .*featomic==0\.1\.2"),
        ({"soap": {}}, [6], r"descriptor\.soap lacks"),
    ],
)
def test_settings_that_cannot_be_used(settings, species, message):
    with pytest.raises(JobError, match=message):
        descriptor(settings, species)


def test_import_leaves_featomic_alone():
    code = "import sys, dlpr.descriptors; sys.exit('featomic' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
